"""Any finite problem as a Gymnasium environment: what `upslope.exact` solves, an agent can play.

    s_0 ~ h,   s' ~ p(.|s,a),   r(s,a) or r(s,a,s'),   over with probability 1 - sum_s' p(s'|s,a)

    env = FiniteVectorEnv(us.exact.short_corridor(), num_envs=64, seen=[[1.0]] * 3)
    agent = us.ActorCritic(env, gamma=1.0)

Actions are Discrete(A), numbered as the problem has them. An agent sees the number of the state,
Discrete(S), or a row of `seen` [S, F]: states with equal rows look alike. The state shown where an
episode terminated is 0, and stands for nothing.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from upslope.envs.flappy_checks import check_seed, checked_count, checked_limit
from upslope.envs.flappy_state import generator_of, generator_words
from upslope.errors import ArgumentError, ShapeError
from upslope.exact.mdp import FiniteMDP

States = NDArray[Any]


class FiniteVectorEnv(VectorEnv[States, States, States]):
    """`num_envs` copies of a finite problem that advance together.

    An episode is truncated after `max_episode_steps`; None, the default, never does. One that ended
    begins anew in the same step, and `info["final_obs"]` then has what it ended in. Raises
    ArgumentError for a sparse problem, and ShapeError for another shape of `seen`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        mdp: FiniteMDP,
        num_envs: int = 1,
        seen: Any = None,
        max_episode_steps: int | None = None,
    ) -> None:
        if mdp.is_sparse:
            raise ArgumentError(
                f"mdp takes a dense problem, got {mdp!r}: its tables are drawn from"
            )
        self.num_envs = n = checked_count("num_envs", num_envs)
        self.max_episode_steps = checked_limit("max_episode_steps", max_episode_steps)
        self._shown = _shown(seen, mdp.n_states)
        self.single_observation_space = _space(self._shown)
        self.single_action_space = gymnasium.spaces.Discrete(mdp.n_actions)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)
        self._actions = mdp.n_actions
        self._first = _cumulated(mdp.start.numpy())
        arrive = np.concatenate([mdp.transition.numpy(), mdp.ending.numpy()[:, :, None]], 2)
        self._arrive = _cumulated(arrive)  # [S, A, S + 1]: where to, and last the end
        if mdp.arrival_reward is None:
            self._reward = np.broadcast_to(mdp.reward.numpy()[:, :, None], arrive.shape)
        else:  # paid on arriving, so not at an end
            paid = mdp.arrival_reward.numpy()
            self._reward = np.concatenate([paid, np.zeros((*paid.shape[:2], 1))], 2)
        self._state, self._steps = np.zeros((2, n), np.int64)
        self._started = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[States, dict[str, Any]]:
        """Begin everywhere anew; `options` takes nothing."""
        check_seed(seed)
        if options:
            raise ArgumentError(f"options takes nothing, got {options}")
        super().reset(seed=None if seed is None else int(seed))
        self._started = True
        self._begin(np.arange(self.num_envs))
        return self._shown[self._state], {}

    def step(self, actions: Any) -> tuple[States, Any, Any, Any, dict[str, Any]]:
        """Take one action [N] in every environment."""
        chosen = self._checked(actions)
        draw = self.np_random.random((self.num_envs, 1))
        following = (draw >= self._arrive[self._state, chosen]).sum(1)
        reward = self._reward[self._state, chosen, following]
        terminated = following == len(self._arrive)
        self._state = np.where(terminated, 0, following)
        self._steps += 1
        truncated = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncated = (self._steps >= self.max_episode_steps) & ~terminated
        ended, info = terminated | truncated, {}
        if ended.any():
            info = {"final_obs": self._shown[self._state], "_final_obs": ended}
            self._begin(np.flatnonzero(ended))
        return self._shown[self._state], reward, terminated, truncated, info

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that evolves, so that `set_state` continues bit for bit."""
        if not self._started:
            raise ArgumentError("get_state() takes an environment that has been reset")
        words = generator_words(self.np_random)
        return {"state": self._state.copy(), "steps": self._steps.copy(), "generator": words}

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from what `get_state` of as many environments returned."""
        if state.keys() != {"state", "steps", "generator"}:
            raise ArgumentError(f"state takes generator, state and steps, got {sorted(state)}")
        for name in ("state", "steps"):
            if state[name].shape != (self.num_envs,):
                raise ShapeError(
                    f"state[{name!r}] takes shape ({self.num_envs},), got {state[name].shape}"
                )
        self._state, self._steps = state["state"].copy(), state["steps"].copy()
        self.np_random = generator_of(state["generator"])
        self._started = True

    def _begin(self, rows: NDArray[np.intp]) -> None:
        draw = self.np_random.random((len(rows), 1))
        self._state[rows] = (draw >= self._first).sum(1)
        self._steps[rows] = 0

    def _checked(self, actions: Any) -> NDArray[Any]:
        if not self._started:
            raise ArgumentError("step() takes an environment that has been reset")
        given, count = np.asarray(actions), self._actions
        if given.shape != (self.num_envs,) or given.dtype.kind not in "iu":
            raise ArgumentError(
                f"actions takes whole numbers of shape ({self.num_envs},), got {given.dtype} of "
                f"shape {given.shape}"
            )
        if ((given < 0) | (given >= count)).any():
            raise ArgumentError(f"actions takes 0 to {count - 1}, got {given.tolist()}")
        return given


class FiniteEnv(gymnasium.Env[Any, np.int64]):
    """One copy of a finite problem: a `FiniteVectorEnv` of one, which its caller resets."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self, mdp: FiniteMDP, seen: Any = None, max_episode_steps: int | None = None
    ) -> None:
        self._one = FiniteVectorEnv(mdp, 1, seen, max_episode_steps)
        self.observation_space = self._one.single_observation_space
        self.action_space = self._one.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin anew; `options` takes nothing."""
        super().reset(seed=seed)
        self._one.np_random = self.np_random
        return self._one.reset(options=options)[0][0], {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action."""
        state, reward, terminated, truncated, info = self._one.step(np.array([int(action)]))
        last = info["final_obs"] if info else state
        return last[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def _shown(seen: Any, states: int) -> NDArray[Any]:
    """Return what is observed of each state, [S, ...]."""
    if seen is None:
        return np.arange(states)
    rows = np.asarray(seen, np.float32)
    if rows.ndim != 2 or len(rows) != states:
        raise ShapeError(f"seen takes shape [{states}, F], got {list(rows.shape)}")
    return rows


def _space(shown: NDArray[Any]) -> gymnasium.Space[Any]:
    if shown.ndim == 1:
        return gymnasium.spaces.Discrete(len(shown))
    return gymnasium.spaces.Box(shown.min(0), shown.max(0), dtype=np.float32)


def _cumulated(chance: NDArray[Any]) -> NDArray[Any]:
    """Return the sums along the last axis, the last one exactly 1, to compare a draw with."""
    total = chance.cumsum(-1)
    total[..., -1] = 1
    return total
