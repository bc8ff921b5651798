"""Direct preference optimisation, and the losses related to it.

    d   = log π(y_w|x) - log π_ref(y_w|x) - [log π(y_l|x) - log π_ref(y_l|x)]
    L   = -E[log σ(β d)]

x a prompt, y_w the chosen and y_l the rejected completion, log π(y|x) summed over the tokens of y,
its end token too. Gradient descent on L raises the margin β d; that the chosen completion itself
becomes more likely is not asked for, which is why both log-probabilities are logged.

Rafailov et al. 2023, arXiv:2305.18290, equation 7. The other losses: `upslope.losses.dpo_loss`.
Departures from the paper: dropout is off; π_ref is computed once for each row, when it is first
needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from upslope.errors import ArgumentError, ConfigError
from upslope.language.config import TrainingConfig
from upslope.language.datasets import Order, Preference, fingerprint, preferences_of
from upslope.language.models import device_of
from upslope.language.optimization import MicroBatch
from upslope.language.prefix import completion_log_probs
from upslope.language.sequences import Sequences, right_padded
from upslope.language.trainer import Trainer, ordered
from upslope.losses.preference import AVERAGED, LOSSES, WITHOUT_REFERENCE, dpo_loss


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """The settings of DPO."""

    beta: float = 0.1
    """Strength of the pull towards π_ref; larger stays closer to it."""
    loss_type: str = "sigmoid"
    """sigmoid, robust, hinge, ipo, sigmoid_norm, apo_zero, sppo_hard, bco_pair or simpo."""
    label_smoothing: float = 0.0
    """Share of preferences thought to be wrong, in sigmoid (conservative DPO) and robust."""
    gamma: float = 0.5
    """Margin that simpo asks for."""
    per_device_train_batch_size: int = 8
    """Pairs in a micro-batch."""
    max_length: int | None = None
    """Most tokens of prompt and completion; what is longer is cut. None: the model's context."""


class DPO(Trainer[DPOConfig]):
    """Preference optimisation: `us.DPO(model, tokenizer=t, train_dataset=d, beta=0.1).train()`.

    `model` is a causal language model of transformers, in memory; `reference_model` defaults to the
    model as it is given. `train_dataset` has the columns prompt, chosen, rejected (see
    `upslope.language.datasets`). `peft_config` adds an adapter, which alone is trained; the
    reference is then the model with it switched off. Further keyword arguments are the fields of
    `DPOConfig`. Raises ArgumentError for what it cannot take, rows by their number.
    """

    config_class = DPOConfig
    least: ClassVar[Mapping[str, float]] = {"max_length": 2, "label_smoothing": 0, "gamma": 0}
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {"loss_type": tuple(LOSSES)}
    headline = ("rewards/margins", "rewards/accuracies", "logps/chosen")
    best_metric, best_sign = "eval_loss", -1

    def __init__(
        self,
        model: Any,
        reference_model: Any = None,
        *,
        tokenizer: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        peft_config: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            model,
            tokenizer=tokenizer,
            reference_model=reference_model,
            peft_config=peft_config,
            settings=settings,
        )
        if not self.needs_reference and reference_model is not None:
            raise ArgumentError(f"loss_type {self.config.loss_type!r} has no reference_model")
        longest = self.longest_row()
        self.rows: list[Preference] = preferences_of(train_dataset, tokenizer, longest)
        self.eval_rows: list[Preference] = []
        if eval_dataset is not None:
            self.eval_rows = preferences_of(eval_dataset, tokenizer, longest, "eval_dataset")
        self.order = Order(len(self.rows), self.config.seed)
        self.reference_log_prob = torch.full((2, len(self.rows)), math.nan)
        self.eval_reference = torch.full((2, len(self.eval_rows)), math.nan)
        per_step = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        self.start(
            len(self.rows) / per_step,
            data=fingerprint(self.rows),
            eval_data=fingerprint(self.eval_rows),
        )
        self.has_evaluation = bool(self.eval_rows)

    @property
    def needs_reference(self) -> bool:
        """Whether the loss has a reference."""
        return self.config.loss_type not in WITHOUT_REFERENCE

    def longest_row(self) -> int | None:
        """Return how many tokens a row may have; refuses more than the model takes."""
        context, asked = self.longest(), self.config.max_length
        if context is not None and asked is not None and asked > context:
            raise ConfigError(f"max_length={asked}: the model takes at most {context} tokens")
        return context if asked is None else asked

    # -- the loss ------------------------------------------------------------------------------

    def loss(
        self, rows: Sequence[Preference], reference: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each of n pairs, [n], and what to log of each.

        `reference` [2, n] holds log π_ref of the chosen and of the rejected completions.
        """
        config = self.config
        chosen, rejected, lengths = self.log_probs(rows)
        averaged = config.loss_type in AVERAGED
        losses = dpo_loss(
            chosen,
            rejected,
            reference[0] if self.needs_reference else None,
            reference[1] if self.needs_reference else None,
            beta=config.beta,
            loss_type=config.loss_type,
            label_smoothing=config.label_smoothing,
            gamma=config.gamma,
            chosen_length=lengths[0] if averaged else None,
            rejected_length=lengths[1] if averaged else None,
        )
        base = reference if self.needs_reference else torch.zeros_like(reference)
        reward_chosen = config.beta * (chosen.detach() - base[0])
        reward_rejected = config.beta * (rejected.detach() - base[1])
        return losses, {
            "rewards/margins": reward_chosen - reward_rejected,
            "rewards/accuracies": (reward_chosen > reward_rejected).float(),
            "rewards/chosen": reward_chosen,
            "rewards/rejected": reward_rejected,
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
        }

    def log_probs(self, rows: Sequence[Preference]) -> tuple[Tensor, Tensor, Tensor]:
        """Return log π(y|x) of chosen and rejected completions, [n] each, and lengths [2, n]."""
        batch = self.batch(rows)
        found = completion_log_probs(self.model, batch).log_prob
        chosen, rejected = found.sum(1).chunk(2)
        return chosen, rejected, batch.selected.sum(1).view(2, -1)

    def batch(self, rows: Sequence[Preference]) -> Sequences:
        """Return all chosen, then all rejected completions after their prompts."""
        prompts = [row.prompt for row in rows] * 2
        answers = [row.chosen for row in rows] + [row.rejected for row in rows]
        return right_padded(prompts, answers, device_of(self.model))

    def reference_of(
        self, known: Tensor, rows: Sequence[Preference], index: Sequence[int]
    ) -> Tensor:
        """Return log π_ref [2, n] of rows, computed where `known` [2, rows] does not have it."""
        if self.reference is not None:
            new = [k for k in index if bool(known[0, k].isnan())]
            if new:
                batch = self.batch([rows[k] for k in new])
                with self.reference.use() as model:
                    log_prob = completion_log_probs(model, batch).log_prob
                known[:, new] = log_prob.sum(1).view(2, -1).cpu().float()
        return known[:, index].to(device_of(self.model))

    # -- the update ----------------------------------------------------------------------------

    def update(self) -> dict[str, float]:
        """Take one step on the next rows of the data; returns the means over its pairs."""
        size, parts = (
            self.config.per_device_train_batch_size,
            self.config.gradient_accumulation_steps,
        )
        index = self.order.take(self.drawn, size * parts)
        self.drawn += len(index)
        logged: list[dict[str, Tensor]] = []

        def part(chosen: Sequence[int]) -> MicroBatch:
            def loss() -> Tensor:
                reference = self.reference_of(self.reference_log_prob, self.rows, chosen)
                losses, seen = self.loss([self.rows[k] for k in chosen], reference)
                logged.append(seen)
                return losses.sum() / len(index)

            return MicroBatch(len(chosen), loss)

        micro_batches = [part(index[k : k + size]) for k in range(0, len(index), size)]
        taken = self.optimization.step(micro_batches, self.step)
        return ordered(self.headline, means(logged) | taken)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the mean loss and what is logged of it over the held-out set."""
        size, rows = self.config.per_device_eval_batch_size, self.eval_rows
        logged: list[dict[str, Tensor]] = []
        for start in range(0, len(rows), size):
            index = range(start, min(start + size, len(rows)))
            reference = self.reference_of(self.eval_reference, rows, index)
            losses, seen = self.loss([rows[k] for k in index], reference)
            logged.append(seen | {"loss": losses})
        return {f"eval_{name}": mean for name, mean in means(logged).items()}

    # -- what is saved -------------------------------------------------------------------------

    def own_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what is known of π_ref; its last digits depend on the batch it was computed in."""
        return {"reference": self.reference_log_prob, "eval_reference": self.eval_reference}, {}

    def expected(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return tensors of the shapes that `own_state` has."""
        return self.own_state()[0]

    def load_own_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up what was known of π_ref."""
        self.reference_log_prob.copy_(tensors["reference"])
        self.eval_reference.copy_(tensors["eval_reference"])


def means(logged: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean over all rows of what was logged of each, [n] per batch."""
    return {name: float(torch.cat([seen[name] for seen in logged]).mean()) for name in logged[0]}
