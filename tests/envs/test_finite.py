"""Finite problems as environments: the frequencies are the problem's, and state is saved."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import upslope as us
import upslope.envs
from upslope.envs.finite import FiniteEnv, FiniteVectorEnv
from upslope.errors import ArgumentError, ShapeError
from upslope.exact import FiniteMDP, access_control_queue, random_walk

RANDOM = np.random.default_rng(0)


def random_mdp(arrival: bool) -> FiniteMDP:
    p = RANDOM.dirichlet(np.ones(4), (3, 2))[:, :, :3]  # the fourth part ends the episode
    reward = RANDOM.normal(size=(3, 2, 3) if arrival else (3, 2))
    return FiniteMDP(p, reward, [0.2, 0.5, 0.3], 0.9)


@pytest.mark.parametrize("arrival", [False, True])
def test_frequencies_and_rewards_are_those_of_the_problem(arrival):
    mdp, n = random_mdp(arrival), 20_000
    env = FiniteVectorEnv(mdp, n)
    first, _ = env.reset(seed=1)
    for s in range(3):
        assert (first == s).mean() == pytest.approx(float(mdp.start[s]), abs=4.5 * 0.5 / n**0.5)
    actions = np.arange(n) % 2
    after, reward, terminated, truncated, info = env.step(actions)
    assert not truncated.any()
    final = info["final_obs"]
    assert np.array_equal(info["_final_obs"], terminated)
    assert np.array_equal(final[~terminated], after[~terminated])
    for s in range(3):
        for a in range(2):
            rows = (first == s) & (actions == a)
            error = 4.5 * 0.5 / rows.sum() ** 0.5
            assert terminated[rows].mean() == pytest.approx(float(mdp.ending[s, a]), abs=error)
            for following in range(3):
                arrived = rows & ~terminated & (final == following)
                chance = float(mdp.transition[s, a, following])
                assert arrived.sum() / rows.sum() == pytest.approx(chance, abs=error)
                paid = mdp.reward[s, a]
                if arrival:
                    paid = mdp.arrival_reward[s, a, following]
                assert (reward[arrived] == float(paid)).all()
            expected = 0.0 if arrival else float(mdp.reward[s, a])
            assert (reward[rows & terminated] == expected).all()
    begun = after[terminated]
    assert (begun == 1).mean() == pytest.approx(0.5, abs=4.5 * 0.5 / len(begun) ** 0.5)


def test_the_same_from_a_saved_state_and_from_a_seed():
    env, other = (FiniteVectorEnv(random_walk(5), 6, max_episode_steps=4) for _ in range(2))
    env.reset(seed=3)
    actions = np.random.default_rng(1).integers(0, 2, (20, 6))
    for row in actions[:7]:
        env.step(row)
    state = env.get_state()
    expected = [env.step(row) for row in actions[7:]]
    other.set_state(state)
    for row, want in zip(actions[7:], expected, strict=True):
        for x, y in zip(other.step(row)[:4], want[:4], strict=True):
            assert np.array_equal(x, y)
    assert any(truncated.any() for _, _, _, truncated, _ in expected)


def test_one_copy_is_gymnasiums_idea_of_an_environment():
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make("upslope/AccessControl-v0", max_episode_steps=50).unwrapped)
    env = FiniteEnv(random_walk(3), max_episode_steps=2)
    for k in range(20):
        seen, _ = env.reset(seed=k)
        assert seen == 1
        seen, _, terminated, truncated, _ = env.step(np.int64(k % 2))
        assert (int(seen), terminated, truncated) == (2 * (k % 2), False, False)
        seen, reward, terminated, truncated, _ = env.step(np.int64(k % 2))
        assert (reward, terminated, truncated) == (2 * (k % 2) - 1, True, False)


def test_states_can_look_alike():
    env = FiniteVectorEnv(us.exact.short_corridor(), 4, seen=[[1.0]] * 3)
    assert env.single_observation_space.shape == (1,)
    assert (env.reset(seed=0)[0] == np.ones((4, 1), np.float32)).all()
    with pytest.raises(ShapeError, match=r"seen takes shape \[3, F\], got \[2, 1\]"):
        FiniteVectorEnv(us.exact.short_corridor(), 4, seen=[[1.0]] * 2)


def test_the_queue_is_the_exact_one():
    """Its mean reward under the optimal policy is the gain, 2.7476."""
    mdp = access_control_queue()
    best = us.exact.policy_iteration(mdp, setting="average")
    assert float(best.objective) == pytest.approx(2.7476, abs=1e-4)
    env = gymnasium.make_vec("upslope/AccessControl-v0", num_envs=1000)
    state, _ = env.reset(seed=0)
    action, total = best.policy.argmax(1).numpy(), []
    for t in range(300):
        state, reward, terminated, truncated, _ = env.step(action[state])
        assert not (terminated | truncated).any()
        if t >= 100:
            total.append(reward.mean())
    assert np.mean(total) == pytest.approx(float(best.objective), rel=0.01)


def test_refusals():
    env = FiniteVectorEnv(random_walk(3), 2)
    with pytest.raises(ArgumentError, match="has been reset"):
        env.step(np.zeros(2, int))
    with pytest.raises(ArgumentError, match="has been reset"):
        env.get_state()
    env.reset(seed=0)
    with pytest.raises(ArgumentError, match="actions takes 0 to 1"):
        env.step(np.array([0, 2]))
    with pytest.raises(ArgumentError, match="actions takes whole numbers of shape"):
        env.step(np.zeros(3, int))
    with pytest.raises(ArgumentError, match="options takes nothing"):
        env.reset(options={"reset_mask": 1})
    with pytest.raises(ArgumentError, match="max_episode_steps takes a whole number"):
        FiniteVectorEnv(random_walk(3), 2, max_episode_steps=0)
    with pytest.raises(ArgumentError, match="state takes generator, state and steps"):
        env.set_state({})
    sparse = us.exact.gridworld(4, 4, sparse=True)
    with pytest.raises(ArgumentError, match="mdp takes a dense problem"):
        FiniteVectorEnv(sparse)


def test_a_task_goes_on_for_ever():
    env = us.envs.Continuing(gymnasium.make("CartPole-v1", max_episode_steps=5))
    env.reset(seed=0)
    lengths = 0
    for t in range(200):
        observation, reward, terminated, truncated, _ = env.step(t % 2)
        assert not terminated
        assert not truncated
        assert reward == 1
        assert env.observation_space.contains(observation)
        lengths = max(lengths, abs(observation[2]))
    assert lengths < 0.21  # 12 degrees: where it falls, it begins anew
    assert torch.isfinite(torch.as_tensor(observation)).all()


class Choosy(gymnasium.Env):
    """Ends often, and takes only the action that it names."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def told(self):
        legal = np.zeros(2, np.int8)
        self.legal = int(self.np_random.integers(2))
        legal[self.legal] = 1
        return np.zeros(1, np.float32), {"action_mask": legal}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.told()

    def step(self, action):
        assert action == self.legal
        observation, info = self.told()
        return observation, 1.0, bool(self.np_random.random() < 0.3), False, info | {"last": 1}


def test_what_is_told_is_of_the_state_that_is_observed():
    env = us.envs.Continuing(Choosy())
    _, info = env.reset(seed=0)
    for _ in range(100):
        *_, info = env.step(info["action_mask"].argmax())
        assert info["last"] == 1
    us.PPO(lambda: us.envs.Continuing(Choosy()), n_envs=2, n_steps=16, batch_size=32).learn(200)
