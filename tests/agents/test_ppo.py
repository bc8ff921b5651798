"""PPO: its loss and update against the definition, special cases, golden numbers."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.nn import functional as F

import upslope as us
from tests.agents.probes import ActionDecides, ConstantReward
from upslope.agents.ppo import ppo_loss
from upslope.gradient import quality
from upslope.losses import policy_gradient_loss
from upslope.policies.actor_critic import NetworkActorCritic
from upslope.rollout.buffer import Batch
from upslope.seeding import derive, generator

SPACES = {"Discrete": spaces.Discrete(3), "Box": spaces.Box(-1, 1, (2,), np.float32)}


def policy_of(kind: str) -> NetworkActorCritic:
    observation = spaces.Box(-1, 1, (4,), np.float32)
    return NetworkActorCritic(observation, SPACES[kind], generator=generator(0, "test"))


def batch_of(policy: NetworkActorCritic, rows: int = 40) -> Batch:
    draw = generator(1, "test")
    observation = torch.randn(rows, 4, generator=draw)
    with torch.no_grad():
        distribution = policy.distribution(observation)
        action = distribution.sample(draw)
        value, target = policy.value(observation), torch.randn(rows, generator=draw)
    return Batch(
        observation=observation,
        action=action,
        log_prob=distribution.log_prob(action).detach(),
        value=value,
        advantage=torch.randn(rows, generator=draw),
        target=target,
    )


def gradient_of(policy: NetworkActorCritic, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    pairs = zip(found, policy.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


bare = partial(ppo_loss, clip_range=0.2, clip_range_vf=None, vf_coef=0.0, ent_coef=0.0)


# ---- the loss ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("clip_range", [1e-3, 0.2, 1.0])
def test_where_the_ratio_is_1_the_gradient_is_the_policy_gradient(kind, clip_range):
    policy = policy_of(kind)
    batch = batch_of(policy)
    loss, metrics = bare(policy, batch, clip_range=clip_range)
    log_prob = policy.distribution(batch.observation).log_prob(batch.action)
    expected = gradient_of(policy, policy_gradient_loss(log_prob, batch.advantage))
    torch.testing.assert_close(gradient_of(policy, loss), expected)
    assert expected.norm() > 0.1
    assert loss.item() == pytest.approx(-batch.advantage.mean().item(), abs=1e-6)
    assert metrics["approx_kl"].item() == pytest.approx(0, abs=1e-6)
    assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize("clip_range_vf", [None, 0.3])
def test_the_loss_is_the_sum_of_its_parts(clip_range_vf):
    policy = policy_of("Discrete")
    batch = batch_of(policy)
    batch.log_prob += 0.3 * torch.randn(40, generator=generator(2, "test"))
    batch.value += torch.randn(40, generator=generator(3, "test"))
    loss, metrics = ppo_loss(
        policy, batch, clip_range=0.2, clip_range_vf=clip_range_vf, vf_coef=0.7, ent_coef=0.1
    )
    with torch.no_grad():
        distribution = torch.distributions.Categorical(logits=policy.actor(batch.observation))
        value = policy.critic(batch.observation)[:, 0]
    surrogate, error, kl, clipped = 0.0, 0.0, 0.0, 0
    for i in range(40):
        log_ratio = (distribution.log_prob(batch.action)[i] - batch.log_prob[i]).item()
        ratio, a = math.exp(log_ratio), batch.advantage[i].item()
        surrogate += min(ratio * a, min(max(ratio, 0.8), 1.2) * a) / 40
        v, old, target = value[i].item(), batch.value[i].item(), batch.target[i].item()
        square = (v - target) ** 2
        if clip_range_vf is not None:
            held = min(max(v, old - clip_range_vf), old + clip_range_vf)
            square = max(square, (held - target) ** 2)
        error += square / 40
        kl += (ratio - 1 - log_ratio) / 40
        clipped += not 0.8 <= ratio <= 1.2
    entropy = distribution.entropy().mean().item()
    assert metrics["policy_loss"].item() == pytest.approx(-surrogate, abs=1e-6)
    assert metrics["value_loss"].item() == pytest.approx(error, rel=1e-5)
    assert metrics["entropy"].item() == pytest.approx(entropy, rel=1e-5)
    assert metrics["approx_kl"].item() == pytest.approx(kl, rel=1e-4)
    assert metrics["clip_fraction"].item() == pytest.approx(clipped / 40)
    assert 0 < clipped < 40
    assert loss.item() == pytest.approx(-surrogate + 0.7 * error - 0.1 * entropy, rel=1e-5)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("log_ratio", [-1000.0, -100, 100, 1000])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_ratios_are_defined(kind, log_ratio, sign):
    policy = policy_of(kind)
    batch = batch_of(policy)
    batch.log_prob -= log_ratio
    batch.advantage = sign * batch.advantage.abs()
    loss, _ = bare(policy, batch)
    gradient = gradient_of(policy, loss)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    if log_ratio > 0 and sign < 0:  # far too probable and bad: the one case with a way to go
        assert gradient.norm() > 1
    else:
        assert (gradient == 0).all() or gradient.norm() < 1e-30


# ---- one update, written out ---------------------------------------------------------------------
def perceptron(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    for layer in (0, 2):
        x = torch.tanh(
            F.linear(x, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"])
        )
    return F.linear(x, weights[f"{name}.4.weight"], weights[f"{name}.4.bias"])


def reference_update(agent: us.PPO, rollout) -> dict[str, torch.Tensor]:
    """PPO's update from its description, in plain PyTorch; only the rows' order is the agent's."""
    config = agent.config
    weights = {k: v.clone().requires_grad_() for k, v in agent.policy.state_dict().items()}
    adam = torch.optim.Adam(weights.values(), lr=float(config.learning_rate), eps=1e-5)
    n_steps, n_envs = rollout.valid.shape

    def value_of(observation) -> np.ndarray:
        with torch.no_grad():
            return perceptron(weights, "critic", torch.from_numpy(observation)).numpy()[:, 0]

    value = np.stack([value_of(rollout.observation[t]) for t in range(n_steps)]).astype(np.float64)
    advantage = np.zeros((n_steps, n_envs))
    cut = {(t, i): one for t, who, seen in rollout.cut for i, one in zip(who, seen, strict=True)}
    last = value_of(rollout.last_observation)
    for i in range(n_envs):
        following = 0.0
        for t in reversed(range(n_steps)):
            if rollout.terminated[t, i]:
                after = 0.0
            elif rollout.truncated[t, i]:
                after = value_of(cut[t, i][None])[0]
            else:
                after = last[i] if t == n_steps - 1 else value[t + 1, i]
            ended = rollout.terminated[t, i] or rollout.truncated[t, i]
            delta = rollout.reward[t, i] + config.gamma * after - value[t, i]
            following = delta + (0 if ended else config.gamma * config.gae_lambda * following)
            advantage[t, i] = following
    flat = {
        "observation": rollout.observation.reshape(n_steps * n_envs, -1),
        "action": rollout.action.reshape(n_steps * n_envs, *rollout.action.shape[2:]),
        "log_prob": rollout.log_prob.numpy().ravel(),
        "value": value.ravel().astype(np.float32),
        "advantage": advantage.ravel().astype(np.float32),
        "target": (advantage + value).ravel().astype(np.float32),
    }
    rows = {name: torch.from_numpy(array.copy()) for name, array in flat.items()}
    for epoch in range(config.n_epochs):
        order = derive(config.seed, "minibatches", agent.iteration, epoch)
        for index in rollout.minibatches(config.batch_size, order):
            part = {name: x[index] for name, x in rows.items()}
            out = perceptron(weights, "actor", part["observation"])
            if "head.log_std" in weights:
                normal = torch.distributions.Normal(out, weights["head.log_std"].exp())
                log_prob = normal.log_prob(part["action"]).sum(1)
                entropy = normal.entropy().sum(1)
            else:
                choice = torch.distributions.Categorical(logits=out)
                log_prob, entropy = choice.log_prob(part["action"]), choice.entropy()
            a = part["advantage"]
            if config.normalize_advantage:
                a = (a - a.mean()) / (a.std(correction=0) + 1e-8)
            ratio = torch.exp(log_prob - part["log_prob"])
            eps = config.clip_range
            policy_loss = -torch.min(ratio * a, torch.clamp(ratio, 1 - eps, 1 + eps) * a).mean()
            v = perceptron(weights, "critic", part["observation"])[:, 0]
            error = (v - part["target"]) ** 2
            if config.clip_range_vf is not None:
                moved = torch.clamp(v - part["value"], -config.clip_range_vf, config.clip_range_vf)
                error = torch.max(error, (part["value"] + moved - part["target"]) ** 2)
            total = policy_loss + config.vf_coef * error.mean() - config.ent_coef * entropy.mean()
            adam.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), config.max_grad_norm)
            adam.step()
    return {name: x.detach() for name, x in weights.items()}


VARIANTS = {
    "as it is": {},
    "entropy": {"ent_coef": 0.05, "vf_coef": 1.5},
    "value clipping": {"clip_range_vf": 0.05},
    "advantages as they are": {"normalize_advantage": False},
    "uneven minibatches": {"batch_size": 37},
}


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_an_update_is_what_its_description_says(env, settings):
    chosen = {"n_envs": 4, "n_steps": 50, "batch_size": 50, "n_epochs": 3, "learning_rate": 1e-3}
    agent = us.PPO(env, seed=1, gamma=0.97, clip_range=0.1, **(chosen | settings))
    agent.target_timesteps = 1000
    rollout = agent.collector.collect(agent.policy, generator(1, "act", 0))
    if env == "CartPole-v1":
        assert rollout.terminated.sum() >= 4  # ends are in it,
        assert not rollout.valid.all()  # and rows that are not to be counted
    before = {name: x.clone() for name, x in agent.policy.state_dict().items()}
    expected = reference_update(agent, rollout)
    agent.update(rollout)
    for name, x in agent.policy.state_dict().items():
        torch.testing.assert_close(x, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    assert max((expected[name] - before[name]).abs().max() for name in expected) > 3e-3


def test_advantages_can_be_estimated_anew_in_each_epoch():
    found = []
    for recompute in (False, True):
        agent = us.PPO("CartPole-v1", n_steps=16, recompute_advantage=recompute, n_epochs=2)
        calls = []
        inner = agent.estimate_advantage
        agent.estimate_advantage = lambda rollout, i=inner, c=calls: c.append(1) or i(rollout)
        agent.learn(1)
        found.append((len(calls), agent.engine.flat.value.clone()))
    assert [calls for calls, _ in found] == [1, 2]
    assert not torch.equal(found[0][1], found[1][1])


# ---- golden numbers ------------------------------------------------------------------------------
GOLDEN = {
    "CartPole-v1": {
        "policy_loss": -0.0010274,
        "value_loss": 66.862442,
        "entropy": 0.69029033,
        "moved": 0.60616411,
        "moment": 0.49308577,
    },
    "Pendulum-v1": {
        "policy_loss": -0.0002556,
        "value_loss": 5070.0634,
        "entropy": 1.4184051,
        "moved": 0.69713077,
        "moment": 0.48064977,
    },
}


@pytest.mark.parametrize("env", GOLDEN)
def test_golden_numbers(env):
    """After three iterations; a change here is a change of what everyone's runs give.

    `policy_loss` is a difference of numbers of size 1, so it is held to 1e-6 of that.
    """
    metrics: list[dict[str, float]] = []
    agent = us.PPO(env, seed=0, n_envs=8, n_steps=32, batch_size=64, ent_coef=0.01)
    before = agent.engine.flat.value.double()
    agent.learn(513, lambda _, row: metrics.append(row))
    assert agent.iteration == 3
    found = {name: metrics[-1][name] for name in ("policy_loss", "value_loss", "entropy")}
    found["moved"] = (agent.engine.flat.value.double() - before).norm().item()
    found["moment"] = agent.engine.flat.first_moment.double().norm().item()
    expected = {name: pytest.approx(x, rel=1e-5) for name, x in GOLDEN[env].items()}
    expected["policy_loss"] = pytest.approx(GOLDEN[env]["policy_loss"], abs=1e-6)
    assert found == expected


# ---- settings ------------------------------------------------------------------------------------
def run(total: int = 512, **settings) -> tuple[us.PPO, list[dict[str, float]]]:
    chosen = {"n_envs": 4, "n_steps": 32, "batch_size": 64} | settings
    rows: list[dict[str, float]] = []
    agent = us.PPO("CartPole-v1", seed=0, **chosen)
    agent.learn(total, lambda _, row: rows.append(row))
    return agent, rows


@pytest.mark.parametrize(("target_kl", "epochs"), [(None, 6), (1e3, 6), (1e-9, 1)])
def test_target_kl_stops_early(target_kl, epochs):
    agent, rows = run(1, n_epochs=6, target_kl=target_kl, learning_rate=1e-2)
    assert rows[0]["epochs"] == epochs
    assert agent.engine.steps == 2 * epochs


def test_target_kl_stops_when_it_is_passed():
    """Somewhere in the middle: after the first epoch whose last minibatch passed 1.5 times it."""
    seen: list[float] = []
    agent = us.PPO("CartPole-v1", n_envs=4, n_steps=32, batch_size=64, n_epochs=50)
    epoch = agent.engine.epoch

    def noting(*args, **kwargs):
        metrics = epoch(*args, **kwargs)
        seen.extend(metrics["approx_kl"].tolist())
        return metrics

    agent.engine.epoch = noting
    agent.learn(1)
    last = seen[1::2]
    target = 1.01 * last[10] / 1.5
    _, rows = run(1, n_epochs=50, target_kl=target)
    expected = next(k for k, kl in enumerate(last, 1) if kl > 1.5 * target)
    assert rows[0]["epochs"] == expected
    assert 1 < expected < 50


def test_schedules_are_followed(monkeypatch):
    clips: list[tuple[float, float]] = []

    def noting(*args, clip_range, clip_range_vf, **kwargs):
        clips.append((clip_range, clip_range_vf))
        return ppo_loss(*args, clip_range=clip_range, clip_range_vf=clip_range_vf, **kwargs)

    monkeypatch.setattr("upslope.agents.ppo.ppo_loss", noting)
    agent = us.PPO(
        ConstantReward,
        n_envs=4,
        n_steps=8,
        n_epochs=1,
        learning_rate="linear(1e-3, 2e-4)",
        clip_range="linear(0.4)",
        clip_range_vf="linear(8)",
    )
    rows: list[dict[str, float]] = []
    agent.learn(4 * 32, lambda _, row: rows.append(row))
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4])
    found = sorted(set(clips), reverse=True)
    assert np.array(found).ravel() == pytest.approx([0.4, 8, 0.3, 6, 0.2, 4, 0.1, 2])
    # in the middle of a longer way it is not at its beginning
    agent.learn(3 * 128, lambda _, row: rows.append(row), reset_num_timesteps=False)
    assert rows[4]["learning_rate"] == pytest.approx(2e-4 + 0.75 * 8e-4)


# ---- small and constant --------------------------------------------------------------------------
def test_minibatches_of_one_row_teach_the_policy_nothing():
    """Standardised over one row an advantage is 0; and no NaN."""
    agent = us.PPO("CartPole-v1", n_envs=2, n_steps=8, batch_size=1, n_epochs=1)
    before = {name: x.clone() for name, x in agent.policy.state_dict().items()}
    agent.learn(16)
    after = agent.policy.state_dict()
    for name, x in after.items():
        assert x.isfinite().all()
        assert torch.equal(x, before[name]) == name.startswith("actor"), name
    assert agent.engine.steps == 16


def test_constant_advantages_teach_the_policy_nothing():
    agent = us.PPO(ConstantReward, n_envs=4, n_steps=8)
    before = {name: x.clone() for name, x in agent.policy.actor.state_dict().items()}
    rows: list[dict[str, float]] = []
    agent.learn(320, lambda _, row: rows.append(row))
    assert all(torch.equal(x, before[n]) for n, x in agent.policy.actor.state_dict().items())
    assert agent.engine.flat.value.isfinite().all()
    assert rows[0]["policy_loss"] == 0
    assert all(math.isnan(row["signal_to_noise"]) for row in rows)
    assert all(math.isnan(row["explained_variance"]) for row in rows)


def test_rollouts_in_which_nothing_happens_are_passed_over():
    """One step per rollout: every second one of an episode of one step only resets."""
    env = SyncVectorEnv([ConstantReward] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    rows: list[dict[str, float]] = []
    agent = us.PPO(env, n_steps=1).learn(8, lambda _, row: rows.append(row))
    assert (agent.num_timesteps, agent.iteration) == (8, 7)
    assert ["policy_loss" in row for row in rows] == [True, False] * 3 + [True]


# ---- signal to noise -----------------------------------------------------------------------------
def test_signal_to_noise_is_that_of_the_first_minibatch():
    agent = us.PPO(ActionDecides, n_envs=4, n_steps=64, batch_size=128, n_epochs=1, ent_coef=0.1)
    agent.target_timesteps = 256
    rollout = agent.collector.collect(agent.policy, generator(0, "act", 0))
    fresh = us.PPO(ActionDecides, n_envs=4, n_steps=64, ent_coef=0.1).policy
    batch = agent.estimate_advantage(rollout)
    found = agent.update(rollout)["signal_to_noise"]
    first = rollout.minibatches(128, derive(0, "minibatches", 0, 0))[0]
    a = batch.advantage[first]
    standard = torch.zeros(256)
    standard[first] = (a - a.mean()) / a.std(correction=0)
    batch.advantage = standard
    gradients, sizes = [], []
    for n in range(2):  # groups of 64 rows
        own = first[first % 4 % 2 == n]
        loss, _ = bare(fresh, batch[own], ent_coef=0.1)
        sizes.append(len(own))
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, fresh.policy_parameters())])
        )
    expected = quality(torch.stack(gradients), torch.tensor(sizes)).signal_to_noise
    assert found == pytest.approx(expected, rel=1e-3)
    assert found > 1  # an easy problem


def test_signal_to_noise_is_in_the_metrics_of_every_update():
    _, rows = run(n_envs=8, total=2048)
    assert len(rows) >= 8
    ratios = [row["signal_to_noise"] for row in rows]
    assert all(ratio > 0 or math.isnan(ratio) for ratio in ratios)  # nan: not resolved
    assert any(ratio > 0 for ratio in ratios)
    _, rows = run(n_envs=1, total=80)
    assert all(math.isnan(row["signal_to_noise"]) for row in rows)
