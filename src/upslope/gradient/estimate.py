"""An estimate that says how wrong it may be: value and gradient, each with its standard error.

    s.e.(mean) = sd(terms) / sqrt(n)

The mean of the samples' gradients is the gradient; its error is theirs, over sqrt(n), coordinate by
coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.gradient.importance import ImportanceReport
from upslope.gradient.score import depends_on, score

MOST_GROUPS = 1024  # of samples, whose gradients' spread is known to 1 / sqrt(2 * 1023), 2 %
LEAST_GROUPS = 128  # 6 %
MOST_WORK = 2**24  # groups times samples, what the backward passes cost


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """An expectation with its standard error."""

    value: Tensor
    """The estimate, [*batch], differentiable as what `expectation` returns without errors."""
    standard_error: Tensor
    """Of the value, [*batch]; 0 where it is exact."""
    estimator: str
    """What was used: "score", "pathwise", "enumerate" or, with no parameter, "plain"."""
    importance: ImportanceReport | None = None
    """Effective sample size and largest weight, where a behaviour drew the samples."""
    terms: Tensor
    """What was averaged, [n, *batch]; of a self-normalised estimate its linear part."""

    def gradient(self, parameter: Tensor) -> Estimate:
        """Return ∇ of the sum over the batch, in the parameter's shape, with its standard error.

        The error is that of the mean of the samples' own gradients; of many samples, in groups: up
        to 1024 of them, and no fewer than 128. A baseline made of other samples couples them, an
        effect of order 1/n that it leaves out. Raises ArgumentError where the value does
        not depend on `parameter`.
        """
        if not isinstance(parameter, Tensor) or not depends_on(self.value, parameter):
            raise ArgumentError("parameter takes a tensor that the value depends on, got another")
        (whole,) = torch.autograd.grad(self.value.sum(), parameter, retain_graph=True)
        error = torch.zeros_like(whole)
        if self.estimator != "enumerate":
            terms = self.terms.reshape(len(self.terms), -1).sum(1)
            most = max(LEAST_GROUPS, min(MOST_GROUPS, MOST_WORK // len(terms)))
            groups = min(len(terms), most)
            index = torch.arange(len(terms), device=terms.device) % groups
            size = index.bincount().to(terms)
            means = terms.new_zeros(groups).index_add(0, index, terms) / size
            rows = score(means, [parameter])
            spread = (size[:, None] * (rows - whole.reshape(-1)).square()).sum(0) / (groups - 1)
            error = (spread / len(terms)).sqrt().reshape(whole.shape)
        return Estimate(
            value=whole, standard_error=error, estimator=self.estimator, terms=self.terms
        )

    def __str__(self) -> str:
        """Return value and error in one line."""
        report = f"; {self.importance}" if self.importance else ""
        if self.value.numel() == 1:
            numbers = f"{self.value.item():.6g} ± {self.standard_error.item():.2g}"
        else:
            numbers = f"{self.value.tolist()} ± {self.standard_error.tolist()}"
        return f"{numbers} ({self.estimator}{report})"
