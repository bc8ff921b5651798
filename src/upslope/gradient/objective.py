"""What f returns, as a tensor: from torch, NumPy, lists of numbers, or one sample at a time."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError, ShapeError, UpslopeError

TAKES_ONE = (TypeError, ValueError, RuntimeError, LookupError, AssertionError)
"""What f may raise where it is given all samples at once and takes one."""


def evaluate(
    f: Callable[[Tensor], Any],
    sample: Tensor,
    log_prob: Tensor,
    possible: Tensor | None = None,
) -> Tensor:
    """Return f of all samples with the shape and dtype of `log_prob`, [n, *batch].

    f gets the samples at once, [n, *batch, *event]. Where it returns one number for all of them, or
    raises because it takes one at a time, it gets each event alone, [*event]. Where `possible`
    [n, *batch] is False the result is 0, whatever f is there. Raises ShapeError for
    any other shape, ArgumentError for what is no number, NotFiniteError for NaN or infinity.
    """
    shape = log_prob.shape
    alone = log_prob.numel() == 1
    try:
        result = f(sample)
    except UpslopeError:
        raise
    except TAKES_ONE:
        result = None
    if isinstance(result, numbers.Number | np.generic) and alone:
        result = np.full(shape, result)
    if result is None or isinstance(result, numbers.Number | np.generic):
        event = sample.shape[len(shape) :]
        taken = log_prob.new_ones(shape) if possible is None else possible
        zero = log_prob.new_zeros(())
        pairs = zip(sample.reshape(-1, *event), taken.reshape(-1), strict=True)
        values = [read(f(x), log_prob) if real else zero for x, real in pairs]
        for value in values:
            if value.numel() != 1 or value.dim() > 0:
                raise ShapeError(
                    f"f takes samples of shape {list(sample.shape)} and returns "
                    f"{list(shape)}, or one sample {list(event)} and returns one number, "
                    f"got {list(value.shape)} for one sample"
                )
        result = torch.stack(values).reshape(shape)
    value = read(result, log_prob)
    if value.shape != shape:
        raise ShapeError(
            f"f takes samples of shape {list(sample.shape)} and returns one number for each, "
            f"of shape {list(shape)}, got {list(value.shape)}"
        )
    if possible is not None:
        value = torch.where(possible, value, 0.0)
    if not value.isfinite().all():
        index = (~value.isfinite()).nonzero()[0].tolist()
        raise NotFiniteError(
            f"f takes samples and returns finite numbers, got {value[tuple(index)].item()} "
            f"at {index}, for the sample {sample[tuple(index)].tolist()}"
        )
    return value


def read(result: Any, like: Tensor) -> Tensor:
    """Return what f returned as a tensor of the dtype and device of `like`."""
    if isinstance(result, Tensor):
        value = result
    else:
        try:
            value = torch.as_tensor(np.asarray(result))
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(result).__name__
            raise ArgumentError(f"f takes samples and returns numbers, got {kind}") from error
    if value.is_complex():
        raise ArgumentError(f"f takes samples and returns real numbers, got {value.dtype}")
    return value.to(like)
