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

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.built import BUILT
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
from upslope.policies.legal import mask_columns

if BUILT:
    from upslope import _native

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
        vectors = [isinstance(p.space, spaces.Box | spaces.MultiBinary) for p in self.layout.parts]
        self.alone = single or vectors == [True]
        """Whether the distribution of its only part, over actions of this shape, is that of all."""
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
        if self.alone:
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
            if self.squash:  # from the nearer bound, so that tanh u = 1 gives it exactly
                within = (space.high / 2 - space.low / 2) * (1 - np.abs(np.tanh(shaped)))
                shaped = np.where(shaped > 0, space.high - within, space.low + within)
            sent = np.empty(shaped.shape, space.dtype)
            if BUILT and _native.clip(shaped, space.low, space.high, sent):
                return sent
            return np.clip(shaped, space.low, space.high).astype(space.dtype, copy=False)
        if isinstance(space, spaces.Discrete) and action.dtype == np.int64 and not space.start:
            return action.reshape(len(action))
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
