"""Flappy Bird's numbers: the sizes, and where the pipes are at each moment of an episode.

Lengths are pixels of a screen of 288 x 512, y counts downwards, and speeds are pixels a frame. The
facts are those of the public package flappy-bird-gymnasium 0.4.0.

Where the pipes are depends on nothing but the age of the episode. The first three start at x = 288,
432 and 576; each moves left by 4, and comes back at x = 397.6 after it was left of -52. From then
on it takes 113 frames to come back again, so the spacings are 36, 36 and 41 frames for ever, and
the age can be kept as a *phase*, an index into the tables of `COURSE`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, GROUND = 288, 512, 512 * 0.79
BIRD_X, BIRD_WIDTH, BIRD_HEIGHT = 57, 34, 24
START_Y, START_VELOCITY, START_ROTATION = 244, -9, 45
PIPE_WIDTH, PIPE_GAP, PIPE_SPEED, PIPE_RETURN = 52, 100, 4, 288 + 52 + 288 * 0.2
GAPS = np.arange(100, 180, 10, dtype=np.float32)  # where a gap may begin


class _Course(NamedTuple):
    """The pipes by phase, from left to right; P = 271 phases, of which the last 113 repeat."""

    x: NDArray[np.float64]  # [P, 3] left edges
    feature: NDArray[np.float32]  # [3, P] left edges as observed
    visible: NDArray[np.bool_]  # [P, 3]
    following: NDArray[np.intp]  # [P] the phase after this one
    passed: NDArray[np.bool_]  # [P] a pipe is passed on the frame that leads here
    within: NDArray[np.bool_]  # [P] the bird is within the columns of the leftmost pipe
    returned: NDArray[np.bool_]  # [P] a pipe came back on the frame that leads here
    changed: NDArray[np.bool_]  # [P] a pipe came back or came into view on that frame


def _lay_course() -> _Course:
    rows, passed, returned = [[288.0, 432.0, 576.0]], [False], [False]
    while len(rows) < 271:  # three pipes came back by phase 158; 113 more make the loop
        left, *others = rows[-1]
        middle = left + PIPE_WIDTH / 2
        passed.append(middle <= BIRD_X + BIRD_WIDTH / 2 < middle + PIPE_SPEED)
        returned.append(left - PIPE_SPEED < -PIPE_WIDTH)
        others = [x - PIPE_SPEED for x in others]
        rows.append([*others, PIPE_RETURN] if returned[-1] else [left - PIPE_SPEED, *others])
    x = np.array(rows)
    visible, left = x <= WIDTH, np.trunc(x[:, 0])
    appeared = (visible != np.roll(visible, 1, axis=0)).any(axis=1)
    return _Course(
        x=x,
        feature=np.ascontiguousarray(np.minimum(x, WIDTH).T / WIDTH, dtype=np.float32),
        visible=visible,
        following=np.append(np.arange(1, 271), 271 - 113),
        passed=np.array(passed),
        within=(left < BIRD_X + BIRD_WIDTH) & (left + PIPE_WIDTH > BIRD_X),
        returned=np.array(returned),
        changed=np.array(returned) | appeared,
    )


COURSE = _lay_course()
