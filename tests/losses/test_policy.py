"""The policy's losses: hand numbers of the clip, invariances, extremes, masks, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError, ShapeError
from upslope.losses import clipped_surrogate, masked_mean, policy_gradient_loss


def gradient(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, at)[0]


def leaf(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


# ---------------------------------------------------------------- the clip
@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.5, 1, 1.2, 0),
        (1.5, -1, -1.5, -1.5),
        (0.5, 1, 0.5, 0.5),
        (0.5, -1, -0.8, 0),
        (1.1, 1, 1.1, 1.1),
        (0.9, -2, -1.8, -1.8),
        (1.5, 0, 0, 0),
    ],
)
def test_clip_by_hand(ratio, advantage, objective, slope):
    """`slope` is in the log-ratio: d(ρ A) / d ln ρ = ρ A."""
    log_ratio = leaf(math.log(ratio))
    loss = clipped_surrogate(log_ratio, torch.tensor([advantage]).double(), 0.2, 0.2)
    assert loss.item() == pytest.approx(-objective, abs=1e-12)
    assert gradient(loss.sum(), log_ratio).item() == pytest.approx(-slope, abs=1e-12)


def test_the_two_clips_are_two():
    log_ratio = torch.tensor([0.1, 0.1, 3, 3]).double().log()
    advantage = torch.tensor([-1.0, 1, 1, -1]).double()
    found = clipped_surrogate(log_ratio, advantage, 0.3, 0.5)
    torch.testing.assert_close(found, torch.tensor([0.7, -0.1, -1.5, 3]).double())


@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(-9, 9)), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 2),
)
@settings(max_examples=60)
def test_clip_is_its_definition(pairs, low, high):
    log_ratio, advantage = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    found = clipped_surrogate(log_ratio, advantage, low, high).tolist()
    for (x, a), loss in zip(pairs, found, strict=True):
        ratio = math.exp(x)
        clipped = min(max(ratio, 1 - low), 1 + high)
        assert loss == pytest.approx(-min(ratio * a, clipped * a), rel=1e-9, abs=1e-12)


def test_no_clip_is_plain_importance_weighting():
    log_ratio, advantage = torch.randn(50).double(), torch.randn(50).double()
    found = clipped_surrogate(log_ratio, advantage, 1.0, math.inf)
    torch.testing.assert_close(found, -log_ratio.exp() * advantage)


def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    action = torch.tensor([0, 2, 1, 1, 0])[:, None]
    log_prob = logits.log_softmax(-1).gather(1, action)[:, 0]
    advantage = torch.randn(5, generator=generator, dtype=torch.float64)
    surrogate = clipped_surrogate(log_prob - log_prob.detach(), advantage, 0.2, 0.2).mean()
    plain = policy_gradient_loss(log_prob, advantage)
    found, expected = (
        torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (surrogate, plain)
    )
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=0)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("log_ratio", [-1000.0, 1000.0, 1e8, 3e38, 20.0, -math.inf])
@pytest.mark.parametrize("advantage", [-3.0, 0.0, 3.0])
def test_extremes_are_finite(dtype, log_ratio, advantage):
    x = torch.tensor([log_ratio], dtype=dtype, requires_grad=True)
    loss = clipped_surrogate(x, torch.tensor([advantage], dtype=dtype), 0.2, 0.2)
    slope = gradient(loss.sum(), x)
    assert loss.isfinite().all()
    assert slope.isfinite().all()
    if log_ratio > 0 and advantage > 0:
        assert loss.item() == pytest.approx(-3.6, rel=1e-2)
        assert slope.item() == 0
    if log_ratio > 0 and advantage < 0:  # the value saturates, the gradient stays on
        assert loss.item() == pytest.approx(3 * math.exp(20), rel=1e-2)
        assert slope.item() == pytest.approx(3 * math.exp(20), rel=1e-2)
    if log_ratio < 0:
        assert loss.item() == pytest.approx(0.8 * 3 if advantage < 0 else 0, rel=1e-2)
        assert slope.item() == 0


@pytest.mark.parametrize("advantage", [-3.0, 0.0, 3.0])
def test_what_had_no_probability_gives_no_number(advantage):
    x = torch.tensor([math.inf], requires_grad=True)
    loss = clipped_surrogate(x, torch.tensor([advantage]), 0.2, 0.2)
    assert loss.isnan().all()
    assert gradient(loss.sum(), x).isnan().all()


def test_below_the_cap_the_ratio_is_exact():
    x = torch.tensor([19.999], dtype=torch.float64)
    found = clipped_surrogate(x, torch.tensor([-1.0]).double(), 0.2, 0.2)
    assert found.item() == pytest.approx(math.exp(19.999), rel=1e-12)


# ---------------------------------------------------------------- the score function, weighted
def test_policy_gradient_loss_by_hand():
    log_prob, advantage = leaf(-1, -2, -4), torch.tensor([2.0, -1, 0.5]).double()
    loss = policy_gradient_loss(log_prob, advantage)
    assert loss.item() == pytest.approx(-(-2 + 2 - 2) / 3)
    torch.testing.assert_close(gradient(loss, log_prob), -advantage / 3)


def test_with_equal_weights_it_is_maximum_likelihood():
    logits = leaf(0.3, -1, 0.7)
    action = torch.tensor([0, 2, 2, 1])
    loss = policy_gradient_loss(logits.log_softmax(0)[action], torch.ones(4).double())
    likelihood = torch.nn.functional.cross_entropy(logits.expand(4, 3), action)
    torch.testing.assert_close(gradient(loss, logits), gradient(likelihood, logits))


def test_the_advantage_is_a_constant():
    log_prob, advantage = leaf(-1, -2), leaf(3, 4)
    for loss in (
        policy_gradient_loss(log_prob, advantage),
        clipped_surrogate(log_prob, advantage, 0.2, 0.2).sum(),
    ):
        loss.backward()
        assert advantage.grad is None


# ---------------------------------------------------------------- masks
@given(st.lists(st.booleans(), min_size=1, max_size=8))
@settings(max_examples=40)
def test_a_mask_is_the_mean_over_what_counts(mask):
    mask = torch.tensor(mask)
    generator = torch.Generator().manual_seed(len(mask))
    log_prob = torch.randn(len(mask), generator=generator, dtype=torch.float64, requires_grad=True)
    advantage = torch.randn(len(mask), generator=generator, dtype=torch.float64)
    loss = policy_gradient_loss(log_prob, advantage, mask)
    expected = -(log_prob[mask] * advantage[mask]).sum() / max(int(mask.sum()), 1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, log_prob), gradient(expected, log_prob))


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_what_does_not_count_may_hold_anything(junk):
    log_prob, advantage = leaf(-1, junk, -2), torch.tensor([1, junk, 3]).double()
    loss = policy_gradient_loss(log_prob, advantage, torch.tensor([True, False, True]))
    assert loss.item() == 3.5
    assert gradient(loss, log_prob).tolist() == [-0.5, 0, -1.5]


def test_masked_mean():
    x = leaf(1, 2, math.nan)
    assert masked_mean(x, torch.tensor([True, True, False])).item() == 1.5
    assert masked_mean(x[:2]).item() == 1.5
    assert masked_mean(x, torch.tensor([False, False, False])).item() == 0
    assert masked_mean(torch.zeros(0)).item() == 0
    mean = masked_mean(x, torch.tensor([True, True, False]))
    assert gradient(mean, x).tolist() == [0.5, 0.5, 0]


# ---------------------------------------------------------------- refusals
def test_shapes_are_refused_never_broadcast():
    x, column = torch.zeros(4), torch.zeros(4, 1)
    with pytest.raises(ShapeError, match="advantage takes"):
        policy_gradient_loss(x, column)
    with pytest.raises(ShapeError, match="advantage takes"):
        clipped_surrogate(x, column, 0.2, 0.2)
    with pytest.raises(ShapeError, match="mask takes"):
        policy_gradient_loss(x, x, column.bool())
    with pytest.raises(ShapeError, match="mask takes a Bool tensor"):
        policy_gradient_loss(x, x, torch.ones(4))
    with pytest.raises(ShapeError, match="mask takes"):
        masked_mean(x, torch.tensor(True))


def test_clips_out_of_range_are_refused():
    x = torch.zeros(4)
    for low in (-0.1, 1.1, math.nan, None):
        with pytest.raises(ArgumentError, match="clip_low takes a number from 0 to 1"):
            clipped_surrogate(x, x, low, 0.2)
    for high in (-0.1, math.nan, "0.2"):
        with pytest.raises(ArgumentError, match="clip_high takes a number of at least 0"):
            clipped_surrogate(x, x, 0.2, high)
