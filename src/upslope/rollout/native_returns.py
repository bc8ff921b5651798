"""The weights of a rollout's steps in C++, where the native part is there; in torch elsewhere.

The same equations: `returns.gae`, and the standardisation of `statistics.standardized`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from upslope import returns
from upslope.built import BUILT
from upslope.errors import check_range
from upslope.rollout.minibatches import Minibatches

if BUILT:
    from upslope import _native


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return the generalised advantage estimate of `returns.gae`, [T, N]."""
    given = (reward, value, next_value, terminated, truncated)
    if not (applies(*given[:3]) and all(each.shape == reward.shape for each in given)):
        return returns.gae(*given, gamma=gamma, gae_lambda=gae_lambda)
    check_range("gamma", gamma, 0, 1)
    check_range("gae_lambda", gae_lambda, 0, 1)
    found = torch.empty_like(reward)
    _native.gae(
        reward.numpy(),
        value.numpy(),
        next_value.numpy(),
        terminated.numpy(),
        truncated.numpy(),
        found.numpy(),
        gamma=gamma,
        decay=gamma * gae_lambda,
    )
    return found


def standardized(advantage: Tensor, minibatches: Sequence[Tensor], eps: float) -> Tensor:
    """Return (A - mean A) / (std A + eps), [M], over each row's minibatch; 0 in no minibatch."""
    found, parts = torch.empty_like(advantage), Minibatches.of(minibatches)
    _native.standardize(advantage.numpy(), parts.rows.numpy(), parts.sizes, eps, found.numpy())
    return found


def grouped(rows: np.ndarray, n_envs: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `rows` put together by group, row mod n_envs mod `groups`, and each group's size."""
    if BUILT:
        together, sizes = np.empty_like(rows), np.empty(groups, np.int64)
        _native.group(rows, n_envs, together, sizes)
        return together, sizes
    group = (rows % n_envs % groups).astype(np.uint8)
    return rows[group.argsort(kind="stable")], np.bincount(group, minlength=groups)


def squares(vectors: Tensor, sizes: np.ndarray) -> list[float]:
    """Return |g_k|^2 of the vectors [K, P], and then that of their mean, weighted by `sizes`."""
    if applies(vectors):
        return _native.squares(vectors.numpy(), sizes)
    of_each = vectors.cpu().numpy()
    mean = (sizes / sizes.sum()).astype(of_each.dtype) @ of_each
    return [float(each @ each) for each in (*of_each, mean)]


def variances(x: Tensor, y: Tensor, valid: np.ndarray) -> tuple[float, float]:
    """Return the variances of x and of x - y over valid rows, [T, N] each, in double precision."""
    if applies(x, y):
        return _native.variances(x.numpy(), y.numpy(), valid)
    rows = torch.from_numpy(valid)
    of_x, of_both = (float(each[rows].double().var(correction=0)) for each in (x, x - y))
    return of_x, of_both


def applies(*tensors: Tensor) -> bool:
    """Return whether the native part is there and can read these tensors in place."""
    return BUILT and all(
        x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in tensors
    )
