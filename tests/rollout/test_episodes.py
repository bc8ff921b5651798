"""Whole episodes: one of each environment, nothing of what follows, and no length favoured."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope as us
from tests.rollout.chain import Chain
from upslope.agents.agent import Agent
from upslope.envs.finite import FiniteVectorEnv
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.normalizers import RewardNormalizer
from upslope.seeding import generator


def collected(agent: Agent, seed: int = 0) -> Rollout:
    return agent.collector.collect(agent.policy, generator(seed, "test"), agent.engine.act)


def lengths_of_chains(mode: AutoresetMode, limits: tuple[int, ...]) -> SyncVectorEnv:
    chains = [lambda n=n: Chain(limit=n, terminates=False) for n in limits]
    return SyncVectorEnv(chains, autoreset_mode=mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_each_column_is_one_episode_and_nothing_else(mode):
    limits = (3, 7, 1)
    agent = us.REINFORCE(lengths_of_chains(mode, limits), n_steps=20, normalize_observation=True)
    rollout = collected(agent)
    assert rollout.n_steps == 7  # up to the end of the longest
    for n, limit in enumerate(limits):
        assert rollout.valid[:, n].tolist() == [True] * limit + [False] * (7 - limit)
        assert np.flatnonzero(rollout.truncated[:, n]).tolist() == [limit - 1]
        expected = [1 + t % 2 for t in range(limit)] + [0] * (7 - limit)
        assert rollout.reward[:, n].tolist() == expected
    assert rollout.n_valid == 11
    collector = agent.collector
    assert sorted(length for _, length, _ in collector.episodes.recent) == [1, 3, 7]
    assert collector.episodes.ended == 3
    # s_0 and each s_t that an action was chosen on: what idles is in no statistic
    assert collector.observation_normalizer.moments.count == 11
    assert sorted(t for t, _, _ in rollout.cut) == [0, 2, 6]
    again = collected(agent, 1)  # from the beginning, whatever was going on
    assert again.valid.sum() == 11
    assert (again.valid[0]).all()


def test_what_is_open_at_the_last_row_is_cut_there_with_its_true_observation():
    env = lengths_of_chains(AutoresetMode.SAME_STEP, (3, 9))
    rollout = collected(us.REINFORCE(env, n_steps=4))
    assert rollout.n_steps == 4
    assert rollout.truncated.tolist() == [[False] * 2, [False] * 2, [True, False], [False, True]]
    (first, second) = rollout.cut
    assert (first[0], first[1].tolist()) == (2, [0])
    assert (second[0], second[1].tolist()) == (3, [1])
    assert second[2].tolist() == [[0, 4, 0]]  # (state, steps, episode) after four steps


def test_the_reward_normaliser_counts_what_is_played():
    env = lengths_of_chains(AutoresetMode.DISABLED, (3, 7))
    agent = us.REINFORCE(env, n_steps=20, normalize_reward=True, gamma=0.5)
    collected(agent)
    normalizer = RewardNormalizer(2, 0.5)
    for t in range(7):
        reward = np.array([1 + t % 2] * 2, np.float32)
        playing = np.array([t < 3, True])
        normalizer(reward * playing, np.array([t == 2, t == 6]), playing)
    found = agent.collector.reward_normalizer.moments
    assert (found.count, found.mean, found.var) == (
        10,
        pytest.approx(float(normalizer.moments.mean)),
        pytest.approx(float(normalizer.moments.var)),
    )


def test_first_rows_are_views_of_the_same_memory():
    kinds = ((2,), np.dtype(np.float32)), ((), np.dtype(np.int64))
    rollout = Rollout(6, 3, *kinds)
    part = rollout.first(4)
    assert (part.n_steps, part.observation.shape, part.value.shape) == (4, (4, 3, 2), (4, 3))
    part.value[3, 1] = 5
    part.valid[0, 2] = True
    assert rollout.value[3, 1] == 5
    assert rollout.n_valid == part.n_valid == 1
    assert rollout.n_steps == 6


# ---- length bias ---------------------------------------------------------------------------------
def two_lengths() -> us.exact.FiniteMDP:
    """Action 0 ends at once and pays 1; action 1 pays 2, but only after nine more steps."""
    transition, reward = np.zeros((10, 2, 10)), np.zeros((10, 2))
    transition[0, 1, 1] = 1
    transition[np.arange(1, 9), :, np.arange(2, 10)] = 1
    reward[0, 0], reward[9] = 1, 2
    return us.exact.FiniteMDP(transition, reward, np.eye(10)[0], 1.0)


def share_and_gradient(rollout: Rollout, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each whole episode in a rollout: whether it was short, and G_0 d ln pi / d logit of 1.

    `p` is the probability of action 1 in the first state; later states have no say.
    """
    short, gradient = [], []
    for n in range(rollout.n_envs):
        begin = 0
        for t in np.flatnonzero(rollout.terminated[:, n]):
            if rollout.valid[begin : t + 1, n].all():
                took = int(rollout.action[begin, n])
                short.append(t == begin)
                gradient.append(rollout.reward[begin : t + 1, n].sum() * (took - p))
            begin = t + 1
    return np.array(short, float), np.array(gradient)


def z(samples: np.ndarray, truth: float) -> float:
    return (samples.mean() - truth) / (samples.std(ddof=1) / np.sqrt(len(samples)))


def test_short_episodes_are_not_over_represented():
    """Against the exact gradient: p (1 - p) (2 - 1). The usual scheme, here too, is far off."""
    mdp, n_envs = two_lengths(), 1500
    agent = us.REINFORCE(FiniteVectorEnv(mdp, n_envs), gamma=1.0, n_steps=50)
    with torch.no_grad():
        p = agent.policy.distribution(torch.tensor([[0]])).log_probs.exp()[0, 1].item()
    theta = torch.tensor([0.0, np.log(p / (1 - p))], dtype=torch.float64)
    exact = us.exact.policy_gradient(mdp, lambda x: x.softmax(0).expand(10, 2), theta)
    truth = p * (1 - p)  # what the first state has in it; the others get no more whatever they do
    assert exact[1].item() == pytest.approx(truth)
    short, gradient = share_and_gradient(collected(agent), p)
    assert len(short) == n_envs
    assert abs(z(short, 1 - p)) < 4.5
    assert abs(z(gradient, truth)) < 4.5

    own = agent.collector
    kinds = [(a.shape[2:], a.dtype) for a in (own.rollout.observation, own.rollout.action)]
    naive = Collector(agent.stream, Rollout(15, n_envs, *kinds), seed=0, segment_length=15).collect(
        agent.policy, generator(1, "test")
    )
    short, gradient = share_and_gradient(naive, p)
    begins = [1.0] + [0.0] * 14  # the chance that an episode begins in row t
    for t in range(1, 15):
        begins[t] = (1 - p) * begins[t - 1] + p * (begins[t - 10] if t >= 10 else 0)
    shorts, longs = (1 - p) * sum(begins), p * sum(begins[:6])  # that end in time
    assert short.mean() == pytest.approx(shorts / (shorts + longs), abs=0.03)  # .66, not .5
    assert z(short, 1 - p) > 10
    assert z(gradient, truth) < -4.5


def test_the_longest_episode_is_there_whole():
    agent = us.REINFORCE(FiniteVectorEnv(two_lengths(), 64), gamma=1.0, n_steps=50)
    rollout = copy.copy(collected(agent))
    assert rollout.n_steps == 10
    assert set(rollout.valid.sum(0).tolist()) == {1, 10}
    assert (rollout.terminated.sum(0) == 1).all()
