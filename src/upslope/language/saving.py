"""A trainer's state to disk and back, and models as folders of Hugging Face.

OUTPUT/checkpoints/step-K   what the run goes on from: weights that are trained, Adam's moments,
                            counters, completions that are not used up; the last three are kept
OUTPUT/best, OUTPUT/last    model and tokenizer as `save_pretrained` writes them

    model/NAME, adam_m/NAME, adam_v/NAME     trained weights, and Adam's moments of them
    own/NAME                                 what the algorithm has beside them

Weights that are not trained are given again at resume, and known by a hash.
"""

from __future__ import annotations

import contextlib
import math
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from upslope import checkpoint
from upslope.errors import CheckpointError, RunError
from upslope.language.requirements import need
from upslope.records.files import explained

if TYPE_CHECKING:
    from upslope.language.trainer import Trainer

MAY_DIFFER = ("output_dir", "logging_steps", "save_steps", "max_steps", "num_train_epochs")
REQUIRED = ("step", "drawn", "config", "made_with", "given", "best", "own")


def state_of(trainer: Trainer[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return everything that evolves: named tensors, and a dictionary for JSON."""
    tensors, numbers = trainer.own_state()
    meta = {
        "algorithm": type(trainer).__name__,
        "config": config_of(trainer),
        "step": trainer.step,
        "drawn": trainer.drawn,
        "best": trainer.best,
        "own": numbers,
        "given": trainer.given,
        "made_with": made_with(),
    }
    own = {f"own/{name}": tensor for name, tensor in tensors.items()}
    return trainer.optimization.state() | own, meta


def save(trainer: Trainer[Any], folder: Path) -> Path:
    """Save a checkpoint of the trainer."""
    name = checkpoint.step_name(trainer.step)
    return checkpoint.write(folder / "checkpoints", name, *state_of(trainer))


def resume(trainer: Trainer[Any], where: Path) -> None:
    """Take up a checkpoint, or the newest valid one of an output folder.

    Raises CheckpointError naming every difference when it is of other settings, weights, data or
    algorithm, and changes nothing then. What an older version did not save of them is not compared.
    """
    if (where / "checkpoints").is_dir():
        newest = checkpoint.newest_valid(where / "checkpoints")
        path, tensors, meta = newest.path, newest.tensors, newest.meta
        for _, reason in newest.refused:
            trainer.say(f"the checkpoint before it is used: {reason}")
    else:
        path, (tensors, meta) = where, checkpoint.read(where)
    expected = trainer.expected(meta.get("own") or {})
    missing = [name for name in REQUIRED if name not in meta]
    if missing:
        raise CheckpointError(f"checkpoint {path} is no trainer's: it lacks {', '.join(missing)}")
    flat = {f"config.{name}": value for name, value in meta["config"].items()}
    flat |= {f"given.{name}": value for name, value in meta["given"].items()}
    now = {f"config.{name}": value for name, value in config_of(trainer).items()}
    now |= {f"given.{n}": x for n, x in trainer.given.items() if n in meta["given"]}
    checkpoint.check_compatible(
        tensors,
        meta | flat,
        trainer.optimization.state() | {f"own/{name}": tensor for name, tensor in expected.items()},
        algorithm=type(trainer).__name__,
        expected_meta=now,
        path=path,
    )
    for name, tensor in trainer.optimization.state().items():
        tensor.copy_(tensors[name])
    trainer.optimization.set_steps(meta["step"])
    trainer.step, trainer.drawn, trainer.best = meta["step"], meta["drawn"], meta["best"]
    own = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("own/")}
    trainer.load_own_state(own, meta["own"])
    for name, value in made_with().items():
        was = meta["made_with"].get(name)
        if was != value:
            trainer.say(f"{name} was {was} and is {value}: it goes on, not bit for bit the same")
    trainer.say(f"going on from {path.name}")


def config_of(trainer: Trainer[Any]) -> dict[str, Any]:
    """Return the settings that a resumed run has to share; infinity as text, for JSON."""
    found = {n: value for n, value in asdict(trainer.config).items() if n not in MAY_DIFFER}
    return {n: "inf" if value == math.inf else value for n, value in found.items()}


def made_with() -> dict[str, str | int]:
    """Return the versions and the machine's features that decide how sums come out."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": need("transformers").__version__,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def save_pretrained(model: Any, tokenizer: Any, target: Path) -> Path:
    """Write model and tokenizer as a folder that transformers loads, replacing one before it.

    It is written aside and renamed. With an adapter the folder holds the adapter, for peft.
    """
    aside, before = (target.with_name(f".{target.name}.{kind}") for kind in ("new", "old"))
    with explained(target):
        for leftover in (aside, before):
            shutil.rmtree(leftover, ignore_errors=True)
        with quiet():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        if target.exists():
            target.rename(before)
        aside.rename(target)
        shutil.rmtree(before, ignore_errors=True)
    return target


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers draws no progress bar over ours, and peft does not say what it saves."""
    logging = need("transformers.utils.logging")
    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Setting `save_embedding_layers`", UserWarning)
            yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def output_folder(name: str | None, *, resuming: bool) -> Path | None:
    """Return the output folder, made; refuses one that holds a run which is not gone on with."""
    if name is None:
        return None
    folder = Path(name)
    if not resuming and (folder / "checkpoints").exists():
        raise RunError(
            f"output_dir={name!r} holds a run: train(resume_from_checkpoint=True) goes on with it, "
            "another folder starts anew"
        )
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    return folder


def as_meta(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the finite ones of some numbers, which JSON can hold."""
    return {name: x for name, x in numbers.items() if abs(x) < float("inf")}
