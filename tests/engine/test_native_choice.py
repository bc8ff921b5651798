"""When the native engine acts and steps, what it hands to torch, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import upslope as us
from tests.engine.native_cases import PlainPolicy, instruction_set, rows_for
from upslope import _native
from upslope.agents.ppo import ppo_loss
from upslope.engine.choose import make_engine
from upslope.engine.native_engine import NativeEngine
from upslope.engine.torch_engine import TorchEngine
from upslope.engine.twins import coefficients
from upslope.errors import ArgumentError
from upslope.policies.make import make_policy

__all__ = ["instruction_set"]

LOSS = partial(ppo_loss, clip_range=0.2, clip_range_vf=None, vf_coef=0.5, ent_coef=0.0)
BOX = spaces.Box(-1, 1, (4,), np.float32)
ACTIONS = {
    "discrete": spaces.Discrete(5),
    "box": spaces.Box(-1, 1, (3,), np.float32),
}


def policy_of(action="discrete", observation=BOX, **kwargs):
    generator = torch.Generator().manual_seed(0)
    kwargs = {"net_arch": (16, 8), **kwargs}
    return make_policy(None, observation, ACTIONS[action], generator=generator, **kwargs)


# ---- acting --------------------------------------------------------------------------------------
def acted(engine, observation, seed, mask=None) -> tuple[Tensor, Tensor]:
    memory = torch.zeros(len(observation), 0)
    draws = torch.Generator().manual_seed(seed)
    return engine.act(observation, draws, memory, mask)[:2]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("count", [1, 40, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_it_draws_what_torch_draws(action, count, threads, instruction_set):
    policy = policy_of(action)
    for parameter in policy.actor.parameters():
        parameter.data.mul_(3)
    observation = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    was = torch.get_num_threads()
    engines = [NativeEngine(policy, max_grad_norm=None), TorchEngine(policy, max_grad_norm=None)]
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            drawn = [acted(engine, observation, 2) for engine in engines]
    finally:
        torch.set_num_threads(was)
    (mine, mine_log_prob), (torchs, torchs_log_prob) = drawn
    assert mine.dtype == torchs.dtype
    torch.testing.assert_close(mine, torchs, atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(mine_log_prob, torchs_log_prob, atol=1e-5, rtol=1e-5)


def test_several_choices_are_drawn_with_their_probabilities(instruction_set):
    space, n = spaces.MultiDiscrete([2, 3]), 100_000
    policy = PlainPolicy(1, [], [], [], space, "tanh")
    policy.actor[0].weight.data.zero_()
    engine = NativeEngine(policy, max_grad_norm=None)
    action, log_prob = acted(engine, torch.zeros(n, 1), 3)
    parts = [part.softmax(-1).detach() for part in policy.actor[0].bias.split([2, 3])]
    for k, p in enumerate(parts):
        share = torch.bincount(action[:, k], minlength=len(p)) / n
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    expected = sum(part.log()[action[:, k]] for k, part in enumerate(parts))
    torch.testing.assert_close(log_prob, expected, atol=1e-6, rtol=1e-6)


def test_the_race_is_accurate_at_both_ends(instruction_set):
    """Logits (0, x), E = -ln(1 - u): 1 is drawn from x = ln(E_1 / E_0) on, wherever u_0 is."""
    policy = PlainPolicy(1, [], [], [], spaces.Discrete(2), "tanh")
    policy.actor[0].weight.data = torch.tensor([[0.0], [1.0]])
    policy.actor[0].bias.data.zero_()
    engine = NativeEngine(policy, max_grad_norm=None)
    near_0, near_1 = np.logspace(-16, -0.5, 5000), 1 - np.logspace(-15, -0.5, 5000)
    u = np.concatenate([near_0, np.linspace(0.2, 0.8, 5000), near_1])
    turning = np.log(np.log(2)) - np.log(-np.log1p(-u))
    for side in (0, 1):
        x = (turning + (2 * side - 1) * 2e-5)[:, None].astype(np.float32)
        action, log_prob = np.empty(len(u), np.int64), np.empty(len(u), np.float32)
        uniform = np.stack([u, np.full_like(u, 0.5)], 1)
        engine.network.act(engine._value, x, uniform, None, None, action, None, log_prob, 1)
        assert (action == side).all()


def test_a_masked_action_is_never_drawn(instruction_set):
    engine = NativeEngine(policy_of(), max_grad_norm=None)
    g, n = torch.Generator().manual_seed(3), 3000
    mask = torch.rand(n, 5, generator=g) < 0.5
    mask[:, 2] = True
    observation = torch.randn(n, 4, generator=g)
    action, log_prob = acted(engine, observation, 4, mask)
    noise = torch.empty(n, 5).exponential_(generator=torch.Generator().manual_seed(4))
    logits = engine.policy.actor(observation).detach().masked_fill(~mask, -torch.inf)
    expected = (logits.softmax(-1) / noise).argmax(-1)
    assert torch.equal(action, expected)
    expected = logits.log_softmax(-1)[torch.arange(n), action]
    torch.testing.assert_close(log_prob, expected, atol=1e-5, rtol=1e-5)


# ---- what it knows -------------------------------------------------------------------------------
class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)

    def forward(self, observation):
        found = self.body(observation)
        return found[:, :5], found[:, 5]


def without_bias():
    policy = policy_of()
    policy.actor[0] = nn.Linear(4, 16, bias=False)
    return policy


def shared_layer():
    policy = policy_of()
    policy.critic[2] = policy.actor[2]
    return policy


UNFIT = {
    "gelu": (lambda: policy_of(activation="gelu"), "it has no GELU in this place"),
    "a module": (
        lambda: make_policy(Mine(), BOX, ACTIONS["discrete"], generator=torch.Generator()),
        "the policy is not made of perceptrons over a Box",
    ),
    "shared": (shared_layer, "two of its layers share parameters"),
    "deep": (lambda: policy_of(net_arch=[2] * 64), "it has 65 layers in a row, more than 64"),
    "no bias": (without_bias, "a linear layer has no bias"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_other_policies_are_torchs(case):
    make, reason = UNFIT[case]
    engine = make_engine("auto", make(), max_grad_norm=0.5)
    assert type(engine) is TorchEngine
    assert engine.description == f"torch, not native: {reason}"
    with pytest.raises(ArgumentError, match=f"engine='native' does not apply: {reason}; "):
        make_engine("native", make(), max_grad_norm=0.5)


def test_the_engine_is_the_one_asked_for():
    assert type(make_engine("torch", policy_of(), max_grad_norm=0.5)) is TorchEngine
    for name in ("auto", "native"):
        engine = make_engine(name, policy_of(), max_grad_norm=0.5)
        assert isinstance(engine, NativeEngine)
        assert engine.description == f"native ({_native.instruction_set()})"


def test_without_the_native_part_torch_is_taken(monkeypatch):
    monkeypatch.setattr("upslope.engine.native_engine.MISSING", "it was not built")
    assert make_engine("auto", policy_of(), max_grad_norm=0.5).description == (
        "torch, not native: it was not built"
    )
    with pytest.raises(ArgumentError, match="engine='native' does not apply: it was not built"):
        make_engine("native", policy_of(), max_grad_norm=0.5)
    with pytest.raises(ArgumentError, match="engine='native' does not apply"):
        us.PPO("CartPole-v1", engine="native")


# ---- losses and batches --------------------------------------------------------------------------
@dataclass
class Weighted:
    observation: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    weight: Tensor | None = None
    action_mask: Tensor | None = None
    sequences: None = None

    def __getitem__(self, index):
        return Weighted(*[part[index] for part in vars(self).values() if part is not None])


def unregistered(policy, batch):
    return ppo_loss(policy, batch, clip_range=0.2, clip_range_vf=None, vf_coef=0.5, ent_coef=0.0)


def weighted(count=50, weight=False, dtype=torch.float32):
    rows = rows_for(PlainPolicy(4, [], [8], [8], ACTIONS["discrete"], "tanh"), 4, count)
    parts = [part for part in vars(rows).values() if part is not None]
    found = Weighted(*parts, weight=torch.ones(count) if weight else None)
    found.observation = found.observation.to(dtype)
    return found


HANDED = {
    "loss": (unregistered, {}, "it has no twin of the loss unregistered"),
    "positional": (partial(ppo_loss, policy_of()), {}, "its loss is given arguments by position"),
    "field": (LOSS, {"weight": True}, "its batch has weight"),
    "dtype": (LOSS, {"dtype": torch.float64}, "observations are not float32"),
}


@pytest.mark.parametrize("case", HANDED)
def test_what_it_does_not_know_is_refused_when_it_was_demanded(case):
    loss, kwargs, reason = HANDED[case]
    engine = make_engine("native", policy_of(), max_grad_norm=0.5)
    with pytest.raises(ArgumentError, match=f"does not apply: {reason}"):
        engine.step(loss, weighted(**kwargs), torch.arange(50), 1e-2)


@pytest.mark.parametrize("case", ["loss", "field", "dtype"])
def test_what_it_does_not_know_is_handed_to_torch(case):
    loss, kwargs, _ = HANDED[case]
    ends = []
    for name in ("auto", "torch"):
        engine = make_engine(name, policy_of(), max_grad_norm=0.5)
        engine.step(loss, weighted(**kwargs), torch.arange(50), 1e-2)
        ends.append(engine.flat.value)
    assert torch.equal(*ends)


def test_frozen_parameters_stay():
    policy = policy_of()
    policy.actor[0].weight.requires_grad_(False)
    before = policy.actor[0].weight.clone()
    engine = make_engine("auto", policy, max_grad_norm=0.5)
    engine.step(LOSS, weighted(), torch.arange(50), 1e-2)
    assert torch.equal(policy.actor[0].weight, before)
    assert engine.steps == 1


def test_another_advantage_in_the_same_batch_is_seen():
    """Standardised advantages are put into the batch that the last epoch was taken from."""
    ends = []
    for name in ("native", "torch"):
        engine, batch = make_engine(name, policy_of(), max_grad_norm=0.5), weighted()
        engine.step(LOSS, batch, torch.arange(50), 1e-2)
        batch.advantage = -3 * batch.advantage + 1
        ends.append(engine.step(LOSS, batch, torch.arange(50), 1e-2))
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[0][name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_coefficients_are_read_from_the_partial():
    found = coefficients(partial(LOSS, ent_coef=0.25))
    assert (found.surrogate, found.clip_range, found.clip_range_vf) == ("clipped", 0.2, None)
    assert (found.vf_coef, found.ent_coef) == (0.5, 0.25)


def test_rows_that_are_not_there_are_refused():
    engine = make_engine("native", policy_of(), max_grad_norm=0.5)
    for index in (torch.tensor([0, 50]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="index is out of range"):
            engine.step(LOSS, weighted(), index, 1e-2)
    assert engine.steps == 0


@pytest.mark.parametrize("wrong", [5, -1])
def test_choices_that_are_not_there_are_refused(wrong):
    engine, batch = make_engine("native", policy_of(), max_grad_norm=0.5), weighted()
    batch.action[7] = wrong
    start = engine.flat.value.clone()
    with pytest.raises(ValueError, match="a choice is out of range"):
        engine.step(LOSS, batch, torch.arange(10), 1e-2)
    assert torch.equal(engine.flat.value, start)
    engine.step(LOSS, batch, torch.arange(7), 1e-2)  # what is not read may hold anything


# ---- whole agents --------------------------------------------------------------------------------
SETTINGS = {"n_envs": 16, "n_steps": 32, "batch_size": 128, "learning_rate": 2e-3}


def learned(engine, seed, env="CartPole-v1", steps=8192, **settings):
    agent = us.PPO(env, engine=engine, seed=seed, **SETTINGS | settings)
    rows = []
    agent.learn(steps, callback=lambda _, metrics: rows.append(metrics))
    return agent, rows


def test_the_first_update_is_torchs():
    (native, mine), (_, torchs) = (learned(e, 0, steps=512) for e in ("native", "torch"))
    assert native.engine.description.startswith("native")
    assert mine[0].keys() == torchs[0].keys()
    for name, value in torchs[0].items():
        assert mine[0][name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_bits(env):
    first, second = (learned("native", 3, env, steps=2048)[0] for _ in range(2))
    assert torch.equal(first.engine.flat.value, second.engine.flat.value)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_resuming_is_exact(env, tmp_path):
    whole = learned("native", 1, env, steps=2048, normalize_observation=True)[0]
    part = us.PPO(env, engine="native", seed=1, normalize_observation=True, **SETTINGS)
    part.target_timesteps = 2048
    part.iterate()
    part.save(tmp_path / "agent")
    back = us.load(tmp_path / "agent").go_on()
    assert isinstance(back.engine, NativeEngine)
    assert torch.equal(back.engine.flat.value, whole.engine.flat.value)
    assert torch.equal(back.engine.flat.second_moment, whole.engine.flat.second_moment)


def test_the_engine_is_recorded():
    agent = us.PPO(lambda: gymnasium.make("CartPole-v1"), n_envs=2, engine="native")
    made_with = agent.state()[1]["made_with"]
    assert made_with["engine"] == f"native {_native.instruction_set()}"
    other = us.PPO("CartPole-v1", n_envs=2, engine="torch")
    assert other.state()[1]["made_with"]["engine"] == "torch"


@pytest.mark.slow
def test_it_learns_as_torch_does():
    """Means over five seeds, each engine with seeds of its own, within 4.5 standard errors."""
    ends = {}
    for k, engine in enumerate(("native", "torch")):
        found = [learned(engine, 10 * k + seed, steps=20_480)[1][-1] for seed in range(5)]
        ends[engine] = np.array([metrics["episode_return"] for metrics in found])
    native, torchs = ends["native"], ends["torch"]
    error = np.sqrt((native.var(ddof=1) + torchs.var(ddof=1)) / 5)
    assert abs(native.mean() - torchs.mean()) < 4.5 * error
    assert min(native.mean(), torchs.mean()) > 40


def test_torch_has_one_thread_while_the_engine_has_its_own():
    engine, was = make_engine("native", policy_of(), max_grad_norm=0.5), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with engine.own_threads():
            assert (engine.threads, torch.get_num_threads()) == (3, 1)
        assert (engine.threads, torch.get_num_threads()) == (3, 3)
        engine.claim_threads()
        with engine.own_threads():
            assert (engine.threads, torch.get_num_threads()) == (3, 1)
        assert (engine.threads, torch.get_num_threads()) == (3, 1)
    finally:
        torch.set_num_threads(was)
