"""A policy that is a module of the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.distributions import Distribution
from upslope.policies.layout import Layout
from upslope.policies.memory import Sequences
from upslope.policies.spaces import ActionHead
from upslope.seeding import derive


class CustomActorCritic(ActorCritic):
    """A module of the user's own: `network(observation) -> (parameters [B, P], value [B])`.

    P is what the action space takes (`ActionHead.size`): a number for each option of a Discrete or
    MultiDiscrete, for each bit of a MultiBinary, for each dimension of a Box. Observations of a
    Dict or Tuple space come as a dict or tuple of tensors, like the space.

    It acts and is evaluated in `eval()` mode; only the steps of an update are taken in `train()`
    mode, where dropout draws from a seed that the agent's own leads to.
    """

    def __init__(
        self,
        network: nn.Module,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        generator: torch.Generator,
        log_std_init: float = 0.0,
        scale: str = "parameter",
        squash: bool = False,
    ) -> None:
        super().__init__()
        if scale == "exploration":
            raise ArgumentError("scale='exploration' needs the policy's last layer: policy='mlp'")
        self.layout = Layout(observation_space)
        self.head = ActionHead(action_space, log_std_init, scale=scale, squash=squash)
        self.network = network
        self.seed = generator.initial_seed()

    @contextmanager
    def learning(self, step: int) -> Iterator[None]:
        """Be in `train()` mode; dropout knows only torch's global generator, which is as before."""
        devices = {parameter.device for parameter in self.parameters() if parameter.is_cuda}
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive(self.seed, "learning", step))
            self.train()
            try:
                yield
            finally:
                self.eval()

    def _run(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(self.layout.unpack(observation))
        rows, size = len(observation), self.head.size
        wanted = f"a pair (action parameters [{rows}, {size}], value [{rows}])"
        if not (isinstance(output, tuple) and len(output) == 2):
            got = type(output).__name__
            raise ArgumentError(f"policy= returned {got}, but must return {wanted}")
        if output[0].shape != (rows, size) or output[1].shape != (rows,):
            got = f"shapes {list(output[0].shape)} and {list(output[1].shape)}"
            raise ArgumentError(f"policy= returned {got}, but must return {wanted}")
        return output

    def both(
        self, observation: Tensor, mask: Tensor | None, sequences: Sequences | None
    ) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and v(s) [B], from one pass of the network."""
        parameters, value = self._run(observation)
        return self.head(parameters, mask), value

    def step(
        self, observation: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor]:
        """Return pi(.|s), and the memory, which it has none of."""
        return self.head(self._run(observation)[0], mask), memory

    def value(self, observation: Tensor, sequences: Sequences | None = None) -> Tensor:
        """Return v(s), [B]."""
        return self._run(observation)[1]
