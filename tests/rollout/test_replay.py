"""The replay buffer: n steps by brute force, the ring, what is never drawn, and saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from upslope.rollout.buffer import Rollout
from upslope.rollout.replay import Replay
from upslope.seeding import generator

FLOAT, WHOLE = np.dtype(np.float32), np.dtype(np.int64)
T, N, GAMMA = 4, 2, 0.5


class Story:
    """Rollouts in which every number says when and where it is from."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.rollout = Rollout(T, N, ((1,), FLOAT), ((), WHOLE))
        self.time = 0
        self.rows: list[dict[str, np.ndarray]] = []

    def next(self, segment: int) -> Rollout:
        rollout, r = self.rollout, self.random
        rollout.cut.clear()
        rollout.cut_mask.clear()
        begins = np.arange(self.time, self.time + T + 1)[:, None] + np.array([0, 1000])
        rollout.observation[..., 0] = begins[:T]
        rollout.last_observation[:, 0] = begins[T]
        rollout.reward[:] = r.integers(1, 9, (T, N))
        rollout.action[:] = begins[:T]
        rollout.valid[:] = r.random((T, N)) < 0.9
        rollout.terminated[:] = rollout.valid & (r.random((T, N)) < 0.15)
        rollout.truncated[:] = rollout.valid & ~rollout.terminated & (r.random((T, N)) < 0.15)
        for t in range(T):
            who = np.flatnonzero(rollout.truncated[t])
            rollout.cut.append((t, who, -begins[t, who][:, None].astype(np.float32)))
            rollout.cut_mask.append(None)
        for t in range(T):
            names = ("reward", "terminated", "truncated", "valid")
            row = {name: getattr(rollout, name)[t].copy() for name in names}
            row["after"] = np.where(row["truncated"], -begins[t], begins[t + 1])
            self.rows.append({**row, "segment": np.full(N, segment)})
        self.time += T
        return rollout


def expected(story: Story, t: int, i: int, n: int) -> tuple[float, float, float]:
    """R, the discount and s_{t+h} from row t of environment i, written out."""
    total, discount = 0.0, 1.0
    for k in range(n):
        row = {name: field[i] for name, field in story.rows[t + k].items()}
        total += discount * row["reward"]
        discount *= GAMMA
        newer = t + k + 1 < len(story.rows)
        over = row["terminated"] or row["truncated"] or not newer
        if over or story.rows[t + k + 1]["segment"][i] != row["segment"]:
            break
    return total, 0.0 if row["terminated"] else discount, row["after"]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("rollouts", [1, 2, 6])
def test_transitions_are_those_of_the_story(n, rollouts):
    """With a ring of 10 steps, which six rollouts of 4 go round twice."""
    story = Story()
    replay = Replay(10 * N, story.rollout, options=3)
    for k in range(rollouts):
        replay.add(story.next(segment=k // 2), segment=k // 2)
    found = replay.sample(600, generator(0, "test"), gamma=GAMMA, n=n)
    first = max(0, len(story.rows) - 10)
    seen = set()
    for row in range(600):
        i, t = divmod(int(found.action[row]), 1000)
        seen.add((t, i))
        assert found.observation[row].item() == found.action[row]
        wanted = expected(story, t, i, n)
        got = found.reward[row], found.discount[row], found.next_observation[row, 0]
        if wanted[1] == 0:  # it terminated: what follows is of no account
            wanted, got = wanted[:2], got[:2]
        assert [float(x) for x in got] == pytest.approx([float(x) for x in wanted])
    valid = {
        (t, i)
        for t, row in enumerate(story.rows)
        for i in range(N)
        if t >= first and row["valid"][i]
    }
    assert seen == valid  # all of them, and none that only reset
    assert len(replay) == len(valid)
    assert found.next_legal.all()


def test_masks_of_the_next_observation():
    story = Story()
    rollout = story.next(0)
    rollout.valid[:], rollout.terminated[:] = True, False
    rollout.action_mask = np.random.default_rng(0).random((T, N, 3)) < 0.5
    rollout.last_mask = np.array([[1, 0, 0], [0, 1, 0]], bool)
    rollout.cut[:] = [(1, np.array([0]), np.array([[7.0]])), (2, np.array([1]), np.array([[8.0]]))]
    rollout.cut_mask[:] = [np.array([[0, 0, 1]], bool), None]
    replay = Replay(T * N, rollout, options=3)
    replay.add(rollout, 0)
    wanted = np.concatenate([rollout.action_mask[1:], rollout.last_mask[None]])
    wanted[1, 0], wanted[2, 1] = [False, False, True], True
    assert (replay.next_legal == wanted).all()
    assert replay.next_observation[1, 0] == 7
    assert replay.next_observation[2, 1] == 8


def test_a_state_is_taken_up_whole():
    story = Story()
    replay = Replay(10 * N, story.rollout, options=3)
    for k in range(4):
        replay.add(story.next(0), 0)
        arrays, numbers = replay.state()
        again = Replay(10 * N, story.rollout, options=3)
        like = again.expected(numbers)
        assert {n: (a.shape, a.dtype) for n, a in like.items()} == {
            n: (a.shape, a.dtype) for n, a in arrays.items()
        }
        again.load_state(arrays, numbers)
        assert len(arrays["reward"]) == min(4 * (k + 1), 10)
        one, two = (r.sample(50, generator(k, "test"), gamma=GAMMA, n=3) for r in (replay, again))
        for name in ("observation", "action", "reward", "discount", "next_observation"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
