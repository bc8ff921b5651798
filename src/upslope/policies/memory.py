"""Recurrent layers over whole sequences: LSTM and GRU, forward and backward through time.

    LSTM   i, f, o = sigmoid(W x + U h),  g = tanh(W x + U h),  c' = f c + i g,  h' = o tanh(c')
    GRU    r, z = sigmoid(W x + U h),  n = tanh(W x + r (U h + b)),  h' = (1 - z) n + z h

Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000; Cho et al. 2014,
arXiv:1406.1078. The products with x of all steps are one matrix product; `cells` and `native_cells`
do what depends on the step before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.native_cells import gru, lstm


@dataclass(frozen=True, slots=True)
class Sequences:
    """Which rows of a batch follow one another: those of one `segment` [M] int64, in their order.

    A segment is a part of one episode. `start` [N, S] holds the memory at the first row of segments
    0 to N-1; the others begin at the beginning of an episode, with an empty memory.
    """

    segment: Tensor
    start: Tensor

    def __getitem__(self, index: Tensor) -> Sequences:
        """Return the sequences among the rows named by `index`, which names segments whole."""
        return Sequences(self.segment[index], self.start)

    def packed(self) -> tuple[Tensor, list[int], Tensor]:
        """Return the order of rows step by step, longest segments first; how many segments each
        step still has; and the memory [K, S] that each of the K segments begins with.
        """
        kept, inverse, counts = self.segment.unique(return_inverse=True, return_counts=True)
        by_segment = torch.argsort(inverse, stable=True)
        firsts = counts.cumsum(0) - counts
        place = torch.empty_like(inverse)  # of each row within its segment
        within = torch.arange(len(inverse), device=inverse.device)
        place[by_segment] = within - firsts.repeat_interleave(counts)
        longest = torch.argsort(counts, descending=True, stable=True)
        rank = torch.empty_like(longest)
        rank[longest] = torch.arange(len(longest), device=longest.device)
        order = torch.argsort(place * len(counts) + rank[inverse])
        known = kept < len(self.start)
        start = self.start.new_zeros(len(kept), self.start.shape[1])
        start[known] = self.start[kept[known]]
        return order, torch.bincount(place).tolist(), start[longest]


class Memory(nn.Module):
    """A recurrent layer of `size` units, after which a policy goes on.

    Its memory is one row of `state_size` numbers for each environment. Weights are orthogonal,
    gate by gate, and biases zero.
    """

    state_size: int

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], inputs: int, size: int) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ArgumentError(f"memory_size={size!r}: it takes a whole number of at least 1")
        self.size = size
        self.layer = kind(inputs, size, device="meta").to_empty(device="cpu")

    def initialise(self, generator: torch.Generator) -> Memory:
        """Draw the weights; returns the layer itself."""
        for name, parameter in self.layer.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                continue
            for gate in parameter.data.split(self.size):
                nn.init.orthogonal_(gate, generator=generator)
        return self

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from features [N, F] and state [N, S]: h [N, size] and the next state."""
        raise NotImplementedError

    def sequences(self, features: Tensor, sequences: Sequences) -> Tensor:
        """Return h [M, size] for features [M, F] of whole sequences, in the order of the rows."""
        order, counts, start = sequences.packed()
        hidden = self.run(features[order], counts, start)
        return torch.empty_like(hidden).index_copy(0, order, hidden)

    def run(self, features: Tensor, counts: list[int], start: Tensor) -> Tensor:
        """Return h [M, size] of rows that lie step after step, `counts[t]` of them at step t, of
        segments that began with `start` [K, S].
        """
        raise NotImplementedError


class Lstm(Memory):
    """The LSTM; its memory is h and c."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__(nn.LSTM, inputs, size)
        self.state_size = 2 * size

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from features [N, F] and state [N, 2 H]: h [N, H] and the next state."""
        h, c = torch.lstm_cell(features, state.split(self.size, 1), *self.layer.parameters())
        return h, torch.cat([h, c], 1)

    def run(self, features: Tensor, counts: list[int], start: Tensor) -> Tensor:
        """Return h of all rows, as `Memory.run` says."""
        inputs, products, bias, inner_bias = self.layer.parameters()
        projected = torch.addmm(bias + inner_bias, features, inputs.t())
        return lstm(projected, products, start, counts)


class Gru(Memory):
    """The GRU; its memory is h."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__(nn.GRU, inputs, size)
        self.state_size = size

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from features [N, F] and state [N, H]: h [N, H], twice."""
        h = torch.gru_cell(features, state, *self.layer.parameters())
        return h, h

    def run(self, features: Tensor, counts: list[int], start: Tensor) -> Tensor:
        """Return h of all rows, as `Memory.run` says."""
        inputs, products, bias, inner_bias = self.layer.parameters()
        projected = torch.addmm(bias, features, inputs.t())
        return gru(projected, products, inner_bias, start, counts)


MEMORIES: dict[str, type[Lstm] | type[Gru]] = {"lstm": Lstm, "gru": Gru}
