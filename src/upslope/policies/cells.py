"""The LSTM's and the GRU's steps over packed rows, in torch: forward, and backward through time.

    LSTM   i, f, o = sigmoid(p + U h),  g = tanh(p + U h),  c' = f c + i g,  h' = o tanh(c')
    GRU    r, z = sigmoid(p + U h),  n = tanh(p + r (U h + b)),  h' = (1 - z) n + z h

with p = W x + bias, already projected; see `memory` for the sources. A step is done for all
sequences at once, and sequences that have ended cost nothing; the gradient of U is one matrix
product. `native_cells` does the same in C++ and is held to these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LstmCell(torch.autograd.Function):
    """The LSTM over packed rows, `counts[t]` of them at step t; gates in the order i, f, g, o."""

    @staticmethod
    def forward(
        ctx: Any, projected: Tensor, weight: Tensor, start: Tensor, counts: list[int]
    ) -> Tensor:
        """Return h [M, H] of all rows; `start` [K, 2 H] is h and c before the first."""
        size, across = weight.shape[1], weight.t()
        gates = projected.clone()
        hidden, cells, squashed = (gates.new_empty(len(gates), size) for _ in range(3))
        # All views are made at once: one by one they would cost as much as the arithmetic.
        parts = [gates, gates[:, : 2 * size], *gates.split(size, 1), hidden, cells, squashed]
        h, c = start.split(size, 1)
        alive = counts[0]
        for n, gate, inward, i, f, g, o, new_h, new_c, squash in zip(
            counts, *(part.split(counts) for part in parts), strict=True
        ):
            if n < alive:  # the shortest segments have ended
                h, c, alive = h[:n], c[:n], n
            gate.addmm_(h, across)
            inward.sigmoid_()
            g.tanh_()
            o.sigmoid_()
            torch.mul(f, c, out=new_c).addcmul_(i, g)
            torch.tanh(new_c, out=squash)
            torch.mul(o, squash, out=new_h)
            h, c = new_h, new_c
        ctx.save_for_backward(weight, start, gates, hidden, cells, squashed)
        ctx.counts = counts
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Any, ...]:
        """Return the gradients of projections and weight, back through time."""
        weight, start, gates, hidden, cells, squashed = ctx.saved_tensors
        size, counts = weight.shape[1], ctx.counts
        before_h, before_c = (
            _before(rows, first, counts)
            for rows, first in zip((hidden, cells), start.split(size, 1), strict=True)
        )
        i, f, g, o = gates.split(size, 1)
        # d gate = factor * dc for i, f and g, and factor * dh for o
        factors = torch.stack([g * i * (1 - i), before_c * f * (1 - f), i * (1 - g * g)], 1)
        factor_o = squashed * o * (1 - o)
        through_cell = o * (1 - squashed * squashed)
        d_gates = torch.empty_like(gates)
        d_three, d_o = d_gates.view(-1, 4, size)[:, :3], d_gates[:, 3 * size :]
        rows = (d_gates, d_three, d_o, d_hidden, through_cell, factors, factor_o, f)
        dh, dc = torch.zeros(2, len(start), size, dtype=gates.dtype, device=gates.device)
        for n, gate, three, out, own, through, by_c, by_h, forget in reversed(
            list(zip(counts, *(each.split(counts) for each in rows), strict=True))
        ):
            h, c = (dh, dc) if n == counts[0] else (dh[:n], dc[:n])
            h.add_(own)
            c.addcmul_(h, through)
            torch.mul(by_c, c.unsqueeze(1), out=three)
            torch.mul(by_h, h, out=out)
            torch.mm(gate, weight, out=h)
            c.mul_(forget)
        return d_gates, d_gates.t() @ before_h, None, None


class GruCell(torch.autograd.Function):
    """The GRU over packed rows, `counts[t]` of them at step t; gates in the order r, z, n."""

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
        size, across = weight.shape[1], weight.t()
        gates = projected.clone()
        hidden, products = gates.new_empty(len(gates), size), torch.empty_like(gates)
        both = [rows.split(2 * size, 1)[0] for rows in (gates, products)]
        parts = [*both, *gates.split(size, 1), products[:, 2 * size :], products, hidden]
        h = start
        alive = counts[0]
        for rows, sums, product, r, z, n, inner, whole, new in zip(
            counts, *(part.split(counts) for part in parts), strict=True
        ):
            if rows < alive:  # the shortest segments have ended
                h, alive = h[:rows], rows
            torch.addmm(bias, h, across, out=whole)
            sums.add_(product).sigmoid_()
            n.addcmul_(r, inner).tanh_()
            h = torch.lerp(n, h, z, out=new)
        ctx.save_for_backward(weight, start, gates, hidden, products[:, 2 * size :])
        ctx.counts = counts
        return hidden

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Any, ...]:
        """Return the gradients of projections, weight and bias, back through time."""
        weight, start, gates, hidden, inner = ctx.saved_tensors
        size, counts = weight.shape[1], ctx.counts
        before = _before(hidden, start, counts)
        r, z, n = gates.split(size, 1)
        # d gate = factor * dh; of the products U h the same, but the last goes through r
        by_n = (1 - n * n) * (1 - z)
        factors = torch.stack([by_n * inner * r * (1 - r), (before - n) * z * (1 - z), by_n], 1)
        through = factors.clone()
        through[:, 2] *= r
        d_product, total = torch.empty_like(gates), torch.empty_like(hidden)
        rows = (d_product, d_product.view(-1, 3, size), total, d_hidden, through, z)
        dh = torch.zeros_like(start)
        for alive, product, by_gate, sums, own, factor, keep in reversed(
            list(zip(counts, *(each.split(counts) for each in rows), strict=True))
        ):
            h = dh if alive == counts[0] else dh[:alive]
            torch.add(h, own, out=sums)
            torch.mul(factor, sums.unsqueeze(1), out=by_gate)
            torch.mul(sums, keep, out=h).addmm_(product, weight)
        d_gates = (factors * total.unsqueeze(1)).view(-1, 3 * size)
        return d_gates, d_product.t() @ before, d_product.sum(0), None, None


def _before(rows: Tensor, start: Tensor, counts: list[int]) -> Tensor:
    """Return for each row the row of the same segment one step before, `start` at the first."""
    before = [start[: counts[0]]]
    before += [past[:n] for past, n in zip(rows.split(counts)[:-1], counts[1:], strict=True)]
    return torch.cat(before)
