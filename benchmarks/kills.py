"""Kill runs at random moments, resume them, and hold their ends to the run never killed.

    python benchmarks/kills.py --kills 200      # writes benchmarks/results/kills.md

Every life of a run is a process of its own, forked from this one so that nothing is imported again;
it is ended by SIGKILL at a random moment, which may be before its first checkpoint or inside a
save. When a life comes to its end by itself, the newest checkpoint (weights, moments of Adam,
counters, normalisers, replay buffer) is compared with that of the run never killed, byte for byte,
and a new run is begun in another folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from upslope import checkpoint
from upslope.runs import run
from upslope.runs.configuration import Evaluation, RunConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "kills.md"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # fsync takes no time there
NETWORK: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "n_envs": 4}
PPO = {"n_steps": 32, "batch_size": 64, "n_epochs": 4, "normalize_reward": True}
AGENTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ppo": ("CartPole-v1", 4_000, NETWORK | PPO | {"segment_length": 300}),
    "dqn": (
        "CartPole-v1",
        1_600,
        NETWORK
        | {"learning_starts": 200, "buffer_size": 2_000, "train_freq": 8, "segment_length": 200},
    ),
    "reinforce": ("CartPole-v1", 4_000, NETWORK),
    "actor_critic": ("Pendulum-v1", 3_000, NETWORK | {"segment_length": 300}),
}


def agent(name: str) -> Callable[[Path], None]:
    """Return what begins a run of an agent in a folder, or goes on with it, to its end."""
    env, steps, settings = AGENTS[name]
    config = RunConfig(
        algorithm=name,
        env=env,
        total_timesteps=steps,
        checkpoint_seconds=0.05,
        threads=1,
        evaluation=Evaluation(freq=steps // 3, episodes=2),
        settings=settings,
    )

    def live(folder: Path) -> None:
        if not folder.exists():
            run.create(folder, config)
        run.train(folder, RunConfig.read(folder), progress=False, say=lambda _: None)

    return live


def grpo(folder: Path) -> None:
    """Begin or go on with GRPO on a language model of two small layers."""
    import upslope as us
    from tests.language import tiny

    prompts = [{"prompt": f"{a}+{b}="} for a in range(4) for b in range(0, 30, 7)]
    trainer = us.GRPO(
        tiny.llama(),
        lambda completions: [float(text.count("1")) for text in completions],
        tokenizer=tiny.tokenizer(),
        train_dataset=prompts,
        output_dir=str(folder),
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=6,
        max_steps=16,
        save_steps=1,
        learning_rate=1e-2,
        steps_per_generation=4,
    )
    trainer.say = lambda sentence: None  # type: ignore[method-assign]
    begun = bool(checkpoint.list_checkpoints(folder / "checkpoints"))
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    trainer.train(resume_from_checkpoint=begun, progress_bar=False)


TASKS: dict[str, Callable[[Path], None]] = {name: agent(name) for name in AGENTS} | {"grpo": grpo}


@dataclass
class Outcome:
    """What became of one task."""

    kills: int = 0
    ends: int = 0
    different: int = 0
    seconds: float = 0.0


def life(live: Callable[[Path], None], folder: Path, moment: float | None) -> bool:
    """Live once, killed after `moment` seconds; returns whether it came to its end before."""
    child = os.fork()
    if child == 0:
        try:
            live(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ends = None if moment is None else time.monotonic() + moment
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if ends is not None and time.monotonic() >= ends:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a life in {folder} failed: see above")
    return True


def end_of(folder: Path) -> str:
    """Return the hash of everything in the newest checkpoint."""
    newest = checkpoint.newest_valid(folder / "checkpoints").path
    content = [newest.name.encode()]
    content += [(newest / name).read_bytes() for name in ("state.safetensors", "state.json")]
    return hashlib.sha256(b"".join(content)).hexdigest()


def kill(name: str, kills: int, seed: int, place: Path, deadline: float) -> Outcome:
    """Kill one task's runs `kills` times in all, or until the deadline."""
    live, rng, outcome = TASKS[name], random.Random(f"{seed}/{name}"), Outcome()
    begun = time.monotonic()
    life(live, place / "whole", None)
    whole, expected = time.monotonic() - begun, end_of(place / "whole")
    number = 0
    while True:
        over = outcome.kills >= kills or time.monotonic() > deadline
        folder = place / f"{name}-{number}"
        if not life(live, folder, None if over else rng.uniform(0, 0.6 * whole)):
            outcome.kills += 1
            continue
        outcome.ends += 1
        outcome.different += end_of(folder) != expected
        shutil.rmtree(folder)
        number += 1
        if over:
            outcome.seconds = time.monotonic() - begun
            return outcome


def main() -> None:
    """Kill every task, print and write the table; ends with 1 where an end is different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of all tasks together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-seconds", type=float, default=1e9)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    if "grpo" in chosen.tasks:  # imported once, before any life
        importlib.import_module("upslope.language.grpo")
        importlib.import_module("tests.language.tiny")
    lines = ["| task | kills | runs that came to their end | different ends | seconds |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    total = Outcome()
    share = -(-chosen.kills // len(chosen.tasks))
    for name in chosen.tasks:
        with tempfile.TemporaryDirectory(dir=MEMORY) as place:
            deadline = time.monotonic() + chosen.max_seconds / len(chosen.tasks)
            one = kill(name, share, chosen.seed, Path(place), deadline)
        lines.append(f"| {name} | {one.kills} | {one.ends} | {one.different} | {one.seconds:.0f} |")
        print(lines[-1], flush=True)
        for field in ("kills", "ends", "different", "seconds"):
            setattr(total, field, getattr(total, field) + getattr(one, field))
    lines.append(
        f"| all | {total.kills} | {total.ends} | {total.different} | {total.seconds:.0f} |"
    )
    print(lines[-1])
    if chosen.write:
        told = f"`python benchmarks/kills.py --kills {chosen.kills} --seed {chosen.seed} --write`"
        head = (
            f"# Random kills\n\n{told}, torch {torch.__version__}, one thread. An end is different"
        )
        head += " where one byte of the\nlast checkpoint is not that of the run never killed.\n\n"
        RESULTS.write_text(head + "\n".join(lines) + "\n")
    raise SystemExit(1 if total.different else 0)


if __name__ == "__main__":
    main()
