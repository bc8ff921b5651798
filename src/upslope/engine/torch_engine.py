"""The torch engine: one step of Adam along the clipped gradient of a loss.

    g     = grad L(theta),  scaled by min(1, max_grad_norm / |g|)
    m     = beta_1 m + (1 - beta_1) g
    v     = beta_2 v + (1 - beta_2) g^2
    theta = theta - alpha (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)

Kingma and Ba 2015, arXiv:1412.6980, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from upslope.engine import row_gradients
from upslope.engine.flat import FlatParameters
from upslope.errors import NotFiniteError
from upslope.policies import native_cells
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.acting import Rows
from upslope.rollout.buffer import Chunks, Rollout

BETA_1, BETA_2 = 0.9, 0.999
ROWS_AT_ONCE = 1024  # whose action-values are found at once

Gathered = TypeVar("Gathered", covariant=True)


class Indexable(Protocol[Gathered]):
    """A batch of which rows can be taken."""

    def __getitem__(self, index: Tensor) -> Gathered:
        """Return the rows named by `index`."""
        ...


Loss = Callable[[ActorCritic, Any], tuple[Tensor, dict[str, Tensor]]]


class TorchEngine:
    """Takes optimisation steps on a policy; `step(loss, batch, index)` differentiates `loss`."""

    def __init__(
        self, policy: ActorCritic, *, max_grad_norm: float | None, adam_eps: float = 1e-5
    ) -> None:
        self.policy = policy
        self.flat = FlatParameters(policy, policy.policy_parameters())
        self.max_grad_norm = max_grad_norm
        self.adam_eps = adam_eps
        self.steps = 0
        self.chunk_gradients = torch.zeros(0, self.flat.leading_size)
        # Policies that are differentiated chunk by chunk pay for each one.
        self.layers = row_gradients.layers_of(policy)
        self.most_chunks = 8 if self.layers else 2
        # Whose sums: what an exact resume must not change.
        native = policy.memory_size > 0 and native_cells.applies(self.flat.value)
        self.rounding = f"torch, memory {native_cells.rounding()}" if native else "torch"
        self.description = "torch"

    def step(
        self,
        loss: Loss,
        batch: Indexable,
        index: Tensor,
        learning_rate: float,
        chunks: Chunks | None = None,
    ) -> dict[str, Tensor]:
        """Take one step down `loss(policy, batch[index])`, a mean over rows; return its metrics.

        `chunks` are the rows of `index` in disjoint groups, of which each one's own gradient in the
        policy's parameters is kept in `chunk_gradients` [K, P]. Perceptrons are differentiated
        once, other policies group by group, which adds up to the same gradient; `most_chunks` is
        how many groups are worth their price.

        Raises NotFiniteError, before anything is changed, when the gradient is not finite.
        """
        with self.policy.learning(self.steps):
            gradient, metrics = self._differentiate(loss, batch, index, chunks)
        norm = torch.linalg.vector_norm(gradient)
        self.check_finite(float(norm))
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            gradient.mul_(self.max_grad_norm / norm)
        self._adam(learning_rate)
        metrics["gradient_norm"] = norm
        return metrics

    def _differentiate(
        self, loss: Loss, batch: Indexable, index: Tensor, chunks: Chunks | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        gradient = self.flat.zero_gradient()
        if chunks is None:
            value, metrics = loss(self.policy, batch[index])
            value.backward()
        elif self.layers and all(each.requires_grad for each in self.flat.parameters):
            with row_gradients.recorded(self.layers) as seen:
                value, metrics = loss(self.policy, batch[chunks.index])
                value.backward()
            self.chunk_gradients = row_gradients.of_groups(seen, self.flat, chunks.sizes)
        else:
            metrics = self._accumulate(loss, batch, chunks)
        return gradient, metrics

    def epoch(
        self,
        loss: Loss,
        batch: Indexable,
        minibatches: Sequence[Tensor],
        learning_rate: float,
        chunks: Chunks | None = None,
    ) -> dict[str, Tensor]:
        """Take a step on each of K minibatches in turn; return the metrics of all, each [K].

        `chunks` are the first minibatch's.
        """
        return self._one_by_one(loss, batch, minibatches, learning_rate, chunks)

    def _one_by_one(
        self,
        loss: Loss,
        batch: Indexable,
        minibatches: Sequence[Tensor],
        learning_rate: float,
        chunks: Chunks | None,
    ) -> dict[str, Tensor]:
        found = []
        for index in minibatches:
            found.append(TorchEngine.step(self, loss, batch, index, learning_rate, chunks))
            chunks = None
        return {name: torch.stack([metrics[name] for metrics in found]) for name in found[0]}

    @property
    def threads(self) -> int:
        """How many threads take the steps."""
        return torch.get_num_threads()

    def claim_threads(self) -> None:
        """Have the threads of the process for itself, where it has threads of its own."""

    def own_threads(self) -> AbstractContextManager[None]:
        """Have them for as long as the context lasts."""
        return nullcontext()

    def check_finite(self, norm: float) -> None:
        """Raise NotFiniteError unless the norm of the step's gradient is finite."""
        if not math.isfinite(norm):
            raise NotFiniteError(
                f"the gradient of optimisation step {self.steps + 1} is not finite (norm {norm}): "
                "the weights were left as they were before it"
            )

    def act(
        self,
        observation: Tensor,
        generator: torch.Generator,
        memory: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an action for each row of `observation` [B, ...]: see `ActorCritic.act`."""
        return self.policy.act(observation, generator, memory, mask)

    def value(self, observation: Tensor) -> Tensor:
        """Return v(s), [B]."""
        return self.policy.value(observation)

    def q(self, observation: Tensor, flat: FlatParameters | None = None) -> Tensor:
        """Return q(s, a) of each action, [B, A], of a policy of action-values; no gradient.

        Or those of another of the same shape, whose parameters are `flat`.
        """
        policy: Any = (flat or self.flat).module
        with torch.no_grad():
            return torch.cat([policy.q(rows) for rows in observation.split(ROWS_AT_ONCE)])

    def rows(self, rollout: Rollout, generator: torch.Generator) -> Rows | None:
        """Return what acts as `act` does on the rows of a rollout, in place; None if nothing."""
        return None

    def finish(self) -> None:
        """Wait for what was begun."""

    def _accumulate(self, loss: Loss, batch: Indexable, chunks: Chunks) -> dict[str, Tensor]:
        """Differentiate the chunks one by one, keeping each one's gradient."""
        flat, rows = self.flat, len(chunks.index)
        kept = torch.empty(len(chunks.sizes), flat.leading_size, device=flat.gradient.device)
        so_far = torch.zeros_like(kept[0])
        metrics: dict[str, Tensor] = {}
        for k, chunk in enumerate(chunks.index.split(chunks.sizes.tolist())):
            value, found = loss(self.policy, batch[chunk])
            weight = len(chunk) / rows
            (value * weight).backward()
            total = flat.gradient[: flat.leading_size]
            torch.sub(total, so_far, out=kept[k]).div_(weight)
            so_far.copy_(total)
            for name, number in found.items():
                metrics[name] = metrics.get(name, 0) + weight * number
        self.chunk_gradients = kept
        return metrics

    @torch.no_grad()
    def _adam(self, learning_rate: float) -> None:
        flat = self.flat
        self.steps += 1
        flat.first_moment.lerp_(flat.gradient, 1 - BETA_1)
        flat.second_moment.mul_(BETA_2).addcmul_(flat.gradient, flat.gradient, value=1 - BETA_2)
        denominator = flat.second_moment.sqrt().div_(math.sqrt(1 - BETA_2**self.steps))
        rate = learning_rate / (1 - BETA_1**self.steps)
        flat.value.addcdiv_(flat.first_moment, denominator.add_(self.adam_eps), value=-rate)

    def state(self) -> dict[str, Tensor]:
        """Return parameters and moments by name, as views of the live buffers."""
        named = {"policy": self.flat.value, "adam_m": self.flat.first_moment}
        named["adam_v"] = self.flat.second_moment
        return {
            f"{kind}/{name}": piece
            for kind, flat in named.items()
            for name, piece in self.flat.named(flat).items()
        }
