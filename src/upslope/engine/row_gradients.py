"""The gradients of groups of rows, from one backward pass over all of them.

    y = W x + b:   dL/dW = sum over rows of (dL/dy) xᵀ,   dL/db = sum over rows of dL/dy

so a group's share is the same sum over its rows: x is what the layer was given and dL/dy arrives in
the backward pass. A Gaussian head's log sigma is the same in all rows, and likewise a sum.
Goodfellow 2015, arXiv:1510.01799, "Efficient per-example gradient computations".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.engine.flat import FlatParameters
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.spaces import ActionHead


class Seen(NamedTuple):
    """A layer's input [B, I] and the gradient of its output [B, O]; log sigma has no input."""

    layer: Any
    inputs: Tensor | None
    slope: Tensor


def layers_of(policy: ActorCritic) -> list[nn.Module]:
    """Return what the policy's own parameters are in: perceptrons and the usual head.

    Empty where there is more than `recorded` sees, or a parameter that does not learn.
    """
    head, own = policy.head, {id(parameter) for parameter in policy.policy_parameters()}
    if policy.perceptrons() is None or type(head) is not ActionHead:
        return []
    joint = head.layout.nested and bool(head.boxes)  # a Box among others: several distributions
    if joint or not all(parameter.requires_grad for parameter in policy.parameters()):
        return []
    linear = [each for each in policy.modules() if isinstance(each, nn.Linear)]
    found: list[nn.Module] = [each for each in linear if id(each.weight) in own]
    return [*found, head] if head.boxes else found


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[list[Seen]]:
    """Return a list that a backward pass through `layers_of` a policy fills."""
    seen: list[Seen] = []

    def linear(layer: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        output.register_hook(lambda slope: seen.append(Seen(layer, given[0], slope)))

    def gaussian(head: nn.Module, _: Any, distribution: Any) -> None:
        distribution.log_std.register_hook(lambda slope: seen.append(Seen(head, None, slope)))

    hooks = [
        each.register_forward_hook(linear if isinstance(each, nn.Linear) else gaussian)
        for each in layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def of_groups(seen: Sequence[Seen], flat: FlatParameters, sizes: Tensor) -> Tensor:
    """Return the mean gradients [K, P] of groups of rows that follow one another, of K `sizes`.

    `seen` is of the mean over all rows, whose gradient `flat` holds: the last group's share is what
    is left of it. P are the leading parameters of `flat`.
    """
    found, groups = flat.value.new_zeros(len(sizes), flat.leading_size), sizes.tolist()

    def piece(parameter: Tensor) -> Tensor:
        begin = flat.begins[id(parameter)]
        return found[:-1, begin : begin + parameter.numel()].view(-1, *parameter.shape)

    for layer, inputs, slope in seen:
        parts = slope.split(groups)[:-1]
        shift = piece(layer.log_std if inputs is None else layer.bias)
        for own, part in zip(shift, parts, strict=True):
            own.add_(part.sum(0))
        if inputs is not None:
            given = inputs.detach().split(groups)[:-1]
            for own, part, x in zip(piece(layer.weight), parts, given, strict=True):
                own.addmm_(part.T, x)
    torch.sub(flat.gradient[: flat.leading_size], found[:-1].sum(0), out=found[-1])
    scale = torch.tensor([sum(groups) / size for size in groups], device=found.device)
    return found.mul_(scale.unsqueeze(1))
