"""One stream of experience over any vector environment: nothing downstream knows about autoreset.

    s_t, a_t -> r_t, s_{t+1}, terminated, truncated, valid

A terminated episode is worth nothing after s_{t+1}; a truncated one is worth V(s_{t+1}), and what
comes next belongs to another episode. `next_observation` is therefore the true s_{t+1}, also at an
end. Gymnasium's three autoreset modes (farama.org/Vector-Autoreset-Mode) differ in where it is:

    NEXT_STEP   in the observation; the following step ignores the action and only resets that
                environment, which is a row with `valid` False, reward 0 and no end
    SAME_STEP   in `info["final_obs"]`; the observation is already that of the next episode
    DISABLED    in the observation; the stream resets what has ended through `reset_mask`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from upslope.errors import ArgumentError, EnvironmentFault, ShapeError
from upslope.policies.layout import Layout
from upslope.policies.legal import MaskLayout
from upslope.rollout.autoreset import autoreset_mode
from upslope.rollout.checks import Checks, id_of
from upslope.rollout.halves import Ahead, Halves
from upslope.rollout.masks import MaskSource
from upslope.rollout.raised import misfit_of, note_of
from upslope.rollout.workers import close_environments

Array = np.ndarray


class Step(NamedTuple):
    """What one step of N environments gave; the stream never writes to these arrays again."""

    observation: Array
    """[N, ...] s_t, what the action was chosen on."""
    action: Array
    """[N, ...] a_t."""
    reward: Array
    """[N] float32, r_t."""
    next_observation: Array
    """[N, ...] the true s_{t+1}; the same array as the next step's observation where it can be."""
    terminated: Array
    """[N] bool: s_{t+1} is worth nothing."""
    truncated: Array
    """[N] bool: cut, so that s_{t+1} is worth V(s_{t+1}). Never together with terminated."""
    valid: Array
    """[N] bool: False where the environment was only reset, which is no step of any episode."""
    info: Mapping[str, Any]
    """What the environments say besides; `autoreset.final_info` reads it at an end."""


class Stream:
    """Steps N environments and says of each step what was meant.

    Observations of Dict and Tuple spaces are packed into one array (`layout`). Raises ArgumentError
    for a space that is not supported.

    Give it `make`, which returns a new vector environment each time, or `env`, one that exists and
    stays its owner's to close. `backend` says where it came from. `observation` is what to act on,
    `action_mask` [N, columns] which actions are legal (None where all always are), and `acting` [N]
    is False where the next step only resets.
    """

    observation: Any
    acting: Any
    device: torch.device | None = None
    """Where its tensors are, if it returns tensors: see `resident`."""

    def __init__(
        self,
        make: Callable[[], VectorEnv] | None = None,
        env: VectorEnv | None = None,
        *,
        backend: str = "given",
    ) -> None:
        if env is None:
            if make is None:
                raise ArgumentError("a stream takes `make` or `env`, and got neither")
            env = make()
        self._make, self._env, self.backend = make, env, backend
        self._unused = make is not None  # made, and not yet reset or stepped
        self.running = False
        """Whether it was reset, and not closed since."""
        self.halves: Halves | None = None
        """What steps one half of the environments ahead of the other, where that can be."""
        self.begun = False
        """Whether the next step is begun already."""
        self.on_all_cores = backend in ("envpool", "async")
        """Whether a step is spread over threads or processes already."""
        self.n_envs = int(env.num_envs)
        self._all = np.ones(self.n_envs, bool)  # shared by the steps at which all act
        self._all.flags.writeable = False
        self._numbers = np.arange(self.n_envs)
        self.observation_space: gymnasium.Space[Any] = env.single_observation_space
        self.action_space: gymnasium.Space[Any] = env.single_action_space
        self._action_shape = env.action_space.shape  # of all; None where it is nested
        self.autoreset_mode, self._declared = autoreset_mode(env)
        self.layout = Layout(self.observation_space)
        """Where the parts of an observation are in the arrays of this stream."""
        masks = MaskLayout(self.action_space)
        self._checks = Checks(self.n_envs, self.layout, masks, id_of(env))
        self._masks = MaskSource(env, self._checks)

    @property
    def steps(self) -> int:
        """Steps of the stream since it was last reset."""
        return self._checks.steps

    @property
    def total_steps(self) -> int:
        """Steps of the stream since it was made."""
        return self._checks.total_steps

    @property
    def remakes(self) -> bool:
        """Whether `reset` makes the environments anew: then a seed gives the same stream again."""
        return self._make is not None

    @property
    def action_mask(self) -> Array | None:
        """Which actions are legal now, [N, columns] bool; None where environments do not say."""
        return self._masks.current

    @property
    def limited(self) -> bool:
        """Whether the environments say that they limit episodes: by their score, or by steps."""
        env = self._env.unwrapped
        return any(getattr(env, name, None) for name in ("score_limit", "max_episode_steps"))

    @property
    def seen(self) -> Array:
        """The current observations as an array, [N, ...]."""
        found: Array = self.observation if self.device is None else self.observation.cpu().numpy()
        return found

    @property
    def saves_state(self) -> bool:
        """Whether the vector environment can save its state, and no wrapper has more of it."""
        env = self._env
        return env is env.unwrapped and hasattr(env, "get_state") and hasattr(env, "set_state")

    def reset(self, seed: int | None = None, *, in_halves: bool = False) -> Array:
        """Begin anew with `seed`, in new environments if they can be made; returns s_0 [N, ...].

        `in_halves` asks for environments that `step` can step ahead.

        Raises EnvironmentFault if the first observation is not what the space says.
        """
        if self._make is not None and not self._unused:
            close_environments(self._env)
            self._env = self._make()
            self._masks = MaskSource(self._env, self._checks)
        self._unused, self._checks.steps = False, 0
        self._checks.seed = None if seed is None else int(seed)
        if in_halves and hasattr(self._env, "halve"):
            self._env.halve()
        raw, info = self._call(self._env.reset, seed=self._checks.seed)
        self.observation = self._checks.observation(raw)
        self._masks.begin(info)
        self.halves, self.begun = getattr(self._env, "in_halves", None), False
        self.acting, self.running = self._all, True
        return self.observation

    def step(self, action: Any, ahead: Ahead | None = None) -> Step:
        """Take one action [N, ...] in every environment and return what it meant.

        Where environments are in halves, `ahead` returns the next actions of each, given its
        observations: one half begins with them while the other is busy. The next step is told them
        again, for its `action`.

        Raises EnvironmentFault for anything that is not finite or has the wrong shape or type. What
        an environment raises comes through as it is, with a note saying where.
        """
        action = self._checked_action(action)
        self._checks.steps += 1
        self._checks.total_steps += 1
        halves: list[Array] = []
        if ahead is not None and self.halves is not None:
            fresh = None if self.begun else action
            halves = self.halves.step_ahead(fresh, self._checked_half, ahead, self._call)
        raw, raw_reward, raw_terminated, raw_truncated, info = self._call(self._env.step, action)
        self.begun = bool(halves)
        before, valid = self.observation, self.acting
        if not self._declared:
            self._check_assumption(raw_reward, valid, info)
        after = next_observation = self._after(raw, halves)
        reward, terminated, truncated, ended = self._checks.signals(
            raw_reward, raw_terminated, raw_truncated, valid
        )
        self.acting = self._all
        again: tuple[Array, Mapping[str, Any]] | None = None
        if ended is not None:
            if self.autoreset_mode is AutoresetMode.NEXT_STEP:
                self.acting = ~ended
            elif self.autoreset_mode is AutoresetMode.SAME_STEP:
                next_observation = self._final_observation(after, ended, info)
            else:
                after, again = self._reset_where(ended, after)
        self._masks.follow(info, self.acting, again)
        self.observation = after
        return Step(before, action, reward, next_observation, terminated, truncated, valid, info)

    def get_state(self) -> dict[str, Array]:
        """Return all that evolves, as named arrays: `set_state` continues from it bit for bit."""
        if not (self.saves_state and self.running):
            raise ArgumentError(
                "get_state takes a stream that was reset and whose `saves_state` is True"
            )
        inner: dict[str, Array] = self._env.get_state()  # type: ignore[attr-defined]
        mask = {} if self.action_mask is None else {"action_mask": self.action_mask.copy()}
        own = {
            "observation": self.observation.copy(),
            "acting": self.acting.copy(),
            "steps": np.array([self.steps, self.total_steps], np.int64),
        }
        return mask | {f"inner/{name}": value for name, value in inner.items()} | own

    def set_state(self, state: dict[str, Array]) -> None:
        """Continue from what `get_state` returned of a stream over equal environments."""
        if not self.saves_state:
            raise ArgumentError("set_state takes a stream whose `saves_state` is True")
        missing = {"observation", "acting", "steps"} - state.keys()
        if missing:
            raise ArgumentError(
                f"state lacks {sorted(missing)}: set_state takes what get_state returned"
            )
        inner = {k.removeprefix("inner/"): v for k, v in state.items() if k.startswith("inner/")}
        self._env.set_state(inner)  # type: ignore[attr-defined]
        self.observation = np.array(state["observation"])
        mask = state.get("action_mask")
        self._masks.current = None if mask is None else np.array(mask, bool)
        self.acting = np.array(state["acting"], bool)
        self._checks.steps, self._checks.total_steps = (int(count) for count in state["steps"])
        self._unused, self.running = False, True

    def close(self) -> None:
        """Close the environments that the stream made; one that was given stays open."""
        self.running = False
        if self._make is not None:
            close_environments(self._env)

    # -- the parts of a step ------------------------------------------

    def _checked_action(self, action: Any) -> Any:
        if not self.running:
            raise ArgumentError("step takes a stream that was reset and not closed since")
        if self._action_shape is None:
            return action
        array = np.asarray(action)
        if array.shape != self._action_shape:
            takes = f"{self._action_shape}, one for each environment"
            raise ShapeError(f"action takes shape {takes}, got {array.shape}")
        return array

    def _checked_half(self, raw: Any, half: slice) -> Array:
        return self._checks.observation(raw, rows=self._numbers[half], owned=True)

    def _after(self, raw: Any, halves: list[Array]) -> Array:
        """Return the observations of all, checked; those of halves were, each by itself."""
        if not halves:
            return self._checks.observation(raw)
        whole: Any = raw if halves[0].base is raw else np.concatenate(halves)
        return whole

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if misfit := misfit_of(error):
                raise self._checks.fault(misfit[1], misfit[0]) from error
            action = args[0] if args else None
            error.add_note(note_of(error, self._env, self._checks.when(), action))
            raise

    def _final_observation(self, after: Array, ended: Array, info: Mapping[str, Any]) -> Array:
        """Return `after` with the rows that ended taken from `info["final_obs"]`."""
        final, found = info.get("final_obs"), info.get("_final_obs", ended)
        missing = np.flatnonzero(ended if final is None else ended & ~np.asarray(found))
        if len(missing):
            what = "no info['final_obs'] at the end of an episode, which SAME_STEP takes"
            raise self._checks.fault(what, int(missing[0]))
        rows, result = np.flatnonzero(ended), after.copy()
        if isinstance(final, np.ndarray) and final.dtype == object:
            each = [list(self.layout.values(final[row])) for row in rows]
            values = [
                np.stack([np.asarray(one[k][1]) for one in each]) for k in range(len(each[0]))
            ]
            final = self.layout.nest(values)
        else:
            final = self.layout.nest([np.asarray(v)[rows] for _, v in self.layout.values(final)])
        result[rows] = self._checks.observation(final, "final observation", rows)
        return result

    def _reset_where(
        self, ended: Array, after: Array
    ) -> tuple[Array, tuple[Array, Mapping[str, Any]]]:
        """Reset the environments that ended; returns `after` with their rows replaced, and which
        were reset, with what was said of them.
        """
        raw, info = self._call(self._env.reset, options={"reset_mask": ended.copy()})
        result = after.copy()
        result[ended] = self._checks.observation(raw)[ended]
        return result, (ended, info)

    def _check_assumption(self, reward: Any, valid: Array, info: Mapping[str, Any]) -> None:
        if "final_obs" in info or np.any(np.asarray(reward)[~valid]):
            raise EnvironmentFault(
                "the vector environment declares no autoreset mode and was taken for NEXT_STEP, "
                f"but does not behave so {self._checks.when()}: set metadata['autoreset_mode']"
            )
