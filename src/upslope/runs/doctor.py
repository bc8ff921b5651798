"""What can be known to go wrong before a long run begins: the environment, and the installation.

An environment is played by an untrained policy, through what training plays it through: the same
stream, the same checks of each step. Each finding is one sentence, with what to do about it.
"""

from __future__ import annotations

import random
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from upslope.agents.ppo import PPO
from upslope.errors import ArgumentError, UpslopeError
from upslope.rollout.buffer import Rollout
from upslope.rollout.make import Environment
from upslope.seeding import generator

GOOD, NOTE, WRONG = "good", "note", "WRONG"
AT_ONCE = 256  # steps of each environment between two looks
SEEDED = ("observation", "reward", "terminated", "truncated")
FAR = 10.0  # observations and returns of networks are best within some such size
RESETS = {
    AutoresetMode.DISABLED: "Upslope resets what has ended (DISABLED)",
    AutoresetMode.NEXT_STEP: "the step after an end only resets, and is not learned from "
    "(NEXT_STEP)",
    AutoresetMode.SAME_STEP: "an end resets at once, and the last observation is in "
    "info['final_obs'] (SAME_STEP)",
}


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do where it is not good."""

    level: str
    about: str
    found: str
    advice: str = ""


def examine(
    env: Environment,
    *,
    env_kwargs: dict[str, Any] | None = None,
    n_envs: int = 4,
    backend: str = "auto",
    steps: int = 10_000,
    seed: int = 0,
) -> Iterator[Finding]:
    """Yield what is found about an environment, of which `n_envs` take `steps` steps together.

    Ends early where the environment breaks its contract: what comes after would mean nothing.
    """
    settings: dict[str, Any] = {
        "n_envs": n_envs,
        "backend": backend,
        "env_kwargs": env_kwargs,
        "seed": seed,
    }
    settings |= {"n_steps": max(1, min(AT_ONCE, steps // n_envs)), "segment_length": 10**9}
    with warnings.catch_warnings(record=True) as warned, no_shared_draws():
        warnings.simplefilter("always")
        try:
            PPO(env, **settings).stream.close()
        except Exception as error:
            yield _broken(error)
            return
        try:
            yield from _seeding(env, settings)
            yield from _play(env, settings, steps)
        except Exception as error:
            if not (isinstance(error, UpslopeError) or hasattr(error, "__notes__")):
                raise  # not the environment's: what it raises has a note that says which one did
            yield _broken(error)
        said = {str(one.message).splitlines()[0] for one in warned}
        yield from (Finding(NOTE, "warning", f"it warns: {text}") for text in sorted(said))


def _seeding(env: Environment, settings: dict[str, Any]) -> Iterator[Finding]:
    """Play the same steps twice with one seed, Python's and NumPy's own generators seeded apart."""
    first, again = (_beginning(env, settings, shared=k) for k in (1, 2))
    for name in SEEDED:
        one, other = first[name], again[name]
        different = np.argwhere((one != other).reshape(*one.shape[:2], -1).any(-1))
        if len(different):
            t, index = (int(k) for k in different[0])
            when = "after the reset" if name == "observation" and t == 0 else f"at step {t + 1}"
            yield Finding(
                WRONG,
                "seeding",
                f"with the same seed and actions, environment {index} gave another {name} {when}",
                "draw everything random from self.np_random, which reset(seed=...) seeds; a run "
                "cannot be resumed exactly or repeated until then",
            )
            return
    rows = first["reward"].shape[0]
    yield Finding(GOOD, "seeding", f"the same seed gives the same episodes ({rows} steps, twice)")


def _beginning(env: Environment, settings: dict[str, Any], shared: int) -> dict[str, np.ndarray]:
    random.seed(shared)
    np.random.seed(shared)  # noqa: NPY002
    agent = PPO(env, **settings)
    with closing(agent.stream):
        rollout = _collect(agent, 0)
        return {name: np.array(getattr(rollout, name)) for name in SEEDED}


def _collect(agent: PPO, k: int) -> Rollout:
    draws = generator(agent.config.seed, "act", k)
    return agent.collector.collect(agent.policy, draws, agent.act)


def _play(env: Environment, settings: dict[str, Any], steps: int) -> Iterator[Finding]:
    agent = PPO(env, **settings)
    stream, rewards, largest = agent.stream, [], -1.0
    terminated = truncated = taken = 0
    begun = time.perf_counter()
    with closing(stream):
        while taken < steps:
            rollout = _collect(agent, taken)
            valid = rollout.valid
            taken += int(valid.sum())
            rewards.append(rollout.reward[valid])
            terminated += int(rollout.terminated.sum())
            truncated += int(rollout.truncated.sum())
            if rollout.observation.dtype.kind == "f":
                largest = max(largest, float(np.abs(rollout.observation).max()))
    speed = taken / (time.perf_counter() - begun)
    spaces = f"{stream.observation_space}, {stream.action_space}"
    yield Finding(
        GOOD, "spaces", f"{taken:,} steps kept to their spaces, all finite: {_short(spaces)}"
    )
    if largest >= 0:
        yield _observations(largest)
    yield _rewards(np.concatenate(rewards), agent.collector.episodes.summary())
    yield _ends(terminated, truncated, taken, agent.collector.episodes.summary())
    yield Finding(GOOD, "autoreset", RESETS[stream.autoreset_mode])
    minutes = 1e6 / speed / 60
    yield Finding(
        GOOD,
        "speed",
        f"{speed:,.0f} steps a second of {stream.n_envs} environments ({stream.backend}), acting "
        f"included: a million steps take {minutes:,.1f} min without learning",
        "" if speed > 1000 else "if the time is the environment's, backend='async' uses more cores",
    )


def _observations(largest: float) -> Finding:
    if largest <= FAR:
        return Finding(GOOD, "scale", f"no observation is larger than {largest:.3g}")
    return Finding(
        NOTE,
        "scale",
        f"observations are as large as {largest:.3g}",
        "normalize_observation=True brings them to a size that networks learn from",
    )


def _rewards(reward: np.ndarray, summary: dict[str, float]) -> Finding:
    size = f"from {reward.min():.3g} to {reward.max():.3g}, deviation {reward.std():.3g}"
    if not reward.any():
        advice = "check that it is meant so: until something is rewarded there is no gradient"
        return Finding(NOTE, "reward", "every reward was 0", advice)
    large = max(float(np.abs(reward).max()), abs(summary.get("episode_return", 0.0)) / 10)
    if large > FAR:
        advice = "normalize_reward=True keeps the loss of the values from drowning the policy's"
        return Finding(NOTE, "reward", f"rewards are large: {size}", advice)
    return Finding(GOOD, "reward", f"rewards {size}")


def _ends(terminated: int, truncated: int, taken: int, summary: dict[str, float]) -> Finding:
    if not terminated + truncated:
        return Finding(
            NOTE,
            "ends",
            f"no episode ended in {taken:,} steps: no return is known, and evaluations never end",
            "give it a limit, as in env_kwargs={max_episode_steps = 1000}, or look for one missing",
        )
    mean = summary["episode_length"]
    found = (
        f"{terminated} episodes terminated and {truncated} were truncated, {mean:.0f} steps long"
    )
    if mean <= 1:
        return Finding(NOTE, "ends", found, "every episode is one step: is that meant?")
    return Finding(GOOD, "ends", found)


def _broken(error: Exception) -> Finding:
    """Return what an exception says, and where the environment's own code raised it."""
    notes = " ".join(getattr(error, "__notes__", [])[:1])
    if isinstance(error, ArgumentError):  # says itself what to do
        return Finding(WRONG, "environment", str(error))
    if isinstance(error, UpslopeError):
        return Finding(WRONG, "contract", f"{error} {notes}".strip(), "mend the environment")
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno}) {notes}"
    return Finding(WRONG, "exception", f"it raised {text}".strip(), "mend the environment")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextmanager
def no_shared_draws() -> Iterator[None]:
    """Give the generators that all of a process shares their states back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
