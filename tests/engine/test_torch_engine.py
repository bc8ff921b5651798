"""The engine: equal to torch's Adam with clipping, all or nothing, chunked or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from upslope.engine.flat import FlatParameters
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError, NotFiniteError
from upslope.policies.actor_critic import ActorCritic, NetworkActorCritic
from upslope.rollout.buffer import Chunks

ROWS = 60


def policy_of(seed: int = 0) -> NetworkActorCritic:
    return NetworkActorCritic(
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Box(-1, 1, (2,), np.float32),
        generator=torch.Generator().manual_seed(seed),
        net_arch=(16, 8),
    )


class Rows:
    """Observations, actions and weights, of which rows can be taken."""

    action_mask = sequences = None

    def __init__(self, observation, action, weight) -> None:
        self.observation, self.action, self.weight = observation, action, weight

    def __getitem__(self, index):
        return Rows(self.observation[index], self.action[index], self.weight[index])


def batch_of(seed: int = 1) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(*(torch.randn(ROWS, *s, generator=generator) for s in [(3,), (2,), ()]))


def loss(policy, rows):
    log_prob, entropy, value = policy(rows)
    total = -(log_prob * rows.weight).mean() - 0.01 * entropy.mean()
    total = total + 3 * (value - rows.weight).square().mean()
    return total, {"value": value.mean().detach(), "rows": torch.tensor(float(len(value)))}


def everything(engine: TorchEngine) -> list[torch.Tensor]:
    flat = engine.flat
    return [x.clone() for x in (flat.value, flat.first_moment, flat.second_moment)]


# ---- the flat buffer -----------------------------------------------------------------------------
def test_parameters_are_views_of_one_buffer():
    policy = policy_of()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    flat = FlatParameters(policy, policy.policy_parameters())
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert flat.value.numel() == sum(p.numel() for p in policy.parameters())
    flat.value.add_(1)
    flat.gradient.fill_(2)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name] + 1)
        assert (parameter.grad == 2).all()
    assert flat.named(flat.value).keys() == before.keys()
    assert all(torch.equal(x, before[name] + 1) for name, x in flat.named(flat.value).items())


def test_the_policys_parameters_come_first():
    policy = policy_of()
    flat = FlatParameters(policy, policy.policy_parameters())
    assert flat.leading_size == sum(p.numel() for p in policy.policy_parameters())
    flat.value[: flat.leading_size] = 0
    assert all((p == 0).all() for p in policy.policy_parameters())
    assert policy.critic[0].weight.abs().min() > 0


def test_they_stay_views_through_steps_and_loading():
    policy, batch = policy_of(), batch_of()
    engine = TorchEngine(policy, max_grad_norm=0.5)
    other = policy_of(5)
    for k in range(3):
        engine.step(
            loss,
            batch,
            torch.arange(ROWS),
            1e-2,
            Chunks(torch.arange(ROWS), torch.tensor([20, 40])),
        )
        if k == 1:
            policy.load_state_dict(other.state_dict())
    address = engine.flat.value.data_ptr()
    assert {name: p.data_ptr() for name, p in policy.named_parameters()} == {
        name: piece.data_ptr() for name, piece in engine.flat.named(engine.flat.value).items()
    }
    assert min(p.data_ptr() for p in policy.parameters()) == address
    joined = torch.cat([p.grad.flatten() for p in engine.flat.parameters])
    assert torch.equal(joined, engine.flat.gradient)
    moved = (engine.flat.value - FlatParameters(other, other.policy_parameters()).value).abs()
    assert 0 < moved.max() < 0.03


def test_parameters_that_need_no_gradient_stay():
    policy, batch = policy_of(), batch_of()
    policy.actor[0].weight.requires_grad_(False)
    before = policy.actor[0].weight.clone()
    engine = TorchEngine(policy, max_grad_norm=None)
    engine.step(loss, batch, torch.arange(ROWS), 1e-2)
    assert torch.equal(policy.actor[0].weight, before)
    assert (policy.actor[2].weight.grad != 0).any()


# ---- Adam ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 1e6])
def test_twenty_steps_are_those_of_torchs_adam(max_grad_norm):
    ours, theirs, batch = policy_of(), policy_of(), batch_of()
    engine = TorchEngine(ours, max_grad_norm=max_grad_norm)
    adam = torch.optim.Adam(theirs.parameters(), eps=1e-5)
    shuffle = torch.Generator().manual_seed(2)
    norms = []
    for k in range(20):
        index = torch.randperm(ROWS, generator=shuffle)[:20]
        rate = 1e-2 / (k + 1)
        metrics = engine.step(loss, batch, index, rate)
        adam.zero_grad()
        expected, said = loss(theirs, batch[index])
        expected.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or torch.inf)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        norms.append(float(norm))
        torch.testing.assert_close(metrics["gradient_norm"], norm)
        torch.testing.assert_close(metrics["value"], said["value"])
    assert min(norms) > 0.5  # so that clipping was put to the test
    assert engine.steps == 20
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6, msg=name)
    moved = (ours.actor[0].weight - policy_of().actor[0].weight).abs().max()
    assert moved > 1e-2


def test_one_step_by_hand():
    """The first step of Adam is the learning rate in the direction of the gradient's sign."""
    policy, batch = policy_of(), batch_of()
    engine = TorchEngine(policy, max_grad_norm=None)
    before = engine.flat.value.clone()
    engine.step(loss, batch, torch.arange(ROWS), 1e-3)
    large = engine.flat.gradient.abs() > 0.1
    assert large.sum() > 20
    expected = -1e-3 * engine.flat.gradient.sign()
    torch.testing.assert_close(
        (engine.flat.value - before)[large], expected[large], rtol=2e-3, atol=0
    )


def test_a_learning_rate_of_zero_leaves_the_weights():
    policy, batch = policy_of(), batch_of()
    engine = TorchEngine(policy, max_grad_norm=0.5)
    before = engine.flat.value.clone()
    engine.step(loss, batch, torch.arange(ROWS), 0.0)
    assert torch.equal(engine.flat.value, before)
    assert engine.flat.first_moment.abs().max() > 0


# ---- chunks --------------------------------------------------------------------------------------
SPLITS = [[30, 30], [1, 59], [5, 10, 15, 30], [20, 20, 20], [1] * 8 + [52]]


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_chunks_add_up_to_the_same_step(sizes):
    index = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    found = []
    for chunks in (None, Chunks(index, torch.tensor(sizes))):
        engine = TorchEngine(policy_of(), max_grad_norm=None)
        metrics = engine.step(loss, batch_of(), index, 1e-3, chunks)
        found.append((engine.flat.gradient, metrics["value"], engine.flat.value))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("sizes", SPLITS, ids=str)
def test_chunk_gradients_are_each_chunks_own(sizes, at_once, monkeypatch):
    if not at_once:  # as for a policy that is not known to be perceptrons
        monkeypatch.setattr(NetworkActorCritic, "perceptrons", ActorCritic.perceptrons)
    index = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))
    chunks, batch = Chunks(index, torch.tensor(sizes)), batch_of()
    engine = TorchEngine(policy_of(), max_grad_norm=1e9)
    assert engine.most_chunks == (8 if at_once else 2)
    engine.step(loss, batch, index, 1e-3, chunks)
    kept = engine.chunk_gradients
    assert kept.shape == (len(sizes), engine.flat.leading_size)
    for chunk, gradient in zip(index.split(sizes), kept, strict=True):
        policy = policy_of()
        loss(policy, batch[chunk])[0].backward()
        own = torch.cat([parameter.grad.flatten() for parameter in policy.policy_parameters()])
        # taken as a difference of sums, so to the rounding of the sum, over the chunk's share
        torch.testing.assert_close(gradient, own, atol=3e-6 * ROWS / len(chunk), rtol=1e-4)
    mean = torch.tensor(sizes, dtype=torch.float32) @ kept / ROWS
    total = engine.flat.gradient[: engine.flat.leading_size]
    torch.testing.assert_close(mean, total, atol=1e-6, rtol=1e-5)


def test_parameters_that_are_frozen_later_have_no_gradient_in_any_chunk():
    policy, index = policy_of(), torch.arange(ROWS)
    engine = TorchEngine(policy, max_grad_norm=1e9)
    frozen = next(iter(policy.policy_parameters())).requires_grad_(False)
    engine.step(loss, batch_of(), index, 1e-3, Chunks(index, torch.tensor([20, 40])))
    kept = engine.chunk_gradients
    assert (kept[:, : frozen.numel()] == 0).all()
    assert (kept[:, frozen.numel() :] != 0).any(1).all()
    total = engine.flat.gradient[: engine.flat.leading_size]
    torch.testing.assert_close((20 * kept[0] + 40 * kept[1]) / ROWS, total, atol=1e-6, rtol=1e-5)


# ---- not finite ----------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(wrong, chunked):
    policy, batch = policy_of(), batch_of()
    engine = TorchEngine(policy, max_grad_norm=0.5)
    index = torch.arange(ROWS)
    chunks = Chunks(index, torch.tensor([20, 20, 20])) if chunked else None
    for _ in range(3):
        engine.step(loss, batch, index, 1e-2, chunks)
    before = everything(engine)
    spoilt = batch_of()
    spoilt.weight[17] = wrong
    with pytest.raises(NotFiniteError, match=r"gradient of optimisation step 4 is not finite"):
        engine.step(loss, spoilt, index, 1e-2, chunks)
    assert engine.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(before, everything(engine), strict=True))
    # and the next step is as if nothing had been
    other = TorchEngine(policy_of(), max_grad_norm=0.5)
    for _ in range(4):
        other.step(loss, batch, index, 1e-2, chunks)
    engine.step(loss, batch, index, 1e-2, chunks)
    assert torch.equal(engine.flat.value, other.flat.value)


def test_state_is_live_and_named():
    policy, batch = policy_of(), batch_of()
    engine = TorchEngine(policy, max_grad_norm=0.5)
    state = engine.state()
    names = [name for name, _ in policy.named_parameters()]
    kinds = ("policy", "adam_m", "adam_v")
    assert state.keys() == {f"{kind}/{name}" for kind in kinds for name in names}
    assert state["adam_v/actor.0.weight"].abs().max() == 0
    engine.step(loss, batch, torch.arange(ROWS), 1e-2)
    assert state["adam_v/actor.0.weight"].abs().max() > 0
    assert torch.equal(state["policy/actor.0.weight"], policy.actor[0].weight)


def test_learning_goes_on_after_the_module_let_go_of_its_gradients():
    batch = batch_of()
    index = torch.arange(len(batch.action))
    kept, let_go = (TorchEngine(policy_of(), max_grad_norm=None) for _ in range(2))
    for engine in (kept, let_go):
        engine.step(loss, batch, index, 1e-2)
        if engine is let_go:
            engine.policy.zero_grad()  # sets every .grad to None
        engine.step(loss, batch, index, 1e-2)
    assert torch.equal(kept.flat.value, let_go.flat.value)


def test_parameters_that_another_engine_took_are_named():
    policy, batch = policy_of(), batch_of()
    first = TorchEngine(policy, max_grad_norm=None)
    second = TorchEngine(policy, max_grad_norm=None)
    before = everything(second)
    with pytest.raises(ArgumentError, match="another agent"):
        first.step(loss, batch, torch.arange(ROWS), 1e-2)
    assert all(map(torch.equal, before, everything(second)))
    second.step(loss, batch, torch.arange(ROWS), 1e-2)
