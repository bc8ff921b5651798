"""What DPO and GRPO can both be told, and how settings are checked.

Names are TRL's, and so are defaults, but for bf16 and gradient_checkpointing (off), logging_steps
(1, since each row is of its own step) and seed (0).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from upslope.errors import ConfigError, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings that both trainers share."""

    learning_rate: float = 1e-6
    """AdamW's step size; larger learns faster, then breaks."""
    max_steps: int = -1
    """Optimiser steps; -1: as many as `num_train_epochs` takes."""
    num_train_epochs: float = 3.0
    """Passes over the training set, where max_steps is -1."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of one step; more save memory, and leave the gradient as it is."""
    lr_scheduler_type: str = "linear"
    """A schedule of transformers: linear, cosine, constant, constant_with_warmup, polynomial ..."""
    warmup_steps: int = 0
    """Steps over which the step size rises from 0."""
    weight_decay: float = 0.0
    """Share of each weight, times the step size, that a step takes away."""
    adam_beta1: float = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: float = 1e-8
    """What is added to the root of the latter."""
    max_grad_norm: float = 1.0
    """Longest gradient that is taken whole, as a 2-norm; inf never clips."""
    bf16: bool = False
    """Matrix products in bfloat16; weights and log-probabilities stay as they are."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third slower, much less memory."""
    seed: int = 0
    """The number that every random draw is derived from."""
    output_dir: str | None = None
    """Where metrics, TensorBoard events, checkpoints, `best` and `last` go; None writes nothing."""
    logging_steps: int = 1
    """Steps between two rows of metrics; each is of its own step."""
    save_steps: int = 500
    """Steps between two checkpoints; the last three are kept, and one is saved at the end."""
    eval_steps: int | None = None
    """Steps between two evaluations on eval_dataset, and one at the end; None: at the end only."""
    per_device_eval_batch_size: int = 8
    """Rows that an evaluation computes at once."""


KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "int | None": ((int, type(None)), "a whole number"),
    "float": ((int, float), "a number"),
    "float | None": ((int, float, type(None)), "a number"),
    "str": ((str,), "text"),
    "str | None": ((str, type(None)), "text"),
    "bool": ((bool,), "True or False"),
    "tuple[float, ...] | None": ((tuple, list, type(None)), "a list of numbers"),
}

Config = TypeVar("Config", bound=TrainingConfig)


def make_config(
    kind: type[Config],
    settings: Mapping[str, Any],
    least: Mapping[str, float],
    choices: Mapping[str, tuple[Any, ...]],
) -> Config:
    """Return the frozen configuration of these settings.

    `least` holds the smallest value of a setting, `choices` those it takes. Raises ConfigError
    naming a setting that does not exist (and the one that was likely meant), has the wrong type,
    or is out of its range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    trainer = kind.__name__.removesuffix("Config")
    for name, value in settings.items():
        if name not in fields:
            raise ConfigError(
                f"{trainer} has no setting {name!r}{suggest(name, fields)}; it has "
                f"{', '.join(sorted(fields))}"
            )
        types, takes = KINDS[str(fields[name].type)]
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if int in types:
            low = {**LEAST, **least}.get(name, -math.inf)
            takes = takes if name in ENDLESS else takes.replace("a number", "a finite number")
            takes += f" of at least {low:g}" if low > -math.inf else ""
            takes += f" and below {BELOW[name]:g}" if name in BELOW else ""
            fits = fits and (value is None or (low <= value and ends(name, value)))
        if name in choices:
            takes = "one of " + ", ".join(repr(choice) for choice in choices[name])
            fits = fits and value in choices[name]
        if not fits:
            raise ConfigError(f"{name}={value!r}: {name} takes {takes}")
    return kind(**settings)


def ends(name: str, value: float) -> bool:
    """Return whether a setting is not too large: below its limit, and no infinity without sense."""
    if name in BELOW:
        return value < BELOW[name]
    return abs(value) <= sys.float_info.max or (name in ENDLESS and value == math.inf)


ENDLESS = ("max_grad_norm", "epsilon", "epsilon_high")
"""Settings that take infinity: what they limit has no limit then."""
BELOW: dict[str, float] = {"adam_beta1": 1, "adam_beta2": 1}
LEAST: dict[str, float] = {
    "learning_rate": 0,
    "max_steps": -1,
    "num_train_epochs": 0,
    "gradient_accumulation_steps": 1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "max_grad_norm": 0,
    "seed": 0,
    "logging_steps": 1,
    "save_steps": 1,
    "eval_steps": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
}
