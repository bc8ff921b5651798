"""A policy made of action-values: greedy in q(s, a), and epsilon-greedy while it explores.

    pi(a|s) = epsilon / n + (1 - epsilon) [a = argmax_b q(s, b)],   n the number of legal actions

It has the face of an actor-critic where that is asked of a policy that acts, so that collecting,
predicting, evaluating and saving need not know the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from upslope.errors import ArgumentError, UpslopeError
from upslope.policies.actor_critic import ActorCritic, Perceptrons
from upslope.policies.features import Features, has_images
from upslope.policies.layout import Layout
from upslope.policies.memory import Sequences
from upslope.policies.networks import mlp
from upslope.policies.spaces import ActionHead


class EpsilonGreedy:
    """The distribution of the module's docstring over actions {0, ..., A-1}; q [B, A].

    Only what `legal` [B, A] allows (bool) has probability; of equal values the first is greedy.
    """

    def __init__(self, q: Tensor, epsilon: float, legal: Tensor | None = None) -> None:
        self.q = q if legal is None else q.masked_fill(~legal, -torch.inf)
        self.epsilon, self.legal = epsilon, legal

    def mode(self) -> Tensor:
        """Return argmax_a q(s, a), [B]."""
        return self.q.argmax(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw [B] int64: with probability epsilon any legal action, else the greedy one."""
        rows, actions = self.q.shape
        draw = torch.rand(2, rows, generator=generator, device=self.q.device)
        if self.legal is None:
            any_one = (draw[1] * actions).long().clamp_(max=actions - 1)
        else:  # the k-th legal one
            count = self.legal.sum(-1)
            k = torch.minimum((draw[1] * count).long(), count - 1)
            any_one = (self.legal.cumsum(-1) > k.unsqueeze(-1)).int().argmax(-1)
        return torch.where(draw[0] < self.epsilon, any_one, self.mode())

    @property
    def probabilities(self) -> Tensor:
        """The probability of each action, [B, A]."""
        legal = torch.ones_like(self.q) if self.legal is None else self.legal.to(self.q.dtype)
        spread = self.epsilon * legal / legal.sum(-1, keepdim=True)
        greedy = self.mode().unsqueeze(-1)
        return spread.scatter_add(
            -1, greedy, torch.full_like(greedy, 1, dtype=self.q.dtype) * (1 - self.epsilon)
        )

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log pi(a), [B], for action [B] int64."""
        legal = self.q.shape[1] if self.legal is None else self.legal.sum(-1)
        greedy = (action == self.mode()).to(self.q.dtype)
        return (self.epsilon / legal + (1 - self.epsilon) * greedy).log()

    def entropy(self) -> Tensor:
        """Return -sum_a pi(a) log pi(a), [B]."""
        return torch.special.entr(self.probabilities).sum(-1)

    def kl(self, other: EpsilonGreedy) -> Tensor:
        """Return sum_a pi(a) (log pi(a) - log other(a)), [B]."""
        p, q = self.probabilities, other.probabilities
        return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


class ActionValues(ActorCritic):
    """A policy of `network(observation [B, ...]) -> q [B, A]` over a Discrete action space."""

    def __init__(self, network: nn.Module, action_space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.head = ActionHead(action_space)
        self.network = network
        self.register_buffer("epsilon", torch.zeros(()))

    epsilon: Tensor
    """[] the share of actions drawn from all legal ones: a tensor, saved with the policy."""

    def q(self, observation: Tensor) -> Tensor:
        """Return q(s, a) for each action, [B, A]."""
        values = self.network(observation)
        if values.shape != (len(observation), self.head.size):
            raise ArgumentError(
                f"policy= returned shape {list(values.shape)}, but must return action-values "
                f"[{len(observation)}, {self.head.size}]"
            )
        return values

    def perceptrons(self) -> Perceptrons | None:
        """Return the network's layers, if they are all of it and its input is one Box."""
        network = self.network
        if not (isinstance(network, QNetwork) and network.features.plain):
            return None
        return Perceptrons((), network.layers, ())

    def step(
        self, observation: Tensor, memory: Tensor, mask: Tensor | None = None
    ) -> tuple[EpsilonGreedy, Tensor]:
        """Return pi(.|s), and the memory, which it has none of."""
        return EpsilonGreedy(self.q(observation), self.epsilon.item(), mask), memory

    def value(self, observation: Tensor, sequences: Sequences | None = None) -> Tensor:
        """Return max_a q(s, a), [B]: the value of the greedy policy where q is its own."""
        return self.q(observation).amax(-1)


class QNetwork(nn.Module):
    """Action-values [B, A] of a perceptron over features: convolutions where there are images.

    `net_arch` are the hidden layers: (64, 64) by default, none behind convolutions.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        actions: int,
        *,
        generator: torch.Generator,
        images: bool = False,
        net_arch: Sequence[int] | None = None,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if net_arch is None:
            net_arch = () if images else (64, 64)
        self.features = Features(observation_space, images=images, generator=generator)
        sizes = [self.features.size, *net_arch, actions]
        self.layers = mlp(sizes, activation=activation, generator=generator)

    def forward(self, observation: Tensor) -> Tensor:
        """Return q(s, a), [B, A]."""
        return self.layers(self.features(observation))


class Unpacked(nn.Module):
    """A module of the user's own, which sees observations nested as their space is."""

    def __init__(self, network: nn.Module, observation_space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.network, self.layout = network, Layout(observation_space)

    def forward(self, observation: Tensor) -> Tensor:
        """Return what the module gives for unpacked observations."""
        return self.network(self.layout.unpack(observation))


def make_action_values(
    name: str,
    policy: str | nn.Module | None,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    *,
    generator: torch.Generator,
    **policy_kwargs: Any,
) -> ActionValues:
    """Return the action-values that `policy` names: "mlp", "cnn", or a module; None as for agents.

    `name` is the agent's, for errors. Raises ArgumentError for another policy or action space, or
    for `policy_kwargs` that do not fit.
    """
    refuse_others(name, action_space)
    if isinstance(policy, nn.Module):
        if policy_kwargs:
            raise ArgumentError(f"policy_kwargs={policy_kwargs} do not fit a module of your own")
        return ActionValues(Unpacked(policy, observation_space), action_space)
    if policy not in (None, "mlp", "cnn"):
        raise ArgumentError(
            f"policy={policy!r}: {name} takes 'mlp', 'cnn' or a torch.nn.Module; it has no memory"
        )
    images = has_images(observation_space) if policy is None else policy == "cnn"
    try:
        network = QNetwork(
            observation_space,
            int(action_space.n),  # type: ignore[attr-defined]
            generator=generator,
            images=images,
            **policy_kwargs,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UpslopeError):
            raise
        raise ArgumentError(f"policy_kwargs={policy_kwargs} does not fit: {error}") from error
    return ActionValues(network, action_space)


def refuse_others(name: str, action_space: gymnasium.Space[Any]) -> None:
    """Raise ArgumentError for an action space whose actions cannot be listed one by one."""
    if not isinstance(action_space, spaces.Discrete):
        raise ArgumentError(
            f"{name} takes a Discrete action space, each action with a value of its own, got "
            f"{action_space}: us.PPO takes any"
        )
