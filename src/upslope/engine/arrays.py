"""Tensors as the native engine takes them: arrays of the same memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COLUMNS = {"log_prob": "old_log_prob", "value": "old_value"}
"""Of a rollout, and what the engine calls them."""
COLUMNS |= {name: name for name in ("advantage", "target")}


def columns_of(batch: dict[str, Any], names: Iterable[str]) -> dict[str, Any] | str:
    """Return some columns of a batch by the names `train` has for them, or which does not fit."""
    for name in names:
        if not plain(batch[name], torch.float32) or batch[name].dim() != 1:
            return f"{COLUMNS[name]} is not float32 [M]"
    return {COLUMNS[name]: batch[name].numpy() for name in names}


def plain(tensor: Any, dtype: torch.dtype) -> bool:
    """Say whether a tensor can be read in place: on the CPU, of this type, without gaps."""
    return (
        isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.dtype == dtype
        and tensor.is_contiguous()
        and not tensor.requires_grad
    )
