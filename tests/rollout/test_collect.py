"""Collecting: what is recorded, counted, cut into segments, saved and taken up again."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from tests.rollout.chain import Chain
from upslope.errors import CheckpointError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.make import make_policy
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.make import make_stream
from upslope.rollout.normalizers import ObservationNormalizer, RewardNormalizer
from upslope.rollout.values import evaluate_values
from upslope.seeding import derive32, generator

SEED = 3


def collector_of(
    env: Any,
    n_envs: int = 3,
    n_steps: int = 8,
    *,
    segment_length: int = 10_000,
    normalize: bool = False,
    **kwargs: Any,
) -> tuple[Collector, ActorCritic]:
    stream = make_stream(env, n_envs, **kwargs)
    space = stream.observation_space
    policy = make_policy(None, space, stream.action_space, generator=generator(SEED, "weights"))
    head, kept = policy.head, np.dtype(np.float32)
    collector = Collector(
        stream,
        Rollout(n_steps, n_envs, (space.shape, kept), (head.shape, head.dtype)),
        seed=SEED,
        segment_length=segment_length,
        observation_normalizer=ObservationNormalizer(space.shape) if normalize else None,
        reward_normalizer=RewardNormalizer(n_envs, 0.99) if normalize else None,
    )
    return collector, policy


def collect(collector: Collector, policy: ActorCritic, number: int) -> dict[str, Any]:
    """One rollout, and all that was recorded of it, copied."""
    rollout = collector.collect(policy, generator(SEED, "act", number))
    names = ("observation", "action", "reward", "terminated", "truncated", "valid", "log_prob")
    found = {
        name: np.asarray(getattr(rollout, name)).copy() for name in (*names, "last_observation")
    }
    for k, (t, cut, observation) in enumerate(rollout.cut):
        found |= {f"cut {k} at {t}": np.array(cut), f"cut {k} in": np.array(observation)}
    return found | {"recent": collector.episodes.last(), "episodes": collector.episodes.ended}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, err_msg=name, strict=True)


# ---- against a plain loop ------------------------------------------------------------------------
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_rollout_is_a_plain_loop_over_each_environment(env_id):
    n_envs, n_steps = 3, 100

    def make() -> gymnasium.Env:
        return gymnasium.make(env_id, max_episode_steps=30)

    collector, policy = collector_of(make, n_envs, n_steps)
    found = collect(collector, policy, 0)
    ended: list[tuple[int, int, float, int]] = []
    cut = {
        (t, i): one
        for t, who, seen in collector.rollout.cut
        for i, one in zip(who.tolist(), seen, strict=True)
    }
    assert cut
    for i in range(n_envs):
        env = make()
        observation, _ = env.reset(seed=derive32(SEED, "environment", 0) + i)
        total, length = 0.0, 0
        for t in range(n_steps):
            np.testing.assert_array_equal(found["observation"][t, i], observation)
            action = policy.head.to_environment(found["action"][t, i : i + 1])[0]
            observation, reward, terminated, truncated, _ = env.step(action)
            assert found["reward"][t, i] == np.float32(reward)
            assert found["terminated"][t, i] == terminated
            assert found["truncated"][t, i] == (truncated and not terminated)
            total, length = total + float(reward), length + 1
            if truncated and not terminated:
                np.testing.assert_array_equal(cut.pop((t, i)), observation)
            if terminated or truncated:
                ended.append((t, i, total, length))
                observation, _ = env.reset()
                total, length = 0.0, 0
        np.testing.assert_array_equal(found["last_observation"][i], observation)
        assert collector.episodes.total[i] == pytest.approx(total, rel=1e-5)
        assert collector.episodes.length[i] == length
    assert found["valid"].all()
    assert not cut  # each was one of the true last observations
    assert len(ended) >= 3 * n_envs
    expected = [(total, length) for _, _, total, length in sorted(ended)]
    np.testing.assert_allclose(found["recent"][:, :2], expected, rtol=1e-5)
    summary = collector.episodes.summary()
    assert summary["episodes"] == len(ended)
    assert summary["episode_return"] == pytest.approx(np.mean([e[0] for e in expected]), rel=1e-5)
    assert summary["episode_length"] == pytest.approx(np.mean([e[1] for e in expected]))
    assert "episode_score" not in summary


def test_log_prob_and_actions_are_the_policys():
    collector, policy = collector_of("Pendulum-v1", 4, 20)
    found = collect(collector, policy, 0)
    with torch.no_grad():
        rows = torch.from_numpy(found["observation"].reshape(80, 3))
        distribution = policy.distribution(rows)
        log_prob = distribution.log_prob(torch.from_numpy(found["action"].reshape(80, 1)))
    torch.testing.assert_close(torch.from_numpy(found["log_prob"].ravel()), log_prob)
    assert np.abs(found["action"]).max() > 1
    z = found["action"].ravel() - distribution.mode().numpy().ravel()
    assert abs(z.mean()) * np.sqrt(80) < 4.5
    assert abs(z.std() - 1) * np.sqrt(160) < 4.5  # log_std starts at 0


def test_scores_are_those_at_the_end():
    collector, policy = collector_of(lambda: Chain(limit=5), 2, 12)
    found = collect(collector, policy, 0)
    # episode 0 ends with score 5, episode 1 with 105; both environments alike
    assert found["recent"].tolist() == [[7, 5, 5]] * 2 + [[7, 5, 105]] * 2
    assert collector.episodes.summary()["episode_score"] == 55


# ---- rows that only reset ------------------------------------------------------------------------
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=str)
def test_rows_that_only_reset_are_not_counted(mode):
    """Episodes of 5 steps that pay 1, 2, 1, 2, 1; NEXT_STEP shows a sixth row after each."""
    env = SyncVectorEnv([lambda: Chain(limit=5)] * 2, autoreset_mode=mode)
    collector, policy = collector_of(env, 2, 13, normalize=True)
    found = collect(collector, policy, 0)
    resets = [5, 11] if mode is AutoresetMode.NEXT_STEP else []
    assert np.flatnonzero(~found["valid"][:, 0]).tolist() == resets
    assert collector.rollout.n_valid == 2 * (13 - len(resets))
    assert found["recent"][:, :2].tolist() == [[7, 5]] * 4
    assert collector.episodes.length.tolist() == [13 - len(resets) - 10] * 2
    assert not found["terminated"].any()
    ends = [4, 10] if mode is AutoresetMode.NEXT_STEP else [4, 9]
    assert np.flatnonzero(found["truncated"][:, 0]).tolist() == ends
    assert found["reward"][resets].tolist() == [[0, 0]] * len(resets)
    # every observation that was or will be acted on, of both environments, and no other
    assert collector.observation_normalizer.moments.count == 2 * (14 - len(resets))
    assert collector.reward_normalizer.moments.count == 2 * (13 - len(resets))


def test_statistics_do_not_depend_on_the_autoreset_mode():
    found = []
    for mode, steps in [(AutoresetMode.NEXT_STEP, 12), (AutoresetMode.SAME_STEP, 10)]:
        env = SyncVectorEnv([lambda: Chain(limit=5)] * 2, autoreset_mode=mode)
        collector, policy = collector_of(env, 2, steps, normalize=True)
        collect(collector, policy, 0)
        found.append(
            collector.reward_normalizer.state_dict() | {"recent": collector.episodes.last()}
        )
    for name in ("count", "mean", "var"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-12)
    assert found[0]["recent"][:, :2].tolist() == found[1]["recent"][:, :2].tolist()


# ---- segments ------------------------------------------------------------------------------------
class Logged(Chain):
    """A chain that writes down with which seed each instance was first reset."""

    made: ClassVar[list[Logged]] = []

    def __init__(self) -> None:
        super().__init__(limit=5, start_from_seed=True)
        self.seeds: list[int | None] = []
        self.made.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        return super().reset(seed=seed)


def test_environments_are_made_anew_at_each_segment():
    Logged.made.clear()
    collector, policy = collector_of(Logged, 2, 6, segment_length=12)
    made = []
    for k in range(5):
        collect(collector, policy, k)
        made.append(len(Logged.made))
    assert collector.segment == 2
    assert np.diff([made[0], *made]).tolist() == [0, 0, 2, 0, 2]
    last = Logged.made[-2:]
    first_seeds = [env.seeds[0] for env in last]
    base = derive32(SEED, "environment", 2)
    assert first_seeds == [base, base + 1]
    assert all(seed is None for env in last for seed in env.seeds[1:])
    # an episode that a segment cut was forgotten: 12 steps hold two episodes of 5
    assert collector.episodes.ended == 2 * 2 * 2 + 2
    assert {length for _, length, _ in collector.episodes.recent} == {5}
    assert {total for total, _, _ in collector.episodes.recent} <= {7, 8}


def test_the_discounted_return_begins_anew_with_a_segment():
    collector, policy = collector_of(
        lambda: Chain(limit=100), 2, 6, segment_length=6, normalize=True
    )
    expected = 0.0
    for reward in (1, 2, 1, 2, 1, 2):
        expected = 0.99 * expected + reward
    for k in range(2):
        collect(collector, policy, k)
        np.testing.assert_allclose(collector.reward_normalizer.running_return, expected)


def test_a_cut_episode_is_worth_what_follows():
    """The last row of a segment is bootstrapped like that of any rollout, and counts as no end."""
    collector, policy = collector_of(Logged, 2, 6, segment_length=6)
    for k in range(2):
        found = collect(collector, policy, k)
        evaluate_values(policy, collector.rollout)
        assert not (found["terminated"] | found["truncated"])[-1].any()
        with torch.no_grad():
            expected = policy.value(torch.from_numpy(found["last_observation"]))
        torch.testing.assert_close(collector.rollout.next_value[-1], expected)
    assert collector.segment == 1


def test_environments_that_were_given_or_save_their_state_have_no_segments():
    given = SyncVectorEnv([lambda: Chain(limit=5)] * 2)
    for env in (given, "upslope/FlappyBird-v0"):
        collector, policy = collector_of(env, 2, 6, segment_length=6)
        for k in range(3):
            collect(collector, policy, k)
        assert (collector.segment, collector.replays) == (0, False)
        assert collector.actions == []


# ---- saving and going on -------------------------------------------------------------------------
ENVIRONMENTS = {
    "vector entry point": {"env": "CartPole-v1", "backend": "vector_entry_point"},
    "discrete, sync": {"env": "CartPole-v1", "backend": "sync"},
    "continuous, sync": {"env": "Pendulum-v1"},
    "saves its own state": {"env": "upslope/FlappyBird-v0"},
}


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("before", [0, 1, 2, 3, 4, 5])
def test_going_on_from_a_state_is_going_on(env, before):
    """From the start, in the middle of a segment, and where one ends (4 rollouts each)."""

    def made() -> tuple[Collector, ActorCritic]:
        return collector_of(**env, n_steps=25, segment_length=100, normalize=True)

    collector, policy = made()
    for k in range(before):
        collect(collector, policy, k)
    arrays, numbers = copy.deepcopy(collector.state())
    other, _ = made()
    expected = other.expected(numbers)
    assert expected.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (expected[name].shape, expected[name].dtype) == (array.shape, array.dtype), name
    other.load_state(arrays, numbers)
    again = copy.deepcopy(other.state())  # saved again before a step was taken
    assert_same(arrays, again[0])
    assert numbers == again[1]
    for k in range(before, before + 5):
        assert_same(collect(collector, policy, k), collect(other, policy, k))
    segment = (before + 4) // 4 if collector.replays else 0
    assert other.segment == collector.segment == segment
    assert_same(collector.state()[0], other.state()[0])


def test_a_used_collector_can_be_taken_back():
    collector, policy = collector_of("CartPole-v1", n_steps=25, segment_length=100)
    collect(collector, policy, 0)
    arrays, numbers = copy.deepcopy(collector.state())
    first = [collect(collector, policy, k) for k in range(1, 6)]
    collector.load_state(arrays, numbers)
    for k, found in enumerate(first, 1):
        assert_same(found, collect(collector, policy, k))


def test_given_environments_begin_a_new_segment():
    def made() -> tuple[Collector, ActorCritic]:
        return collector_of(SyncVectorEnv([lambda: Chain(limit=5)] * 2), 2, 7)

    collector, policy = made()
    collect(collector, policy, 0)
    arrays, numbers = copy.deepcopy(collector.state())
    other, _ = made()
    other.load_state(arrays, numbers)
    found = collect(other, policy, 1)
    assert other.segment == 1
    assert found["observation"][0, 0, 1] == 0  # the first step of an episode
    assert other.episodes.ended == 4


class Unseeded(Chain):
    """Starts somewhere else in each instance, whatever the seed."""

    count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        Unseeded.count += 1
        self.episode = Unseeded.count
        return self._observe(), {}


def test_environments_that_do_not_come_back_are_refused():
    collector, policy = collector_of(Unseeded, 2, 6)
    collect(collector, policy, 0)
    state = copy.deepcopy(collector.state())
    other, _ = collector_of(Unseeded, 2, 6)
    other.load_state(*state)
    with pytest.raises(
        CheckpointError, match=r"did not come back .*replaying 6 steps of segment 0"
    ):
        collect(other, policy, 1)


# ---- values --------------------------------------------------------------------------------------
class Sum(nn.Module):
    """v(s) is the sum of the numbers in s."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def value(self, observation: torch.Tensor) -> torch.Tensor:
        return observation.sum(-1)


def test_next_value_is_that_of_the_true_next_observation():
    rollout = Rollout(3, 2, ((2,), np.dtype(np.float32)), ((), np.dtype(np.int64)))
    rollout.observation[:] = np.array([1, 2, 3, 4, 5, 6]).reshape(3, 2, 1)
    rollout.last_observation[:] = np.array([[7], [8]])
    rollout.terminated[0, 0] = True
    rollout.truncated[1, 1] = rollout.truncated[2, 0] = True
    rollout.cut = [
        (1, np.array([1]), np.full((1, 2), 50, np.float32)),
        (2, np.array([0]), np.full((1, 2), 60, np.float32)),
    ]
    evaluate_values(Sum(), rollout)
    assert rollout.value.tolist() == [[2, 4], [6, 8], [10, 12]]
    assert rollout.next_value.tolist() == [[0, 8], [10, 100], [120, 16]]
    assert not rollout.value.is_inference()


def test_values_of_many_rows_are_those_of_few(monkeypatch):
    collector, policy = collector_of("Pendulum-v1", 4, 20)
    collect(collector, policy, 0)
    evaluate_values(policy, collector.rollout)
    whole = collector.rollout.value.clone()
    monkeypatch.setattr("upslope.rollout.values.ROWS_AT_ONCE", 7)
    evaluate_values(policy, collector.rollout)
    torch.testing.assert_close(collector.rollout.value, whole)
    with torch.no_grad():
        one = policy.value(torch.from_numpy(collector.rollout.observation[5]))
    torch.testing.assert_close(whole[5], one)
