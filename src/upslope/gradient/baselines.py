"""Baselines: what is subtracted from f so that its noise, and not its gradient, goes away.

    E[(f - b) ∇ ln p] = E[f ∇ ln p]        for every b that does not depend on its own sample

A baseline is called with the objective [n, *batch], the n samples along the first dimension, and
their log-probability, and returns b of the same shape. `unbiased` declares whether the estimator
keeps its expectation; the tests measure it.

Williams 1992, section 3 (any constant); Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline
for free!" (leave-one-out); Weaver and Tao 2001, "The optimal reward baseline" (optimal).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upslope.errors import ArgumentError, ShapeError, check_range
from upslope.gradient.score import leaves, score


class Baseline:
    """What every baseline is: a declaration, and a function of the samples."""

    unbiased: bool = True
    """Whether E[(f - b) ∇ ln p] = E[f ∇ ln p] with this b."""

    def __call__(self, objective: Tensor, log_prob: Tensor) -> Tensor:
        """Return b of each sample, the shape of `objective`, [n, *batch], detached."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")


class Constant(Baseline):
    """b itself: a number, or a tensor [*batch] with one for each batch element."""

    def __init__(self, b: float | Tensor) -> None:
        if not isinstance(b, Tensor):
            check_range("b", b, -1e300, 1e300)
        self.b = b

    def __call__(self, objective: Tensor, log_prob: Tensor) -> Tensor:
        """Return b for each sample."""
        b = torch.as_tensor(self.b).detach().to(objective)
        if b.dim() and b.shape != objective.shape[1:]:
            raise ShapeError(
                f"Constant: b takes a number or the batch shape {list(objective.shape[1:])}, "
                f"got {list(b.shape)}"
            )
        return b.expand(objective.shape)


class LeaveOneOut(Baseline):
    """The mean over the *other* samples, (Σ_j f_j - f_i) / (n - 1); n of at least 2."""

    def __call__(self, objective: Tensor, log_prob: Tensor) -> Tensor:
        """Return the mean over the other samples."""
        n = _count(objective, "LeaveOneOut")
        f = objective.detach()
        return (f.sum(0) - f) / (n - 1)


class MovingAverage(Baseline):
    """An average over the calls *before* this one, m <- decay m + (1 - decay) mean(f) after it.

    The average of the present samples, as often shipped, scales the gradient by 1 - (1 - decay)/n.
    At the first call nothing was before: the leave-one-out mean, or 0 for a single sample. A call
    updates `.average`, [*batch], which is all of its state. decay in [0, 1].
    """

    def __init__(self, decay: float) -> None:
        check_range("decay", decay, 0, 1)
        self.decay = decay
        self.average: Tensor | None = None

    def __call__(self, objective: Tensor, log_prob: Tensor) -> Tensor:
        """Return the average so far, then take the new samples into it."""
        f = objective.detach()
        n = _count(objective, "MovingAverage", at_least=1)
        mean, before = f.mean(0), self.average
        if before is None:
            self.average = mean
            return (f.sum(0) - f) / (n - 1) if n > 1 else torch.zeros_like(f)
        if before.shape != mean.shape:
            raise ShapeError(
                f"MovingAverage: objective takes the batch shape of the calls before, "
                f"{list(before.shape)}, got {list(mean.shape)}"
            )
        self.average = self.decay * before + (1 - self.decay) * mean
        return before.expand_as(f)


class Optimal(Baseline):
    """The constant with the least variance, from the other samples: Σ|s_j|² f_j / Σ|s_j|², j ≠ i.

    |s_j|² is the squared norm of the score over all parameters. With the own sample in the sums the
    gradient would be biased, with one sample 0. It takes a backward pass for each sample (batched).
    """

    def __call__(self, objective: Tensor, log_prob: Tensor) -> Tensor:
        """Return the weighted mean over the other samples."""
        _count(objective, "Optimal")
        f = objective.detach()
        weight = score(log_prob, leaves(log_prob)).square().sum(1).reshape(f.shape)
        others = weight.sum(0) - weight
        weighted = (weight * f).sum(0) - weight * f
        return torch.where(others > 0, weighted / others, torch.zeros_like(f))


class Learned(Baseline):
    """A module's prediction of f, from what was known before the draw; never from the sample.

        baseline = Learned(module).at(context)
        estimate = expectation(f, p, n, baseline=baseline)
        (-estimate.sum() + baseline.loss()).backward()

    module(context) returns one number for each batch element, [*batch], or, where each sample has
    its own context, for each sample, [n, *batch]. Without a context, module() is called.
    Its regression loss is its own: nothing of it is in the estimate, which sees a detached number.
    Unbiased as long as the module was not yet trained on the samples it is now subtracted from.
    """

    def __init__(self, module: torch.nn.Module, *context: Any) -> None:
        if not callable(module):
            raise ArgumentError(f"module takes a torch module, got {type(module).__name__}")
        self.module = module
        self.context = context
        self._error: Tensor | None = None

    def at(self, *context: Any) -> Learned:
        """Return the same module's baseline for another context."""
        return Learned(self.module, *context)

    def __call__(self, objective: Tensor, log_prob: Tensor) -> Tensor:
        """Return the prediction for each sample, detached, and keep the error for `loss`."""
        predicted = self.module(*self.context)
        shape = objective.shape
        if not isinstance(predicted, Tensor) or predicted.shape not in (shape, shape[1:]):
            got = list(predicted.shape) if isinstance(predicted, Tensor) else type(predicted)
            raise ShapeError(
                f"Learned: module returns one number for each batch element, {list(shape[1:])}, "
                f"or for each sample, {list(shape)}, got {got}"
            )
        self._error = predicted - objective.detach()
        return predicted.detach().expand(objective.shape)

    def loss(self) -> Tensor:
        """Return the mean of (b - f)² over the samples of the last call, to be minimised."""
        if self._error is None:
            raise ArgumentError("loss takes a baseline that an estimate has used, got a new one")
        return self._error.square().mean()


def _count(objective: Tensor, name: str, at_least: int = 2) -> int:
    n = len(objective) if objective.dim() else 0
    if n < at_least:
        raise ArgumentError(
            f"{name} takes at least {at_least} sample{'s' * (at_least > 1)} along the first "
            f"dimension, got {list(objective.shape)}"
        )
    return n
