"""The torch engine's steps as CUDA graphs: recorded once, then each started by one call.

A step of a small network is some hundred kernels of a few microseconds, which the host cannot start
as fast as a GPU takes them; a graph starts all of them. For that a step may read nothing back: its
norm, whether that is finite, and the number of steps stay on the device.

    ok    = ok and |g| is finite                       (True at the beginning of an epoch)
    t     = t + ok
    theta = theta - alpha (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + epsilon)   where ok

A graph reads the memory that it was recorded with. So minibatches are taken from a copy of the
batch that stays in place, and a graph is recorded for each length of a minibatch and each value of
the loss's coefficients.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from upslope.engine.torch_engine import BETA_1, BETA_2, Indexable, Loss, TorchEngine
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Batch, Chunks

MOST_GRAPHS = 16  # each has memory of its own


@dataclasses.dataclass
class Step:
    """A step on as many rows as `index` [B] has: `take` it, and its numbers are in `metrics`."""

    index: Tensor
    names: list[str]
    metrics: Tensor
    take: Callable[[], None]


class GraphEngine(TorchEngine):
    """Takes the steps of a `TorchEngine`, equal up to rounding, without waiting for the device.

    For policies without memory and the batches of on-policy agents; others are taken as a
    `TorchEngine` does. On a CPU, which has no graphs, a step is taken operation by operation.
    """

    def __init__(
        self, policy: ActorCritic, *, max_grad_norm: float | None, adam_eps: float = 1e-5
    ) -> None:
        super().__init__(policy, max_grad_norm=max_grad_norm, adam_eps=adam_eps)
        self.description = self.rounding = "torch, by CUDA graphs"
        device = self.flat.value.device
        self.rate = torch.zeros((), device=device)
        """alpha, of the steps to come."""
        self.number = torch.zeros((), dtype=torch.float64, device=device)
        """t, as far as steps were taken."""
        self.fine = torch.ones((), dtype=torch.bool, device=device)
        """Whether every gradient of the epoch so far was finite."""
        self._batch: Batch | None = None
        self._steps: dict[tuple[Any, ...], Step] = {}

    def step(
        self,
        loss: Loss,
        batch: Indexable,
        index: Tensor,
        learning_rate: float,
        chunks: Chunks | None = None,
    ) -> dict[str, Tensor]:
        """Take the step of `TorchEngine.step`: see `epoch`."""
        found = self.epoch(loss, batch, [index], learning_rate, chunks)
        return {name: numbers[0] for name, numbers in found.items()}

    def epoch(
        self,
        loss: Loss,
        batch: Indexable,
        minibatches: Sequence[Tensor],
        learning_rate: float,
        chunks: Chunks | None = None,
    ) -> dict[str, Tensor]:
        """Take the steps of `TorchEngine.epoch`; the one whose gradient is split is not a graph.

        Raises NotFiniteError, at the epoch's end, when a gradient was not finite: that step and
        those after it changed nothing.
        """
        if not isinstance(batch, Batch) or batch.sequences is not None:
            return self._one_by_one(loss, batch, minibatches, learning_rate, chunks)
        found: list[Tensor] = []
        names: list[str] = []
        if chunks is not None:
            first = TorchEngine.step(self, loss, batch, minibatches[0], learning_rate, chunks)
            names, minibatches = list(first), minibatches[1:]
            found.append(torch.stack(list(first.values())))
        self._keep(batch)
        self.rate.fill_(learning_rate)
        self.number.fill_(self.steps)
        self.fine.fill_(True)
        for index in minibatches:
            step = self._step(loss, len(index))
            step.index.copy_(index)
            step.take()
            names = step.names
            found.append(step.metrics.clone())
        taken = int(self.number) - self.steps  # waits for the device, once
        self.steps += taken
        table = dict(zip(names, torch.stack(found, 1), strict=True))
        if taken < len(minibatches):
            self.check_finite(float(table["gradient_norm"][len(found) - len(minibatches) + taken]))
        return table

    def _keep(self, batch: Batch) -> None:
        """Copy a batch to where the graphs look for it; anew if it has another form."""
        if self._batch is None or _form(self._batch) != _form(batch):
            self._steps.clear()
            self._batch = copy.copy(batch)
            for name, field in _fields(batch).items():
                setattr(self._batch, name, field.clone())
            return
        for name, field in _fields(self._batch).items():
            field.copy_(getattr(batch, name))

    def _step(self, loss: Loss, rows: int) -> Step:
        """Return the step on so many rows, recorded the first time."""
        how = (loss.func, *sorted(loss.keywords.items())) if isinstance(loss, partial) else (loss,)
        key = (rows, *how)
        if key not in self._steps:
            if len(self._steps) == MOST_GRAPHS:
                self._steps.clear()
            self._steps[key] = self._record(loss, rows)
        return self._steps[key]

    def _record(self, loss: Loss, rows: int) -> Step:
        device = self.flat.value.device
        index = torch.zeros(rows, dtype=torch.int64, device=device)
        changed = [self.flat.value, self.flat.first_moment, self.flat.second_moment]
        changed += [self.number, self.fine]
        before = [tensor.clone() for tensor in changed]
        with _aside(device):  # libraries make their workspaces in the first runs, which are undone
            for _ in range(3):
                found = self.advance(loss, index)
        metrics = torch.stack(list(found.values()))

        def take() -> None:
            metrics.copy_(torch.stack(list(self.advance(loss, index).values())))

        step = Step(index, list(found), metrics, take)
        if device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                take()
            step.take = graph.replay
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        return step

    def advance(self, loss: Loss, index: Tensor) -> dict[str, Tensor]:
        """Take a step on the rows `index` of the batch that is kept, and wait for nothing.

        Returns what `loss` does and the norm of the gradient. See the page's beginning.
        """
        assert self._batch is not None
        gradient = self.flat.zero_gradient()
        value, metrics = loss(self.policy, self._batch[index])
        value.backward()
        norm = torch.linalg.vector_norm(gradient)
        with torch.no_grad():
            self.fine.logical_and_(norm.isfinite())
            self.number.add_(self.fine)
            if self.max_grad_norm is not None:
                gradient.mul_((self.max_grad_norm / norm).clamp(max=1))
            first = self.flat.first_moment.lerp(gradient, 1 - BETA_1)
            second = self.flat.second_moment * BETA_2 + (1 - BETA_2) * gradient.square()
            root = (1 - BETA_2**self.number).sqrt().float()
            rate = self.rate / (1 - BETA_1**self.number).float()
            value = self.flat.value - rate * (first / (second.sqrt() / root + self.adam_eps))
            flat = self.flat.first_moment, self.flat.second_moment, self.flat.value
            for old, new in zip(flat, (first, second, value), strict=True):
                old.copy_(torch.where(self.fine, new, old))
        return metrics | {"gradient_norm": norm}


def _fields(batch: Batch) -> dict[str, Tensor]:
    """Return a batch's tensors by name."""
    all_fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in all_fields.items() if isinstance(value, Tensor)}


def _form(batch: Batch) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, field.shape, field.dtype) for name, field in _fields(batch).items()]


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Run what is in the context on a stream of its own, as recording requires, if on a GPU."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
