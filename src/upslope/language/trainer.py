"""What DPO and GRPO share: a model in memory, the loop, evaluation, saving, resuming.

    while step < total:
        θ ← update(θ);   now and then: evaluate, log, save

An algorithm is a subclass with a configuration, `update` and `evaluate`. Everything that evolves is
in its state: weights, moments, `step`, `drawn` (how many rows of data were taken), and what
`own_state` names. Random draws are derived from the seed and these counters.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

from torch import Tensor

from upslope import checkpoint
from upslope.errors import ArgumentError, NotFiniteError, RunError
from upslope.language import saving
from upslope.language.config import Config, make_config
from upslope.language.models import (
    Reference,
    add_adapter,
    check_model,
    check_switches_off,
    context_length,
    device_of,
    frozen,
    precision,
    prepare,
    shared,
    trainable,
    training,
    unwrapped,
)
from upslope.language.optimization import Optimization
from upslope.language.records import Records
from upslope.language.requirements import need

Callback = Callable[["Trainer[Any]", dict[str, float]], bool | None]
Row = dict[str, Any]


class Trainer(Generic[Config]):
    """A language model being trained; see the subclass for how."""

    config_class: type[Config]
    least: ClassVar[Mapping[str, float]] = {}
    choices: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    headline: ClassVar[tuple[str, ...]] = ()
    best_metric: ClassVar[str]
    best_sign: ClassVar[int]
    """+1 where a larger `best_metric` is better, -1 where a smaller one is."""

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any,
        reference_model: Any = None,
        peft_config: Any = None,
        settings: Mapping[str, Any],
    ) -> None:
        need("transformers")
        self.config: Config = make_config(
            self.config_class, settings, least=self.least, choices=self.choices
        )
        check_model(model, tokenizer)
        if reference_model is not None:
            check_model(reference_model, tokenizer)
            if unwrapped(reference_model) is unwrapped(model):
                raise ArgumentError(
                    "reference_model is the model itself, which is trained: leave it out, and the "
                    "reference is the model as it was given"
                )
        self.tokenizer = tokenizer
        if peft_config is not None and reference_model is None and self.needs_reference:
            check_switches_off(peft_config)
        self.model = model if peft_config is None else add_adapter(model, peft_config)
        prepare(self.model, gradient_checkpointing=self.config.gradient_checkpointing)
        if not trainable(self.model):
            loaded = hasattr(model, "peft_config")
            how = ": model.set_adapter(NAME) has an adapter trained" if loaded else ""
            raise ArgumentError(f"no parameter of the model requires a gradient{how}")
        if reference_model is not None and shared(self.model, reference_model):
            raise ArgumentError("reference_model shares weights with the model, which are trained")
        if tokenizer.pad_token_id is None:
            self.say("the tokenizer has no pad token: none is needed, lengths say what counts")
        self.reference = (
            Reference(self.model, own_adapter=peft_config is not None, given=reference_model)
            if self.needs_reference
            else None
        )
        self.step = 0
        self.drawn = 0
        self.best: dict[str, float] | None = None
        self.given: dict[str, Any] = {}
        self.sample: list[Row] = []
        self.has_evaluation = False

    def start(self, steps_per_epoch: float, **given: Any) -> None:
        """Finish setting up once the data is known; `given` is what resume must find again."""
        config = self.config
        epochs = math.ceil(config.num_train_epochs * steps_per_epoch)
        self.total_steps = epochs if config.max_steps < 0 else config.max_steps
        self.optimization = Optimization(trainable(self.model), config, self.total_steps)
        self.given = given
        if self.reference is not None:
            self.given["reference"] = self.reference.fingerprint()

    # -- what an algorithm fills in ------------------------------------------------------------

    @property
    def needs_reference(self) -> bool:
        """Whether π_ref is read."""
        raise NotImplementedError

    def update(self) -> dict[str, float]:
        """Take one optimiser step; returns what is worth logging, what matters first."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Return metrics on the held-out set, their names beginning with eval_."""
        raise NotImplementedError

    def own_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what evolves beside weights, moments and counters: tensors, and numbers."""
        return {}, {}

    def expected(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return tensors, or their shapes, as a saved `own_state` with these numbers has them."""
        return {}

    def load_own_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up what `own_state` returned."""

    # -- training ------------------------------------------------------------------------------

    def train(
        self,
        callback: Callback | None = None,
        *,
        resume_from_checkpoint: bool | str | Path = False,
        progress_bar: bool = True,
    ) -> Self:
        """Train to the end, and return the trainer; its `model` is the one that was given.

        After every step `callback(trainer, metrics)` is called; False stops. With
        `resume_from_checkpoint` it goes on from the newest valid checkpoint in output_dir (True),
        or from the one at a path; the model must be given as it was at the beginning.
        """
        config = self.config
        folder = saving.output_folder(config.output_dir, resuming=bool(resume_from_checkpoint))
        if folder is not None or resume_from_checkpoint:
            self.given["frozen"] = frozen(self.model)
        if resume_from_checkpoint:
            if resume_from_checkpoint is True and folder is None:
                raise RunError("resume_from_checkpoint=True goes on in output_dir, which is None")
            where = folder if resume_from_checkpoint is True else resume_from_checkpoint
            saving.resume(self, Path(str(where)))
        saved, stopped = self.step, False
        with Records(
            folder,
            step=self.step,
            total=self.total_steps,
            headline=self.headline,
            shown=progress_bar,
        ) as records:
            while self.step < self.total_steps and not stopped:
                metrics = self.kept_if_it_fails(folder)
                last = self.step >= self.total_steps
                if self.has_evaluation and (last or due(self.step, config.eval_steps)):
                    metrics |= self.evaluated(folder)
                if last or due(self.step, config.logging_steps):
                    records.write(self.step, metrics)
                    records.sample(self.step, self.sample, shown=self.shows_sample)
                    self.sample = []
                stopped = callback is not None and callback(self, metrics) is False
                if folder is not None and (last or stopped or due(self.step, config.save_steps)):
                    saving.save(self, folder)
                    saved = self.step
        if folder is not None and self.step >= self.total_steps and saved == self.step:
            saving.save_pretrained(self.model, self.tokenizer, folder / "last")
        return self

    def kept_if_it_fails(self, folder: Path | None) -> dict[str, float]:
        """Take a step; if it is not finite, put aside the state to take it again from."""
        drawn = self.drawn
        try:
            return self.one_step()
        except NotFiniteError as error:
            self.drawn = drawn
            if folder is not None:
                error.add_note(checkpoint.put_aside(folder / "not-finite", *saving.state_of(self)))
            raise

    def one_step(self) -> dict[str, float]:
        """Take one optimiser step and count it."""
        with precision(device_of(self.model), self.config.bf16), training(self.model):
            metrics = self.update()
        self.step += 1
        return metrics

    def evaluated(self, folder: Path | None) -> dict[str, float]:
        """Evaluate, and keep the model on disk if it is the best so far."""
        with precision(device_of(self.model), self.config.bf16):
            metrics = self.evaluate()
        value = metrics[self.best_metric]
        best = -math.inf if self.best is None else self.best_sign * self.best["value"]
        if math.isfinite(value) and self.best_sign * value >= best:
            self.best = {"step": self.step, "value": value}
            if folder is not None:
                saving.save_pretrained(self.model, self.tokenizer, folder / "best")
        return metrics

    @property
    def shows_sample(self) -> bool:
        """Whether `sample` is shown on the terminal at each logged step."""
        return False

    def save_pretrained(self, path: str | Path) -> Path:
        """Write model and tokenizer as a folder that transformers loads back."""
        return saving.save_pretrained(self.model, self.tokenizer, Path(path))

    def longest(self, completion: int = 0) -> int | None:
        """Return how many tokens the model takes, less those of a completion; None: any."""
        context = context_length(self.model)
        return None if context is None else context - completion

    def say(self, sentence: str) -> None:
        """Tell the user something that is no error."""
        print(f"{type(self).__name__}: {sentence}", file=sys.stderr)


def due(step: int, every: int | None) -> bool:
    """Say whether something that happens every so many steps happens after this one."""
    return every is not None and step % every == 0


def ordered(first: Sequence[str], metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with those that matter first, and `loss` last."""
    names = [n for n in first if n in metrics]
    names += [n for n in metrics if n not in first and n != "loss"]
    return {n: metrics[n] for n in [*names, *(["loss"] if "loss" in metrics else [])]}
