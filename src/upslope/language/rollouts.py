"""Experience of an online method: groups of completions, their rewards and their advantages.

    y_1, ..., y_G ~ π_old(. | x)
    r_i = Σ_k w_k r_k(x, y_i),    A_i the advantage of r_i in its group

A group whose rewards are all equal has advantages of exactly 0 and teaches nothing: its share is
counted, and `dynamic_sampling` draws further prompts in its place (Yu et al. 2025, DAPO,
arXiv:2503.14476, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from upslope.language import rewards
from upslope.language.datasets import Prompt
from upslope.language.experience import Experience
from upslope.language.generation import Backend, Completions
from upslope.language.models import device_of
from upslope.seeding import generator

if TYPE_CHECKING:
    from upslope.language.grpo import GRPO


@dataclass(frozen=True)
class Scored:
    """Completions of some prompts with their rewards; one row of `scores` each."""

    prompts: list[Prompt]
    """One for each completion."""
    completions: Completions
    texts: list[Any]
    scores: Tensor
    """[N, functions]"""
    metrics: Tensor
    """[N, metric functions]"""
    reward: Tensor
    """[N]"""


def sample(
    trainer: GRPO,
    prompts: Sequence[Prompt],
    draws: torch.Generator,
    *,
    group: int,
    backend: Backend,
) -> Scored:
    """Sample `group` completions of each prompt and score them."""
    made = backend([prompt.ids for prompt in prompts], group, draws)
    return scored(trainer, [prompt for prompt in prompts for _ in range(group)], made)


def scored(trainer: GRPO, each: list[Prompt], made: Completions) -> Scored:
    """Return completions with what the reward functions say; each gets its own row's columns."""
    lists = made.lists()
    texts: list[Any] = trainer.tokenizer.batch_decode(lists, skip_special_tokens=True)
    given = [prompt.row["prompt"] for prompt in each]
    texts = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(texts, given, strict=True)
    ]
    names = set().union(*(prompt.row for prompt in each)) - {"prompt"}
    columns: dict[str, list[Any]] = {n: [p.row.get(n) for p in each] for n in sorted(names)}
    columns |= {"completion_ids": lists, "completion_lengths": [len(ids) for ids in lists]}
    scores = rewards.score(trainer.reward_funcs, given, texts, columns)
    metrics = rewards.score(trainer.metric_funcs, given, texts, columns)
    return Scored(each, made, texts, scores, metrics, rewards.total(scores, trainer.weights, given))


def live_groups(reward: Tensor, group: int) -> Tensor:
    """Return which groups have rewards that differ, [N / group]."""
    grouped = reward.view(-1, group)
    return grouped.amax(1) > grouped.amin(1)


def draw(trainer: GRPO) -> tuple[Scored, dict[str, float]]:
    """Return scored completions for a whole rollout, and means over all that were drawn for it.

    With dynamic sampling dead groups are replaced by live ones, until there are enough or the limit
    is reached; dead ones fill what is missing then.
    """
    config = trainer.config
    wanted, size = config.prompts_per_rollout, config.num_generations
    kept: list[Scored] = []
    spare: list[Scored] = []
    drawn = dead = 0
    reward = 0.0
    for attempt in range(config.dynamic_sampling_limit if config.dynamic_sampling else 1):
        index = trainer.order.take(trainer.drawn, wanted)
        trainer.drawn += wanted
        draws = generator(
            config.seed, "completions", trainer.rollouts, attempt, device=device_of(trainer.model)
        )
        prompts = [trainer.prompts[k] for k in index]
        found = sample(trainer, prompts, draws, group=size, backend=trainer.backend)
        live = live_groups(found.reward, size)
        drawn, dead = drawn + wanted, dead + int((~live).sum())
        reward += float(found.reward.mean()) * wanted
        kept += groups(found, live.nonzero()[:, 0].tolist(), size)
        spare += groups(found, (~live).nonzero()[:, 0].tolist(), size)
        if len(kept) >= wanted:
            break
    if config.dynamic_sampling:
        found = joined((kept + spare)[:wanted])
    told = {"reward": reward / drawn, "dead_group_fraction": dead / drawn, "groups_drawn": drawn}
    return found, told


def groups(found: Scored, which: Sequence[int], size: int) -> list[Scored]:
    """Return some groups of scored completions, one by one."""
    return [part(found, slice(k * size, (k + 1) * size)) for k in which]


def part(found: Scored, rows: slice) -> Scored:
    """Return a slice of scored completions."""
    made = found.completions
    return Scored(
        found.prompts[rows],
        Completions(made.ids[rows], made.length[rows], made.ended[rows], made.log_prob[rows]),
        found.texts[rows],
        found.scores[rows],
        found.metrics[rows],
        found.reward[rows],
    )


def joined(parts: Sequence[Scored]) -> Scored:
    """Return several as one, as wide as the widest."""
    width = max(part.completions.ids.shape[1] for part in parts)
    made = [widened(part.completions, width) for part in parts]
    return Scored(
        [prompt for part in parts for prompt in part.prompts],
        Completions(*(torch.cat([getattr(m, name) for m in made]) for name in vars(made[0]))),
        [text for part in parts for text in part.texts],
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("scores", "metrics", "reward")
        ),
    )


def widened(made: Completions, width: int) -> Completions:
    """Return completions with columns of nothing up to a width."""
    more = (0, width - made.ids.shape[1])
    return Completions(pad(made.ids, more), made.length, made.ended, pad(made.log_prob, more))


# ---------------------------------------------------------------- what is told of it
def summary(trainer: GRPO, found: Scored) -> dict[str, float]:
    """Return means over scored completions."""
    made = found.completions
    told = {
        "reward": float(found.reward.mean()),
        "reward_std": float(found.reward.std()) if len(found.reward) > 1 else 0.0,
        "completion_length": float(made.length.float().mean()),
        "truncated_fraction": 1 - float(made.ended.float().mean()),
    }
    for prefix, functions, values in (
        ("reward", trainer.reward_funcs, found.scores),
        ("metric", trainer.metric_funcs, found.metrics),
    ):
        for k, name in enumerate(rewards.names_of(functions)):
            told[f"{prefix}/{name}"] = float(values[:, k].nanmean())
    return told


SHOWN = ("step", "prompt", "completion", "reward", "advantage")
"""What a completion is shown with, beside the rewards of each function."""


def shown(trainer: GRPO, found: Scored, made: Experience) -> list[dict[str, Any]]:
    """Return a few completions for people: prompt, completion, rewards, advantage."""
    names = rewards.names_of(trainer.reward_funcs)
    names = [f"reward/{name}" if name in SHOWN else name for name in names]
    rows = []
    for k in range(min(trainer.config.num_completions_to_print, len(found.texts))):
        scores = [None if math.isnan(x) else x for x in found.scores[k].tolist()]
        rows.append(
            {
                "prompt": found.prompts[k].row["prompt"],
                "completion": found.texts[k],
                **dict(zip(names, scores, strict=True)),
                "reward": float(found.reward[k]),
                "advantage": float(made.advantage[k]),
            }
        )
    return rows
