"""The cells of `cells` in C++, for float32 on the CPU; `lstm` and `gru` take them where they can.

The same equations and gradients, up to rounding. Threads take blocks of sequences from the first
step to the last, and a row's sums are added in one order whatever their number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upslope.built import BUILT
from upslope.policies.cells import GruCell, LstmCell

if BUILT:
    from upslope import _native


def lstm(projected: Tensor, weight: Tensor, start: Tensor, counts: list[int]) -> Tensor:
    """Return h [M, H] of packed rows: see `cells.LstmCell`."""
    native = applies(projected, weight, start)
    return (NativeLstmCell if native else LstmCell).apply(projected, weight, start, counts)


def gru(
    projected: Tensor, weight: Tensor, bias: Tensor, start: Tensor, counts: list[int]
) -> Tensor:
    """Return h [M, H] of packed rows: see `cells.GruCell`."""
    native = applies(projected, weight, bias, start)
    return (NativeGruCell if native else GruCell).apply(projected, weight, bias, start, counts)


def applies(*tensors: Tensor) -> bool:
    """Return whether the native cells are there and take these tensors."""
    return BUILT and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)


def rounding() -> str:
    """Return whose sums the native cells have: what an exact resume must not change."""
    return f"native {_native.instruction_set()}"


class NativeLstmCell(torch.autograd.Function):
    """`LstmCell`, natively."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, weight: Tensor, start: Tensor, counts: list[int]
    ) -> Tensor:
        """Return h [M, H] of all rows; `start` [K, 2 H] is h and c before the first."""
        weight, start = weight.contiguous(), start.contiguous()
        hidden, cells = (projected.new_empty(len(projected), weight.shape[1]) for _ in range(2))
        gates = torch.empty_like(projected, memory_format=torch.contiguous_format)
        known = arrays(projected, weight, start, hidden, gates, cells)
        _native.lstm_forward(counts, torch.get_num_threads(), *known)
        ctx.save_for_backward(weight, start, hidden, gates, cells)
        ctx.counts = counts
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Any, ...]:
        """Return the gradients of projections and weight, back through time."""
        weight, start, hidden, gates, cells = ctx.saved_tensors
        d_gates, before = torch.empty_like(gates), torch.empty_like(hidden)
        known = arrays(d_hidden, weight, start, hidden, gates, cells, d_gates, before)
        _native.lstm_backward(ctx.counts, torch.get_num_threads(), *known)
        return d_gates, d_gates.t() @ before, None, None


class NativeGruCell(torch.autograd.Function):
    """`GruCell`, natively."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        weight: Tensor,
        bias: Tensor,
        start: Tensor,
        counts: list[int],
    ) -> Tensor:
        """Return h [M, H] of all rows; `start` [K, H] is h before the first."""
        weight, start = weight.contiguous(), start.contiguous()
        hidden, inner = (projected.new_empty(len(projected), weight.shape[1]) for _ in range(2))
        gates = torch.empty_like(projected, memory_format=torch.contiguous_format)
        known = arrays(projected, weight, bias, start, hidden, gates, inner)
        _native.gru_forward(counts, torch.get_num_threads(), *known)
        ctx.save_for_backward(weight, start, hidden, gates, inner)
        ctx.counts = counts
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Any, ...]:
        """Return the gradients of projections, weight and bias, back through time."""
        weight, start, hidden, gates, inner = ctx.saved_tensors
        d_gates, d_products, before = (torch.empty_like(x) for x in (gates, gates, hidden))
        known = arrays(d_hidden, weight, start, hidden, gates, inner, d_gates, d_products, before)
        _native.gru_backward(ctx.counts, torch.get_num_threads(), *known)
        return d_gates, d_products.t() @ before, d_products.sum(0), None, None


def arrays(*tensors: Tensor) -> list[Any]:
    """Return the tensors as arrays of the same memory, row after row."""
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
