"""GRPO on addition: from demonstrations of which 55 % are wrong to answers that are right.

A character-level Llama of 0.14 million parameters is trained from nothing on "37+58=" -> "095",
where 55 % of the answers shown are a wrong number: supervision then teaches it to be wrong 55 % of
the time. GRPO asks for right answers, which a rule verifies. The control is supervised for as many
more steps on the same demonstrations. Problems that are tested were never shown.

    python benchmarks/language_addition.py            five seeds, a table and a picture
    python benchmarks/language_addition.py --seeds 1
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import upslope as us
from upslope.language.generation import Sampler
from upslope.language.logprobs import token_log_probs
from upslope.language.rewards import exact_match
from upslope.language.sequences import right_padded
from upslope.losses import policy_gradient_loss
from upslope.seeding import generator

LARGEST = 100  # both numbers are below
WRONG = 0.55
HELD_OUT = 1000
BATCH = 128  # demonstrations in a supervised step, completions in one of GRPO

Row = dict[str, str]


def make_tokenizer() -> Any:
    """Return a tokenizer that knows one token per character."""
    words = ["<pad>", "<eos>", *"0123456789+="]
    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, "<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )


def make_model(seed: int, tokenizer: Any) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers draws weights from the global generator
        return LlamaForCausalLM(config)


def problems(seed: int, wrong: float = WRONG) -> tuple[list[Row], list[Row]]:
    """Return what is trained on, with the answer shown and the right one, and what is held out."""
    draws = np.random.default_rng(seed)
    pairs = [divmod(int(k), LARGEST) for k in draws.permutation(LARGEST**2)]
    rows = []
    for a, b in pairs:
        shown = a + b
        if draws.random() < wrong:
            other = int(draws.integers(2 * LARGEST - 2))
            shown = other + (other >= shown)  # every wrong number alike
        rows.append({"prompt": f"{a:02}+{b:02}=", "answer": f"{a + b:03}", "shown": f"{shown:03}"})
    return rows[HELD_OUT:], rows[:HELD_OUT]


def supervise(
    model: Any, tokenizer: Any, rows: list[Row], steps: int, seed: int, rate: tuple[float, float]
) -> None:
    """Maximise the likelihood of the demonstrations: the policy gradient with an advantage of 1.

    The step size goes from one to the other, so that what is left is what they are wrong in.
    """
    adam = torch.optim.AdamW(model.parameters(), lr=rate[0], weight_decay=0.01, fused=True)
    end = tokenizer.eos_token_id
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    answers = [[*tokenizer(row["shown"])["input_ids"], end] for row in rows]
    draws = generator(seed, "supervision")
    model.eval()
    for step in range(steps):
        index = torch.randint(len(rows), (BATCH,), generator=draws).tolist()
        batch = right_padded([prompts[k] for k in index], [answers[k] for k in index])
        log_prob = token_log_probs(model, batch.ids, batch.mask, batch.selected).log_prob
        loss = policy_gradient_loss(log_prob, torch.ones_like(log_prob), batch.selected)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = float(np.interp(step, (0, 100, steps), (0, *rate)))
        adam.step()
        adam.zero_grad()


def accuracy(model: Any, tokenizer: Any, rows: list[Row], temperature: float) -> float:
    """Return the share of problems answered rightly; temperature 0 is greedy."""
    sampler = Sampler(
        model=model, end_ids=(tokenizer.eos_token_id,), max_tokens=4, temperature=temperature
    )
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    made = sampler(prompts, 1, generator(0, "test"))
    texts = tokenizer.batch_decode(made.lists(), skip_special_tokens=True)
    return float(np.mean(exact_match(texts, [row["answer"] for row in rows])))


def both(model: Any, tokenizer: Any, rows: list[Row]) -> dict[str, float]:
    return {
        "sampled": accuracy(model, tokenizer, rows, 1.0),
        "greedy": accuracy(model, tokenizer, rows, 0.0),
    }


@dataclass(frozen=True)
class Settings:
    supervised_steps: int = 2500
    supervised_rates: tuple[float, float] = (3e-3, 1e-4)
    grpo_steps: int = 300
    grpo_rate: float = 1e-3
    group: int = 16


def run(seed: int, settings: Settings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Return the accuracies of one seed: after supervision, after GRPO, and of the control."""
    tokenizer = make_tokenizer()
    train, held_out = problems(seed)
    start = time.perf_counter()
    model = make_model(seed, tokenizer)
    supervise(model, tokenizer, train, settings.supervised_steps, seed, settings.supervised_rates)
    result: dict[str, Any] = {"seed": seed, "start": both(model, tokenizer, held_out)}
    supervised = time.perf_counter()
    say(f"seed {seed}: supervised to {result['start']} in {supervised - start:.0f} s")

    control = copy.deepcopy(model)
    last = settings.supervised_rates[-1]
    supervise(control, tokenizer, train, settings.grpo_steps, seed + 1, (last, last))
    result["control"] = both(control, tokenizer, held_out)
    begun = time.perf_counter()
    curve: list[tuple[int, float]] = []
    trainer = us.GRPO(
        model,
        exact_match,
        tokenizer=tokenizer,
        train_dataset=train,
        loss_type="dapo",
        num_generations=settings.group,
        per_device_train_batch_size=BATCH,
        max_completion_length=4,
        learning_rate=settings.grpo_rate,
        warmup_steps=10,
        lr_scheduler_type="linear",
        max_steps=settings.grpo_steps,
        seed=seed,
    )
    trainer.train(lambda t, metrics: curve.append((t.step, metrics["reward"])))
    result["grpo"] = both(model, tokenizer, held_out)
    result["curve"] = curve
    result["seconds"] = {
        "supervised": supervised - start,
        "grpo": time.perf_counter() - begun,
    }
    say(f"seed {seed}: control {result['control']}, GRPO {result['grpo']}, {result['seconds']}")
    return result


# ---------------------------------------------------------------- five seeds, a table, a picture
STAGES = {"start": "supervised", "control": "supervised for longer", "grpo": "GRPO"}


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and half of its 95 % interval (Student's t)."""
    n = len(values)
    if n < 2:
        return float(values[0]), float("nan")
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(n, 2.0)
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / np.sqrt(n))


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"accuracy on {HELD_OUT} problems never shown, {len(results)} seeds (mean, 95 % interval)",
        f"{'':<24}{'sampled':>18}{'greedy':>18}",
    ]
    for stage, name in STAGES.items():
        cells = [interval([r[stage][how] for r in results]) for how in ("sampled", "greedy")]
        lines.append(f"{name:<24}" + "".join(f"{f'{m:.3f} +- {h:.3f}':>18}" for m, h in cells))
    seconds = [sum(r["seconds"].values()) for r in results]
    lines.append(f"seconds per seed, on one core: {np.mean(seconds):.0f}")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> Path:
    """Draw what GRPO's completions earned while it trained, and the accuracies held out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=140, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    for result in results:
        steps, reward = np.array(result["curve"]).T
        smooth = np.convolve(reward, np.ones(10) / 10, "valid")
        left.plot(steps[len(steps) - len(smooth) :], smooth, color="#2a78c2", lw=1, alpha=0.8)
    left.axhline(1 - WRONG, color="#e8743b", ls="--", lw=1)
    left.text(
        0, 1 - WRONG + 0.01, "share of demonstrations that are right", color="#e8743b", size=8
    )
    left.set(xlabel="GRPO step", ylabel="share of completions that are right", ylim=(0, 1))
    for k, how in enumerate(("sampled", "greedy")):
        bars = [interval([r[stage][how] for r in results]) for stage in STAGES]
        places = np.arange(3) + 0.38 * k
        right.bar(places, [m for m, _ in bars], 0.36, label=how, color=("#2a78c2", "#9cc3e6")[k])
        if len(results) > 1:
            right.errorbar(places, *zip(*bars, strict=True), fmt="none", ecolor="#22303c", lw=1)
    right.set_xticks(np.arange(3) + 0.19, ["supervised", "longer", "GRPO"])
    right.set(ylim=(0, 1.15), title="held out")
    right.legend(frameon=False, loc="upper center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def known(path: Path | None, settings: Settings) -> list[dict[str, Any]]:
    """Return the results that a file holds of the same settings."""
    if path is None or not path.exists():
        return []
    found = json.loads(path.read_text())
    results: list[dict[str, Any]] = found["results"]
    return results if found["settings"] == asdict(settings) else []


def one_thread() -> None:
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="GRPO on addition, beside more supervision")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--picture", type=Path, default=Path("language_addition.png"))
    parser.add_argument("--results", type=Path, help="JSON; seeds it holds are not run again")
    told = parser.parse_args()
    seeds = range(told.first_seed, told.first_seed + told.seeds)
    settings = Settings(supervised_steps=3, grpo_steps=12) if told.quick else Settings()
    start = time.perf_counter()
    results = known(told.results, settings)
    missing = [seed for seed in seeds if seed not in [found["seed"] for found in results]]
    with ProcessPoolExecutor(told.workers, get_context("spawn"), initializer=one_thread) as pool:
        for found in pool.map(partial(run, settings=settings), missing):
            results = sorted([*results, found], key=lambda r: r["seed"])
            if told.results is not None:
                whole = {"settings": asdict(settings), "results": results}
                told.results.write_text(json.dumps(whole) + "\n")
    print(table(results))
    print(f"in all {time.perf_counter() - start:.0f} s; picture: {draw(results, told.picture)}")


if __name__ == "__main__":
    main()
