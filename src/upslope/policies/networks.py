"""Networks with orthogonal initialisation: a multilayer perceptron, and convolutions for images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError, suggest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # (channels, kernel, stride) of each layer
NATURE_FEATURES = 512
SMALLEST_IMAGE = 36


MOST_UNITS = 2**14  # of a layer: two such in a row are a gigabyte of weights


def mlp(
    sizes: Sequence[int],
    *,
    activation: str = "tanh",
    output_gain: float = 1.0,
    generator: torch.Generator,
) -> nn.Sequential:
    """Return a perceptron with `sizes` = (inputs, hidden ..., outputs).

    Weights are orthogonal with gain sqrt(2) in the hidden layers and `output_gain` in the last,
    biases zero (Saxe et al. 2014, arXiv:1312.6120; a last layer of gain .01 makes the first policy
    nearly uniform: Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2).

    Raises ArgumentError for an unknown activation, and for layers without units or too large.
    """
    if not all(isinstance(size, int) and 1 <= size <= MOST_UNITS for size in sizes[1:]):
        raise ArgumentError(
            f"net_arch={list(sizes[1:-1])!r}: layers take from 1 to {MOST_UNITS:,} units"
        )
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"activation={activation!r} is not one of {', '.join(ACTIVATIONS)}"
            + suggest(activation, ACTIVATIONS)
        )
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        last = len(layers) == 2 * (len(sizes) - 2)
        # On "meta" no number is drawn; `skip_init` does the same and imports sympy for it (0.5 s).
        layer = nn.Linear(inputs, outputs, device="meta")
        orthogonal(layer, (outputs, inputs), output_gain if last else 2**0.5, generator)
        layers += [layer] if last else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def orthogonal(layer: Any, shape: tuple[int, ...], gain: float, generator: torch.Generator) -> None:
    """Give a layer that was made on "meta" its weight, orthogonal, and a bias of zero."""
    layer.weight = nn.Parameter(torch.empty(shape))
    layer.bias = nn.Parameter(torch.zeros(shape[0]))
    nn.init.orthogonal_(layer.weight, gain, generator=generator)


class NatureCnn(nn.Module):
    """Three convolutions and 512 rectified units over images [B, C, H, W] or [B, H, W, C].

    Channels are the shorter of the outer two axes; numbers are divided by `white`. Weights are
    orthogonal with gain sqrt(2). Mnih et al. 2015, "Human-level control through deep reinforcement
    learning", Methods, model architecture.

    Raises ArgumentError for images smaller than 36 x 36.
    """

    def __init__(
        self, shape: tuple[int, ...], generator: torch.Generator, white: float = 255.0
    ) -> None:
        super().__init__()
        self.white = white
        self.channels_last = shape[-1] < shape[0]
        channels, height, width = (shape[2], *shape[:2]) if self.channels_last else shape
        if min(height, width) < SMALLEST_IMAGE:
            raise ArgumentError(
                f"policy='cnn' takes images of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE}, got "
                f"{height} x {width}"
            )
        layers: list[nn.Module] = []
        for outputs, kernel, stride in NATURE:
            layer = nn.Conv2d(channels, outputs, kernel, stride, device="meta")
            orthogonal(layer, (outputs, channels, kernel, kernel), 2**0.5, generator)
            layers += [layer, nn.ReLU()]
            channels = outputs
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
        dense = nn.Linear(channels * height * width, NATURE_FEATURES, device="meta")
        orthogonal(dense, (NATURE_FEATURES, dense.in_features), 2**0.5, generator)
        self.layers = nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Return features [B, 512]."""
        if self.channels_last:
            image = image.permute(0, 3, 1, 2)
        return self.layers(image.float() / self.white)
