"""From a network's numbers to a distribution over an action space, and to what environments take.

    part of the action      numbers of the network    columns of the action    columns of the mask
    Discrete(n)             n logits                  1                        n
    MultiDiscrete([n, m])   n + m logits              2                        n + m
    MultiBinary(n)          n logits                  n                        2 n  (a 0, a 1)
    Box, d numbers          d means (and log sigmas)  d                        none

A Dict or Tuple of these has its parts side by side. Inside, actions are packed: [B] for Discrete,
[B, K] for everything else; whole numbers count from 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.errors import ArgumentError, suggest
from upslope.policies.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    ExploringGaussian,
    Joint,
    SquashedGaussian,
)
from upslope.policies.layout import Layout, Part

SCALES = ("parameter", "network", "exploration")
LOWEST_LOG_STD, HIGHEST_LOG_STD = -5.0, 2.0


class ActionHead(nn.Module):
    """A distribution over an action space from a network's `size` numbers.

    `scale` says where the deviations of Box actions come from: "parameter", one number for each
    dimension, whatever the state; "network", further outputs, clipped to exp(-5) to exp(2);
    "exploration", state-dependent exploration over the last hidden layer (`ExploringGaussian`).
    All begin at exp(log_std_init). Box actions are drawn unbounded and clipped only on the way to
    the environment, so that the log-probability is that of what was drawn; with `squash` they are
    drawn through tanh instead and never need clipping (`SquashedGaussian`).

    Raises ArgumentError for a space it cannot take.
    """

    def __init__(
        self,
        space: gymnasium.Space[Any],
        log_std_init: float = 0.0,
        *,
        scale: str = "parameter",
        squash: bool = False,
        latent: int = 0,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            options = ", ".join(map(repr, SCALES))
            raise ArgumentError(
                f"scale={scale!r}: scale takes one of {options}{suggest(scale, SCALES)}"
            )
        self.space, self.scale, self.squash = space, scale, squash
        self.layout = Layout(space, "action")
        self.boxes = [part for part in self.layout.parts if isinstance(part.space, spaces.Box)]
        for part in self.boxes:
            _check_box(part, squash)
        if scale == "exploration" and squash:
            raise ArgumentError(
                "scale='exploration' draws unbounded actions: it takes squash=False"
            )
        whole = not self.boxes
        single = not self.layout.nested and isinstance(space, spaces.Discrete)
        self.shape: tuple[int, ...] = () if single else (self.layout.size,)
        """The shape of one packed action; a Box is kept flat, whatever the space's shape."""
        self.dtype: np.dtype[Any] = np.dtype(np.int64 if whole else np.float32)
        self.sizes = [_outputs(part, scale) for part in self.layout.parts]
        self.size = sum(self.sizes)
        self.masks = [mask_columns(part) for part in self.layout.parts]
        """How many columns of the action mask each part has."""
        dimensions = sum(part.size for part in self.boxes)
        self.matrix: Tensor | None = None  # this rollout's noise, for scale="exploration"
        self.log_std_init = float(log_std_init)
        if self.boxes and scale == "parameter":
            self.log_std = nn.Parameter(torch.full((dimensions,), self.log_std_init))
        elif self.boxes and scale == "exploration":
            self.log_std = nn.Parameter(torch.full((latent, dimensions), self.log_std_init))

    def explore(self, generator: torch.Generator, n_envs: int) -> None:
        """Draw the noise of a rollout of `n_envs` environments, where it lasts for one."""
        if self.boxes and self.scale == "exploration":
            standard = torch.empty(n_envs, *self.log_std.shape, device=self.log_std.device)
            standard.normal_(generator=generator)
            self.matrix = standard * self.log_std.detach().exp()

    def forward(
        self, parameters: Tensor, mask: Tensor | None = None, latent: Tensor | None = None
    ) -> Distribution:
        """Return the distribution given the network's output [B, size].

        `mask` [B, columns] is True where an action is legal; `latent` [B, L] is what the network's
        last layer was given, which exploration depends on.
        """
        if len(self.sizes) == 1 and not isinstance(self.space, spaces.MultiDiscrete):
            return self._part(self.layout.parts[0], parameters, mask, latent, 0)
        found: list[tuple[Distribution, int | None]] = []
        outputs = parameters.split(self.sizes, dim=-1)
        legal = [None] * len(self.masks) if mask is None else mask.split(self.masks, dim=-1)
        first_box = 0
        for part, output, allowed in zip(self.layout.parts, outputs, legal, strict=True):
            if isinstance(part.space, spaces.MultiDiscrete):
                sizes = part.space.nvec.ravel().tolist()
                permitted = [None] * len(sizes) if allowed is None else allowed.split(sizes, -1)
                logits = output.split(sizes, -1)
                found += [(Categorical(*one), None) for one in zip(logits, permitted, strict=True)]
                continue
            width = None if isinstance(part.space, spaces.Discrete) else part.size
            found.append((self._part(part, output, allowed, latent, first_box), width))
            if isinstance(part.space, spaces.Box):
                first_box += part.size
        dtype = torch.float32 if self.boxes else torch.int64
        return Joint([one for one, _ in found], [width for _, width in found], dtype)

    def _part(
        self,
        part: Part,
        output: Tensor,
        legal: Tensor | None,
        latent: Tensor | None,
        first_box: int,
    ) -> Distribution:
        """Return the distribution of one part; `first_box` counts the Box dimensions before it."""
        if isinstance(part.space, spaces.Discrete):
            return Categorical(output, legal)
        if isinstance(part.space, spaces.MultiBinary):
            pairs = None if legal is None else legal.reshape(len(legal), part.size, 2)
            return Bernoulli(output, pairs)
        own = slice(first_box, first_box + part.size)
        kind = SquashedGaussian if self.squash else DiagonalGaussian
        if self.scale == "network":
            mean, log_std = output.split(part.size, dim=-1)
            log_std = log_std + self.log_std_init
            return kind(mean, log_std.clamp(LOWEST_LOG_STD, HIGHEST_LOG_STD))
        if self.scale == "parameter":
            return kind(output, self.log_std[own])
        assert latent is not None
        matrix = None if self.matrix is None else self.matrix[..., own]
        return ExploringGaussian(output, self.log_std[:, own], latent, matrix)

    def to_environment(self, action: np.ndarray) -> Any:
        """Return packed actions [N, ...] as environments take them: offset, clipped, nested."""
        parts = self.layout.parts
        if not self.layout.nested:
            return self._sent(parts[0], action)
        return self.layout.nest([self._sent(part, action[:, part.columns]) for part in parts])

    def _sent(self, part: Part, action: np.ndarray) -> np.ndarray:
        space = part.space
        if isinstance(space, spaces.Box):
            shaped = action.reshape(len(action), *space.shape)
            if self.squash:
                middle, half = (space.high + space.low) / 2, (space.high - space.low) / 2
                shaped = middle + half * np.tanh(shaped)
            return np.clip(shaped, space.low, space.high).astype(space.dtype, copy=False)
        whole = action.astype(np.int64, copy=False).reshape(len(action), *part.shape)
        if isinstance(space, spaces.MultiBinary):
            return whole.astype(space.dtype)
        start = space.start  # type: ignore[attr-defined]
        offset = whole + start if np.any(start) else whole
        return offset.astype(space.dtype, copy=False)


def unbatched(action: Any) -> Any:
    """Return the first action of a batch that is nested like its space."""
    if isinstance(action, dict):
        return {key: unbatched(inner) for key, inner in action.items()}
    return tuple(map(unbatched, action)) if isinstance(action, tuple) else action[0]


def mask_columns(part: Part) -> int:
    """Return how many columns a part of an action has in its mask: one for each choice."""
    if isinstance(part.space, spaces.Discrete):
        return int(part.space.n)
    if isinstance(part.space, spaces.MultiDiscrete):
        return int(part.space.nvec.sum())
    return 2 * part.size if isinstance(part.space, spaces.MultiBinary) else 0


def choices(part: Part) -> list[int]:
    """Return how many options each choice within a part has: the groups of its mask's columns."""
    if isinstance(part.space, spaces.MultiDiscrete):
        return [int(n) for n in part.space.nvec.ravel()]
    if isinstance(part.space, spaces.MultiBinary):
        return [2] * part.size
    return [mask_columns(part)]


class MaskLayout:
    """Turns action masks, as environments give them, into one array [N, columns] of bool.

    A mask is an array of a part's columns, or nested like the action space; MultiDiscrete also
    takes a tuple of one array for each of its numbers. A part that is absent is all legal. An array
    of all columns, which `pack` returns, is taken for any space.
    """

    def __init__(self, action_space: gymnasium.Space[Any]) -> None:
        self.layout = Layout(action_space, "action")
        self.widths = [mask_columns(part) for part in self.layout.parts]
        self.columns = sum(self.widths)

    def pack(self, raw: Any, n: int) -> np.ndarray:
        """Return the masks of a batch of n rows, [n, columns].

        Raises ValueError saying what does not fit.
        """
        if isinstance(raw, np.ndarray) and raw.dtype == object:
            return self.pack_each(list(raw))
        return self._packed(raw, n, lambda value: _columns(value, n))

    def pack_each(self, masks: Sequence[Any]) -> np.ndarray:
        """Return masks given one by one, [n, columns]; raises ValueError for what does not fit."""
        rows = [self._packed(mask, 1, lambda value: _row(value)[None]) for mask in masks]
        return np.concatenate(rows)

    def _packed(self, raw: Any, n: int, as_rows: Callable[[Any], np.ndarray]) -> np.ndarray:
        whole = raw if isinstance(raw, np.ndarray) else None
        if whole is not None and whole.size == n * self.columns:
            return self._bool(whole.reshape(n, self.columns))
        found = [np.ones((n, 0), bool)]
        for part, width in zip(self.layout.parts, self.widths, strict=True):
            value = raw
            for key in part.path:
                absent = value is None or (isinstance(value, dict) and key not in value)
                value = None if absent else value[key]
            if not width:
                continue
            array = np.ones((n, width), bool) if value is None else as_rows(value)
            if array.shape != (n, width):
                takes = f"{(n, width)}, one column for each option of action{part.named()}"
                raise ValueError(f"an action mask of shape {array.shape}, which takes {takes}")
            found.append(self._bool(array))
        return np.concatenate(found, axis=1)

    @staticmethod
    def _bool(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
            raise ValueError("an action mask with other values than 0 and 1, which it takes")
        return array.astype(bool)

    def without_option(self, mask: np.ndarray) -> int | None:
        """Return the first row of [N, columns] in which some choice has no legal option."""
        groups = [size for part in self.layout.parts for size in choices(part) if size]
        starts = list(itertools.accumulate(groups, initial=0))[:-1]
        rows = np.flatnonzero(~np.logical_or.reduceat(mask, starts, axis=1).all(axis=1))
        return int(rows[0]) if len(rows) else None


def _columns(value: Any, n: int) -> np.ndarray:
    """Return a batch of one part's masks as columns; a tuple of batches is put side by side."""
    if isinstance(value, tuple | list):
        return np.concatenate([np.asarray(one).reshape(n, -1) for one in value], axis=1)
    array = np.asarray(value)
    if array.dtype == object:
        return np.stack([_row(one) for one in array])
    return array.reshape(len(array), -1) if array.ndim > 1 else array


def _row(mask: Any) -> np.ndarray:
    """Return one environment's mask as a row; a tuple of arrays is put together."""
    parts = mask if isinstance(mask, tuple | list) else [mask]
    return np.concatenate([np.asarray(part).ravel() for part in parts])


def _outputs(part: Part, scale: str) -> int:
    if isinstance(part.space, spaces.Box):
        return 2 * part.size if scale == "network" else part.size
    return part.size if isinstance(part.space, spaces.MultiBinary) else mask_columns(part)


def _check_box(part: Part, squash: bool) -> None:
    space = part.space
    assert isinstance(space, spaces.Box)
    if not np.issubdtype(space.dtype, np.floating):
        raise ArgumentError(
            f"action space{part.named()} {space} is not supported: actions of a Box are floats; "
            "whole numbers are a Discrete or a MultiDiscrete"
        )
    if squash and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ArgumentError(f"squash=True takes an action space with bounds, got {space}")
