"""The native engine: the torch engine's step in C++, for the policies and losses it knows.

It takes the same steps on the same memory, so that the two can take turns, and hands to torch what
it does not know: see `structure` for policies and `twins` for losses. Equal up to rounding: sums
are added in another order than torch's, always the same one, whatever the number of threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.engine.arrays import COLUMNS, columns_of, plain
from upslope.engine.native_rows import NativeRows, draw
from upslope.engine.structure import Unfit, refused, structure_of
from upslope.engine.torch_engine import BETA_1, BETA_2, Indexable, Loss, TorchEngine
from upslope.engine.twins import METRICS, Coefficients, coefficients
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Chunks, Rollout
from upslope.rollout.minibatches import Minibatches

try:
    from upslope import _native

    MISSING = ""
except ImportError as error:  # installed where there was no C++ compiler
    MISSING = f"it was not built when Upslope was installed ({error})"

FIELDS = {"observation", "action", "action_mask", *COLUMNS}


class NativeEngine(TorchEngine):
    """Takes the steps of a `TorchEngine` on the same buffers; raises Unfit for other policies.

    It is for actors with critics: `native_values` has the one for action-values.

    `demanded`: a loss or a batch that it does not know is refused, not handed to torch. `bfloat16`:
    in a step, products of layers whose widths are multiples of 32 take weights, activations and
    their gradients rounded to 8 bits, 2^-9 of each at most; sums, and acting, stay float32's.
    """

    surrogates: tuple[str, ...] = ("clipped", "plain")
    """The losses that it has twins of: see `twins`."""

    def __init__(
        self,
        policy: ActorCritic,
        *,
        max_grad_norm: float | None,
        adam_eps: float = 1e-5,
        demanded: bool = False,
        bfloat16: bool = False,
    ) -> None:
        if MISSING:
            raise Unfit(MISSING)
        if bfloat16 and not _native.bfloat16():
            raise Unfit("it takes a processor with AVX-512 for bfloat16, or AMX")
        super().__init__(policy, max_grad_norm=max_grad_norm, adam_eps=adam_eps)
        self.structure = structure_of(policy, self.flat)
        self.network: Any = _native.Network(*self.structure)
        self.demanded, self.bfloat16 = demanded, bfloat16
        if bfloat16 and not self.network.tiled:
            raise Unfit("no layer has as many inputs, and outputs, as a multiple of 32")
        self._threads: int | None = None
        products = f", products in bfloat16 by {_native.bfloat16()}" if bfloat16 else ""
        self.rounding = f"native {_native.instruction_set()}{products}"
        self.description = f"native ({_native.instruction_set()}){products}"
        flat = self.flat
        self._value, self._gradient = flat.value.numpy(), flat.gradient.numpy()
        self._moments = flat.first_moment.numpy(), flat.second_moment.numpy()
        self._loss: tuple[Loss, Coefficients | str] | None = None
        self._filling: NativeRows | None = None  # of the last rollout
        self._kind: type | None = None  # of the last batch; its fields; its tensors and arrays
        self._names: list[str] = []
        self._batch: tuple[dict[str, Any], dict[str, Any] | str] = {}, ""

    @property
    def threads(self) -> int:
        """How many threads take the steps: torch's number, unless it has claimed them."""
        return self._threads or torch.get_num_threads()

    def claim_threads(self) -> None:
        """Leave one thread to torch, whose others would only get in the way of this engine's."""
        self._threads = self.threads
        torch.set_num_threads(1)

    @contextmanager
    def own_threads(self) -> Iterator[None]:
        """Have torch on one thread for as long as the context lasts: see `claim_threads`."""
        claimed, torchs = self._threads, torch.get_num_threads()
        self.claim_threads()
        try:
            yield
        finally:
            self._threads = claimed
            torch.set_num_threads(torchs)

    # -- a step --------------------------------------------------------------------------------

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
        """Take the steps of `TorchEngine.epoch` in one call, where loss and batch are known.

        The first minibatch's rows are left in the order of its chunks.

        Raises ArgumentError where they are not and the native engine was demanded.
        """
        how, arrays = self._coefficients(loss), self._arrays(batch)
        if isinstance(how, str) or isinstance(arrays, str) or not self._all_learn():
            if self.demanded:
                reasons = [each for each in (how, arrays) if isinstance(each, str)]
                reason = [*reasons, "some parameters need no gradient"][0]
                raise refused(reason, "bfloat16" if self.bfloat16 else "native")
            return self._one_by_one(loss, batch, minibatches, learning_rate, chunks)
        self.flat.zero_gradient()
        parts = Minibatches.of(minibatches)
        index = parts.rows.numpy()
        if chunks is not None:
            index[: len(chunks.index)] = chunks.index.numpy()
            if len(self.chunk_gradients) != len(chunks.sizes):
                self.chunk_gradients = torch.zeros(len(chunks.sizes), self.flat.leading_size)
        names = METRICS[how.surrogate]
        found = np.full((len(parts), 6), np.nan)  # five metrics, and the norm
        try:
            self._train(
                *(self._value, self._gradient, *self._moments, found),
                how=how,
                chunks=chunks,
                **arrays,
                index=index,
                sizes=parts.sizes,
                descent=self._descent(learning_rate),
                bfloat16=self.bfloat16,
                threads=self.threads,
            )
        finally:  # Ctrl-C is seen when the steps are taken, before a count of them is returned
            taken = int(np.isfinite(found[:, 5]).sum())
            self.steps += taken
        if taken < len(parts):
            self.check_finite(found[taken, 5])
        columns = [torch.from_numpy(column) for column in found.astype(np.float32).T]
        return dict(zip(names, columns, strict=False)) | {"gradient_norm": columns[5]}

    def _train(
        self, *buffers: np.ndarray, how: Coefficients, chunks: Chunks | None, **given: Any
    ) -> None:
        """Take the steps on the buffers, the norm of each in the last one's last column."""
        self.network.train(
            *buffers,
            **given,
            clipped=how.surrogate == "clipped",
            ratio=(1 - how.clip_range, 1 + how.clip_range, how.clip_range),
            value_range=-1.0 if how.clip_range_vf is None else how.clip_range_vf,
            value_weight=how.vf_coef,
            entropy_weight=how.ent_coef,
            chunk_rows=None if chunks is None else chunks.sizes.numpy(),
            chunk_gradients=None if chunks is None else self.chunk_gradients.numpy(),
        )

    def _descent(self, learning_rate: float) -> Any:
        return _native.Descent(
            learning_rate=learning_rate,
            step=self.steps + 1,
            max_norm=np.inf if self.max_grad_norm is None else self.max_grad_norm,
            beta_1=BETA_1,
            beta_2=BETA_2,
            epsilon=self.adam_eps,
        )

    # -- acting --------------------------------------------------------------------------------

    def act(
        self,
        observation: Tensor,
        generator: torch.Generator,
        memory: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an action for each row, with the numbers that torch would draw."""
        rows = self._rows(observation)
        if rows is None:
            return super().act(observation, generator, memory, mask)
        choices, count = self.structure.choices, len(rows)
        kind = torch.float64 if choices else torch.float32
        empty = torch.empty(count, self.structure.size, dtype=kind)
        noise = draw(empty, choices, generator).numpy()
        action = torch.empty(
            (count, *self.policy.head.shape), dtype=torch.int64 if choices else torch.float32
        )
        log_prob = torch.empty(count)
        self.network.act(
            self._value,
            rows,
            uniform=noise if choices else None,
            normal=None if choices else noise,
            mask=None if mask is None else mask.numpy(),
            choice=action.numpy() if choices else None,
            action=None if choices else action.numpy(),
            log_prob=log_prob.numpy(),
            threads=self.threads,
        )
        return action, log_prob, memory

    def value(self, observation: Tensor) -> Tensor:
        """Return v(s), [B]."""
        rows = self._rows(observation)
        if rows is None:
            return super().value(observation)
        found = torch.empty(len(rows))
        self.network.values(self._value, rows, found.numpy(), self.threads)
        return found

    def rows(self, rollout: Rollout, generator: torch.Generator) -> NativeRows | None:
        """Return what acts on the rows of a rollout in place; None where they are not plain."""
        if self._filling is None or self._filling.rollout is not rollout:
            kinds = np.float32, np.int64 if self.structure.choices else np.float32
            given = rollout.observation, rollout.action
            inputs = rollout.observation[0, 0].size
            if tuple(array.dtype for array in given) != kinds or inputs != self.structure.inputs:
                return None
            self._filling = self._rows_of(rollout)
        return self._filling.begin(generator, self.threads)

    def _rows_of(self, rollout: Rollout) -> NativeRows:
        return NativeRows(self.network, self._value, self.structure, rollout)

    def finish(self) -> None:
        """Do what is left of what was begun."""
        self.network.finish()

    # -- what it is given ----------------------------------------------------------------------

    def _all_learn(self) -> bool:
        return all(parameter.requires_grad for parameter in self.flat.parameters)

    def _rows(self, observation: Any) -> np.ndarray | None:
        """Return observations as the network takes them, [B, inputs]; None if they are not so."""
        if not plain(observation, torch.float32):
            return None
        flat = observation.numpy().reshape(len(observation), -1)
        return flat if flat.shape[1] == self.structure.inputs else None

    def _coefficients(self, loss: Loss) -> Coefficients | str:
        """Return what the loss's twin is called with, or why there is none; kept for a loss."""
        if self._loss is None or self._loss[0] is not loss:
            found = coefficients(loss)
            if isinstance(found, Coefficients) and found.surrogate not in self.surrogates:
                found = f"the loss is not one of {type(self.policy).__name__}"
            self._loss = loss, found
        return self._loss[1]

    def _arrays(self, batch: Any) -> dict[str, Any] | str:
        """Return a batch's arrays by the names `train` has for them, or why they do not fit.

        What was read is kept while the batch's tensors are the same ones.
        """
        kind = type(batch)
        if kind is not self._kind:
            if not dataclasses.is_dataclass(batch):
                return f"its batch is a {kind.__name__}"
            self._batch = {}, ""
            self._kind, self._names = kind, [field.name for field in dataclasses.fields(batch)]
        before, found = self._batch
        tensors = {name: getattr(batch, name) for name in self._names}
        changed = {name for name in tensors if tensors[name] is not before.get(name, self)}
        if changed:
            if isinstance(found, dict) and changed <= COLUMNS.keys():
                columns = columns_of(tensors, changed)
                found = columns if isinstance(columns, str) else found | columns
            else:
                found = self._read(tensors)
            self._batch = tensors, found
        return found

    def _read(self, batch: dict[str, Any]) -> dict[str, Any] | str:
        unknown = {name for name, value in batch.items() if value is not None} - FIELDS
        if unknown:
            return f"its batch has {', '.join(sorted(unknown))}"
        observation = self._rows(batch["observation"])
        if observation is None:
            return "observations are not float32 numbers in memory, one row after the other"
        choices, action, mask = self.structure.choices, batch["action"], batch.get("action_mask")
        if not plain(action, torch.int64 if choices else torch.float32):
            return f"actions are not {'int64' if choices else 'float32'}"
        if mask is not None and not plain(mask, torch.bool):
            return "action_mask is not of bools"
        columns = columns_of(batch, COLUMNS)
        if isinstance(columns, str):
            return columns
        return columns | {
            "observation": observation,
            "choice": action.numpy() if choices else None,
            "action": None if choices else action.numpy(),
            "mask": None if mask is None else mask.reshape(len(mask), -1).numpy(),
        }
