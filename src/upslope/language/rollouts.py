"""Experience of an online method: groups of completions, their rewards and their advantages.

    y_1, ..., y_G ~ π_old(. | x)
    r_i = Σ_k w_k r_k(x, y_i),    A_i the advantage of r_i in its group

A group whose rewards are all equal has advantages of exactly 0 and teaches nothing: its share is
counted, and `dynamic_sampling` draws further prompts in its place (Yu et al. 2025, DAPO,
arXiv:2503.14476, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from upslope.checkpoint import TensorSpec
from upslope.language import rewards
from upslope.language.datasets import Prompt
from upslope.language.generation import Backend, Completions
from upslope.language.grpo_config import GRPOConfig
from upslope.language.logprobs import token_log_probs
from upslope.language.models import device_of
from upslope.language.sequences import Sequences, right_padded
from upslope.losses.group import penalized_reward
from upslope.returns import group_advantage
from upslope.seeding import generator

if TYPE_CHECKING:
    from upslope.language.grpo import GRPO


@dataclass(frozen=True)
class Experience:
    """N completions after their prompts, prompt-major, and what an update needs of them."""

    sequences: Sequences
    mask: Tensor
    """[N, L], the tokens that count in the loss."""
    advantage: Tensor
    """[N]"""
    sampled_log_prob: Tensor
    """[N, L], as the sampler had it."""
    old_log_prob: Tensor | None
    """[N, L], of the policy that sampled; None where it is the policy itself."""
    reference_log_prob: Tensor | None
    """[N, L], None without a divergence."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name."""
        found = {
            "ids": self.sequences.ids,
            "prompt_length": self.sequences.prompt_length,
            "length": self.sequences.length,
            "mask": self.mask,
            "advantage": self.advantage,
            "sampled_log_prob": self.sampled_log_prob,
            "old_log_prob": self.old_log_prob,
            "reference_log_prob": self.reference_log_prob,
        }
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @staticmethod
    def shapes(config: GRPOConfig) -> dict[str, TensorSpec]:
        """Return the shapes of `tensors`."""
        n = config.completions_per_rollout
        whole, real = torch.int64, torch.float32
        found = {
            "ids": TensorSpec((n, None), whole),
            "prompt_length": TensorSpec((n,), whole),
            "length": TensorSpec((n,), whole),
            "mask": TensorSpec((n, None), torch.bool),
            "advantage": TensorSpec((n,), real),
            "sampled_log_prob": TensorSpec((n, None), real),
        }
        if config.updates_per_rollout > 1 or config.penalizes_reward:
            found["old_log_prob"] = TensorSpec((n, None), real)
        if config.beta > 0:
            found["reference_log_prob"] = TensorSpec((n, None), real)
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Experience:
        """Return what `tensors` gave."""
        return cls(
            Sequences(tensors["ids"], tensors["prompt_length"], tensors["length"]),
            tensors["mask"],
            tensors["advantage"],
            tensors["sampled_log_prob"],
            tensors.get("old_log_prob"),
            tensors.get("reference_log_prob"),
        )

    def take(self, rows: Tensor) -> Experience:
        """Return some rows, without the columns that are padding in all of them."""
        sequences = self.sequences.take(rows)
        width = sequences.ids.shape[1]

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows, :width]

        return Experience(
            sequences,
            self.mask[rows, :width],
            self.advantage[rows],
            self.sampled_log_prob[rows, :width],
            part(self.old_log_prob),
            part(self.reference_log_prob),
        )


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
    """Return several as one."""
    made = [part.completions for part in parts]
    return Scored(
        [prompt for part in parts for prompt in part.prompts],
        Completions(*(torch.cat([getattr(m, name) for m in made]) for name in vars(made[0]))),
        [text for part in parts for text in part.texts],
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("scores", "metrics", "reward")
        ),
    )


def experience(trainer: GRPO, found: Scored) -> Experience:
    """Return what the update needs of scored completions."""
    config, made = trainer.config, found.completions
    device = device_of(trainer.model)
    sequences = right_padded([p.ids for p in found.prompts], made.lists(), device)
    mask = selected = sequences.selected
    if config.mask_truncated_completions:
        mask = mask & made.ended[:, None]
    sampled = torch.zeros(mask.shape, device=device)
    inside = torch.arange(made.ids.shape[1], device=device) < made.length[:, None]
    sampled[selected] = made.log_prob[inside]
    old = reference = None
    if config.updates_per_rollout > 1 or config.penalizes_reward:
        old = log_probs(trainer, sequences, trainer.model)
    if trainer.reference is not None:
        with trainer.reference.use() as model:
            reference = log_probs(trainer, sequences, model)
    reward = found.reward.to(device)
    if config.penalizes_reward and old is not None and reference is not None:
        reward = penalized_reward(reward, old, reference, selected, config.beta)
    advantage = group_advantage(
        reward,
        config.num_generations,
        scale=config.advantage_scale,
        baseline=config.advantage_baseline,
    )
    return Experience(sequences, mask, advantage, sampled, old, reference)


@torch.no_grad()
def log_probs(trainer: GRPO, sequences: Sequences, model: Any) -> Tensor:
    """Return the log-probabilities [N, L] of completions, computed a micro-batch at a time."""
    found = torch.zeros(sequences.ids.shape, device=sequences.ids.device)
    rows = torch.arange(len(found), device=found.device)
    for index in rows.split(trainer.config.per_device_train_batch_size):
        few = sequences.take(index)
        log_prob = token_log_probs(
            model, few.ids, few.mask, few.selected, temperature=trainer.config.temperature
        ).log_prob
        found[index, : few.ids.shape[1]] = log_prob.float()
    return found


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
        for k, function in enumerate(functions):
            told[f"{prefix}/{rewards.name_of(function)}"] = float(values[:, k].nanmean())
    return told


def shown(trainer: GRPO, found: Scored, made: Experience) -> list[dict[str, Any]]:
    """Return a few completions for people: prompt, completion, rewards, advantage."""
    names = [rewards.name_of(function) for function in trainer.reward_funcs]
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
