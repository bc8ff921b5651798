"""What the native engine needs to know of a policy: its layers, and where they are in memory.

It takes perceptrons (a trunk that may be empty, an actor, a critic) of linear layers with biases,
with tanh, relu, silu or nothing after each, over one Box of numbers; and heads of categoricals or
of independent normals with one log sigma each. Action-values are an actor without a critic.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import gymnasium
from torch import nn

from upslope.engine.flat import FlatParameters
from upslope.errors import ArgumentError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.spaces import ActionHead

Layer = tuple[int, int, int, int, int]
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: 1, nn.ReLU: 2, nn.SiLU: 3}
NO_BIAS = "a linear layer has no bias"
MOST_LAYERS = 64  # in a row, as src/native/blocks.hpp has room for


class Structure(NamedTuple):
    """A policy in numbers: see `Layer` in _native.pyi."""

    inputs: int
    trunk: list[Layer]
    actor: list[Layer]
    critic: list[Layer]
    choices: list[int]  # sizes of the categoricals; empty for normals
    log_std: int  # where log sigma begins; -1 for categoricals

    @property
    def size(self) -> int:
        """How many numbers the head takes."""
        return self.actor[-1][1]


class Unfit(Exception):
    """What it is about a policy that the native engine does not know."""


def refused(reason: str, engine: str = "native") -> ArgumentError:
    """Return the error that says why an engine that was asked for cannot be."""
    return ArgumentError(f"engine={engine!r} does not apply: {reason}; engine='auto' takes torch")


def structure_of(policy: ActorCritic, flat: FlatParameters) -> Structure:
    """Return the structure of a policy whose parameters are in `flat`; raises Unfit."""
    if flat.value.device.type != "cpu":
        raise Unfit(f"the policy is on {flat.value.device}")
    parts = policy.perceptrons()
    if parts is None:
        raise Unfit("the policy is not made of perceptrons over a Box")
    trunk, actor, critic = (_layers(part, flat.begins) for part in parts)
    choices, log_std = _head(policy.head, flat.begins)
    size = sum(choices) if choices else policy.head.log_std.numel()
    if actor[-1][1] != size:
        raise Unfit(f"the head takes {actor[-1][1]} numbers, not {size}")
    places = [place for _, _, _, *pair in (*trunk, *actor, *critic) for place in pair]
    covered = set(places)
    if len(covered) < len(places):
        raise Unfit("two of its layers share parameters")
    if len(covered) + (not choices) != len(flat.parameters):
        raise Unfit("the policy has parameters outside its perceptrons")
    return Structure((trunk or actor)[0][0], trunk, actor, critic, choices, log_std)


def _layers(modules: Iterable[nn.Module], begins: dict[int, int]) -> list[Layer]:
    """Return the layers of a perceptron: linear maps, each with the activation after it."""
    layers: list[Layer] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            if module.bias is None:
                raise Unfit(NO_BIAS)
            places = begins[id(module.weight)], begins[id(module.bias)]
            layers.append((module.in_features, module.out_features, 0, *places))
        elif type(module) in ACTIVATIONS and layers and layers[-1][2] == 0:
            inputs, outputs, _, weight, bias = layers[-1]
            layers[-1] = (inputs, outputs, ACTIVATIONS[type(module)], weight, bias)
        else:
            raise Unfit(f"it has no {type(module).__name__} in this place")
    if len(layers) > MOST_LAYERS:
        raise Unfit(f"it has {len(layers)} layers in a row, more than {MOST_LAYERS}")
    return layers


def _head(head: ActionHead, begins: dict[int, int]) -> tuple[list[int], int]:
    """Return the sizes of the categoricals, or where a Gaussian's log sigma begins."""
    space, own = head.space, dict(head.named_parameters())
    if isinstance(space, gymnasium.spaces.Discrete) and not own:
        return [int(space.n)], -1
    if isinstance(space, gymnasium.spaces.MultiDiscrete) and not own:
        return [int(n) for n in space.nvec.ravel()], -1
    if isinstance(space, gymnasium.spaces.Box) and set(own) == {"log_std"}:
        return [], begins[id(own["log_std"])]
    raise Unfit(f"it has no head for {space}")
