"""The surrogate: its value, its gradients of every order, its graph of several draws, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.gradient import LeaveOneOut, graph_surrogate, surrogate


def leaf(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def gradient(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, at, retain_graph=True, create_graph=True)[0]


def hessian(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    first = gradient(value, at)
    return torch.stack([gradient(g, at) for g in first])


# ---------------------------------------------------------------- value and gradient
def test_by_hand():
    log_prob, f = leaf(-1, -2, -0.5), torch.tensor([3.0, -1, 2]).double()
    found = surrogate(log_prob, f, baseline=0.5)
    assert found.tolist() == f.tolist()
    assert gradient(found.sum(), log_prob).tolist() == [2.5, -1.5, 1.5]


def test_with_reference_by_hand():
    log_prob, f = leaf(math.log(0.5), math.log(0.2)), torch.tensor([3.0, -1]).double()
    behaviour = torch.tensor([0.25, 0.4]).double().log()
    found = surrogate(log_prob, f, reference=behaviour, baseline=torch.tensor([1.0, 2]).double())
    torch.testing.assert_close(found.detach(), torch.tensor([2 * 2 + 1, 0.5 * -3 + 2]).double())
    torch.testing.assert_close(gradient(found.sum(), log_prob), torch.tensor([4, -1.5]).double())


@given(
    st.lists(
        st.tuples(st.floats(-5, 0), st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=9
    )
)
@settings(max_examples=50)
def test_value_is_f_and_slope_is_f_minus_b(rows):
    log_prob, f, b = (torch.tensor(x, dtype=torch.float64) for x in zip(*rows, strict=True))
    log_prob.requires_grad_()
    found = surrogate(log_prob, f, baseline=b)
    torch.testing.assert_close(found.detach(), f)
    torch.testing.assert_close(gradient(found.sum(), log_prob).detach(), f - b)


def test_the_gradient_of_f_is_added():
    """f = θ x with x ~ Bernoulli(σ(θ)), x = 1: f s + ∇f = θ (1 - p) + 1."""
    theta = leaf(0.3)
    p = torch.sigmoid(theta)
    found = gradient(surrogate(p.log(), theta * 1.0).sum(), theta)
    torch.testing.assert_close(found, theta * (1 - p) + 1)


def test_a_baseline_object_sees_the_samples():
    log_prob, f = leaf(-1, -2, -3), torch.tensor([1.0, 2, 6]).double()
    found = surrogate(log_prob, f, baseline=LeaveOneOut())
    assert gradient(found.sum(), log_prob).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5]


def test_the_baseline_is_a_constant():
    log_prob, b = leaf(-1, -2), leaf(3, 4)
    surrogate(log_prob, torch.ones(2).double(), baseline=b).sum().backward()
    assert b.grad is None
    assert surrogate(log_prob, torch.ones(2).double(), baseline=b.mean()).tolist() == [1, 1]


@pytest.mark.parametrize("baseline", [None, 1.7])
@pytest.mark.parametrize("live", [False, True])
def test_every_derivative_by_enumeration(baseline, live):
    """Σ_x p(x) L(x) has the first, second and third derivative of Σ_x p(x) f(x)."""
    theta = leaf(0.2, -0.4, 0.9)
    f = torch.tensor([1.0, -2, 5]).double()
    f = f + theta[0] * torch.tensor([1.0, 2, 3]).double() * theta[1] if live else f
    log_prob = theta.log_softmax(0)
    exact = (log_prob.exp() * f).sum()
    mean = (log_prob.exp().detach() * surrogate(log_prob, f, baseline=baseline)).sum()
    assert mean.item() == pytest.approx(exact.item())
    torch.testing.assert_close(gradient(mean, theta), gradient(exact, theta))
    torch.testing.assert_close(hessian(mean, theta), hessian(exact, theta))
    third = [gradient(hessian(x, theta)[0, 1], theta) for x in (mean, exact)]
    torch.testing.assert_close(*third)
    assert hessian(exact, theta).abs().max() > 0.1


@pytest.mark.parametrize("order", [0, 1, 2])
def test_off_policy_every_derivative_by_enumeration(order):
    theta = leaf(0.2, -0.4, 0.9)
    behaviour = torch.tensor([0.5, 0.2, 0.3]).double()
    f, log_prob = torch.tensor([1.0, -2, 5]).double(), theta.log_softmax(0)
    terms = surrogate(log_prob, f, reference=behaviour.log(), baseline=0.7)
    for_both = [(behaviour * terms).sum(), (log_prob.exp() * f).sum()]
    for _ in range(order):
        for_both = [gradient(x, theta)[1] for x in for_both]
    torch.testing.assert_close(*for_both)


def test_a_target_probability_of_zero():
    """Masked logits: the ratio is 0, and so is the gradient; nothing is NaN."""
    theta = leaf(0.2, -0.4, 0.9)
    log_prob = theta.masked_fill(torch.tensor([False, True, False]), -math.inf).log_softmax(0)
    behaviour = torch.full((3,), 1 / 3).double().log()
    f = torch.tensor([1.0, 7, 5]).double()
    mean = surrogate(log_prob, f, reference=behaviour).mean()
    exact = (log_prob.exp() * f).sum()
    torch.testing.assert_close(mean, exact)
    torch.testing.assert_close(gradient(mean, theta), gradient(exact, theta))
    assert gradient(mean, theta)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_kept(dtype):
    found = surrogate(torch.full((3,), -1.0, dtype=dtype), torch.ones(3, dtype=dtype), baseline=2)
    assert found.dtype == dtype
    many = torch.full((60_000,), -4.0, dtype=dtype)  # whose sum overflows in float16
    assert surrogate(many, torch.ones_like(many)).isfinite().all()


# ---------------------------------------------------------------- several draws
def test_graph_of_two_draws_at_every_order():
    """x ~ p(x), y ~ p(y|x), costs on x, on y and on neither, which depend on θ themselves."""
    theta = leaf(0.3, -0.8, 0.5)
    x_log = theta[:2].log_softmax(0)
    exact, found = 0, 0
    for x, y in itertools.product(range(2), range(2)):
        lp_x = x_log[x]
        lp_y = torch.nn.functional.logsigmoid((2 * y - 1) * (theta[2] * (x + 1) + theta[0]))
        on_x, on_y, fixed = (1.0 + x) * theta[1], torch.tensor(3.0 * y - x).double(), theta[2] ** 2
        p = (lp_x + lp_y).exp()
        exact = exact + p * (on_x + on_y + fixed)
        sampled = graph_surrogate(
            [(on_x, [lp_x]), (on_y, [lp_x, lp_y]), (fixed, [])],
            [(torch.tensor(0.7).double(), lp_x), (torch.tensor(x - 0.4), lp_y)],
        )
        assert sampled.item() == pytest.approx((on_x + on_y + fixed).item())
        found = found + p.detach() * sampled
    torch.testing.assert_close(gradient(found, theta), gradient(exact, theta))
    torch.testing.assert_close(hessian(found, theta), hessian(exact, theta))


def test_graph_of_one_draw_is_the_surrogate():
    log_prob, f, b = leaf(-1, -2), torch.tensor([3.0, 4]).double(), torch.tensor([1.0, 5]).double()
    one = surrogate(log_prob, f, baseline=b)
    graph = graph_surrogate([(f, [log_prob])], [(b, log_prob)])
    torch.testing.assert_close(one, graph)
    torch.testing.assert_close(gradient(one.sum(), log_prob), gradient(graph.sum(), log_prob))


def test_numbers_that_are_none_are_refused():
    log_prob = torch.zeros(3, requires_grad=True)
    for cost in (1.0, None):
        with pytest.raises(ArgumentError, match="a cost takes a tensor, got"):
            graph_surrogate([(cost, [log_prob])])
        with pytest.raises(ArgumentError, match="a cost takes a tensor, got"):
            graph_surrogate([(torch.ones(3), [log_prob]), (cost, [log_prob])])
    with pytest.raises(ArgumentError, match="a log-probability takes a tensor, got float"):
        graph_surrogate([(torch.ones(3), [0.5])])
    for baseline in (math.nan, math.inf):
        with pytest.raises(NotFiniteError, match="baseline takes a finite number, got"):
            surrogate(log_prob, torch.ones(3), baseline=baseline)


def test_graph_refusals():
    with pytest.raises(ArgumentError, match="costs takes at least one pair"):
        graph_surrogate([])
    with pytest.raises(ShapeError, match=r"a log-probability takes .* \[2\], got \[2, 1\]"):
        graph_surrogate([(torch.ones(2), [torch.ones(2, 1)])])
    with pytest.raises(ShapeError, match=r"a cost takes .* \[2\], got \[3\]"):
        graph_surrogate([(torch.ones(2), []), (torch.ones(3), [])])
    with pytest.raises(ShapeError, match=r"a baseline takes .* \[2\], got \[\]"):
        graph_surrogate([(torch.ones(2), [])], [(torch.tensor(1.0), torch.ones(2))])


# ---------------------------------------------------------------- refusals
def test_shapes_are_refused_never_broadcast():
    x, column = torch.zeros(4), torch.zeros(4, 1)
    with pytest.raises(ShapeError, match="objective takes"):
        surrogate(x, column)
    with pytest.raises(ShapeError, match="reference takes"):
        surrogate(x, x, reference=column)
    for baseline in (column, torch.zeros(1), lambda f, log_prob: column):
        with pytest.raises(ShapeError, match=r"baseline takes one number for each .* \[4\]"):
            surrogate(x, x, baseline=baseline)
    with pytest.raises(ShapeError, match="objective takes a Float"):
        surrogate(x, torch.ones(4, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="baseline takes a tensor, a number or a function"):
        surrogate(x, x, baseline="mean")
    with pytest.raises(ArgumentError, match=r"at least one sample, got \[0\]"):
        surrogate(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_cannot_be_drawn_is_refused(bad):
    good, wrong = torch.zeros(2, 2), torch.tensor([[0.0, 0], [bad, 0]])
    with pytest.raises(NotFiniteError, match=r"log_prob takes finite .* got -?(nan|inf) at \[1, 0"):
        surrogate(wrong, good)
    with pytest.raises(NotFiniteError, match="reference takes finite"):
        surrogate(good, good, reference=wrong)
    if bad != -math.inf:
        with pytest.raises(NotFiniteError, match="log_prob takes finite numbers or -inf"):
            surrogate(wrong, good, reference=good)
