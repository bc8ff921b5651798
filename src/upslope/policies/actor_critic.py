"""An actor-critic: pi(a|s) over the action space and v(s), from separate or shared networks.

Every policy gives the same three things, so that an algorithm's page needs no branch:

    policy(batch)             -> log_prob [B], entropy [B], value [B]
    policy.distribution(obs)  -> pi(.|s)
    policy.value(obs)         -> v(s) [B]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium
import torch
from torch import Tensor, nn

from upslope.errors import ArgumentError, UpslopeError
from upslope.policies.distributions import Distribution
from upslope.policies.networks import mlp
from upslope.policies.spaces import ActionHead, observation_size


class Rows(Protocol):
    """What a policy reads of a batch."""

    observation: Tensor
    action: Tensor


class Perceptrons(NamedTuple):
    """A policy that is nothing else: head(actor(trunk(s))), and critic(trunk(s)) the value."""

    trunk: Iterable[nn.Module]
    actor: Iterable[nn.Module]
    critic: Iterable[nn.Module]


class ActorCritic(nn.Module):
    """What MLP policies and a user's own module share: the head, and `policy(batch)`."""

    def __init__(self, action_space: gymnasium.Space, log_std_init: float) -> None:
        super().__init__()
        self.head = ActionHead(action_space, log_std_init)

    def distribution(self, observation: Tensor) -> Distribution:
        """Return pi(.|s) for observations [B, ...]."""
        raise NotImplementedError

    def value(self, observation: Tensor) -> Tensor:
        """Return v(s), [B]."""
        raise NotImplementedError

    def forward(self, batch: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi(a|s), H(pi(.|s)) and v(s), each [B]."""
        distribution = self.distribution(batch.observation)
        value = self.value(batch.observation)
        return distribution.log_prob(batch.action), distribution.entropy(), value

    def act(self, observation: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each row of `observation` [B, ...]; returns it and ln pi(a|s), [B]."""
        distribution = self.distribution(observation)
        action = distribution.sample(generator)
        return action, distribution.log_prob(action)

    def perceptrons(self) -> Perceptrons | None:
        """Return what the policy is made of, if it is perceptrons over one Box and nothing else."""
        return None

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that pi depends on: those whose gradient is the policy gradient."""
        return list(self.parameters())


class MlpActorCritic(ActorCritic):
    """Two separate perceptrons, for the policy and for the value, over flattened observations."""

    def __init__(
        self,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        *,
        generator: torch.Generator,
        net_arch: Sequence[int] = (64, 64),
        activation: str = "tanh",
        log_std_init: float = 0.0,
    ) -> None:
        super().__init__(action_space, log_std_init)
        self.inputs = inputs = observation_size(observation_space)
        shape: dict[str, Any] = {"activation": activation, "generator": generator}
        self.actor = mlp([inputs, *net_arch, self.head.size], output_gain=0.01, **shape)
        self.critic = mlp([inputs, *net_arch, 1], output_gain=1.0, **shape)

    def distribution(self, observation: Tensor) -> Distribution:
        """Return pi(.|s) for observations [B, ...]."""
        return self.head(self.actor(self._rows(observation)))

    def value(self, observation: Tensor) -> Tensor:
        """Return v(s), [B]."""
        return self.critic(self._rows(observation)).squeeze(-1)

    def _rows(self, observation: Tensor) -> Tensor:
        return observation.reshape(-1, self.inputs).float()

    def perceptrons(self) -> Perceptrons:
        """Return the two networks; nothing is shared."""
        return Perceptrons((), self.actor, self.critic)

    def policy_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the actor and its head."""
        return [*self.head.parameters(), *self.actor.parameters()]


class CustomActorCritic(ActorCritic):
    """A module of the user's own: `network(observation) -> (parameters [B, P], value [B])`.

    P is the number of actions (Discrete) or dimensions (Box).
    """

    def __init__(
        self, network: nn.Module, action_space: gymnasium.Space, log_std_init: float = 0.0
    ) -> None:
        super().__init__(action_space, log_std_init)
        self.network = network

    def _run(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(observation)
        rows, size = len(observation), self.head.size
        wanted = f"a pair (action parameters [{rows}, {size}], value [{rows}])"
        if not (isinstance(output, tuple) and len(output) == 2):
            got = type(output).__name__
            raise ArgumentError(f"policy= returned {got}, but must return {wanted}")
        if output[0].shape != (rows, size) or output[1].shape != (rows,):
            got = f"shapes {list(output[0].shape)} and {list(output[1].shape)}"
            raise ArgumentError(f"policy= returned {got}, but must return {wanted}")
        return output

    def distribution(self, observation: Tensor) -> Distribution:
        """Return pi(.|s) for observations [B, ...]."""
        return self.head(self._run(observation)[0])

    def value(self, observation: Tensor) -> Tensor:
        """Return v(s), [B]."""
        return self._run(observation)[1]

    def forward(self, batch: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi(a|s), H(pi(.|s)) and v(s), each [B], from one pass of the network."""
        parameters, value = self._run(batch.observation)
        distribution = self.head(parameters)
        return distribution.log_prob(batch.action), distribution.entropy(), value


def make_policy(
    policy: str | nn.Module | None,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    *,
    generator: torch.Generator,
    **policy_kwargs: Any,
) -> ActorCritic:
    """Return the actor-critic that `policy` names: None or "mlp", or a module of one's own.

    Raises ArgumentError for another name, or for `policy_kwargs` that the policy does not take.
    """
    if not isinstance(policy, nn.Module) and policy not in (None, "mlp"):
        raise ArgumentError(f"policy={policy!r} is not supported: give 'mlp' or a torch.nn.Module")
    try:
        if isinstance(policy, nn.Module):
            return CustomActorCritic(policy, action_space, **policy_kwargs)
        return MlpActorCritic(observation_space, action_space, generator=generator, **policy_kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UpslopeError):
            raise
        raise ArgumentError(f"policy_kwargs={policy_kwargs} does not fit: {error}") from error
