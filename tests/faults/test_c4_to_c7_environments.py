"""C4, C5, C6, C7: What an environment returns is what its space says, and ends are told apart."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import upslope as us
from tests import tiny
from tests.rollout.chain import Chain, chain_value
from upslope.errors import EnvironmentFault

pytestmark = pytest.mark.faults

NETWORK: dict[str, Any] = {"n_envs": 2, "policy_kwargs": {"net_arch": [8]}, "gamma": 0.9}
AGENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "q_learning": (us.QLearning, {"n_envs": 2, "bins": [4, 4], "gamma": 0.9}),
    "dqn": (us.DQN, NETWORK | {"learning_starts": 20, "batch_size": 16}),
    "reinforce": (us.REINFORCE, NETWORK),
    "actor_critic": (us.ActorCritic, NETWORK),
    "ppo": (us.PPO, NETWORK | {"n_steps": 8, "batch_size": 16, "n_epochs": 2}),
}
FORM = r"from step what is not \(observation, one number as reward"
BAD = {
    "outside": (lambda seen, reward: (seen + 50, reward), r"\d+\.\d+ as observation at \[0\], out"),
    "longer": (lambda seen, reward: (np.zeros(3, np.float32), reward), r"shape \(3,\).* as obs"),
    "shorter": (lambda seen, reward: (seen[:1], reward), r"shape \(1,\) and type float32 as obs"),
    "complex": (lambda seen, reward: (seen + 1j, reward), "type complex"),
    "nothing seen": (lambda seen, reward: (None, reward), "None as observation"),
    "words seen": (lambda seen, reward: ("left", reward), "'left' as observation"),
    "no reward": (lambda seen, reward: (seen, None), "nan as reward"),
    "two rewards": (lambda seen, reward: (seen, np.ones(2)), FORM),
    "complex reward": (lambda seen, reward: (seen, 1j), FORM),
}


class Bad(tiny.Walk):
    """A walk of ten steps in a box; the second one made returns something else at its step 5."""

    observation_space = gymnasium.spaces.Box(-20, 20, (2,), np.float32)

    def __init__(self, change: Any, made: list[None]) -> None:
        super().__init__(10)
        made.append(None)
        self.change = change if len(made) % 2 == 0 else None

    def step(self, action):
        seen, reward, *rest = super().step(action)
        if self.change and self.total == 5:
            seen, reward = self.change(seen, reward)
        return seen, reward, *rest


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", AGENTS)
def test_what_the_space_does_not_have_is_named(name, what):
    """C4: who returned it, what it was and at which step; no weight learns from it."""
    kind, settings = AGENTS[name]
    change, message = BAD[what]
    agent = kind(partial(Bad, change, []), seed=0, **settings)
    with pytest.raises(
        EnvironmentFault, match=rf"environment 1 returned .*{message}.* step 5 since"
    ):
        agent.learn(200)
    for tensor in agent.policy.state_dict().values():
        assert torch.isfinite(tensor).all()


class Bandit(gymnasium.Env):
    """Every episode is over after `length` steps; action 1 earns 1."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: float) -> None:
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), float(action), self.t >= self.length, False, {}


@pytest.mark.parametrize("name", ["dqn", "reinforce", "actor_critic", "ppo"])
def test_episodes_of_one_step_are_worth_their_reward(name):
    """C5: terminated by the first step after the reset; q or v is the reward and nothing more."""
    kind, settings = AGENTS[name]
    if name == "reinforce":
        settings = settings | {"baseline": "value"}
    if name == "dqn":  # a target that is never renewed stays at 0, the right value after an end
        settings = settings | {"target_update_interval": 50}
    agent = kind(partial(Bandit, 1), seed=0, **settings | {"learning_rate": 0.03})
    agent.learn(3_000)
    action, _ = agent.predict(np.zeros((1, 1), np.float32))
    assert action.item() == 1
    with torch.no_grad():
        if name == "dqn":
            found = agent.policy.q(torch.zeros(1, 1))[0]
            np.testing.assert_allclose(found, [0, 1], atol=0.1)
        else:
            assert agent.policy.value(torch.zeros(1, 1)).item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_no_reward_of_the_next_episode_counts(gae_lambda, monkeypatch):
    """C5: the return of a step that ends its episode is its reward, whatever lambda.

    What is learned cannot tell: the errors of later episodes have a mean of 0 where v is right.
    """
    agent = us.PPO(partial(Bandit, 1), n_envs=3, n_steps=20, gamma=0.9, gae_lambda=gae_lambda)
    monkeypatch.setattr(agent.engine, "value", lambda seen: torch.full(seen.shape[:1], 7.0))
    rollout = agent.collector.collect(agent.policy, agent.prediction_generator)
    agent.estimate_advantage(rollout)
    assert (rollout.terminated == rollout.valid).all()
    assert 0 < rollout.reward[rollout.valid].mean() < 1
    found = rollout.target.numpy()[rollout.valid]
    np.testing.assert_allclose(found, rollout.reward[rollout.valid], atol=1e-6)


def test_an_episode_that_never_ends_is_worth_what_follows(monkeypatch):
    """C5: targets are the closed form, sum of gamma^k r plus gamma^n v where the rollout stops."""
    agent = us.PPO(partial(Bandit, np.inf), n_envs=3, n_steps=20, gamma=0.9, gae_lambda=1.0)
    # not the policy's own, which is 0 here before it has learned
    monkeypatch.setattr(agent.engine, "value", lambda seen: torch.full(seen.shape[:1], 7.0))
    rollout = agent.collector.collect(agent.policy, agent.prediction_generator)
    agent.estimate_advantage(rollout)
    expected, after = np.zeros((20, 3)), np.full(3, 7.0)
    for t in reversed(range(20)):
        expected[t] = after = rollout.reward[t] + 0.9 * after
    assert not rollout.terminated.any()
    np.testing.assert_allclose(rollout.target, expected, rtol=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_time_limit_is_no_end_in_any_autoreset_mode(mode, gae_lambda, monkeypatch):
    """C6: with the true values every advantage is 0, up to a termination, where it is -gamma V."""
    makers = [Chain, partial(Chain, head_start=2), partial(Chain, head_start=3, terminates=True)]
    agent = us.PPO(SyncVectorEnv(makers, autoreset_mode=mode), n_steps=40, gamma=0.9)
    monkeypatch.setattr(
        agent.engine, "value", lambda seen: torch.from_numpy(chain_value(seen[..., 0], 0.9)).float()
    )
    agent.config = agent.config.__class__(**vars(agent.config) | {"gae_lambda": gae_lambda})
    rollout = agent.collector.collect(agent.policy, agent.prediction_generator)
    agent.estimate_advantage(rollout)
    advantage, ended = rollout.advantage.numpy(), rollout.terminated
    assert ended.sum() >= 2
    assert rollout.truncated.sum() >= 12
    before_an_end = np.zeros_like(ended)  # at most four steps, the longest episode being of five
    for t, n in np.argwhere(ended):
        before_an_end[max(t - 4, 0) : t, n] = True
    plain = rollout.valid & ~ended & ~before_an_end
    np.testing.assert_allclose(advantage[plain], 0, atol=2e-5)
    worth = -0.9 * chain_value(1 - rollout.observation[..., 0], 0.9)
    np.testing.assert_allclose(advantage[ended], worth[ended], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "actor_critic", "ppo"])
def test_workers_train_the_same_weights(name):
    """C7: in worker processes as in this one, bit for bit."""
    kind, settings = AGENTS[name]
    states = []
    for backend in ("sync", "async"):
        agent = kind("Acrobot-v1", seed=0, backend=backend, **settings).learn(200)
        states.append(agent.policy.state_dict())
        agent.stream.close()
    for field, value in states[0].items():
        assert torch.equal(value, states[1][field]), field
