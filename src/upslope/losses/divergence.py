"""Estimates of a divergence from samples of one policy, where the sum over actions is too long.

    KL(π || π_ref) = E_{x~π}[ln π(x) - ln π_ref(x)]

Schulman 2020, "Approximating KL divergence", joschu.net/blog/kl-approx.html.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import ArgumentError, suggest
from upslope.shapes import shaped


@shaped
def kl_estimate(
    log_prob: Float[Tensor, "*shape"],
    reference_log_prob: Float[Tensor, "*shape"],
    estimator: str = "k3",
) -> Float[Tensor, "*shape"]:
    """Return an estimate of KL(π || π_ref) in nats from each sample of π, with d = ln π_ref - ln π.

        k1 = -d              unbiased, either sign
        k2 = d² / 2          biased (to third order in d), never negative
        k3 = eᵈ - 1 - d      unbiased, never negative

    All are 0 at π = π_ref. The reference is detached. They are meant as values: for samples of π,
    the mean gradient of k1 is 0, that of k2 the gradient of KL(π || π_ref), that of k3 the gradient
    of KL(π_ref || π). k3 is inf where eᵈ overflows. Raises ShapeError unless the shapes are equal,
    and ArgumentError for another estimator.
    """
    d = reference_log_prob.detach() - log_prob
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(d) - d
    options = ("k1", "k2", "k3")
    raise ArgumentError(
        f"estimator takes 'k1', 'k2' or 'k3', got {estimator!r}{suggest(estimator, options)}"
    )
