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


def are_known(policy: ActorCritic) -> bool:
    """Whether `recorded` sees all that the policy is made of: perceptrons and the usual head."""
    whole = policy.perceptrons() is not None and type(policy.head) is ActionHead
    return whole and all(parameter.requires_grad for parameter in policy.parameters())


@contextmanager
def recorded(policy: ActorCritic) -> Iterator[list[Seen]]:
    """Return a list that a backward pass through the policy's own parameters fills."""
    seen: list[Seen] = []

    def linear(layer: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        output.register_hook(lambda slope: seen.append(Seen(layer, given[0], slope)))

    def gaussian(head: nn.Module, _: Any, distribution: Any) -> None:
        distribution.log_std.register_hook(lambda slope: seen.append(Seen(head, None, slope)))

    own = {id(parameter) for parameter in policy.policy_parameters()}
    layers = [each for each in policy.modules() if isinstance(each, nn.Linear)]
    hooks = [each.register_forward_hook(linear) for each in layers if id(each.weight) in own]
    if policy.head.boxes:
        hooks.append(policy.head.register_forward_hook(gaussian))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def of_groups(seen: Sequence[Seen], flat: FlatParameters, sizes: Tensor) -> Tensor:
    """Return the mean gradients [K, P] of groups of rows that follow one another, of K `sizes`.

    `seen` is of the mean over all rows; P are the leading parameters of `flat`.
    """
    sizes = sizes.to(flat.value.device)
    found, groups = flat.value.new_zeros(len(sizes), flat.leading_size), sizes.tolist()

    def piece(parameter: Tensor) -> Tensor:
        begin = flat.begins[id(parameter)]
        return found[:, begin : begin + parameter.numel()].view(-1, *parameter.shape)

    for layer, inputs, slope in seen:
        sums = torch.segment_reduce(slope, "sum", lengths=sizes)
        piece(layer.log_std if inputs is None else layer.bias).add_(sums)
        if inputs is not None:
            parts = slope.split(groups), inputs.detach().split(groups)
            for own, part, given in zip(piece(layer.weight), *parts, strict=True):
                own.addmm_(part.T, given)
    return found.mul_((sum(groups) / sizes).unsqueeze(1))
