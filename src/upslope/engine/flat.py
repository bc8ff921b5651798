"""All parameters of a module in one flat buffer, their gradients and Adam's moments likewise.

    flat = [theta_1, theta_2, ...],   module.theta_i is a view of its piece

So the norm, the clipping and Adam are a few operations on one vector instead of a dozen on each
parameter, and another engine can work on the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError


class FlatParameters:
    """The flat buffers of a module: `value`, `gradient`, `first_moment`, `second_moment`, each [P].

    The module's parameters become views of `value`, and their `.grad` views of `gradient`, so the
    module goes on working as before. `leading` parameters are placed first: `leading_size` numbers
    at the front of every buffer (the policy's, whose gradient is the policy gradient).
    """

    def __init__(self, module: nn.Module, leading: Iterable[nn.Parameter] = ()) -> None:
        self.module = module
        first = list(leading)
        chosen = {id(parameter) for parameter in first}
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        rest = [p for p in module.parameters() if id(p) not in chosen]
        self.parameters = first + rest
        self.begins: dict[int, int] = {}
        """Where in the buffers a parameter begins, by its id."""
        size = 0
        for parameter in self.parameters:
            self.begins[id(parameter)] = size
            size += parameter.numel()
        device = self.parameters[0].device
        self.value = torch.zeros(size, device=device)
        self.gradient = torch.zeros(size, device=device)
        self.first_moment = torch.zeros(size, device=device)
        self.second_moment = torch.zeros(size, device=device)
        self.leading_size = sum(parameter.numel() for parameter in first)
        for parameter, piece, slope in zip(
            self.parameters, self.pieces(self.value), self.pieces(self.gradient), strict=True
        ):
            piece.copy_(parameter.data)
            parameter.data = piece
            parameter.grad = slope

    def zero_gradient(self) -> Tensor:
        """Set the gradient to zero and return it, after making it the parameters' own again.

        (`module.zero_grad()` takes it away from them.) Raises ArgumentError where the parameters
        themselves are somewhere else now: steps on this buffer would change nothing.
        """
        if self.parameters[0].data_ptr() != self.value.data_ptr():
            raise ArgumentError(
                "policy= is a module whose parameters were given to another agent, or moved, after "
                "this agent was made: give each agent its own (copy.deepcopy(module))"
            )
        if self.parameters[0].grad is None:
            for parameter, slope in zip(self.parameters, self.pieces(self.gradient), strict=True):
                parameter.grad = slope
        return self.gradient.zero_()

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the views of a flat buffer, one in the shape of each parameter."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = flat.split(sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the views of a flat buffer by the names of the module's parameters."""
        names = [self.names[id(parameter)] for parameter in self.parameters]
        return dict(zip(names, self.pieces(flat), strict=True))
