"""Environments in two halves: the same numbers as without, in whatever order results come."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import upslope as us
from tests.rollout.test_envpool import drawn, played, same
from upslope.errors import ArgumentError, EnvironmentFault
from upslope.rollout import envpool, halves
from upslope.rollout.halves import Halves
from upslope.rollout.make import make_stream
from upslope.rollout.stream import Step, Stream

REQUIRED = os.environ.get("CI") == "true" and sys.platform == "linux"
needs_envpool = pytest.mark.skipif(
    not (REQUIRED or envpool.installed()), reason="EnvPool is not installed here"
)
N = 6


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(envpool, "cores", lambda: 2)


# ---------------------------------------------------------------- a pool whose order is chosen
class Pool:
    """Counts the steps of each environment, and gives N/2 results at a time in a chosen order."""

    def __init__(self, seed: int) -> None:
        self.draws = np.random.default_rng(seed)
        self.total = np.zeros(N)  # of the actions so far
        self.steps = np.zeros(N, np.int32)
        self.waiting: list[int] = []
        self.mixed = 0

    def send(self, packed: Any) -> None:
        actions, rows = packed
        assert not set(rows) & set(self.waiting), "an environment got two actions at once"
        self.total[rows] += actions
        self.steps[rows] += 1
        self.waiting += list(rows)

    def reset(self, rows: np.ndarray) -> Any:
        assert not self.waiting
        self.total[rows], self.steps[rows] = rows, 0
        order = self.draws.permutation(rows)
        return self.seen(order), {"env_id": order, "elapsed_step": self.steps[order]}

    def seen(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self.total[rows], self.steps[rows]], 1)

    def recv(self) -> Any:
        assert len(self.waiting) >= N // 2, "waits for results that nobody asked for"
        # What was asked for first comes first, but for one that is overtaken.
        rows, self.waiting = self.waiting[: N // 2], self.waiting[N // 2 :]
        if self.waiting and self.draws.random() < 0.5:
            rows[-1], self.waiting[0] = self.waiting[0], rows[-1]
            self.mixed += 1
        order = self.draws.permutation(np.array(rows, np.int32))
        info = {"env_id": order, "elapsed_step": self.steps[order], "own": {"twice": 2 * order}}
        reward = self.total[order].astype(np.float32)
        return self.seen(order), reward, order == 1, order == 2, info


def unchecked(raw: Any, _: slice) -> Any:
    return raw


def called(function: Any, *args: Any) -> Any:
    return function(*args)


def test_results_in_any_order_come_to_their_places(monkeypatch):
    """With and without the native part, as steps ahead and as whole steps."""
    actions = np.random.default_rng(0).normal(size=(40, N))
    rows = np.arange(N)
    for built in {halves.BUILT, False}:
        monkeypatch.setattr(halves, "BUILT", built)
        pool = Pool(3)
        stepper = Halves(pool, lambda action, rows: (action, rows), N, limit=10**6)
        first, info = stepper.reset()
        np.testing.assert_array_equal(first, np.stack([rows, 0 * rows], 1))
        np.testing.assert_array_equal(info["env_id"], rows)
        for t in range(39):
            total = rows + actions[: t + 1].sum(0)
            if t % 13 != 12:  # now and then a step with nothing ahead
                asked: list[slice] = []

                def ahead(half, observation, t=t, asked=asked, total=total):
                    np.testing.assert_allclose(observation[:, 0], total[half])
                    asked.append(half)
                    return actions[t + 1, half]

                fresh = None if t % 13 else actions[t]
                seen = stepper.step_ahead(fresh, unchecked, ahead, called)
                assert asked == [slice(0, 3), slice(3, 6)]
                assert len(seen) == 2
            observation, reward, terminated, truncated, info = stepper.step(actions[t])
            np.testing.assert_allclose(observation[:, 0], total)
            np.testing.assert_array_equal(observation[:, 1], t + 1)
            np.testing.assert_allclose(reward, total, rtol=1e-6)
            np.testing.assert_array_equal(terminated, rows == 1)
            np.testing.assert_array_equal(truncated, rows == 2)
            np.testing.assert_array_equal(info["elapsed_step"], t + 1)
            np.testing.assert_array_equal(info["own"]["twice"], 2 * rows)
            assert set(info) == {"env_id", "elapsed_step", "own"}
            assert "score" not in info
        assert pool.mixed > 10


@pytest.mark.skipif(not halves.BUILT, reason="the native part")
def test_the_native_part_places_what_it_takes_and_leaves_the_rest_alone():
    def placed(rows: Any, part: np.ndarray, given: list[bool]) -> tuple[bool, list[np.ndarray]]:
        ours = [np.array(given), np.zeros((3, 2)), np.array([False, False, True]), np.zeros((3, 2))]
        first, wholes, second, others = ours
        return halves._native.place(rows, [part], first, [wholes], second, [others]), ours

    rows, part = np.array([2, 0], np.int32), np.arange(4.0).reshape(2, 2) + 1
    took, (first, wholes, second, others) = placed(rows, part, [True, False, False])
    assert took
    np.testing.assert_array_equal(wholes, [[0, 0], [0, 0], [1, 2]])
    np.testing.assert_array_equal(others, [[3, 4], [0, 0], [0, 0]])
    assert first.tolist() == [True, False, True]
    assert second.tolist() == [True, False, True]
    for wrong in (
        (rows, part, [True, False, True]),  # environment 2 is noted in both
        (rows.astype(np.int64), part, [False] * 3),
        (rows + 1, part, [False] * 3),
        (rows, part.astype(np.float32), [False] * 3),
        (rows, part[:, ::-1], [False] * 3),
    ):
        took, (first, wholes, _, others) = placed(*wrong)
        assert not took
        assert not wholes.any()
        assert not others.any()
        assert first.tolist() == wrong[2]


def test_nothing_is_begun_at_the_limit():
    pool = Pool(1)
    stepper = Halves(pool, lambda action, rows: (action, rows), N, limit=2)
    stepper.reset()
    ones = np.ones(N)
    assert stepper.step_ahead(ones, unchecked, lambda half, _: ones[half], called)
    stepper.step(ones)
    assert not stepper.step_ahead(None, unchecked, lambda half, _: ones[half], called)
    stepper.step(ones)
    assert not pool.waiting
    stepper.reset()
    np.testing.assert_array_equal(stepper.step(ones)[0], np.stack([np.arange(N) + 1, ones], 1))


# ---------------------------------------------------------------- EnvPool
def stepped(stream: Stream, actions: list[np.ndarray], *, ahead: bool) -> list[Step]:
    """Take the steps, in halves where the stream is."""
    steps: list[Step] = []
    for t, action in enumerate(actions):
        last = t == len(actions) - 1 or not ahead
        answer = None if last else lambda half, _, t=t: actions[t + 1][half]
        steps.append(stream.step(action, answer))
    return steps


@pytest.mark.slow
@needs_envpool
@pytest.mark.parametrize(
    ("env", "kwargs"),
    [
        ("HalfCheetah-v5", {"max_episode_steps": 9}),
        ("Reacher-v5", {}),
        ("Pendulum-v1", {"max_episode_steps": 7}),  # EnvPool resets it, a step later
        ("CheetahRun-v1", {"max_episode_steps": 9}),  # observations of several parts
        ("Breakout-v5", {"episodic_life": True}),
    ],
)
def test_the_same_stream_as_without(env, kwargs):
    with closing(make_stream(env, N, backend="envpool", env_kwargs=kwargs)) as stream:
        actions = drawn(stream, 60)
        stream.reset(3)
        assert stream.halves is None
        whole = stepped(stream, actions, ahead=False)
        beginnings = []
        for ahead in (True, False, True):
            beginnings.append(stream.reset(3, in_halves=True))
            assert stream.halves is not None
            assert same(stepped(stream, actions, ahead=ahead), whole)
        assert not stream.begun
        assert np.array_equal(*beginnings[:2])
        assert same(played(stream, 3, 40), whole[:40])


@needs_envpool
def test_who_is_in_halves(monkeypatch):
    def asked(env: str, n_envs: int) -> bool:
        with closing(make_stream(env, n_envs, backend="envpool")) as stream:
            stream.reset(0, in_halves=True)
            return stream.halves is not None

    assert asked("Swimmer-v5", 2)
    assert not asked("Swimmer-v5", 3)
    assert not asked("Hopper-v5", 2)  # reset one by one
    assert envpool.TIMED < envpool.EQUAL
    monkeypatch.setattr(envpool, "cores", lambda: 1)
    assert not asked("Swimmer-v5", 2)
    with closing(make_stream("CartPole-v1", 2)) as stream:
        stream.reset(0, in_halves=True)
        assert stream.halves is None


@needs_envpool
@pytest.mark.reference
@pytest.mark.parametrize("env", sorted(envpool.TIMED))
def test_nothing_but_time_ends_these(env):
    """However they are driven: for a whole episode at the bounds of the actions."""
    with closing(make_stream(env, 8, backend="envpool")) as stream:
        stream.reset(0)
        rng, space = np.random.default_rng(0), stream.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        for _ in range(stream._env._limit):
            sides = rng.integers(0, 2, (8, *space.shape))
            step = stream.step(np.where(sides, space.low, space.high))
            assert not step.terminated.any()
        assert step.truncated.all()


@needs_envpool
def test_only_a_part_cannot_be_reset():
    env = envpool.EnvPoolVectorEnv("Swimmer-v5", 2)
    env.halve()
    env.reset(seed=0)
    with closing(env), pytest.raises(ArgumentError, match="reset_mask takes all environments"):
        env.reset(options={"reset_mask": np.array([True, False])})


@needs_envpool
def test_a_fault_in_one_half_is_a_fault(monkeypatch):
    with closing(make_stream("Swimmer-v5", 4)) as stream:
        actions = drawn(stream, 3)
        stream.reset(0, in_halves=True)
        assert stream.halves is not None
        wait = stream.halves.wait

        def broken(half: slice) -> np.ndarray:
            found = wait(half).copy()
            found[-1, 2] = np.nan if half.start else found[-1, 2]
            return found

        monkeypatch.setattr(stream.halves, "wait", broken)
        with pytest.raises(EnvironmentFault, match=r"environment 3 returned nan as obs.* at \[2"):
            stepped(stream, actions, ahead=True)
        stream.reset(0, in_halves=True)  # what was under way is gone with its pool
        assert len(stepped(stream, actions, ahead=True)) == 3


@needs_envpool
@pytest.mark.parametrize(("name", "fine"), [("begin", 0), ("begin", 2), ("wait", 0)])
def test_an_error_says_where_if_the_environments_raised_it(name, fine, monkeypatch):
    """And nothing of them if it was the policy."""
    with closing(make_stream("Swimmer-v5", 4)) as stream:
        actions = drawn(stream, 3)

        def broken(*given: Any) -> Any:
            calls.append(given)
            if len(calls) > fine:
                raise RuntimeError("lost")
            return call(*given)

        calls: list[Any] = [None] * fine
        stream.reset(5, in_halves=True)
        with pytest.raises(RuntimeError, match="lost") as raised:
            stream.step(actions[0], broken)
        assert not hasattr(raised.value, "__notes__")
        stream.reset(5, in_halves=True)
        call = getattr(stream.halves, name)
        calls.clear()
        monkeypatch.setattr(stream.halves, name, broken)
        with pytest.raises(RuntimeError, match="lost") as raised:
            stepped(stream, actions, ahead=True)
        (note,) = raised.value.__notes__
        assert note.startswith("raised by an environment at step 1"), note


# ---------------------------------------------------------------- learning
def weights(agent: us.PPO) -> list[torch.Tensor]:
    return [p.detach().clone() for p in agent.policy.parameters()]


@pytest.mark.slow
@needs_envpool
@pytest.mark.skipif(not halves.BUILT, reason="the native engine acts in place")
@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("HalfCheetah-v5", {"env_kwargs": {"max_episode_steps": 25}}),
        ("Swimmer-v5", {"normalize_reward": True}),
        ("Pendulum-v1", {"env_kwargs": {"max_episode_steps": 25}, "n_steps": 35}),
    ],
)
def test_learning_is_the_same(env, settings, monkeypatch, tmp_path):
    """Bit for bit, also over a resume in the middle of a segment."""

    def agent() -> us.PPO:
        given = {"n_envs": 8, "n_steps": 40, "batch_size": 80, "n_epochs": 2} | settings
        return us.PPO(env, backend="envpool", seed=2, engine="native", **given)

    steps = agent().config.n_steps * 8
    halved = agent().learn(3 * steps)
    assert halved.stream.halves is not None
    halved.save(tmp_path / "half")
    resumed = us.PPO.load(tmp_path / "half", env=env)
    with monkeypatch.context() as without:
        without.setattr(envpool.EnvPoolVectorEnv, "halve", lambda self: None)
        plain = agent().learn(3 * steps)
    assert plain.stream.halves is None
    for each in (halved, resumed, plain):
        each.learn(3 * steps, reset_num_timesteps=False)
    assert halved.collector.episodes.summary() == plain.collector.episodes.summary()
    for one, other, third in zip(weights(halved), weights(plain), weights(resumed), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@needs_envpool
@pytest.mark.parametrize(
    "settings", [{"engine": "torch"}, {"normalize_observation": True}], ids=["torch", "scaled"]
)
def test_what_acts_on_all_at_once_steps_all_at_once(settings):
    agent = us.PPO("Swimmer-v5", n_envs=4, n_steps=16, batch_size=32, **settings).learn(128)
    assert agent.stream.halves is None
