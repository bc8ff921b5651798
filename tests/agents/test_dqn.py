"""DQN: its loss and update against the definition, schedules, masks, golden numbers, refusals."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import upslope as us
from tests.agents.anything import Anything
from upslope.errors import ArgumentError
from upslope.seeding import generator

SMALL = {"n_envs": 4, "batch_size": 16, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]}}


def reference_update(agent: us.DQN, rollout) -> list[torch.Tensor]:
    """DQN's gradient steps from their description, in plain PyTorch; only the draws are shared."""
    config = agent.config
    online, frozen = copy.deepcopy(agent.policy.network), copy.deepcopy(agent.target.network)
    adam = torch.optim.Adam(online.parameters(), lr=config.learning_rate, eps=1e-5)
    draws = generator(config.seed, "replay", agent.iteration)
    count = config.gradient_steps * config.batch_size
    every = agent.replay.sample(count, draws, gamma=config.gamma, n=config.n_steps)
    for k in range(config.gradient_steps):
        rows = slice(k * config.batch_size, (k + 1) * config.batch_size)
        following = every.next_observation[rows]
        with torch.no_grad():
            chooser = online(following) if config.double else frozen(following)
            best = frozen(following)[torch.arange(config.batch_size), chooser.argmax(1)]
            y = every.reward[rows] + every.discount[rows] * best
        q = online(every.observation[rows])[torch.arange(config.batch_size), every.action[rows]]
        loss = F.smooth_l1_loss(q, y) if config.huber else 0.5 * F.mse_loss(q, y)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(online.parameters(), config.max_grad_norm)
        adam.step()
    return [p.detach() for p in online.parameters()]


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("settings", [{}, {"double": True, "n_steps": 3}, {"huber": False}])
def test_an_update_is_what_its_description_says(settings, engine):
    chosen = SMALL | {"learning_starts": 64, "engine": engine} | settings
    agent = us.DQN("CartPole-v1", gradient_steps=5, learning_rate=1e-2, **chosen)
    agent.learn(60)
    assert agent.engine.steps == 0
    with torch.no_grad():  # it is to be another network than the one that learns
        for p in agent.target.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator(0, "test")))
    rollout = agent.collector.collect(agent.policy, generator(1, "act"))
    expected = reference_update(agent, rollout)
    before = [p.clone() for p in agent.policy.network.parameters()]
    agent.update(rollout)
    for now, wanted in zip(agent.policy.network.parameters(), expected, strict=True):
        torch.testing.assert_close(now, wanted, atol=1e-5, rtol=1e-4)
    assert max((a - b).abs().max() for a, b in zip(before, expected, strict=True)) > 1e-2


def run(total: int, **settings) -> tuple[us.DQN, list[dict[str, float]]]:
    rows: list[dict[str, float]] = []
    agent = us.DQN("CartPole-v1", **(SMALL | settings))
    return agent.learn(total, lambda _, row: rows.append(row)), rows


def test_exploration_falls_as_in_stable_baselines():
    settings = {"exploration_fraction": 0.5, "exploration_final_eps": 0.2, "learning_starts": 8}
    _, rows = run(80, exploration_initial_eps=0.8, **settings)
    epsilon = [row["epsilon"] for row in rows]
    done = np.cumsum([0, *np.diff([row["replayed"] for row in rows], prepend=0)])[:-1]
    expected = [1.0 if n < 8 else 0.8 + min(n / 80 / 0.5, 1) * (0.2 - 0.8) for n in done.tolist()]
    assert epsilon == pytest.approx(expected, abs=1e-6)
    assert epsilon[-1] == pytest.approx(0.2)


def test_nothing_is_learned_before_it_starts():
    agent, rows = run(20, learning_starts=21)
    assert agent.engine.steps == 0
    assert "td_error" not in rows[-1]
    agent.learn(8, reset_num_timesteps=False)
    assert agent.engine.steps > 0


@pytest.mark.parametrize(("gradient_steps", "updates"), [(3, 3), (-1, 8)])
def test_gradient_steps(gradient_steps, updates):
    agent, rows = run(8, train_freq=2, learning_starts=0, gradient_steps=gradient_steps)
    assert len(rows) == 1
    assert agent.engine.steps == updates


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_the_target_is_renewed_after_its_interval(tau):
    agent = us.DQN("CartPole-v1", **SMALL, target_update_interval=12, tau=tau, learning_rate=1e-2)
    renewed = []
    while agent.num_timesteps < 100:
        old = [p.clone() for p in agent.target.parameters()]
        now, before = [p.clone() for p in agent.policy.parameters()], agent.num_timesteps
        agent.learn(1, reset_num_timesteps=False)
        due = before // 12 < agent.num_timesteps // 12 and agent.num_timesteps >= 20
        for p, o, n in zip(agent.target.parameters(), old, now, strict=True):
            torch.testing.assert_close(p, o + tau * (n - o) if due else o)
        renewed.append(due)
    assert 4 <= sum(renewed) < len(renewed)


def test_illegal_actions_are_neither_taken_nor_believed():
    agent = us.DQN(partial(Anything, "box", "discrete", "info"), **SMALL).learn(200)  # it raises
    legal = agent.replay.next_legal[: agent.replay.filled]
    assert not legal.all()
    assert legal.any(-1).all()
    with torch.no_grad():
        agent.policy.network.layers[-1].bias[0] += 1000
    action, _ = agent.predict(np.zeros((3, 3), np.float32), action_masks=[[0, 1, 1, 0]] * 3)
    assert set((action - 1).tolist()) <= {1, 2}


@pytest.mark.parametrize("observation", ["box", "discrete", "multi_binary", "image", "nested"])
def test_observations_of_every_kind(observation, tmp_path):
    agent = us.DQN(partial(Anything, observation, "discrete"), **SMALL).learn(60)
    assert agent.engine.steps > 0
    agent.save(tmp_path / "a")
    again = us.load(tmp_path / "a", env=partial(Anything, observation, "discrete"))
    assert all(map(torch.equal, again.policy.parameters(), agent.policy.parameters()))


@pytest.mark.parametrize(
    ("env", "settings", "words"),
    [
        ("Pendulum-v1", {}, "DQN takes a Discrete action space"),
        ("CartPole-v1", {"policy": "gru"}, "no memory"),
        ("CartPole-v1", {"gradient_steps": 0}, "gradient_steps=0"),
        ("CartPole-v1", {"tau": 2.0}, "tau=2.0"),
        ("CartPole-v1", {"train_freq": 0}, "train_freq=0"),
        ("CartPole-v1", {"exploration_fraction": -0.1}, "from 0 to 1"),
        ("CartPole-v1", {"clip_range": 0.1}, "no setting 'clip_range'"),
    ],
)
def test_what_it_does_not_take_is_refused(env, settings, words):
    with pytest.raises(ArgumentError, match=words):
        us.DQN(env, **settings)


# ---- golden numbers ------------------------------------------------------------------------------
GOLDEN = {
    "value_loss": 1.4838114,
    "q": -0.0090043275,
    "moved": 0.14627435,
    "moment": 0.25363319,
}


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_golden_numbers(engine):
    """After three updates; a change here is a change of what everyone's runs give."""
    rows: list[dict[str, float]] = []
    agent = us.DQN(
        "CartPole-v1", seed=0, n_envs=4, train_freq=8, learning_starts=0, double=True, n_steps=2,
        target_update_interval=32, learning_rate=1e-3, gradient_steps=1, engine=engine,
    )  # fmt: skip
    before = agent.engine.flat.value.double()
    agent.learn(80, lambda _, row: rows.append(row))
    assert agent.engine.steps == 3
    found = {name: rows[-1][name] for name in ("value_loss", "q")}
    found["moved"] = (agent.engine.flat.value.double() - before).norm().item()
    found["moment"] = agent.engine.flat.first_moment.double().norm().item()
    # q is a mean of numbers of either sign, each rounded
    assert found == {name: pytest.approx(x, rel=1e-5, abs=3e-7) for name, x in GOLDEN.items()}
