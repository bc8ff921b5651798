"""`upslope train`: train an agent, or go on with a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from upslope.agents.table import ALGORITHMS, algorithm_name
from upslope.cli.options import parse, split, table
from upslope.errors import ArgumentError, suggest
from upslope.runs import run
from upslope.runs.configuration import Evaluation, RunConfig, check_limit, from_recipe
from upslope.runs.pictures import learning_curve

USAGE = "upslope train ALGORITHM ENVIRONMENT [options]   or   upslope train RUN --resume"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run is told beside the algorithm's settings."""

    total_timesteps: int = 100_000
    """Environment steps to learn for, of all environments together."""
    name: str | None = None
    """The run's folder below --runs; by default from the algorithm and the environment."""
    runs: Path = Path("runs")
    """Where runs are."""
    recipe: bool = True
    """Start from the recipe for this environment, where there is one."""
    env_kwargs: str | None = None
    """What the environment is made with, evaluations too, as TOML: '{score_limit = 100}'."""
    policy_kwargs: str | None = None
    """What the policy is built with, as TOML: '{net_arch = [256, 256], activation = "relu"}'."""
    threads: int | None = None
    """Threads of torch; for small networks one is nearly as fast as two. None: as torch chooses."""
    backend: str = "auto"
    """How environments are stepped: auto, vector_entry_point, sync or async."""
    eval_freq: int | None = None
    """Environment steps between evaluations; the best policy is kept. None: only at the end."""
    eval_episodes: int = 20
    """Episodes of each evaluation while learning."""
    final_episodes: int = 100
    """Episodes of the evaluation at the end; 0 for none."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints."""
    max_seconds: float | None = None
    """Stop learning after this many seconds, if it has not ended before."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """What can be said when a run goes on."""

    resume: bool = True
    """Go on from the newest valid checkpoint."""
    max_seconds: float | None = None
    """Stop learning after this many seconds, if it has not ended before."""
    allow_import: bool = False
    """Import the module that config.toml names in its environment, as in "module:Env-v0"."""
    quiet: bool = False
    """Show no progress."""


def main(arguments: list[str]) -> int:
    """Run `upslope train`."""
    words, options = split(arguments)
    if "--resume" in options:
        return resume(words, options)
    if "-h" in options or "--help" in options:
        words += ["ppo", "ENVIRONMENT"][len(words) :]
    if len(words) == 1 and (Path(words[0]) / "config.toml").exists():
        raise ArgumentError(f"{words[0]} is a run: go on with upslope train {words[0]} --resume")
    if len(words) != 2:
        raise ArgumentError(f"train takes an algorithm and an environment: {USAGE}")
    algorithm, env = words
    config, chosen = configure(algorithm, env, options)
    check_limit(chosen.max_seconds)
    if chosen.name is None:
        folder = run.free_name(chosen.runs, f"{config.algorithm}-{config.env}")
    else:
        folder = run.named(chosen.runs, chosen.name)
    agent = run.make_agent(config)  # before the folder: what is wrong with the settings is said now
    threads = config.threads or torch.get_num_threads()
    config = dataclasses.replace(config, backend=agent.stream.backend, threads=threads)
    run.create(folder, config)
    return carry_out(folder, config, agent=agent, options=chosen)


def configure(algorithm: str, env: str, options: list[str]) -> tuple[RunConfig, RunOptions]:
    """Return the configuration that a command line asks for."""
    algorithm = algorithm_name(algorithm)
    kind = ALGORITHMS[algorithm]
    recipe = None if "--no-recipe" in options else from_recipe(algorithm, env)
    base = recipe or RunConfig(algorithm=algorithm, env=env, total_timesteps=100_000)
    given = dict(base.settings)
    policy_kwargs = given.pop("policy_kwargs", {})
    evaluation = base.evaluation
    run_options = RunOptions(
        total_timesteps=base.total_timesteps,
        threads=base.threads,
        eval_freq=evaluation.freq,
        eval_episodes=evaluation.episodes,
        final_episodes=evaluation.final_episodes,
    )
    pair = dataclasses.make_dataclass(
        "Options", [("run", RunOptions), ("settings", kind.config_class)], frozen=True
    )
    parsed: Any = parse(
        pair(run=run_options, settings=kind.config_class(**given)),
        options,
        prog=f"upslope train {algorithm} {env}",
        description=f"Train {kind.__name__} on {env}."
        + (" The defaults below are its recipe's." if recipe else ""),
    )
    chosen, settings = parsed.run, dataclasses.asdict(parsed.settings)
    settings["policy_kwargs"] = policy_kwargs | table("policy-kwargs", chosen.policy_kwargs)
    asked = table("env-kwargs", chosen.env_kwargs)

    def others(kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if name not in asked}

    return dataclasses.replace(
        base,
        total_timesteps=chosen.total_timesteps,
        env_kwargs=base.env_kwargs | asked,
        backend=chosen.backend,
        threads=chosen.threads,
        checkpoint_seconds=chosen.checkpoint_seconds,
        evaluation=Evaluation(
            freq=chosen.eval_freq,
            episodes=chosen.eval_episodes,
            final_episodes=chosen.final_episodes,
            env_kwargs=others(evaluation.env_kwargs),
            final_env_kwargs=others(evaluation.final_env_kwargs),
        ),
        settings=settings,
    ), chosen


def resume(words: list[str], options: list[str]) -> int:
    """Go on with a run."""
    if len(words) != 1:
        raise ArgumentError(f"--resume takes one run: {USAGE}")
    chosen = parse(
        ResumeOptions(), options, prog=f"upslope train {words[0]}", description="Go on with a run."
    )
    folder = Path(words[0])
    if not folder.exists():
        there = [path.name for path in folder.parent.glob("*") if path.is_dir()]
        raise ArgumentError(f"there is no run {folder}{suggest(folder.name, there)}")
    config = RunConfig.read(folder, allow_import=chosen.allow_import)
    return carry_out(folder, config, agent=None, options=chosen)


def carry_out(
    folder: Path, config: RunConfig, *, agent: Any, options: RunOptions | ResumeOptions
) -> int:
    """Train, evaluate, draw the learning curve; returns the exit code."""
    steps = f"{config.total_timesteps:,} steps"
    print(f"training {config.algorithm} on {config.env} for {steps} in {folder}")
    outcome = run.train(
        folder, config, agent=agent, max_seconds=options.max_seconds, progress=not options.quiet
    )
    curve = None if outcome.exit_code else learning_curve(folder)  # drawing takes seconds
    where = f"; learning curve: {curve}" if curve else ""
    print(f"learned for {outcome.agent.num_timesteps:,} steps{where}")
    if outcome.exit_code:
        print(f"stopped; upslope train {folder} --resume goes on")
        return outcome.exit_code
    if config.evaluation.final_episodes:
        print(report(run.evaluate(folder, allow_import=True).returns))  # it is imported already
    return 0


def report(returns: np.ndarray) -> str:
    """Return a sentence with the mean return of episodes, its standard error, and the extremes."""
    error = returns.std(ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else np.nan
    return (
        f"return over {len(returns)} episodes, deterministic: mean {returns.mean():.2f} "
        f"(standard error {error:.2f}), lowest {returns.min():.2f}, highest {returns.max():.2f}"
    )
