"""Distributions over Gymnasium action spaces, sampled with a given generator.

    Discrete   pi(a) = exp(l_a) / sum_b exp(l_b)              parameters: the A logits l
    Box        pi(a) = prod_i N(a_i; mean_i, sigma_i^2)       parameters: the d means and log sigma

`log_prob` and `entropy` are in nats, of shape [B] for B rows of parameters: the dimensions of one
action are summed over here and nowhere else.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)


class Distribution(Protocol):
    """What an algorithm asks of a distribution over actions."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw one action for each row, [B, ...]."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log pi(a), [B]."""
        ...

    def entropy(self) -> Tensor:
        """Return H(pi) = -E[log pi(a)], [B]."""
        ...

    def mode(self) -> Tensor:
        """Return the most probable action of each row, [B, ...]."""
        ...


class Categorical:
    """The softmax distribution over {0, ..., A-1}; logits [B, A]."""

    def __init__(self, logits: Tensor) -> None:
        self.log_probs = logits.log_softmax(-1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw [B] int64 by the exponential race: argmax_a p_a / E_a with E_a ~ Exp(1)."""
        race = torch.empty_like(self.log_probs).exponential_(generator=generator)
        return (self.log_probs.exp() / race).argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log pi(a), [B], for action [B] int64."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return -sum_a pi(a) log pi(a), [B]."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def mode(self) -> Tensor:
        """Return argmax_a pi(a), [B]."""
        return self.log_probs.argmax(-1)


class DiagonalGaussian:
    """Independent normals; mean [B, d], log_std [d] or [B, d] (state-independent or -dependent)."""

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std.expand_as(mean)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw mean + sigma * noise, [B, d]."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return torch.addcmul(self.mean, self.log_std.exp(), noise)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return sum_i -((a_i - mean_i) / sigma_i)^2 / 2 - log sigma_i - log sqrt(2 pi), [B]."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z * z - self.log_std - LOG_SQRT_2_PI).sum(-1)

    def entropy(self) -> Tensor:
        """Return sum_i log sigma_i + log sqrt(2 pi e), [B]."""
        return (self.log_std + (0.5 + LOG_SQRT_2_PI)).sum(-1)

    def mode(self) -> Tensor:
        """Return the mean, [B, d]."""
        return self.mean
