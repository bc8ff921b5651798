"""Numbers of a rollout or an update: standardised advantages, explained variance, means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from upslope.gradient.quality import quality
from upslope.rollout.buffer import Chunks, Rollout


def standardized(advantage: Tensor, minibatches: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """Return (A - mean A) / (std A + eps), [M], with mean and deviation over each row's minibatch.

    A minibatch of one row, or of equal advantages, becomes 0: it says nothing about direction.
    """
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
    valid = torch.from_numpy(rollout.valid)
    target, value = rollout.target[valid], rollout.value[valid]
    variance, left = target.var(correction=0), (target - value).var(correction=0)
    return float(1 - left / variance) if variance > 0 else float("nan")


def mean_of(name: str, history: Sequence[dict[str, Tensor]]) -> float:
    """Return the mean of one metric over the steps of an update; one number, or one for each."""
    return float(torch.hstack([metrics[name] for metrics in history]).mean())


def step_quality(chunk_gradients: Tensor, chunks: Chunks) -> float:
    """Return the signal-to-noise of a step, a power ratio; nan where the noise hides the signal."""
    return quality(chunk_gradients, chunks.sizes).signal_to_noise
