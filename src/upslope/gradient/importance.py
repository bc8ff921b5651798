"""Importance sampling: samples from a behaviour q, an expectation under the target p.

    ordinary          1/n Σ w_i f_i                  w_i = p(x_i) / q(x_i)       no bias
    self-normalised   Σ w_i f_i / Σ w_i              bias of order 1/n, often far less variance
    effective sample size  (Σ w_i)² / Σ w_i²         of n; n where all weights are equal

The ordinary form is `surrogate(log_prob, objective, reference=...)`. For whole trajectories the
log-probabilities are sums over their steps; `trajectory_surrogate` is the per-decision form.
Behaviour must be positive wherever the target is.

Sutton and Barto 2018, equations 5.5 and 5.6; Kong 1992 for the effective sample size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError
from upslope.gradient.surrogate import likelihood_ratio
from upslope.shapes import shaped


@dataclass(frozen=True, kw_only=True)
class ImportanceReport:
    """How much n weighted samples are worth; `str` of it is one line for people."""

    effective_sample_size: float
    """(Σ w)² / Σ w², from 1 to n; 0 where every weight is 0."""
    largest_weight: float
    """The largest ratio p / q."""
    largest_share: float
    """The largest weight over the sum of all: near 1, one sample decides; nan where all are 0."""
    samples: int
    """n, the number of samples."""

    def __str__(self) -> str:
        """Return one line: what the samples are worth, and the weight that counts most."""
        return (
            f"effective sample size {self.effective_sample_size:.4g} of {self.samples}, "
            f"largest weight {self.largest_weight:.3g} ({self.largest_share:.1%} of the sum)"
        )


@shaped
def importance_report(
    log_prob: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]
) -> ImportanceReport:
    """Return effective sample size and largest weight of samples drawn with `reference`.

    Both in nats, of the target and of the behaviour; all elements count as samples. Computed on
    logarithms, so that weights beyond what a float holds do no harm. Raises ShapeError unless the
    shapes are equal, ArgumentError for no samples, NotFiniteError as `surrogate` does.
    """
    likelihood_ratio(log_prob.detach(), reference)  # its checks
    log_weight = (log_prob.detach() - reference.detach()).double().reshape(-1)
    total = log_weight.logsumexp(0)
    none = bool(total == -math.inf)
    top = log_weight.max()
    return ImportanceReport(
        effective_sample_size=(
            0.0 if none else float((2 * total - (2 * log_weight).logsumexp(0)).exp())
        ),
        largest_weight=float(top.exp()),
        largest_share=math.nan if none else float((top - total).exp()),
        samples=log_weight.numel(),
    )


@shaped
def self_normalized_surrogate(
    log_prob: Float[Tensor, "n *batch"],
    objective: Float[Tensor, "n *batch"],
    *,
    reference: Float[Tensor, "n *batch"],
) -> Float[Tensor, "n *batch"]:
    """Return n w_i f_i / Σ_j w_j, whose mean over the first dimension is Σ w f / Σ w.

    The gradient runs through numerator and denominator, so that a constant added to f changes
    nothing in it: no baseline is needed. Value and gradient have a bias of order 1/n. Raises
    ShapeError unless all shapes are equal, ArgumentError for no samples or where every weight is 0
    (the estimate is 0/0), NotFiniteError as `surrogate` does.
    """
    ratio = self_normalized_ratio(log_prob, reference)
    return ratio * torch.where(ratio == 0, torch.zeros_like(objective), objective)


@shaped
def self_normalized_ratio(
    log_prob: Float[Tensor, "n *batch"], reference: Float[Tensor, "n *batch"]
) -> Float[Tensor, "n *batch"]:
    """Return n w_i / Σ_j w_j, whose mean over the first dimension is 1; raises as the surrogate."""
    likelihood_ratio(log_prob.detach(), reference)  # its checks
    log_weight = log_prob - reference.detach()
    if (log_weight.detach().max(0).values == -math.inf).any():
        raise ArgumentError(
            "log_prob takes at least one sample that the target can draw; every weight is 0, "
            "and the self-normalised estimate 0/0"
        )
    return len(log_prob) * log_weight.softmax(0)


def self_normalized_terms(log_prob: Tensor, objective: Tensor, reference: Tensor) -> Tensor:
    """Return n terms, [n, *batch], whose mean is Σ v f and whose spread is its error, v = w / Σ w.

        n v_i (f_i - [F]) - [n v_i] (F - [F]) + F          F = Σ v f, [ ] held still

    The ratio's linear part in what is summed: the mean has F's gradient ∇F = Σ v_i (f_i - F) s_i,
    and each term ∇F + n v_i ((f_i - F) (s_i - Σ v s) - ∇F), the delta method's, where n v_i f_i
    would leave out the noise of Σ w. A constant added to f changes no term's gradient.
    """
    ratio = self_normalized_ratio(log_prob, reference)
    objective = torch.where(ratio == 0, torch.zeros_like(objective), objective)
    whole = (ratio * objective).mean(0)
    held = whole.detach()
    return ratio * (objective - held) - ratio.detach() * (whole - held) + whole


def self_normalized_error(share: Tensor, objective: Tensor) -> Tensor:
    """Return sqrt(Σ v_i² (f_i - Σ v f)²) for shares v that sum to 1: the delta method's error.

    Owen 2013, "Monte Carlo theory, methods and examples", section 9.2.
    """
    if not share.isfinite().all():
        raise NotFiniteError("share takes finite numbers, got NaN or inf")
    centred = objective - (share * objective).sum(0)
    return (share.square() * centred.square()).sum(0).sqrt()
