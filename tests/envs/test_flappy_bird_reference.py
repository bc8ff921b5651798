"""Frame by frame, the game is that of the public package flappy-bird-gymnasium 0.4.0."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from upslope.envs.flappy_bird import FlappyBirdEnv, FlappyBirdVectorEnv
from upslope.envs.flappy_rules import GAPS

with warnings.catch_warnings():  # pygame imports what Python deprecates
    warnings.simplefilter("ignore")
    reference = pytest.importorskip("flappy_bird_gymnasium")
for registered in [name for name in gymnasium.registry if name.startswith("FlappyBird")]:
    del gymnasium.registry[registered]  # importing it changed what other tests see

pytestmark = pytest.mark.reference

BIRDS, FRAMES = 12, 5000


class Recorded(FlappyBirdVectorEnv):
    """Keeps the pipe heights that each bird drew, for the reference to draw the same."""

    def __init__(self, num_envs: int, **arguments: Any) -> None:
        super().__init__(num_envs, **arguments)
        self.drawn: list[deque[int]] = [deque() for _ in range(num_envs)]

    def _draw_gaps(self, birds: NDArray[np.intp], pipes: int) -> NDArray[np.float32]:
        gaps = super()._draw_gaps(birds, pipes)
        for bird, row in zip(birds, gaps, strict=True):
            self.drawn[bird].extend(np.searchsorted(GAPS, row).tolist())
        return gaps


class Heights:
    """Stands in for the reference's random generator."""

    def __init__(self, drawn: deque[int]) -> None:
        self.drawn = drawn

    def integers(self, low: int, high: int) -> int:
        assert (low, high) == (0, len(GAPS))
        return self.drawn.popleft()


def peer(**arguments: Any) -> Any:
    return reference.FlappyBirdEnv(use_lidar=False, **arguments)


def play(seen: np.ndarray, rng: np.random.Generator, frame: int) -> np.ndarray:
    """Three birds play at random, five survive long, one flaps always, one never, two vary."""
    floor = 512 * np.where(seen[:, 0] < 10 / 288, seen[:, 5], seen[:, 2])
    floor[floor > 500] = 256
    sinking = 512 * seen[:, 9] + 24 + np.minimum(10 * seen[:, 10] + 1, 10)
    actions = (sinking > floor - [0, 0, 0, 0, 0, 3, 5, 8, 0, 0, 0, 4]).astype(np.int64)
    actions[:3] = rng.random(3) < [0.05, 0.1, 0.2]
    actions[8], actions[9] = 1, 0
    disturbed = rng.random(2) < (0.02 if frame % 1000 < 800 else 0.5)
    actions[10:] = np.where(disturbed, 1 - actions[10:], actions[10:])
    return actions


@pytest.mark.parametrize("score_limit", [None, 9])
def test_sixty_thousand_frames_in_lockstep(score_limit: int | None) -> None:
    env = Recorded(BIRDS, score_limit=score_limit)
    peers = [peer(score_limit=score_limit) for _ in range(BIRDS)]
    for bird, their in enumerate(peers):
        their.np_random = Heights(env.drawn[bird])
    seen, info = env.reset(seed=0)
    theirs = [their.reset() for their in peers]
    rng = np.random.default_rng(0)
    seen_rewards: set[float] = set()
    terminations, truncations, best, above = 0, 0, 0, 0
    for frame in range(FRAMES if score_limit is None else FRAMES // 2):
        np.testing.assert_array_equal(seen, np.float32([their[0] for their in theirs]))
        assert info["score"].tolist() == [their[-1]["score"] for their in theirs]
        actions = play(seen, rng, frame)
        seen, reward, terminated, truncated, info = env.step(actions)
        theirs = [their.step(int(a)) for their, a in zip(peers, actions, strict=True)]
        assert reward.tolist() == [their[1] for their in theirs]
        assert terminated.tolist() == [their[2] for their in theirs]
        assert truncated.tolist() == [their[3] for their in theirs]
        for bird in np.flatnonzero(terminated | truncated):
            np.testing.assert_array_equal(info["final_obs"][bird], np.float32(theirs[bird][0]))
            assert info["final_info"]["score"][bird] == theirs[bird][-1]["score"]
            theirs[bird] = peers[bird].reset()
        assert not any(env.drawn)  # both drew the same number of pipes
        seen_rewards |= set(reward.tolist())
        terminations, truncations = terminations + terminated.sum(), truncations + truncated.sum()
        best, above = max(best, int(info["score"].max())), above + int((seen[:, 9] < 0).sum())
    # the play was mixed: all rewards, many lives, long lives, and flights above the screen
    assert seen_rewards == {0.1, 1.0, -0.5, -1.0}
    assert above > 100
    if score_limit is None:
        assert terminations > 400
        assert best >= 100
    else:
        assert truncations > 20


def test_one_bird_plays_the_same_game_from_the_same_seed() -> None:
    ours, theirs = FlappyBirdEnv(), peer()
    for seed in (0, 1, 12345):
        seen, their_seen = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
        for frame in range(600):
            np.testing.assert_array_equal(seen, np.float32(their_seen))
            action = int(play(np.tile(seen, (12, 1)), np.random.default_rng(frame), 0)[11])
            seen, *rest = ours.step(np.int64(action))
            their_seen, *their_rest = theirs.step(action)
            assert rest == their_rest
            if rest[1]:
                seen, their_seen = ours.reset()[0], theirs.reset()[0]
