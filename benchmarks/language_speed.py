"""Upslope beside TRL: completions and pairs per second, and peak memory, on the same machine.

    python benchmarks/language_speed.py                        every case, on the CPU in float32
    python benchmarks/language_speed.py --cases grpo-gpt2 --rounds 9
    python benchmarks/language_speed.py --gpu                  Qwen2.5-0.5B's shape, bfloat16

Each library trains in a process of its own, with one thread, and takes a step when it is told to:
first one, then the other, so that both see the same machine. A round is a step of each; its ratio
is seconds of TRL over seconds of Upslope, the table has the median. Beside it stands the ratio of
processor time, which other work on the machine disturbs less. Models are random, so that an
end token has chance 1/2048 and completions are nearly all of full length. Both libraries have their
defaults, but for sizes: no divergence, one update per rollout.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = 2048
WARM_UP = 1
LIBRARIES = ("upslope", "trl")


@dataclass(frozen=True)
class Case:
    """What is trained, and on how much at a time."""

    method: str
    model: str
    prompt: int
    completion: int
    batch: int
    """Completions, or pairs, in a step."""
    device: str = "cpu"


CASES = {
    "grpo-llama": Case("grpo", "llama", 64, 192, 16),
    "grpo-gpt2": Case("grpo", "gpt2", 64, 192, 16),
    "dpo-llama": Case("dpo", "llama", 128, 128, 8),
    "dpo-gpt2": Case("dpo", "gpt2", 128, 128, 8),
}
GPU_CASES = {
    "grpo-qwen": Case("grpo", "qwen", 64, 192, 64, "cuda"),
    "dpo-qwen": Case("dpo", "qwen", 128, 128, 16, "cuda"),
}


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{k}" for k in range(2, WORDS))]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )


def make_model(name: str, device: str) -> Any:
    """Return a random model of 15 million parameters, or of the shape of Qwen2.5-0.5B."""
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    named = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    if name == "llama":
        shape = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
        heads = {"num_attention_heads": 6, "num_key_value_heads": 6, "tie_word_embeddings": True}
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=WORDS, max_position_embeddings=512, **shape, **heads, **named)
        )
    if name == "gpt2":
        shape = {"n_embd": 384, "n_layer": 8, "n_head": 6, "n_positions": 512}
        return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, **shape, **named))
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        **named,
    )
    return Qwen2ForCausalLM(config).to(device)


def make_rows(case: Case) -> list[dict[str, str]]:
    """Return rows enough that none comes twice, drawn from all words but pad and end."""
    import numpy as np

    draws = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"w{k}" for k in draws.integers(2, WORDS, length))

    count = case.completion - 1  # the end token comes after
    if case.method == "grpo":
        return [{"prompt": text(case.prompt)} for _ in range(1000)]
    names = {"prompt": case.prompt, "chosen": count, "rejected": count}
    return [{name: text(length) for name, length in names.items()} for _ in range(1000)]


def reward(completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs: the share of words with an even number."""
    return [sum(word[-1:] in "02468" for word in c.split()) / 192 for c in completions]


# ---------------------------------------------------------------- one library, in its own process
def upslope_steps(
    case: Case, steps: int, wait: Callable[[], None], done: Callable[[], None]
) -> None:
    import upslope as us

    common = {
        "tokenizer": make_tokenizer(),
        "train_dataset": make_rows(case),
        "per_device_train_batch_size": case.batch,
        "max_steps": steps,
        "bf16": case.device != "cpu",
    }
    model = make_model(case.model, case.device)
    made: Any = (
        us.GRPO(model, reward, max_completion_length=case.completion, **common)
        if case.method == "grpo"
        else us.DPO(model, **common)
    )

    def callback(trainer: Any, metrics: dict[str, float]) -> bool:
        done()
        if trainer.step < steps:
            wait()
        return True

    wait()
    made.train(callback, progress_bar=False)


def trl_steps(case: Case, steps: int, wait: Callable[[], None], done: Callable[[], None]) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    class Told(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            done()

    common = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": case.device == "cpu",
        "bf16": case.device != "cpu",
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "per_device_train_batch_size": case.batch,
        "max_steps": steps,
    }
    given = {
        "model": make_model(case.model, case.device),
        "train_dataset": Dataset.from_list(make_rows(case)),
        "processing_class": make_tokenizer(),
        "callbacks": [Told()],
    }
    made: Any = (
        GRPOTrainer(
            reward_funcs=reward,
            args=GRPOConfig(max_completion_length=case.completion, **common),
            **given,
        )
        if case.method == "grpo"
        else DPOTrainer(  # which would load a reference by name
            ref_model=make_model(case.model, case.device), args=DPOConfig(**common), **given
        )
    )
    made.train()


def worker(library: str, case: Case, steps: int) -> None:
    """Take a step for each line of the standard input; answer with its seconds and peak memory."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    begun = used = 0.0

    def finished() -> None:
        if case.device != "cpu":
            torch.cuda.synchronize()

    def wait() -> None:
        nonlocal begun, used
        print("{}", file=answers, flush=True)
        sys.stdin.readline()
        begun, used = time.perf_counter(), time.process_time()

    def done() -> None:
        finished()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if case.device != "cpu":
            peak = torch.cuda.max_memory_allocated() / 2**20
        told = {"seconds": time.perf_counter() - begun, "peak": peak}
        told["processor"] = time.process_time() - used
        print(json.dumps(told), file=answers, flush=True)

    steps_of = {"upslope": upslope_steps, "trl": trl_steps}[library]
    steps_of(case, steps, wait, done)


# ---------------------------------------------------------------- both, in turn
def compare(name: str, case: Case, rounds: int) -> dict[str, Any]:
    """Return seconds per step of each library, round by round, and peak memory in MiB."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    children = {}
    for library in LIBRARIES:  # one after the other: setting up is not measured
        command = [sys.executable, __file__, "--worker", library, "--cases", name]
        child = subprocess.Popen(
            [*command, "--rounds", str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        children[library] = child
        answer(child, library)  # it is ready
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    processor: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    peak = dict.fromkeys(LIBRARIES, 0.0)
    for k in range(WARM_UP + rounds):
        for library in LIBRARIES if k % 2 else LIBRARIES[::-1]:
            child = children[library]
            assert child.stdin is not None
            print("step", file=child.stdin, flush=True)
            told = answer(child, library)
            peak[library] = told["peak"]
            if k >= WARM_UP:
                seconds[library].append(told["seconds"])
                processor[library].append(told["processor"])
            if k + 1 < WARM_UP + rounds:
                answer(child, library)  # it is ready again
    for child in children.values():
        child.wait()
    return {"seconds": seconds, "processor": processor, "peak": peak}


def ratios(times: dict[str, list[float]]) -> list[float]:
    """Return times of TRL over those of Upslope, round by round."""
    return [t / u for t, u in zip(times["trl"], times["upslope"], strict=True)]


def answer(child: subprocess.Popen[str], library: str) -> dict[str, float]:
    """Return what a worker says next."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{library} ended without an answer, with exit code {child.wait()}")
    found: dict[str, float] = json.loads(line)
    return found


def row(name: str, case: Case, found: dict[str, Any]) -> str:
    rate = {k: case.batch / statistics.median(v) for k, v in found["seconds"].items()}
    wall, used = ratios(found["seconds"]), ratios(found["processor"])
    return (
        f"| {name} | {rate['upslope']:.2f} | {rate['trl']:.2f} "
        f"| {statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f}) "
        f"| {statistics.median(used):.2f} ({min(used):.2f} to {max(used):.2f}) "
        f"| {found['peak']['upslope']:.0f} | {found['peak']['trl']:.0f} |"
    )


HEAD = (
    "| case | Upslope, per second | TRL, per second | ratio (lowest to highest) "
    "| of processor time | Upslope, peak MiB | TRL, peak MiB |\n|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Upslope beside TRL")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *GPU_CASES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gpu", action="store_true", help="the cases of a GPU, in bfloat16")
    parser.add_argument("--results", type=Path, help="where seconds of each round go, as JSON")
    parser.add_argument("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    told = parser.parse_args()
    every = CASES | GPU_CASES
    if told.worker:
        worker(told.worker, every[told.cases[0]], WARM_UP + told.rounds)
        return
    names = told.cases or list(GPU_CASES if told.gpu else CASES)
    if any(every[name].device == "cuda" for name in names):
        import torch

        if not torch.cuda.is_available():
            print("skipped: there is no GPU here")
            return
        print(torch.cuda.get_device_name())
    print(HEAD)
    results = {}
    for name in names:
        results[name] = compare(name, every[name], told.rounds)
        print(row(name, every[name], results[name]), flush=True)
    if told.results:
        told.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
