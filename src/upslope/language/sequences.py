"""Prompts with their completions as one rectangle of token ids; lengths say what is there.

row:       prompt  completion  padding
mask:      True    True        False
selected:  False   True        False      the tokens whose log-probabilities count
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """n rows of up to L tokens."""

    ids: Tensor
    """[n, L]; padding may be any token."""
    prompt_length: Tensor
    """[n]"""
    length: Tensor
    """[n], of prompt and completion."""

    @property
    def mask(self) -> Tensor:
        """[n, L], True where a token is there."""
        return self._column < self.length[:, None]

    @property
    def selected(self) -> Tensor:
        """[n, L], True for the tokens of the completion, its end token included."""
        return self.mask & (self._column >= self.prompt_length[:, None])

    @property
    def _column(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device)

    def take(self, rows: Tensor) -> Sequences:
        """Return some rows, without the columns that are padding in all of them."""
        length = self.length[rows]
        width = int(length.max())
        return Sequences(self.ids[rows, :width], self.prompt_length[rows], length)


def right_padded(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> Sequences:
    """Return the rows of prompts with completions."""
    rows = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    return Sequences(
        torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
        torch.tensor([len(prompt) for prompt in prompts], device=device),
        torch.tensor([len(row) for row in rows], device=device),
    )
