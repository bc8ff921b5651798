"""A fuzzer over what is loaded: each damaged file is loaded right, or refused by name.

    python benchmarks/fuzz.py                # 10,000 mutated checkpoints and configuration files

Half are changed in their bytes: bits flipped, pieces cut, inserted, repeated and exchanged, words
replaced by hostile ones, and half of those checkpoints get a manifest that fits. The other half are
changed in their content, one to three values of a well-formed file, so that what is behind hashes
and parsers is met too. Anything but a good load or an error of Upslope's that
names the file is a failure; so are more than five seconds of the processor, more than 256 MiB,
and code that runs.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import resource
import shutil
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import upslope as us
from upslope.checkpoint import codec
from upslope.cli import language
from upslope.errors import ArgumentError, CheckpointError, UpslopeError
from upslope.language.grpo_config import GRPOConfig
from upslope.runs import run
from upslope.runs.configuration import Evaluation, RunConfig
from upslope.runs.toml import dumps

SECONDS, MEMORY = 5.0, 256 * 2**20  # at most, for one file
WORDS = (
    *(b"null", b"true", b"[]", b"{}", b"-1", b"1e999", b"NaN", b"Infinity", b'""', b"0.5"),
    *(b"9" * 400, b"[" * 3000, b'{"a":' * 3000, b"\x00", b"\xff\xfe", b"'", b"\\u0000", b"inf"),
    *(b"../../x", b"os:system", b"this:x-v0", b"antigravity:x-v0", b"__class__", b"\n[settings]\n"),
    *((2**63).to_bytes(8, "little"), (2**64 - 1).to_bytes(8, "little"), b'"F64"', b'"BF16"'),
)
VALUES: tuple[Any, ...] = (
    *(True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e300, 5e-324, "", "x"),
    *("../../x", "antigravity:x-v0", "this:x-v0", "cuda", "linear(1e-3)", "\x00\n", "a" * 5000),
    *([], {}, [1], [[]], {"a": 1}, {"x": {"x": []}}, [0.1] * 1000),
)
GRPO = b"""model = "models/tiny"
train_dataset = "rows.jsonl"
[training]
learning_rate = 1e-5
num_generations = 4
loss_type = "dapo"
[[rewards]]
name = "exact_match"
"""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to four changes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
        b = min(b, a + 40)
        kind = rng.randrange(6)
        if kind == 0 and a < len(changed):
            changed[a] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[a : b if rng.random() < 0.8 else None]
        elif kind == 2:
            changed[a:b] = rng.choice(WORDS)
        elif kind == 3:
            changed[a:a] = changed[a:b] * rng.randint(1, 3)
        elif kind == 4:
            changed[a:b] = rng.randbytes(b - a)
        else:  # a value of a text, by another
            ends = [k for k, byte in enumerate(changed) if byte in b"=:,[ "]
            if ends:
                start = rng.choice(ends) + 1
                changed[start : start + rng.randint(1, 12)] = rng.choice(WORDS)
    return bytes(changed)


def with_other_values(content: Any, rng: random.Random) -> Any:
    """Return tables and lists with one to three of their values hostile, renamed or left out."""
    content = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and rng.random() < 0.9:
                place = place[key]
                continue
            kind = rng.randrange(8)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, dict):
                place[f"{key}x"] = place.pop(key)
            else:
                place[key] = copy.deepcopy(rng.choice(VALUES))  # which is changed in its turn
            break
    return content


def with_another_tensor(tensors: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return tensors of which one is missing, renamed, of another shape, type or content."""
    name = rng.choice(sorted(tensors))
    left = {n: tensor for n, tensor in tensors.items() if n != name}
    tensor = tensors[name]
    filled = tensor.bool() if tensor.dtype == torch.bool else torch.full_like(tensor, 127)
    changed = [None, tensor[None], tensor.flatten()[:-1], tensor.double(), tensor.long(), filled]
    changed += [torch.zeros(0), torch.full_like(tensor.float(), math.nan)]
    chosen = rng.choice(changed)
    if chosen is None:
        return left | ({f"{name}x": tensor} if rng.random() < 0.5 else {})
    return left | {name: chosen}


class Cases:
    """Files to damage, in a folder of their own, and what loads each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        agent = us.PPO("CartPole-v1", n_envs=2, n_steps=8, policy_kwargs={"net_arch": [4]}, seed=0)
        agent.learn(16)
        self.agent = self._read(agent.save(folder / "agent"))
        table = us.QLearning("FrozenLake-v1", seed=0)
        table.learn(50)
        self.table = self._read(table.save(folder / "table"))
        evaluation = Evaluation(freq=100, episodes=2)
        settings = dict(n_envs=2, learning_rate="linear(1e-3)", policy_kwargs={"net_arch": [4]})
        told = {"algorithm": "ppo", "env": "CartPole-v1", "total_timesteps": 100}
        RunConfig(**told, evaluation=evaluation, settings=settings).write(folder)
        self.config = (folder / "config.toml").read_bytes()
        self.kinds: dict[str, Callable[[random.Random], object]] = {
            "agent": lambda rng: self.saved(self.agent, rng),
            "table": lambda rng: self.saved(self.table, rng),
            "config.toml": self.run_config,
            "grpo.toml": self.grpo_config,
        }

    def _read(self, path: Path) -> dict[str, bytes]:
        return {name: (path / name).read_bytes() for name in codec.FILES}

    def saved(self, files: dict[str, bytes], rng: random.Random) -> object:
        """Load a saved agent of which one file is damaged, behind hashes that fit or do not."""
        if rng.random() < 0.5:
            return self.changed(files, rng)
        name = rng.choice(codec.FILES)
        damaged = files | {name: mutated(files[name], rng)}
        if rng.random() < 0.5 and name != codec.MANIFEST_FILE:
            body = {"format": codec.FORMAT_NAME, "version": codec.FORMAT_VERSION}
            body |= {"files": codec._describe(damaged)}
            damaged[codec.MANIFEST_FILE] = codec._manifest_text(body)
        if damaged == files:
            return None
        return self.load(damaged)

    def changed(self, files: dict[str, bytes], rng: random.Random) -> object:
        """Load a saved agent that is whole, but for what it says."""
        tensors, meta = codec.decode(files)
        if rng.random() < 0.3:
            tensors = with_another_tensor(tensors, rng)
        else:
            meta = with_other_values(meta, rng)
        try:
            return self.load(codec.encode(tensors, meta))
        except ArgumentError as error:
            raise CheckpointError(f"{error}") from error

    def load(self, files: dict[str, bytes]) -> object:
        """Write the files of a saved agent, and load them."""
        place = self.folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for file, data in files.items():
            (place / file).write_bytes(data)
        return us.load(place)

    def run_config(self, rng: random.Random) -> object:
        """Read a run's configuration, and make the agent's settings of it."""
        (self.folder / "config.toml").write_bytes(self.toml(self.config, rng))
        return run.make_agent(RunConfig.read(self.folder))

    def toml(self, text: bytes, rng: random.Random) -> bytes:
        """Return a configuration changed in its bytes or in its content."""
        if rng.random() < 0.5:
            return mutated(text, rng)
        return dumps(with_other_values(tomllib.loads(text.decode()), rng)).encode()

    def grpo_config(self, rng: random.Random) -> object:
        """Read the configuration of a language model's training."""
        path = self.folder / "grpo.toml"
        path.write_bytes(self.toml(GRPO, rng))
        found = language.read(path)
        language.told("grpo", GRPOConfig, path, found, [])
        return language.judges(found, path, allow_import=False)


def memory() -> int:
    """Return the most memory that this process had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Damage and load `count` files; returns what came of them, and what should not have."""
    cases, came, wrong = Cases(folder), Counter[str](), []
    before, modules = memory(), set(sys.modules)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 8 * MEMORY, limits[1]))  # not the whole machine
    for k in range(count):
        name = list(cases.kinds)[k % len(cases.kinds)]
        begun = time.process_time()
        try:
            cases.kinds[name](random.Random(f"{seed} {k}"))
            came[f"{name} loaded"] += 1
        except UpslopeError as error:
            came[f"{name} refused"] += 1
            if not str(error).strip() or len(str(error)) > 20_000:
                wrong.append(f"{name} {k}: says {str(error)[:80]!r}")
        except (Exception, SystemExit) as error:
            wrong.append(f"{name} {k}: {type(error).__name__}: {str(error)[:200]}")
        if (spent := time.process_time() - begun) > SECONDS:
            wrong.append(f"{name} {k}: took {spent:.1f} s")
        if memory() - before > MEMORY:
            wrong.append(f"{name} {k}: took {(memory() - before) >> 20} MiB")
            before = memory()
    resource.setrlimit(resource.RLIMIT_AS, limits)
    imported = {"this", "antigravity", "os:system"} & (set(sys.modules) - modules)
    return came, wrong + [f"{module} was imported" for module in imported]


def main() -> None:
    """Fuzz, and say what came of it; exits with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        came, wrong = fuzz(given.count, given.seed, Path(folder))
    for what, number in sorted(came.items()):
        print(f"{what:<24} {number:>6}")
    print(*wrong[:40], sep="\n")
    print(f"{given.count} files in {time.monotonic() - begun:.0f} s, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
