"""How good a policy is: the mean return of whole episodes, without learning.

J = E[sum_t r_t],   estimated by the mean over n episodes, undiscounted, of unchanged rewards
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from torch import Tensor

from upslope.errors import ArgumentError, Interrupted
from upslope.rollout.autoreset import scores
from upslope.rollout.make import checked_kwargs, make_stream

AT_ONCE = 100
LONG = 100_000
"""Steps of an episode after which it is said that it may never end."""
ENDLESS = (
    f"an episode of the evaluation has gone on for {LONG:,} steps: where none ends, neither does "
    "the evaluation. env_kwargs={'max_episode_steps': 1000} limits what gymnasium.make makes"
)


@dataclass(slots=True)
class Best:
    """The best evaluation so far: after how many steps, its mean return, and the policy then."""

    timesteps: int = 0
    mean: float = -math.inf
    tensors: dict[str, Tensor] | None = None
    scale: dict[str, np.ndarray] | None = None
    """The state of the observation normaliser, which is a part of the policy."""


def check_count(name: str, value: Any) -> None:
    """Raise ArgumentError for what is no whole number of at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ArgumentError(f"{name}={value!r}: it takes a whole number of at least 1")


def check_learning(callback: Any, freq: int | None, episodes: int, can_be_made: bool) -> None:
    """Raise ArgumentError for a callback that is none, and evaluations that cannot be."""
    if not (callback is None or callable(callback)):
        raise ArgumentError(f"callback={callback!r}: it takes a function of (agent, metrics)")
    if freq is None:
        return
    check_count("eval_freq", freq)
    check_count("n_eval_episodes", episodes)
    if not can_be_made:
        wanted = "eval_env=, an id or a factory"
        raise ArgumentError(f"eval_freq needs {wanted}: the agent was given an environment")


class Predicts(Protocol):
    """What can be evaluated: whatever has a `predict` like an agent's."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, Any]:
        """Return the actions for observations [N, ...], and the next recurrent state."""
        ...


class Episodes(NamedTuple):
    """Whole episodes: returns [n], lengths in steps [n], scores [n] (nan where there is none)."""

    returns: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray


def run_episodes(
    agent: Predicts,
    env: str | Callable[[], gymnasium.Env] | gymnasium.Env | gymnasium.vector.VectorEnv,
    n_episodes: int,
    *,
    deterministic: bool = True,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    n_envs: int | None = None,
    backend: str = "auto",
    interrupted: Callable[[], int] = lambda: 0,
) -> Episodes:
    """Play `n_episodes` whole episodes in vector environments; returns them in order of place.

    Each environment plays a fixed share of the episodes, so that short ones are not favoured.
    `interrupted` is asked at every step: Interrupted is raised when it returns an exit code. An
    episode of LONG steps is warned of, since it may be one that never ends, unless environments
    say that they limit them.
    """
    check_count("n_eval_episodes", n_episodes)
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentError(f"seed={seed!r}: it takes a whole number of at least 0")
    given = isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv)
    wanted = getattr(env, "num_envs", 1) if given else n_envs or min(n_episodes, AT_ONCE)
    stream = make_stream(env, wanted, env_kwargs=checked_kwargs(env_kwargs), backend=backend)
    break_off(agent, env)
    try:
        stream.reset(seed)
        count = stream.n_envs
        share = np.full(count, n_episodes // count) + (np.arange(count) < n_episodes % count)
        played: list[list[tuple[float, float, float]]] = [[] for _ in range(count)]
        total, length = np.zeros(count), np.zeros(count, np.int64)
        left, state, start = share.copy(), None, np.ones(count, bool)
        while left.any():
            if code := interrupted():
                raise Interrupted(code)
            action, state = agent.predict(
                stream.layout.unpack(stream.seen),
                state,
                episode_start=start,
                deterministic=deterministic,
                **({} if stream.action_mask is None else {"action_masks": stream.action_mask}),
            )
            step = stream.step(action)
            total += step.reward
            length += step.valid
            if (length == LONG).any() and not stream.limited:
                warnings.warn(ENDLESS, stacklevel=3)
            ended = step.terminated | step.truncated
            start = ended | ~step.valid  # of NEXT_STEP, after the step that only resets
            if ended.any():
                score = scores(step.info)
                for i in np.flatnonzero(ended):
                    if left[i]:
                        found = np.nan if score is None else score[i]
                        played[i].append((total[i], length[i], found))
                        left[i] -= 1
                total[ended] = 0
                length[ended] = 0
    finally:
        if not given:
            stream.close()
    return Episodes(*np.array([episode for place in played for episode in place]).T)


def break_off(agent: Any, env: Any) -> None:
    """Let an agent that was given `env` to train on begin with new episodes: it is reset here."""
    collector, inner = getattr(agent, "collector", None), getattr(env, "unwrapped", None)
    own = getattr(getattr(agent, "env", None), "unwrapped", None)
    if collector is not None and inner is not None and inner is own:
        collector.broken_off = True


def evaluate_policy(
    agent: Predicts,
    env: str | Callable[[], gymnasium.Env] | gymnasium.Env | gymnasium.vector.VectorEnv,
    n_eval_episodes: int = 10,
    *,
    deterministic: bool = True,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    n_envs: int | None = None,
    backend: str = "auto",
    return_episode_rewards: bool = False,
    interrupted: Callable[[], int] = lambda: 0,
) -> Any:
    """Return the mean and the standard deviation of the return over `n_eval_episodes` episodes.

    The episodes are played in `n_envs` environments at once (at most 100 by default). With
    `return_episode_rewards=True` returns the list of returns and the list of lengths in steps
    instead. Changes nothing about the agent's training, unless `env` is the very object that it was
    given to train on: then its next rollout begins with new episodes. `interrupted` is asked at
    every step, and Interrupted raised when it returns an exit code. Waits for every episode to end,
    and warns of one that has gone on for 100,000 steps.

    Raises ArgumentError for an environment or a number of episodes that it cannot take.
    """
    played = run_episodes(
        agent,
        env,
        n_eval_episodes,
        deterministic=deterministic,
        seed=seed,
        env_kwargs=env_kwargs,
        n_envs=n_envs,
        backend=backend,
        interrupted=interrupted,
    )
    if return_episode_rewards:
        return played.returns.tolist(), played.lengths.astype(int).tolist()
    return float(played.returns.mean()), float(played.returns.std())
