"""From observations of any space to one row of features for each: the first part of every policy.

    Box             its numbers, flattened; an image through convolutions where the policy has them
    Discrete(n)     n numbers, a 1 at the value and 0 elsewhere; MultiDiscrete: as many for each
    MultiBinary     its bits

The parts of Dict and Tuple spaces follow one another.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.functional import one_hot

from upslope.errors import ArgumentError
from upslope.policies.layout import Layout, Part, leaves
from upslope.policies.networks import NATURE_FEATURES, SMALLEST_IMAGE, NatureCnn


def is_image(space: gymnasium.Space[Any]) -> bool:
    """Say whether a space is one of images: bytes, three axes, large enough for convolutions."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 3:
        return False
    channels_last = space.shape[-1] < space.shape[0]
    return min(space.shape[:2] if channels_last else space.shape[1:]) >= SMALLEST_IMAGE


def has_images(space: gymnasium.Space[Any]) -> bool:
    """Say whether any part of a space is an image."""
    return any(is_image(leaf) for _, leaf in leaves(space))


class Features(nn.Module):
    """Features [B, size] of packed observations [B, ...]; has parameters where it has convolutions.

    With `images` every Box of three axes goes through its own `NatureCnn`. Raises ArgumentError for
    a space with a part that is not supported, or with `images` for a space without any.
    """

    def __init__(
        self, space: gymnasium.Space[Any], *, images: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layout = Layout(space)
        self.networks = nn.ModuleDict()
        for number, part in enumerate(self.layout.parts):
            if images and isinstance(part.space, spaces.Box) and len(part.shape) == 3:
                white = 255.0 if part.space.dtype == np.uint8 else 1.0
                self.networks[str(number)] = NatureCnn(part.shape, generator, white)
        if images and not self.networks:
            raise ArgumentError(f"policy='cnn' takes observations with an image, got {space}")
        self.size = sum(
            NATURE_FEATURES if str(number) in self.networks else _width(part)
            for number, part in enumerate(self.layout.parts)
        )

    @property
    def plain(self) -> bool:
        """Whether they are the numbers of one Box, as they are."""
        return isinstance(self.layout.space, spaces.Box) and not len(self.networks)

    def forward(self, observation: Tensor) -> Tensor:
        """Return the features, [B, size]."""
        rows = observation.reshape(-1, *self.layout.shape)
        found = []
        for number, part in enumerate(self.layout.parts):
            own = rows[:, part.columns].reshape(-1, *part.shape) if self.layout.nested else rows
            name = str(number)
            found.append(self.networks[name](own) if name in self.networks else _plain(part, own))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _width(part: Part) -> int:
    if isinstance(part.space, spaces.Discrete):
        return int(part.space.n)
    return int(part.space.nvec.sum()) if isinstance(part.space, spaces.MultiDiscrete) else part.size


def _plain(part: Part, rows: Tensor) -> Tensor:
    """Return the features of a part without parameters, [B, width]."""
    space = part.space
    if isinstance(space, spaces.Discrete):
        return one_hot(rows.long() - int(space.start), int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        counts = space.nvec.ravel().tolist()
        starts = torch.as_tensor(space.start.ravel(), device=rows.device)
        values = (rows.reshape(len(rows), -1).long() - starts).unbind(1)
        hot = [one_hot(value, n) for value, n in zip(values, counts, strict=True)]
        return torch.cat(hot, dim=1).float()
    return rows.reshape(len(rows), part.size).float()
