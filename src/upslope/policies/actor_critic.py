"""An actor-critic: pi(a|s) over the action space and v(s), from observations of any space.

    s -> features -> (memory) -> actor  -> pi(.|s)
                              -> critic -> v(s)

Every policy gives the same, so that an algorithm's page needs no branch:

    policy(batch)                    -> log_prob [B], entropy [B], value [B]
    policy.step(obs, memory, mask)   -> pi(.|s), and the memory to go on with
    policy.distribution(obs, mask)   -> pi(.|s)        without memory, or at an episode's start
    policy.value(obs, sequences)     -> v(s) [B]

Observations are packed (`layout.Layout`), [B, ...]; `mask` [B, columns] is True where an action is
legal, or None; `memory` is [B, memory_size], of no columns where the policy has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import gymnasium
import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError
from upslope.policies.distributions import Categorical, Distribution
from upslope.policies.features import Features
from upslope.policies.memory import MEMORIES, Sequences
from upslope.policies.networks import mlp
from upslope.policies.spaces import ActionHead
from upslope.policies.tiles import TileCoding

POLICIES = ("mlp", "cnn", *MEMORIES)


class Rows(Protocol):
    """What a policy reads of a batch."""

    observation: Tensor
    action: Tensor
    action_mask: Tensor | None
    sequences: Sequences | None


class Perceptrons(NamedTuple):
    """A policy that is nothing else: head(actor(trunk(s))), critic(trunk(s)) the value, if any."""

    trunk: Iterable[nn.Module]
    actor: Iterable[nn.Module]
    critic: Iterable[nn.Module]


class ActorCritic(nn.Module):
    """What every policy shares: the head, and `policy(batch)`."""

    memory_size = 0
    head: ActionHead

    def both(
        self, observation: Tensor, mask: Tensor | None, sequences: Sequences | None
    ) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and v(s) [B]; rows follow one another as `sequences` says."""
        raise NotImplementedError

    def step(
        self, observation: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and the memory to go on with."""
        raise NotImplementedError

    def value(self, observation: Tensor, sequences: Sequences | None = None) -> Tensor:
        """Return v(s), [B]."""
        raise NotImplementedError

    def distribution(self, observation: Tensor, mask: Tensor | None = None) -> Distribution:
        """Return pi(.|s) at the beginning of an episode, or anywhere if there is no memory."""
        empty = observation.new_zeros(len(observation), self.memory_size, dtype=torch.float32)
        return self.step(observation, empty, mask)[0]

    def forward(self, batch: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi(a|s), H(pi(.|s)) and v(s), each [B]."""
        distribution, value = self.both(batch.observation, batch.action_mask, batch.sequences)
        return distribution.log_prob(batch.action), distribution.entropy(), value

    def act(
        self,
        observation: Tensor,
        generator: torch.Generator,
        memory: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an action for each row of `observation` [B, ...].

        Returns the actions, ln pi(a|s) [B], and the memory to go on with.
        """
        distribution, memory = self.step(observation, memory, mask)
        action = distribution.sample(generator)
        return action, distribution.log_prob(action), memory

    def learning(self, step: int) -> AbstractContextManager[None]:
        """Be what it is while optimisation step `step` is taken."""
        return nullcontext()

    def perceptrons(self) -> Perceptrons | None:
        """Return what the policy is made of, if it is perceptrons over one Box and nothing else."""
        return None

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that pi depends on: those whose gradient is the policy gradient."""
        return list(self.parameters())


class NetworkActorCritic(ActorCritic):
    """Perceptrons for the policy and for the value over shared features, with or without memory.

    Only convolutions and memory have shared parameters: with neither, the two are separate.
    `images` puts convolutions before them, `memory` "lstm" or "gru" a recurrent layer of
    `memory_size` units. `net_arch` are the hidden layers of both perceptrons: (64, 64) by default,
    one of 64 behind a memory, none behind convolutions; with () both are linear. `tiles` are the
    settings of a `TileCoding` in place of the observation, with linear functions of it by default.
    With `action_values` the critic gives q(s, .) beside v(s). `scale`, `squash`: see `ActionHead`.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        *,
        generator: torch.Generator,
        images: bool = False,
        memory: str | None = None,
        memory_size: int = 64,
        net_arch: Sequence[int] | None = None,
        activation: str = "tanh",
        log_std_init: float = 0.0,
        scale: str = "parameter",
        squash: bool = False,
        tiles: Mapping[str, Any] | None = None,
        action_values: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net_arch, Sequence | None) or isinstance(net_arch, str):
            raise ArgumentError(
                f"net_arch={net_arch!r}: it takes a list of units such as [64, 64], which policy "
                "and value have alike"
            )
        if net_arch is None:
            net_arch = (64,) if memory else () if images or tiles is not None else (64, 64)
        self.features: Features | TileCoding
        if tiles is None:
            self.features = Features(observation_space, images=images, generator=generator)
        else:
            self.features = TileCoding(observation_space, **tiles)
        inputs = self.features.size
        self.memory = None
        if memory is not None:
            self.memory = MEMORIES[memory](inputs, memory_size).initialise(generator)
            self.memory_size, inputs = self.memory.state_size, memory_size
        latent = net_arch[-1] if net_arch else inputs
        self.head = ActionHead(
            action_space, log_std_init, scale=scale, squash=squash, latent=latent
        )
        shape: dict[str, Any] = {"activation": activation, "generator": generator}
        self.actor = mlp([inputs, *net_arch, self.head.size], output_gain=0.01, **shape)
        values = 1 + self.head.size if action_values else 1
        self.critic = mlp([inputs, *net_arch, values], output_gain=1.0, **shape)

    def both(
        self, observation: Tensor, mask: Tensor | None, sequences: Sequences | None
    ) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and v(s) [B]; rows follow one another as `sequences` says."""
        features = self._rows(observation, sequences)
        return self._pi(features, mask), self.critic(features)[:, 0]

    def all_actions(self, batch: Rows) -> tuple[Distribution, Tensor, Tensor]:
        """Return pi(.|s), v(s) [B] and q(s, .) [B, A], of a policy with `action_values`.

        q(s,a) = v(s) + A(s,a) - sum_b pi(b|s) A(s,b): an action that nobody takes goes up with v.
        """
        features = self._rows(batch.observation, batch.sequences)
        pi, values = self._pi(features, batch.action_mask), self.critic(features)
        assert isinstance(pi, Categorical)  # actions are Discrete, which the agent has checked
        v, advantage = values[:, 0], values[:, 1:]
        mean = (pi.log_probs.detach().exp() * advantage).sum(-1, keepdim=True)
        return pi, v, v.unsqueeze(-1) + advantage - mean

    def step(
        self, observation: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[Distribution, Tensor]:
        """Return pi(.|s) and the memory to go on with."""
        features = self.features(observation)
        if self.memory is not None:
            features, memory = self.memory(features, memory)
        return self._pi(features, mask), memory

    def value(self, observation: Tensor, sequences: Sequences | None = None) -> Tensor:
        """Return v(s), [B]."""
        return self.critic(self._rows(observation, sequences))[:, 0]

    def _rows(self, observation: Tensor, sequences: Sequences | None) -> Tensor:
        features = self.features(observation)
        if self.memory is None:
            return features
        if sequences is None:  # every row begins an episode
            return self.memory(features, features.new_zeros(len(features), self.memory_size))[0]
        return self.memory.sequences(features, sequences)

    def _pi(self, features: Tensor, mask: Tensor | None) -> Distribution:
        if self.head.scale != "exploration":
            return self.head(self.actor(features), mask)
        latent = self.actor[:-1](features)
        return self.head(self.actor[-1](latent), mask, latent)

    def perceptrons(self) -> Perceptrons | None:
        """Return the two networks, which share nothing; None with memory or more than one Box."""
        head, features = self.head, self.features
        plain = isinstance(features, Features) and features.plain
        plain_head = head.scale == "parameter" and not head.squash
        one_value = self.critic[-1].out_features == 1
        if not (plain and plain_head and one_value and self.memory is None):
            return None
        return Perceptrons((), self.actor, self.critic)

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all but the critic."""
        only_value = {id(parameter) for parameter in self.critic.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in only_value]
