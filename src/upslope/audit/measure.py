"""What is measured of an estimator, from independent estimates g_1 ... g_R and the exact ∇J.

    bias             largest |ḡ - ∇J| / (s / √R) over the coordinates, and along ∇J
    scale            <ḡ, ∇J> / <∇J, ∇J>           1 where right; 0.75 where it shrinks by a quarter
    cosine           <ḡ, ∇J> / (|ḡ| |∇J|)         1 where only the length is wrong
    variance         n tr Cov(g), of one sample, where an estimate is made of n
    noise scale      variance / |∇J|²             samples with which signal and noise are equal
    signal-to-noise  n / noise scale              of one estimate, a power ratio

McCandlish et al. 2018, arXiv:1812.06162, section 2.2, for the last two, with the exact gradient in
the place of an estimated one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.shapes import shaped

LARGEST_Z = 4.5
ROUNDING = 1e-9  # relative, of what has no variance


@dataclass(frozen=True, kw_only=True)
class Row:
    """One estimator on one problem: what it declares and what was found."""

    problem: str
    """The name of the problem."""
    estimator: str
    """The name of the estimator."""
    bias: str
    """What it declares: the bias it knows of, or "" for none."""
    declared_scale: float | None
    """The multiple of ∇J that it declares to estimate: 1 if unbiased, None if another direction."""
    samples: int
    """n, the samples (draws, episodes, windows) of one estimate."""
    estimates: int
    """R, the independent estimates that were made."""
    z: float
    """The largest deviation from ∇J in standard errors; 0 or inf where there is no variance."""
    z_declared: float
    """The same from the declared multiple of ∇J; nan where none is declared."""
    scale: float
    """<ḡ, ∇J> / <∇J, ∇J>."""
    scale_error: float
    """The standard error of the scale."""
    cosine: float
    """The cosine of the angle between ḡ and ∇J."""
    variance: float
    """n tr Cov(g)."""
    exact_variance: float | None
    """The same, exactly, where it is known."""
    noise_scale: float
    """variance / |∇J|², in samples."""
    signal_to_noise: float
    """n / noise scale."""

    @property
    def holds(self) -> bool:
        """Whether the declaration stands: a bias that is declared may be there, no other."""
        return self.declared_scale is None or self.z_declared <= LARGEST_Z

    @property
    def verdict(self) -> str:
        """What to call it: "unbiased", "biased as declared", "no bias seen", "NOT AS DECLARED"."""
        if not self.holds:
            return "NOT AS DECLARED"
        if not self.bias:
            return "unbiased"
        return "biased as declared" if self.z > LARGEST_Z else "no bias seen"


@shaped
def measure(
    gradients: Float[Tensor, "R P"],
    exact: Float[Tensor, " P"],
    *,
    problem: str,
    estimator: str,
    bias: str = "",
    declared_scale: float | None = 1.0,
    samples: int = 1,
    exact_variance: float | None = None,
) -> Row:
    """Return the row of R independent estimates of the exact gradient, from `samples` draws each.

    `exact_variance` is n tr Cov(g). Raises ShapeError unless both have the same P.
    """
    spread, mean = torch.std_mean(gradients, 0)
    size, count = exact.square().sum(), math.sqrt(len(gradients))
    along = gradients @ exact / size
    variance = samples * float(spread.square().sum())
    noise = variance / float(size)
    z_declared = math.nan
    if declared_scale is not None:
        z_declared = largest_z(gradients, declared_scale * exact, along - declared_scale)
    return Row(
        problem=problem,
        estimator=estimator,
        bias=bias,
        declared_scale=declared_scale,
        samples=samples,
        estimates=len(gradients),
        z=largest_z(gradients, exact, along - 1),
        z_declared=z_declared,
        scale=float(along.mean()),
        scale_error=float(along.std() / count),
        cosine=float((mean @ exact / (mean.norm() * exact.norm())).clamp(-1, 1)),
        variance=variance,
        exact_variance=exact_variance,
        noise_scale=noise,
        signal_to_noise=samples / noise if noise > 0 else math.inf,
    )


def largest_z(gradients: Tensor, expected: Tensor, along: Tensor) -> float:
    """Return the largest |mean| / standard error of the deviations [R, P], and of `along` [R].

    Where something has no variance, 0 if it deviates by rounding only, else inf.
    """
    deviation = torch.cat([gradients - expected, along[:, None]], 1)
    spread, mean = torch.std_mean(deviation, 0)
    error = spread / math.sqrt(len(gradients))
    size = torch.cat([expected.abs().max().expand(len(expected)), along.new_ones(1)])
    rounding = ROUNDING * (size + spread)
    far = ~(mean.abs() <= rounding)  # also where it is NaN
    z = torch.where(far, mean.abs() / error, torch.zeros_like(error))
    return float(z.nan_to_num(nan=math.inf, posinf=math.inf).max())
