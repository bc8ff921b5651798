"""The perceptron: orthogonal weights with the right gains, from a given generator."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from upslope.errors import ArgumentError
from upslope.policies.networks import ACTIVATIONS, mlp


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linears(network: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in network if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("sizes", [(4, 64, 64, 2), (100, 8, 1), (3, 5), (2, 7, 3, 11, 30)])
@pytest.mark.parametrize("output_gain", [0.01, 1.0])
def test_weights_are_orthogonal(sizes, output_gain):
    found = linears(mlp(sizes, output_gain=output_gain, generator=seeded()))
    assert [(layer.in_features, layer.out_features) for layer in found] == list(
        itertools.pairwise(sizes)
    )
    for layer in found:
        gain = output_gain if layer is found[-1] else 2**0.5
        weight = layer.weight.detach() / gain
        small = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(small, torch.eye(len(small)), atol=1e-5, rtol=0)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_activations_are_between_the_layers_only():
    for name, kind in ACTIVATIONS.items():
        kinds = [type(layer) for layer in mlp((2, 3, 4, 5), activation=name, generator=seeded())]
        assert kinds == [nn.Linear, kind, nn.Linear, kind, nn.Linear]


def test_the_global_generator_is_neither_read_nor_written():
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(mlp((4, 8, 2), generator=seeded()).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    other = mlp((4, 8, 2), generator=seeded(1)).state_dict()
    assert not torch.equal(found[0]["0.weight"], other["0.weight"])


def test_unknown_activation_is_refused_with_a_suggestion():
    with pytest.raises(ArgumentError, match=r"activation='tahn' .*did you mean 'tanh'"):
        mlp((2, 3), activation="tahn", generator=seeded())
