"""What `upslope dpo` and `upslope grpo` share: a configuration file, and a run in a folder.

model = "path/to/folder"             a folder or a name on the Hugging Face hub
train_dataset = "train.jsonl"        JSON lines, or a name on the hub

[training]                           the settings of the trainer; the command line goes before
learning_rate = 1e-6

[lora]                               trains an adapter of peft with these settings
r = 16

[[rewards]]                          grpo: shipped functions with their settings,
name = "exact_match"                 or "module:function", with --allow-import
weight = 1.0

[[metrics]]                          grpo: likewise, logged only
name = "math_answer"
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from upslope.cli.options import parse, split
from upslope.errors import ArgumentError, ConfigError, UpslopeError, suggest
from upslope.language import rewards
from upslope.language.config import TrainingConfig, make_config
from upslope.language.requirements import need
from upslope.language.saving import output_folder, quiet
from upslope.records.files import read_toml, replace_text
from upslope.runs.run import last_checkpoint, locked
from upslope.runs.signals import StopSignals
from upslope.runs.toml import dumps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is told beside the trainer's settings; from the file, or the command line."""

    model: str = ""
    """A folder with a model of transformers, or its name on the hub; safetensors only."""
    tokenizer: str | None = None
    """Where the tokenizer is; by default with the model."""
    reference_model: str | None = None
    """The reference, where it is not the model itself."""
    dtype: str = "float32"
    """What weights are held in: float32 or bfloat16."""
    device: str = "cpu"
    """Where the model is: cpu, or another device of torch such as cuda."""
    train_dataset: str = ""
    """A file of JSON lines, or the name of a data set on the hub."""
    train_split: str = "train"
    """Which split of a data set on the hub is trained on."""
    eval_dataset: str | None = None
    """What is held out, likewise."""
    eval_split: str = "test"
    """Which split of it."""
    resume: bool = False
    """Go on from the newest valid checkpoint in output_dir."""
    allow_import: bool = False
    """Import modules that the file names for reward functions, as in "module:function"."""
    quiet: bool = False
    """Show no progress."""


TABLES = ("training", "lora", "rewards", "metrics")
Make = Callable[..., Any]


def run(command: str, trainer: type[Any], arguments: list[str]) -> int:
    """Read the configuration, train, and return the exit code."""
    words, given = split(arguments)
    helped = "-h" in given or "--help" in given
    if len(words) != 1 and not helped:
        raise ArgumentError(f"{command} takes a configuration: upslope {command} config.toml")
    path = Path(words[0]) if words else Path("config.toml")
    found = {} if helped and not path.exists() else read(path)
    options, settings = told(command, trainer.config_class, path, found, given)
    output = settings["output_dir"] or str(Path("runs") / path.stem)
    settings["output_dir"] = output
    for name in ("model", "train_dataset"):
        if not getattr(options, name):
            raise ConfigError(f"{path} says no {name}")
    more = judges(found, path, allow_import=options.allow_import) if command == "grpo" else {}
    made = trainer(**load(options, found.get("lora")), **more, **settings)
    folder = output_folder(output, resuming=options.resume)
    assert folder is not None
    with locked(folder), StopSignals() as signals:
        kept = {n: v for n, v in dataclasses.asdict(options).items() if n not in NOT_KEPT}
        text = dumps(kept | found | {"training": settings})
        later = options.resume  # the checkpoint may refuse these settings
        if not later:
            replace_text(folder / "config.toml", text)

        def after_step(trainer: Any, metrics: Any) -> bool:
            nonlocal later
            if later:
                replace_text(folder / "config.toml", text)
                later = False
            return signals.received is None

        print(f"training by {trainer.__name__} for {made.total_steps} steps in {folder}")
        try:
            made.train(
                after_step,
                resume_from_checkpoint=options.resume,
                progress_bar=not options.quiet,
            )
        except UpslopeError as error:
            error.add_note(last_checkpoint(folder))
            raise
    if made.step < made.total_steps:
        print(f"stopped after step {made.step}; upslope {command} {path} --resume goes on")
        return signals.exit_code
    print(f"trained for {made.step} steps; the model is in {folder / 'last'}")
    return 0


NOT_KEPT = ("resume", "allow_import", "quiet")


def read(path: Path) -> dict[str, Any]:
    """Return the tables of a configuration file; raises ConfigError when it cannot be read."""
    try:
        return read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML
        raise ConfigError(f"{path} is not TOML: {error}") from error


def told(
    command: str,
    config_class: type[TrainingConfig],
    path: Path,
    found: Mapping[str, Any],
    given: list[str],
) -> tuple[Options, dict[str, Any]]:
    """Return the options and the trainer's settings: of the file, and over them those given."""
    known = [item.name for item in dataclasses.fields(Options)]
    for name in found:
        if name in NOT_KEPT:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{path} has {name!r}, which is for the command line: {option}")
        if name not in (*known, *TABLES):
            raise ConfigError(f"{path} has {name!r}, which there is not{suggest(name, known)}")
        if name not in TABLES and not isinstance(found[name], str):
            raise ConfigError(f"{path}: {name} takes text, got {found[name]!r}")
    training = found.get("training", {})
    if not isinstance(training, dict):
        raise ConfigError(f"{path}: [training] takes a table, got {training!r}")
    fields = [item.name for item in dataclasses.fields(config_class)]
    for name in training:
        if name not in fields:
            raise ConfigError(
                f"{path}, [training]: there is no {name!r} in {command}{suggest(name, fields)}"
            )
    default = Options(**{n: value for n, value in found.items() if n not in TABLES})
    pair = dataclasses.make_dataclass(
        "Both", [("run", Options), ("settings", config_class)], frozen=True
    )
    parsed: Any = parse(
        pair(run=default, settings=make_config(config_class, training, least={}, choices={})),
        given,
        prog=f"upslope {command} {path}",
        description=f"Train a language model by {command.upper()}.",
    )
    return parsed.run, dataclasses.asdict(parsed.settings)


def load(options: Options, lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the model, the tokenizer and the data sets of a run, as a trainer takes them."""
    transformers, torch = need("transformers"), need("torch")
    if options.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype={options.dtype!r}: it takes float32 or bfloat16")
    try:
        torch.zeros(1, device=options.device).item()
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"device={options.device!r} is none: {first_line(error)}") from error

    def model(name: str) -> Any:
        try:
            with quiet():
                found = transformers.AutoModelForCausalLM.from_pretrained(
                    name, dtype=getattr(torch, options.dtype), use_safetensors=True
                )
        except Exception as error:  # what is in the folder may be damaged in any way
            raise ConfigError(f"model {name!r} cannot be loaded: {first_line(error)}") from error
        if hasattr(found, "peft_config"):  # an adapter, which was loaded to be used, not trained
            found.set_adapter(found.active_adapters())
        return found.to(options.device)

    peft_config = None if lora is None else lora_config(lora)
    where = options.tokenizer or options.model
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    except Exception as error:  # tokenizers raises nothing more special
        raise ConfigError(f"tokenizer {where!r} cannot be loaded: {first_line(error)}") from error
    held_out = options.eval_dataset
    return {
        "model": model(options.model),
        "tokenizer": tokenizer,
        "reference_model": model(options.reference_model) if options.reference_model else None,
        "train_dataset": rows(options.train_dataset, options.train_split),
        "eval_dataset": rows(held_out, options.eval_split) if held_out else None,
        "peft_config": peft_config,
    }


def rows(name: str, part: str) -> Any:
    """Return a data set: the path of JSON lines, or a split of one on the hub."""
    if Path(name).suffix in (".jsonl", ".json") or Path(name).exists():
        return name
    datasets = need("datasets")
    try:
        return datasets.load_dataset(name, split=part)
    except (OSError, ValueError) as error:
        raise ConfigError(f"data set {name!r} cannot be loaded: {first_line(error)}") from error


def lora_config(settings: Mapping[str, Any]) -> Any:
    """Return peft's configuration of a LoRA adapter."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"[lora] takes a table, got {settings!r}")
    try:
        return need("peft").LoraConfig(task_type="CAUSAL_LM", **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[lora]: {error}") from error


def judges(found: Mapping[str, Any], path: Path, *, allow_import: bool) -> dict[str, Any]:
    """Return the reward functions of a file, their weights, and what is logged only."""

    def functions(name: str) -> list[rewards.RewardFunction]:
        tables = found.get(name, [])
        tabled = isinstance(tables, list) and all(isinstance(t, dict) for t in tables)
        if not tabled or not all("name" in t for t in tables):
            raise ConfigError(f"{path}: [[{name}]] takes tables with a name")
        return [judge(t, path, allow_import=allow_import) for t in tables]

    if not found.get("rewards"):
        raise ConfigError(f"{path} says no [[rewards]]: shipped are {', '.join(rewards.NAMES)}")
    return {
        "reward_funcs": functions("rewards"),
        "reward_weights": [table.get("weight", 1.0) for table in found["rewards"]],
        "metric_funcs": functions("metrics"),
    }


def judge(table: Mapping[str, Any], path: Path, *, allow_import: bool) -> rewards.RewardFunction:
    """Return the function that a table names; "module:function" takes --allow-import."""
    name = str(table["name"])
    settings = {n: value for n, value in table.items() if n not in ("name", "weight")}
    module, colon, function = name.partition(":")
    if not colon:
        return rewards.shipped(name, **settings)
    if not allow_import:
        raise ConfigError(f"{path} has the module {module!r} imported: --allow-import allows it")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module), function)
        result: rewards.RewardFunction = made(**settings) if settings else made
    except Exception as error:  # the user's own code
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"reward {name!r} cannot be made: {what}") from error
    finally:
        sys.path.remove(here)
    return result


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().split("\n")[0]
