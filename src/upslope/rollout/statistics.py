"""Numbers of a rollout or an update: standardised advantages, explained variance, means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.gradient.quality import signal_to_noise
from upslope.rollout import native_returns
from upslope.rollout.buffer import Chunks, Rollout


def standardized(advantage: Tensor, minibatches: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """Return (A - mean A) / (std A + eps), [M], with mean and deviation over each row's minibatch.

    A minibatch of one row, or of equal advantages, becomes 0: it says nothing about direction.
    """
    if native_returns.applies(advantage):
        return native_returns.standardized(advantage, minibatches, eps)
    out = torch.zeros_like(advantage)
    order = torch.cat(list(minibatches))
    gathered = advantage[order]
    for part in gathered.split([len(index) for index in minibatches]):
        deviation, mean = torch.std_mean(part, correction=0)
        part.sub_(mean).div_(deviation + eps)
    out[order] = gathered
    return out


def explained_variance(rollout: Rollout) -> float:
    """Return 1 - Var[G - v] / Var[G] over the valid rows: 1 is perfect, 0 is a constant's."""
    variance, left = native_returns.variances(rollout.target, rollout.value, rollout.valid)
    return 1 - left / variance if variance > 0 else float("nan")


def means_of(history: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean of each metric over the steps of an update.

    `history` has, under the same names, one number of a step, or one of each of several, [K].
    """
    found = {}
    for name in history[0]:
        numbers = [x for metrics in history for x in metrics[name].view(-1).tolist()]
        found[name] = math.fsum(numbers) / len(numbers)
    return found


def step_quality(chunk_gradients: Tensor, chunks: Chunks) -> float:
    """Return the signal-to-noise of a step, a power ratio; nan where the noise hides the signal."""
    *square, of_mean = native_returns.squares(chunk_gradients, chunks.sizes.numpy())
    return signal_to_noise(square, chunks.sizes.tolist(), of_mean)
