"""The estimators of ∇E[f(x)] under one distribution, each with what it declares.

Each is called with a `Case`, θ [R, P] for R estimates at once, and returns a number for each of
them, [R], to be differentiated: what a user would write, with one batch element for each estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from upslope.audit.problems import Exact, Problem, log_ratio
from upslope.gradient import (
    Constant,
    Learned,
    LeaveOneOut,
    MovingAverage,
    Optimal,
    expectation,
    graph_surrogate,
    surrogate,
)
from upslope.gradient.support import finite_support
from upslope.losses import clipped_surrogate, kl_estimate, policy_gradient_loss

N = 4


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """An estimator and its declaration. It is unbiased unless it names its bias."""

    name: str
    """As it stands in the table."""
    run: Callable[[Any], Tensor]
    """What gives the surrogate of each estimate, [R]."""
    bias: str | Callable[[Any], str] = ""
    """The bias that it declares, in words, or a function of the problem that says it."""
    scale: float | None = None
    """The multiple of the gradient that it declares, where the bias is one."""
    samples: int = N
    """n, samples of one estimate."""
    variance: Callable[[Any], float | None] = lambda problem: None
    """n times the exact variance of an estimate, where it is known."""
    takes: Callable[[Any], bool] = lambda problem: True
    """The problems that it can be used on."""
    estimates: int = 2**62
    """At most so many estimates are made."""
    at_once: int = 2**62
    """At most so many of them in one call."""

    def declares(self, problem: Any) -> str:
        """Return the bias that it declares on a problem, or ""."""
        return self.bias if isinstance(self.bias, str) else self.bias(problem)

    def declared_scale(self, problem: Any) -> float | None:
        """Return the multiple of the gradient that it declares: 1 where it is unbiased."""
        return self.scale if self.declares(problem) else 1.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem with R copies of its parameters, one for each estimate."""

    problem: Problem
    exact: Exact
    theta: Tensor

    @property
    def distribution(self) -> Distribution:
        """The distribution, with batch shape [R]."""
        return self.problem.make(self.theta)

    @property
    def behaviour(self) -> Distribution:
        """What importance sampling draws from, with batch shape [R]."""
        other = torch.tensor(self.problem.behaviour, dtype=torch.float64)
        return self.problem.make(other.expand(self.theta.shape))

    def f(self, x: Tensor) -> Tensor:
        """Return f of the samples."""
        return self.problem.f(x, self.theta)

    def expectation(self, **options: Any) -> Tensor:
        """Return upslope.gradient.expectation of n samples."""
        return expectation(self.f, self.distribution, N, **options)

    def by_hand(self) -> tuple[Tensor, Tensor]:
        """Return ln p(x) and f(x) of n samples, [n, R], for what is built on them."""
        p = self.distribution
        x = p.sample(torch.Size([N]))
        return p.log_prob(x), self.f(x)


def gradients(case: Case, estimator: Estimator) -> Tensor:
    """Return one gradient for each of the R estimates, [R, P]."""
    (found,) = torch.autograd.grad(estimator.run(case).sum(), case.theta)
    return found


# ---------------------------------------------------------------- each of them
def score_with(baseline: Callable[[Case], Any]) -> Callable[[Case], Tensor]:
    """Return expectation(estimator="score") with a baseline made for the case."""
    return lambda case: case.expectation(estimator="score", baseline=baseline(case))


def moving_average(case: Case) -> Tensor:
    """Return the mean of three calls: the first has no average before it, the others do."""
    baseline = MovingAverage(0.8)
    calls = [case.expectation(estimator="score", baseline=baseline) for _ in range(3)]
    return torch.stack(calls).mean(0)


def learned(case: Case) -> Tensor:
    """Return the estimate with a network that was trained, on other samples, for 20 steps."""
    context = torch.ones(len(case.theta), 1, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        module = torch.nn.Sequential(torch.nn.Linear(1, 1).double(), torch.nn.Flatten(0))
    baseline, step = Learned(module, context), torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(20):
        case.expectation(estimator="score", baseline=baseline)
        step.zero_grad()
        baseline.loss().backward()
        step.step()
    return case.expectation(estimator="score", baseline=baseline)


def per_bit_graph(case: Case) -> Tensor:
    """Return the estimate with each bit a draw of its own, and E[f] as the baseline of each."""
    bits = Bernoulli(logits=case.theta)
    x = bits.sample(torch.Size([N]))
    log_prob, f = bits.log_prob(x).unbind(-1), case.f(x)
    baseline = torch.full_like(f, float(case.exact.value))
    return graph_surrogate([(f, log_prob)], [(baseline, w) for w in log_prob]).mean(0)


def policy_gradient(case: Case) -> Tensor:
    """Return minus the policy gradient loss, whose mean is over all estimates: R times it."""
    log_prob, f = case.by_hand()
    others = LeaveOneOut()(f, log_prob)
    return -log_prob.shape[1] * policy_gradient_loss(log_prob, f.detach() - others)


def clipped(case: Case) -> Tensor:
    """Return PPO's clipped surrogate at ratio 1."""
    log_prob, f = case.by_hand()
    advantage = f.detach() - LeaveOneOut()(f, log_prob)
    return -clipped_surrogate(log_prob - log_prob.detach(), advantage, 0.2, 0.2).mean(0)


def own_mean(case: Case) -> Tensor:
    """Return the estimate with the mean of all n samples as baseline, the own one included."""
    log_prob, f = case.by_hand()
    return (surrogate(log_prob, f, baseline=f.mean(0).expand_as(f)) - f).mean(0)


def own_deviation(case: Case) -> Tensor:
    """Return the group-relative estimate: minus the mean, over the standard deviation, of n."""
    log_prob, f = case.by_hand()
    f = f.detach()
    return (surrogate(log_prob, (f - f.mean(0)) / (f.std(0) + 1e-4))).mean(0)


def of_divergence(kind: str) -> Callable[[Case], Tensor]:
    """Return the surrogate of an estimate of KL(π || π₀) from each sample; f is not used."""

    def run(case: Case) -> Tensor:
        x = case.distribution.sample(torch.Size([N]))
        log_prob = case.distribution.log_prob(x)
        estimate = kl_estimate(log_prob, log_prob - log_ratio(x, case.theta), kind)
        return surrogate(log_prob, estimate).mean(0)

    return run


def plain_f(problem: Problem) -> bool:
    """Return whether weighting log-probabilities is enough: f does not depend on θ."""
    return not problem.depends


def is_divergence(problem: Problem) -> bool:
    """Return whether f is ln π/π₀."""
    return problem.f is log_ratio


OVER_N = "of order 1/n"
SHRINKS = f"({N} - 1)/{N} of the gradient: the own sample is in the mean"

ESTIMATORS = (
    Estimator(
        name="score",
        run=lambda case: case.expectation(estimator="score"),
        variance=lambda problem: Exact(problem).constant_baseline(0.0),
    ),
    Estimator(
        name="score, constant baseline",
        run=score_with(lambda case: Constant(float(case.exact.value))),
        variance=lambda problem: Exact(problem).constant_baseline(float(Exact(problem).value)),
    ),
    Estimator(
        name="score, leave-one-out",
        run=score_with(lambda case: LeaveOneOut()),
        variance=lambda problem: Exact(problem).leave_one_out(N),
    ),
    Estimator(name="score, moving average", run=moving_average, samples=3 * N),
    Estimator(
        name="score, optimal baseline",
        run=score_with(lambda case: Optimal()),
        estimates=6400,
        at_once=32,  # its scores are a matrix of all samples by all parameters
    ),
    Estimator(name="score, learned baseline", run=learned),
    Estimator(
        name="pathwise",
        run=lambda case: case.expectation(estimator="pathwise"),
        variance=lambda problem: problem.known.get("pathwise"),
        takes=lambda problem: "pathwise" in problem.known,
    ),
    Estimator(
        name="enumerate",
        run=lambda case: case.expectation(estimator="enumerate"),
        variance=lambda problem: 0.0,
        takes=lambda problem: finite_support(problem.make(torch.tensor(problem.theta))) is not None,
        estimates=2,
    ),
    Estimator(
        name="score, graph of three draws",
        run=per_bit_graph,
        takes=lambda problem: isinstance(problem.make(torch.tensor(problem.theta)), Independent),
        variance=lambda problem: Exact(problem).constant_baseline(float(Exact(problem).value)),
    ),
    Estimator(
        name="policy_gradient_loss, leave-one-out",
        run=policy_gradient,
        variance=lambda problem: Exact(problem).leave_one_out(N),
        takes=plain_f,
    ),
    Estimator(
        name="clipped_surrogate, leave-one-out",
        run=clipped,
        variance=lambda problem: Exact(problem).leave_one_out(N),
        takes=plain_f,
    ),
    Estimator(
        name="importance sampling",
        run=lambda case: case.expectation(estimator="score", behaviour=case.behaviour),
        variance=lambda problem: Exact(problem).importance(),
    ),
    Estimator(
        name="importance sampling, self-normalised",
        run=lambda case: case.expectation(
            estimator="score", behaviour=case.behaviour, self_normalized=True
        ),
        bias=OVER_N,
    ),
    Estimator(
        name="group mean with the own sample",
        run=own_mean,
        bias=SHRINKS,
        scale=(N - 1) / N,
        takes=plain_f,
    ),
    Estimator(
        name="group mean and standard deviation",
        run=own_deviation,
        bias="another scale for each group, and another direction",
        takes=plain_f,
    ),
    Estimator(name="kl_estimate k1", run=of_divergence("k1"), takes=is_divergence),
    Estimator(
        name="kl_estimate k2",
        run=of_divergence("k2"),
        bias="its mean is the divergence to third order only",
        takes=is_divergence,
    ),
    Estimator(name="kl_estimate k3", run=of_divergence("k3"), takes=is_divergence),
)
