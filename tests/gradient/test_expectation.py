"""The expectation of any f under any distribution: right values and gradients, or one sentence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions as D

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.gradient import Constant, LeaveOneOut, expectation

F64 = torch.float64


def leaf(*numbers: float) -> torch.Tensor:
    value = numbers[0] if len(numbers) == 1 else numbers
    return torch.tensor(value, dtype=F64, requires_grad=True)


def gradient(value: torch.Tensor, at: torch.Tensor, **options) -> torch.Tensor:
    return torch.autograd.grad(value.sum(), at, retain_graph=True, **options)[0]


def within(estimate, truth) -> None:
    """Value within 4.5 standard errors of the truth, and an error that is no excuse."""
    truth = torch.as_tensor(truth, dtype=F64)
    z = (estimate.value.double() - truth).abs() / estimate.standard_error.clamp(min=1e-12)
    assert z.max() < 4.5, (estimate, truth)


# ---------------------------------------------------------------- every distribution
# name, distribution of θ, f, E[f] as a function of θ, θ
# ruff: noqa: E501
CASES = [
    ("Normal", lambda t: D.Normal(t, 1.0), lambda x: x**3, lambda t: t**3 + 3 * t, 0.7),
    ("Exponential", lambda t: D.Exponential(t), lambda x: x**2, lambda t: 2 / t**2, 1.4),
    ("Gamma", lambda t: D.Gamma(t, 2.0), lambda x: x**2, lambda t: t * (t + 1) / 4, 1.8),
    ("Beta", lambda t: D.Beta(t, 2.0), lambda x: x, lambda t: t / (t + 2), 1.5),
    ("Poisson", lambda t: D.Poisson(t), lambda x: x**2, lambda t: t**2 + t, 1.7),
    ("Geometric", lambda t: D.Geometric(t), lambda x: x, lambda t: (1 - t) / t, 0.4),
    ("NegativeBinomial", lambda t: D.NegativeBinomial(3.0, t), lambda x: x, lambda t: 3 * t / (1 - t), 0.3),
    ("Binomial", lambda t: D.Binomial(4, t), lambda x: x**2, lambda t: 4 * t * (1 - t) + 16 * t**2, 0.3),
    ("Bernoulli", lambda t: D.Bernoulli(t), lambda x: 3 * x + 1, lambda t: 3 * t + 1, 0.3),
    ("LogNormal", lambda t: D.LogNormal(t, 0.3), lambda x: x, lambda t: (t + 0.045).exp(), 0.2),
    ("Laplace", lambda t: D.Laplace(0.5, t), lambda x: x**2, lambda t: 2 * t**2 + 0.25, 0.6),
    ("Gumbel", lambda t: D.Gumbel(t, 1.0), lambda x: x, lambda t: t + 0.5772156649015329, 0.3),
    ("Weibull", lambda t: D.Weibull(t, 2.0), lambda x: x**2, lambda t: t**2, 1.3),
    ("HalfNormal", lambda t: D.HalfNormal(t), lambda x: x**2, lambda t: t**2, 1.3),
    ("VonMises", lambda t: D.VonMises(t, 2.0), torch.cos, lambda t: t.cos() * 0.6977746579640080, 0.7),
    ("StudentT", lambda t: D.StudentT(9.0, t, 1.0), lambda x: x**2, lambda t: t**2 + 9 / 7, 0.6),
    ("Dirichlet", lambda t: D.Dirichlet(torch.stack([t, t + 1, 2 * t])), lambda x: x[..., 1],
     lambda t: (t + 1) / (4 * t + 1), 0.9),
    ("Independent", lambda t: D.Independent(D.Normal(torch.stack([t, t**2]), 1.0), 1),
     lambda x: x.prod(-1), lambda t: t**3, 0.8),
    ("MultivariateNormal", lambda t: D.MultivariateNormal(torch.stack([t, -t]), torch.eye(2, dtype=F64)),
     lambda x: (x**2).sum(-1), lambda t: 2 * t**2 + 2, 0.7),
    ("TransformedDistribution", lambda t: D.TransformedDistribution(
        D.Normal(t, 1.0), [D.AffineTransform(1.0, t, cache_size=1), D.ExpTransform(cache_size=1)]),
     torch.log, lambda t: 1 + t**2, 0.6),
    ("mixture", lambda t: D.MixtureSameFamily(
        D.Categorical(logits=torch.stack([t, -t])), D.Normal(torch.tensor([1.0, 3.0]).to(F64) * t, 1.0)),
     lambda x: x, lambda t: t * (torch.sigmoid(2 * t) + 3 * torch.sigmoid(-2 * t)), 0.4),
    ("Categorical", lambda t: D.Categorical(logits=torch.stack([t, 2 * t, -t])),
     lambda x: (x * x).double(), lambda t: torch.stack([t, 2 * t, -t]).softmax(0) @ torch.tensor([0, 1.0, 4]).to(F64), 0.3),
    ("OneHot", lambda t: D.OneHotCategorical(logits=torch.stack([t, 2 * t])), lambda x: x[..., 0],
     lambda t: torch.sigmoid(-t), 0.3),
    ("bits", lambda t: D.Independent(D.Bernoulli(torch.stack([t, t**2, 1 - t])), 1),
     lambda x: x.prod(-1) + x[..., 0], lambda t: t**3 * (1 - t) + t, 0.4),
    ("Multinomial", lambda t: D.Multinomial(3, torch.stack([t, 1 - t])), lambda x: x[..., 0] ** 2,
     lambda t: 3 * t * (1 - t) + 9 * t**2, 0.3),
    ("RelaxedBernoulli", lambda t: D.RelaxedBernoulli(torch.tensor(0.5).to(F64), logits=t),
     lambda x: torch.logit(x), lambda t: 2 * t, 0.3),
]  # fmt: skip
FINITE = {"Binomial", "Bernoulli", "Categorical", "OneHot", "bits"}
NO_PATH = FINITE | {
    "Poisson",
    "Geometric",
    "NegativeBinomial",
    "VonMises",
    "mixture",
    "Multinomial",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "f", "truth", "at"), CASES, ids=[c[0] for c in CASES])
def test_every_distribution_by_every_estimator(name, make, f, truth, at):
    theta = leaf(at)
    value = truth(theta)
    slope = gradient(value, theta)
    auto = "enumerate" if name in FINITE else "score" if name in NO_PATH else "pathwise"
    for estimator in ("score", "pathwise", "enumerate", "auto"):
        torch.manual_seed(7)
        if (estimator == "pathwise" and name in NO_PATH) or (
            estimator == "enumerate" and name not in FINITE
        ):
            with pytest.raises(ArgumentError, match=f"estimator='{estimator}' takes"):
                expectation(f, make(theta), 100, estimator=estimator)
            continue
        found = expectation(f, make(theta), 4000, estimator=estimator, standard_error=True)
        assert found.estimator == (auto if estimator == "auto" else estimator)
        if found.estimator == "enumerate":
            torch.testing.assert_close(found.value, value.to(found.value))
            torch.testing.assert_close(gradient(found.value, theta), slope)
            assert found.standard_error == 0
            assert found.gradient(theta).standard_error == 0
        else:
            within(found, value.detach())
            within(found.gradient(theta), slope)


@pytest.mark.parametrize("estimator", ["score", "enumerate"])
def test_second_derivative_of_a_bernoulli(estimator):
    """E[f] = f0 + p (f1 - f0), p = σ(θ): second derivative p (1 - p) (1 - 2p) (f1 - f0)."""
    torch.manual_seed(0)
    theta = leaf(0.6)
    p = torch.sigmoid(theta).item()
    n = 200_000
    rows = theta.expand(n)
    value = expectation(
        lambda b: 5 * b - 2, D.Bernoulli(logits=rows), 1, estimator=estimator, baseline=None
    )
    first = torch.autograd.grad(value.sum(), rows, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), rows)[0]
    error = second.std().item() / math.sqrt(n)
    assert abs(second.mean().item() - p * (1 - p) * (1 - 2 * p) * 5) <= 4.5 * error + 1e-12
    assert error > 0 or estimator == "enumerate"


@pytest.mark.parametrize("estimator", ["score", "pathwise"])
def test_second_derivatives_of_a_normal(estimator):
    """E[x² θ] = θ (μ² + 1), with θ = μ: second derivative 6 μ; f depends on the parameter."""
    torch.manual_seed(0)
    mu = leaf(0.8)
    rows = mu.expand(400_000)
    value = expectation(lambda x: x**2 * rows, D.Normal(rows, 1.0), 1, estimator=estimator)
    first = torch.autograd.grad(value.sum(), rows, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), rows)[0]
    for found, truth in ((value, 0.8**3 + 0.8), (first, 3 * 0.64 + 1), (second, 4.8)):
        error = found.std().item() / math.sqrt(len(found))
        assert abs(found.mean().item() - truth) < 4.5 * error


# ---------------------------------------------------------------- f of any kind
def test_black_boxes_agree():
    mu = leaf(0.5)
    functions = [
        lambda x: x**2,
        lambda x: x.numpy() ** 2,
        lambda x: np.asarray(x, dtype=np.float32) ** 2,
        lambda x: [v.item() ** 2 for v in x],
        lambda x: float(x) ** 2,
        lambda x: x.item() ** 2,
        lambda x: math.pow(x, 2),
    ]
    for f in functions:
        torch.manual_seed(0)
        value = expectation(f, D.Normal(mu, 1.0), 50, estimator="score")
        torch.manual_seed(0)
        same = expectation(functions[0], D.Normal(mu, 1.0), 50, estimator="score")
        torch.testing.assert_close(value, same, rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient(value, mu), gradient(same, mu), rtol=1e-6, atol=0)
        assert value.dtype == F64


@pytest.mark.parametrize("n", [1, 10])
def test_one_event_after_the_other(n):
    """A list takes one index, an f may insist on a single event."""
    rewards, logits = [1.0, 2.0, 5.0], leaf(0.1, 0.7, -0.4)

    def single(x):
        assert x.dim() == 0
        return rewards[int(x)]

    for f in (lambda x: rewards[x.tolist()], single, lambda x: {0: 1, 1: 2, 2: 5}[x.tolist()]):
        torch.manual_seed(0)
        found = expectation(f, D.Categorical(logits=logits), n, estimator="score")
        torch.manual_seed(0)
        same = expectation(lambda x: torch.tensor(rewards)[x], D.Categorical(logits=logits), n,
                           estimator="score")  # fmt: skip
        torch.testing.assert_close(found, same)
    normal = D.Normal(leaf(0.5), 1.0)
    assert expectation(lambda x: single(0 * x), normal, n).item() == 1  # and of no path


def test_one_event_after_the_other_where_some_are_impossible():
    logits = leaf(0.0, 0.0, 0.0).expand(2, 3)
    mask = torch.tensor([[False, True, False], [False, False, False]])
    policy = D.Categorical(logits=logits.masked_fill(mask, -math.inf))
    found = expectation(lambda x: float(np.asarray(x).sum()), policy, 10)
    assert found.tolist() == pytest.approx([1, 1])
    first = D.Categorical(logits=policy.logits[:1])
    assert expectation(lambda x: [9, math.inf, 3][int(x)], first, 1).tolist() == [6]


def test_a_constant_number_is_a_constant():
    mu = leaf(0.5)
    for n in (1, 10):
        assert expectation(lambda x: 3.0, D.Normal(mu, 1.0), n, estimator="score").item() == 3


def test_integers_and_booleans_count():
    logits = leaf(0.1, 0.7, -0.4)
    hit = expectation(lambda a: a == 1, D.Categorical(logits=logits), 1)
    torch.testing.assert_close(hit, logits.softmax(0)[1])
    mean = expectation(lambda a: a, D.Categorical(logits=logits), 1)
    torch.testing.assert_close(mean, logits.softmax(0) @ torch.tensor([0, 1, 2.0]).to(F64))


@pytest.mark.slow
def test_batches_keep_their_shape():
    mu = torch.linspace(-1, 1, 6, dtype=F64).reshape(2, 3).requires_grad_()
    torch.manual_seed(0)
    for estimator in ("score", "pathwise"):
        found = expectation(lambda x: x**2, D.Normal(mu, 1.0), 4_000, estimator=estimator,
                            standard_error=True)  # fmt: skip
        assert found.value.shape == (2, 3)
        within(found, mu.detach() ** 2 + 1)
        within(found.gradient(mu), 2 * mu.detach())
    one_each = expectation(lambda x: float(x), D.Normal(mu, 1.0), 5, estimator="score")
    assert one_each.shape == (2, 3)
    exact = expectation(lambda b: b, D.Bernoulli(logits=mu), 5)
    torch.testing.assert_close(exact, torch.sigmoid(mu))


def test_auto_enumerates_the_support_of_each_batch_element():
    """129 coins have two sides each, not 258; and 2^8 outcomes of 8 are 256, of 9 too many."""
    coins = D.Bernoulli(logits=torch.zeros(129, dtype=F64, requires_grad=True))
    for d, used in ((coins, "enumerate"), (D.Independent(coins, 1), "score"),
                    (D.Independent(D.Bernoulli(logits=leaf(*[0.0] * 8)), 1), "enumerate"),
                    (D.Independent(D.Bernoulli(logits=leaf(*[0.0] * 9)), 1), "score")):  # fmt: skip
        f = torch.Tensor.double if d is coins else lambda x: x.sum(-1)
        assert expectation(f, d, 10, standard_error=True).estimator == used
    many = D.Bernoulli(logits=torch.zeros(2**20, requires_grad=True))  # 2^21 numbers
    assert expectation(lambda x: x, many, 2, standard_error=True).estimator == "score"


def test_f_may_depend_on_the_parameters():
    mu = leaf(0.5)
    torch.manual_seed(0)
    for estimator in ("score", "pathwise"):
        found = expectation(lambda x: x * mu**2, D.Normal(mu, 1.0), 10_000, estimator=estimator,
                            standard_error=True)  # fmt: skip
        within(found.gradient(mu), 3 * 0.25)
    scale = leaf(2.0)  # a parameter of f alone
    value = expectation(lambda x: x * scale, D.Normal(0.0, 1.0), 5, estimator="score")
    torch.testing.assert_close(gradient(value, scale), value.detach().double() / 2)


def test_entropy_bonus():
    logits = leaf(0.1, 0.7, -0.4)
    policy = D.Categorical(logits=logits)
    found = expectation(lambda a: -policy.log_prob(a), policy, 1)
    torch.testing.assert_close(found, policy.entropy())
    torch.testing.assert_close(gradient(found, logits), gradient(policy.entropy(), logits))


def test_auto_without_parameters_is_the_mean():
    torch.manual_seed(0)
    found = expectation(torch.cos, D.Normal(0.0, 1.0), 10_000, standard_error=True)
    assert found.estimator == "plain"
    within(found, math.exp(-0.5))
    moving = expectation(lambda x: x, D.Uniform(0.0, 1.0), 10_000, standard_error=True)
    within(moving, 0.5)
    with torch.no_grad():
        value = expectation(torch.cos, D.Normal(leaf(0.1), 1.0), 10)
    assert not value.requires_grad


def test_samples_follow_the_global_seed():
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(expectation(lambda x: x, D.Normal(leaf(0.0), 1.0), 5).item())
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    logits = torch.tensor([0.0, 1, -1], dtype=dtype, requires_grad=True)
    reward = np.array([1.0, 2, 5])
    for estimator in ("score", "enumerate"):
        value = expectation(
            lambda a: reward[a], D.Categorical(logits=logits), 9, estimator=estimator
        )
        assert value.dtype == dtype
        assert gradient(value, logits).dtype == dtype


# ---------------------------------------------------------------- zero probabilities
def test_masked_logits():
    logits = leaf(0.3, 1.0, -0.2)
    masked = logits.masked_fill(torch.tensor([False, True, False]), -math.inf)
    reward = torch.tensor([1.0, math.inf, 4]).double()  # of what is illegal, none

    def f(action):
        assert (action != 1).all()  # an environment that would not take it
        return reward[action]

    p = logits[::2].softmax(0)
    exact = expectation(f, D.Categorical(logits=masked), 1)
    torch.testing.assert_close(exact, p @ reward[::2])
    slope = gradient(p @ reward[::2], logits)
    torch.testing.assert_close(gradient(exact, logits), slope)
    torch.manual_seed(0)
    found = expectation(
        f, D.Categorical(logits=masked), 5000, estimator="score", standard_error=True
    )
    within(found.gradient(logits), slope)
    assert gradient(found.value, logits)[1] == 0


def test_masked_logits_in_a_batch():
    logits = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    mask = torch.tensor([[False, True, False], [True, False, False]])
    reward = torch.tensor([[1.0, math.inf, 4], [math.nan, 2, 6]]).double()
    policy = D.Categorical(logits=logits.masked_fill(mask, -math.inf))
    found = expectation(
        lambda a: reward.expand(len(a), 2, 3).gather(2, a[..., None])[..., 0], policy, 1
    )
    assert found.tolist() == pytest.approx([2.5, 4])
    assert gradient(found, logits)[mask].tolist() == [0, 0]


# ---------------------------------------------------------------- refusals
def shifted(theta):
    return D.TransformedDistribution(
        D.Exponential(torch.ones(()).to(F64)), D.AffineTransform(theta, 1.0)
    )


MOVING = {
    "Uniform": lambda t: D.Uniform(0.0, t),
    "Uniform below": lambda t: D.Uniform(-t, torch.tensor(3.0).to(F64)),
    "Pareto": lambda t: D.Pareto(t, 3.0),
    "Independent": lambda t: D.Independent(D.Uniform(torch.zeros(2).to(F64), t.expand(2)), 1),
    "shifted": shifted,
    "squashed": lambda t: D.TransformedDistribution(
        D.Normal(t, 1.0), [D.SigmoidTransform(), D.AffineTransform(0.0, t)]),
    "event": lambda t: D.TransformedDistribution(
        D.Uniform(torch.zeros(2).to(F64), 1.0), D.AffineTransform(0.0, t.expand(2), event_dim=1)),
    "independent transform": lambda t: D.TransformedDistribution(
        D.Uniform(torch.zeros(2).to(F64), 1.0), D.IndependentTransform(D.AffineTransform(0.0, t), 1)),
    "reshaped": lambda t: D.TransformedDistribution(
        D.Uniform(torch.zeros(2).to(F64), 1.0), [D.AffineTransform(0.0, t), D.ReshapeTransform((2,), (1, 2))]),
    "simplex": lambda t: D.TransformedDistribution(
        D.Normal(torch.zeros(2).to(F64), 1.0), [D.StickBreakingTransform(), D.AffineTransform(0.0, t)]),
    "Dirichlet": lambda t: D.TransformedDistribution(
        D.Dirichlet(torch.ones(2).to(F64)), D.AffineTransform(0.0, t)),
    "mixture": lambda t: D.MixtureSameFamily(
        D.Categorical(torch.ones(2).to(F64)), D.Uniform(torch.zeros(2).to(F64), t.expand(2))),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_is_refused(name):
    distribution = MOVING[name](leaf(1.5))
    for options in (
        {"estimator": "score"},
        {"estimator": "auto"},
        {"behaviour": D.Normal(0.0, 1.0)},
    ):
        if "behaviour" in options and distribution.event_shape:
            continue
        with pytest.raises(ArgumentError, match="support that does not depend on a parameter"):
            expectation(lambda x: x, distribution, 10, **options)


def test_why_it_is_refused():
    """x ~ U(0, θ), f = x: the score form gives -1/2 for the +1/2 that pathwise finds."""
    theta = leaf(2.0)
    torch.manual_seed(0)
    found = expectation(lambda x: x, D.Uniform(0.0, theta), 10_000, estimator="pathwise",
                        standard_error=True)  # fmt: skip
    within(found.gradient(theta), 0.5)
    x = D.Uniform(0.0, 2.0).sample((100_000,)).double()
    naive = gradient((D.Uniform(0.0, theta).log_prob(x) * x).mean(), theta)
    assert naive.item() == pytest.approx(-0.5, abs=4.5 * 0.5 / math.sqrt(3e5))


@pytest.mark.parametrize(
    "make",
    [lambda t: D.TransformedDistribution(D.Exponential(torch.ones(()).to(F64)), D.AffineTransform(0.0, t)),
     lambda t: D.TransformedDistribution(D.Normal(0.0, t), [D.ExpTransform(), D.AffineTransform(0.0, t)]),
     lambda t: D.TransformedDistribution(D.Normal(t, 1.0), [D.TanhTransform(), D.AffineTransform(1.0, 2.0)]),
     lambda t: D.Kumaraswamy(t, 2.0), lambda t: D.LogNormal(t, 1.0), lambda t: D.Weibull(t, 2.0),
     lambda t: D.TransformedDistribution(D.Normal(t.expand(2), t), D.AffineTransform(t, t, event_dim=1)),
     lambda t: D.TransformedDistribution(D.Normal(t.expand(2), t), D.StickBreakingTransform()),
     lambda t: D.Uniform(0.0, t.detach()), lambda t: D.Uniform(0.0, 0 * t + 2)],
)  # fmt: skip
def test_a_support_that_stays_is_taken(make):
    theta = leaf(1.5)
    distribution = make(theta.square())  # whose graph the check must leave for the backward pass
    expectation(
        lambda x: x.reshape(10, -1).sum(1) * theta, distribution, 10, estimator="score"
    ).backward()
    assert theta.grad.isfinite()


def test_pathwise_through_a_black_box_is_refused():
    mu = leaf(0.5)
    for f in (lambda x: x.detach().numpy(), lambda x: x.numpy(), lambda x: (x > 0).double(),
              lambda x: [float(v) for v in x.detach()], lambda x: math.sin(x),
              lambda x: mu * (x.detach() > 0)):  # fmt: skip
        with pytest.raises(ArgumentError, match=r"estimator='pathwise' takes an f .*use 'score'"):
            expectation(f, D.Normal(mu, 1.0), 10, estimator="pathwise")


def test_no_parameter_is_refused():
    for estimator in ("score", "pathwise"):
        with pytest.raises(ArgumentError, match="parameter that requires a gradient, got none"):
            expectation(lambda x: x**2, D.Normal(0.0, 1.0), 10, estimator=estimator)


def test_two_estimators_are_refused():
    normal = D.Normal(leaf(0.5), 1.0)
    for both in ("score+pathwise", ("score", "pathwise"), "both", None):
        with pytest.raises(ArgumentError, match="two at once would count the gradient twice"):
            expectation(lambda x: x, normal, 10, estimator=both)
    for estimator in ("pathwise", "enumerate"):
        with pytest.raises(ArgumentError, match="baseline takes estimator='score'"):
            expectation(lambda x: x, normal, 10, estimator=estimator, baseline=LeaveOneOut())


def test_the_sample_is_held_still():
    """N(μ,1), f = x²: through score and path together the slope would be 4 μ."""
    seen = []
    mu = leaf(1.0)
    expectation(lambda x: seen.append(x.requires_grad) or x**2, D.Normal(mu, 1.0), 10,
                estimator="score")  # fmt: skip
    assert seen == [False]


@pytest.mark.parametrize("estimator", ["score", "pathwise", "auto"])
def test_wrong_shapes_are_refused(estimator):
    mu = leaf(0.5)
    wide = D.Independent(D.Normal(mu.expand(3), 1.0), 1)
    for f, d, got in (
        (lambda x: x[:, None], D.Normal(mu, 1.0), r"\[10, 1\]"),
        (lambda x: (x**2).sum(), D.Normal(mu, 1.0), r"\[\]"),
        (lambda x: x**2, wide, r"\[10, 3\]"),
        (lambda x: x.sum(-1, keepdim=True), wide, r"\[10, 1\]"),
    ):
        with pytest.raises(ShapeError, match=rf"f takes .* of shape \[10\], got {got}"):
            expectation(f, d, 10, estimator=estimator)


def test_other_refusals():
    normal = D.Normal(leaf(0.5), 1.0)
    for n in (0, -1, 2.5, True, None):
        with pytest.raises(ArgumentError, match="n takes a whole number of at least 1"):
            expectation(lambda x: x, normal, n)
    with pytest.raises(ArgumentError, match="f takes a function of the samples, got int"):
        expectation(3, normal, 5)
    with pytest.raises(ArgumentError, match=r"Distribution, got Tensor"):
        expectation(lambda x: x, torch.ones(3), 5)
    with pytest.raises(ArgumentError, match=r"batch with elements, got batch_shape \[0\]"):
        expectation(lambda x: x, D.Normal(torch.zeros(0), 1.0), 5)
    with pytest.raises(ArgumentError, match="at least 2 for a standard error"):
        expectation(lambda x: x, normal, 1, standard_error=True)
    for f in (lambda x: x * math.nan, lambda x: x * math.inf):
        with pytest.raises(NotFiniteError, match="f takes samples and returns finite numbers"):
            expectation(f, normal, 5)
    through = D.OneHotCategoricalStraightThrough(logits=leaf(0.5, 1.0))
    with pytest.raises(ArgumentError, match="values are separate points; use 'score'"):
        expectation(lambda x: x[..., 0], through, 5, estimator="pathwise")
    for f in (lambda x: "one", lambda x: None, lambda x: [None] * len(x), lambda x: x + 1j):
        with pytest.raises(ArgumentError, match=r"f takes samples and returns (real )?numbers"):
            expectation(f, normal, 5, estimator="score")
    with pytest.raises(ShapeError, match="Constant: b takes a number or the batch shape"):
        expectation(lambda x: x, normal, 5, estimator="score", baseline=torch.ones(5))
    with pytest.raises(ArgumentError, match="distribution takes one with log_prob"):
        expectation(lambda x: x, D.TransformedDistribution(normal, D.AbsTransform()), 5,
                    estimator="score")  # fmt: skip
    with pytest.raises(ArgumentError, match="parameter takes a tensor that the value depends on"):
        expectation(lambda x: x, normal, 5, standard_error=True).gradient(leaf(1.0))


def test_wrong_kinds_are_refused():
    normal = D.Normal(leaf(0.5), 1.0)
    with pytest.raises(ArgumentError, match=r"behaviour takes a .*Distribution, got int"):
        expectation(lambda x: x, normal, 5, behaviour=3)
    with pytest.raises(ArgumentError, match="parameter takes a tensor that the value depends on"):
        expectation(lambda x: x, normal, 5, standard_error=True).gradient(3)


def test_an_error_in_f_is_its_own():
    class Mine(Exception):
        pass

    def f(x):
        raise Mine

    with pytest.raises(Mine):
        expectation(f, D.Normal(leaf(0.5), 1.0), 5, estimator="score")
    with pytest.raises(ValueError, match="bad sample"):
        expectation(lambda x: int("bad sample"), D.Normal(leaf(0.5), 1.0), 5, estimator="score")


def test_estimate_speaks():
    torch.manual_seed(0)
    one = expectation(lambda x: x, D.Normal(leaf(0.5), 1.0), 5, standard_error=True)
    assert "(pathwise)" in str(one)
    weighted = expectation(
        lambda x: x, D.Normal(leaf(0.5), 1.0), 5, behaviour=D.Normal(0.0, 2.0), standard_error=True,
        baseline=Constant(0.5))  # fmt: skip
    assert "effective sample size" in str(weighted)
    assert "[" in str(
        expectation(lambda x: x, D.Normal(leaf(0.5, 1.0), 1.0), 5, standard_error=True)
    )
