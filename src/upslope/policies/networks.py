"""Networks: a multilayer perceptron with orthogonal initialisation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from upslope.errors import ArgumentError, suggest

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
}


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

    Raises ArgumentError for an unknown activation.
    """
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
        layer.weight = nn.Parameter(torch.empty(outputs, inputs))
        layer.bias = nn.Parameter(torch.zeros(outputs))
        gain = output_gain if last else 2**0.5
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        layers += [layer] if last else [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
