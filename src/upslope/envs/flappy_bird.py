"""Flappy Bird for thousands of birds at once: `FlappyBirdVectorEnv`, and `FlappyBirdEnv` for one.

The rules are those of the public package flappy-bird-gymnasium 0.4.0, `FlappyBird-v0` with
`use_lidar=False`, and for one bird also its random numbers: the same seed is the same game.

    state        y of the bird's upper edge, its velocity v (pixels a frame, down is positive), its
                 rotation (degrees), the pipes' left edges x and the upper edges g of their gaps
    a frame      a flap sets v = -9, unless y <= -48; otherwise v = min(v + 1, 10). Then y += v.
                 The rotation falls by 3 to no less than -90; a flap sets it to 45.
                 Pipes move left by 4; one at x < -52 comes back at x = 397.6 with a new gap.
    observation  x/288, g/512, (g + 100)/512 of the three pipes from left to right (1, 0, 1 for one
                 that is right of the screen), then y/512, v/10, rotation/90
    reward       0.1; 1 when a pipe is passed; -0.5 above the screen; -1 when the bird dies
    end          the bird is within a pipe's columns but not within its gap, or y >= 380 (ground);
                 x is truncated to an integer here, as pygame's rectangles do

Where the pipes are depends on nothing but the age of the episode; `flappy_rules` has the tables.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from upslope.envs.flappy_checks import (
    check_modes,
    check_seed,
    checked_actions,
    checked_count,
    checked_limit,
    checked_mask,
)
from upslope.envs.flappy_rules import (
    BIRD_HEIGHT,
    COURSE,
    GAPS,
    GROUND,
    HEIGHT,
    PIPE_GAP,
    START_ROTATION,
    START_VELOCITY,
    START_Y,
)
from upslope.envs.flappy_state import check_state, generator_of, generator_words
from upslope.errors import ArgumentError

Observations = NDArray[np.float32]

START_BIRD = [START_Y / HEIGHT, START_VELOCITY / 10, START_ROTATION / 90]
START_OBSERVATION = np.array([1, 0, 1] * 3 + START_BIRD, np.float32)  # but for the first gap
REWARDS = np.array([0.1, 1.0, -0.5, -1.0])  # alive, passed a pipe, above the screen, dead


class FlappyBirdVectorEnv(VectorEnv[Observations, NDArray[Any], NDArray[Any]]):
    """`num_envs` games of Flappy Bird that advance together.

    Arrays that `reset` and `step` return are the caller's: no later call writes to them.
    `info["score"]` counts the pipes passed, and an episode is truncated once it reaches
    `score_limit`, or after `max_episode_steps` frames. With `AutoresetMode.SAME_STEP` a bird whose
    episode ended starts anew in the same step; then `info["final_obs"]` [N, 12] and
    `info["final_info"]["score"]` [N] hold what the episode ended with, in the rows that
    `info["_final_obs"]` marks. (The other rows of `final_obs` are those birds' observations, so the
    array is the true next observation of every bird.) With `AutoresetMode.DISABLED` the caller
    resets birds through `reset(options={"reset_mask": mask})`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    _arrays: ClassVar = ("y", "velocity", "rotation", "gap", "phase", "steps", "score", "ended")

    def __init__(
        self,
        num_envs: int = 1,
        score_limit: int | None = None,
        render_mode: Literal["rgb_array"] | None = None,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
    ) -> None:
        check_modes(render_mode, autoreset_mode)
        self.num_envs = n = checked_count("num_envs", num_envs)
        self.score_limit = checked_limit("score_limit", score_limit)
        self.max_episode_steps = checked_limit("max_episode_steps", max_episode_steps)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": autoreset_mode}
        self.single_observation_space = gymnasium.spaces.Box(-1.0, 1.0, (12,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

        self._started = False
        # The bird's numbers are whole, so float32 holds them exactly and divides without casting.
        self._y, self._velocity, self._rotation = np.zeros((3, n), np.float32)
        self._gap = np.zeros((3, n), np.float32)  # by pipe, from left to right
        self._phase = np.zeros(n, np.intp)
        self._steps = np.zeros(n, np.int64)
        self._score = np.zeros(n, np.int64)
        self._ended = np.zeros(n, np.bool_)
        self._observation = np.zeros((n, 12), np.float32)
        # scratch space
        self._flap, self._passed, self._flag, self._flag2 = np.zeros((4, n), np.bool_)
        self._next_phase, self._offset = np.zeros(n, np.intp), np.zeros(n, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start every bird anew, or those that `options["reset_mask"]` marks."""
        check_seed(seed)
        mask = checked_mask(options, self.num_envs, first=not self._started)
        super().reset(seed=None if seed is None else int(seed))
        self._started = True
        self._start(np.flatnonzero(mask))
        return self._observation.copy(), self._info()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Advance every bird by one frame; action 1 flaps, 0 does not."""
        y, velocity, rotation, flag = self._y, self._velocity, self._rotation, self._flag
        self._read_actions(actions)  # into self._flap
        np.greater(y, -2 * BIRD_HEIGHT, out=flag)
        flap = np.logical_and(self._flap, flag, out=self._flap)

        velocity += 1
        np.minimum(velocity, 10, out=velocity)
        np.putmask(velocity, flap, -9)
        rotation -= 3
        np.maximum(rotation, -90, out=rotation)
        np.putmask(rotation, flap, 45)
        y += velocity
        np.minimum(y, GROUND - BIRD_HEIGHT, out=y)

        np.take(COURSE.following, self._phase, out=self._next_phase, mode="clip")
        self._phase, self._next_phase = self._next_phase, self._phase
        self._steps += 1
        passed = np.take(COURSE.passed, self._phase, out=self._passed, mode="clip")
        self._score += passed
        self._move_gaps()
        self._observe()

        terminated = self._crashed()
        kind = passed.astype(np.intp)  # the later of these counts
        np.putmask(kind, np.less(y, 0, out=flag), 2)
        np.putmask(kind, terminated, 3)
        reward = REWARDS[kind]

        truncated = np.zeros(self.num_envs, np.bool_)
        if self.score_limit is not None:
            truncated |= self._score >= self.score_limit
        if self.max_episode_steps is not None:
            truncated |= self._steps >= self.max_episode_steps
        np.logical_or(terminated, truncated, out=self._ended)

        final: dict[str, Any] = {}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and self._ended.any():
            ended = self._ended.copy()
            final = {
                "final_obs": self._observation.copy(),
                "_final_obs": ended,
                "final_info": {"score": np.where(ended, self._score, 0), "_score": ended.copy()},
                "_final_info": ended.copy(),
            }
            self._start(np.flatnonzero(ended))
        return self._observation.copy(), reward, terminated, truncated, final | self._info()

    def render(self) -> tuple[Any, ...] | None:
        """Draw every bird's screen: `num_envs` frames of 512 x 288 x 3, uint8."""
        if self.render_mode is None:
            raise ArgumentError("render() takes an environment made with render_mode='rgb_array'")
        self._require_start("render")
        from upslope.envs.flappy_drawing import draw  # the tables it prepares cost time

        return tuple(
            draw(
                bird_y=float(self._y[i]),
                rotation=float(self._rotation[i]),
                pipes=list(zip(COURSE.x[self._phase[i]], self._gap[:, i], strict=True)),
                frame=int(self._steps[i]),
                score=int(self._score[i]),
            )
            for i in range(self.num_envs)
        )

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that evolves, so that `set_state` continues bit for bit."""
        self._require_start("get_state")
        arrays = {name: getattr(self, f"_{name}").copy() for name in self._arrays}
        return {**arrays, "generator": generator_words(self.np_random)}

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from what `get_state` of as many birds returned."""
        expected = {name: getattr(self, f"_{name}") for name in self._arrays}
        expected["generator"] = np.zeros(6, np.uint64)
        check_state(state, expected, phases=len(COURSE.x))
        for name in self._arrays:
            expected[name][...] = state[name]
        self.np_random = generator_of(state["generator"])
        self._started = True
        self._show_gaps(np.arange(self.num_envs))
        self._observe()

    def _require_start(self, method: str) -> None:
        if not self._started:
            raise ArgumentError(f"{method}() takes an environment that has been reset")

    def _read_actions(self, actions: NDArray[Any]) -> None:
        self._require_start("step")
        given = checked_actions(actions, self.num_envs)
        if self.metadata["autoreset_mode"] is AutoresetMode.DISABLED and self._ended.any():
            first = int(np.argmax(self._ended))
            raise ArgumentError(f"step() takes birds in flight, but bird {first} is to be reset")
        np.not_equal(given, 0, out=self._flap)

    def _start(self, birds: NDArray[np.intp]) -> None:
        self._y[birds], self._velocity[birds] = START_Y, START_VELOCITY
        self._rotation[birds] = START_ROTATION
        self._phase[birds], self._steps[birds], self._score[birds] = 0, 0, 0
        self._ended[birds] = False
        self._gap[:, birds] = self._draw_gaps(birds, 3).T
        self._observation[birds] = START_OBSERVATION
        self._observation[birds, 1] = self._gap[0, birds] / HEIGHT
        self._observation[birds, 2] = (self._gap[0, birds] + PIPE_GAP) / HEIGHT

    def _draw_gaps(self, birds: NDArray[np.intp], pipes: int) -> NDArray[np.float32]:
        return GAPS[self.np_random.integers(0, len(GAPS), size=(len(birds), pipes))]

    def _move_gaps(self) -> None:
        """Give returned pipes new gaps, and show in the observation what has changed."""
        if np.take(COURSE.changed, self._phase, out=self._flag, mode="clip").any():
            birds = np.flatnonzero(self._flag)
            back = birds[COURSE.returned[self._phase[birds]]]
            if len(back):
                self._gap[:2, back] = self._gap[1:, back]
                self._gap[2, back] = self._draw_gaps(back, 1)[:, 0]
            self._show_gaps(birds)

    def _show_gaps(self, birds: NDArray[np.intp]) -> None:
        visible, gap = COURSE.visible[self._phase[birds]], self._gap[:, birds].T
        self._observation[birds, 1:9:3] = np.where(visible, gap / HEIGHT, 0)
        self._observation[birds, 2:9:3] = np.where(visible, (gap + PIPE_GAP) / HEIGHT, 1)

    def _observe(self) -> None:
        """Write all of the observation but the gaps, which seldom change."""
        out = self._observation
        for pipe, feature in enumerate(COURSE.feature):
            out[:, 3 * pipe] = np.take(feature, self._phase, out=self._offset, mode="clip")
        np.divide(self._y, HEIGHT, out=out[:, 9])
        np.divide(self._velocity, 10, out=out[:, 10])
        np.divide(self._rotation, 90, out=out[:, 11])

    def _crashed(self) -> NDArray[np.bool_]:
        """Which birds touch a pipe or the ground. Only the leftmost pipe can be within reach."""
        offset = np.subtract(self._y, self._gap[0], out=self._offset)
        crashed = np.less(offset, 0)
        crashed |= np.greater(offset, PIPE_GAP - BIRD_HEIGHT, out=self._flag2)
        crashed &= np.take(COURSE.within, self._phase, out=self._flag2, mode="clip")
        crashed |= np.greater_equal(self._y, GROUND - 1 - BIRD_HEIGHT, out=self._flag2)
        return crashed

    def _info(self) -> dict[str, Any]:
        return {"score": self._score.copy(), "_score": np.ones(self.num_envs, np.bool_)}


class FlappyBirdEnv(gymnasium.Env[Observations, np.int64]):
    """One game of Flappy Bird: a `FlappyBirdVectorEnv` of one bird."""

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": 30,
    }

    def __init__(
        self, score_limit: int | None = None, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        self._birds = FlappyBirdVectorEnv(
            1, score_limit, render_mode, autoreset_mode=AutoresetMode.DISABLED
        )
        self.render_mode = render_mode
        self.observation_space = self._birds.single_observation_space
        self.action_space = self._birds.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start a new game; `options` takes nothing."""
        super().reset(seed=seed)
        self._birds.np_random = self.np_random
        observation, info = self._birds.reset(options=options)
        return observation[0], {"score": int(info["score"][0])}

    def step(self, action: np.int64) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """Advance the bird by one frame; action 1 flaps, 0 does not."""
        if not self.action_space.contains(action):
            raise ArgumentError(f"action takes 0 or 1, got {action!r}")
        observation, reward, terminated, truncated, info = self._birds.step(np.array([int(action)]))
        ends = bool(terminated[0]), bool(truncated[0])
        return observation[0], float(reward[0]), *ends, {"score": int(info["score"][0])}

    def render(self) -> Any:
        """Draw the screen: 512 x 288 x 3, uint8."""
        frames = self._birds.render()
        return frames[0] if frames else None

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that evolves, so that `set_state` continues bit for bit."""
        return self._birds.get_state()

    def set_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Continue from what `get_state` returned."""
        self._birds.set_state(state)
        self.np_random = self._birds.np_random
