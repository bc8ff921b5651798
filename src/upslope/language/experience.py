"""What an update needs of a rollout: tokens, which count, advantages, log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from upslope.checkpoint import TensorSpec
from upslope.language.grpo_config import GRPOConfig
from upslope.language.models import device_of
from upslope.language.prefix import completion_log_probs
from upslope.language.sequences import Sequences, right_padded
from upslope.losses.group import penalized_reward
from upslope.returns import group_advantage

if TYPE_CHECKING:
    from upslope.language.grpo import GRPO
    from upslope.language.rollouts import Scored


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


def experience(trainer: GRPO, found: Scored) -> Experience:
    """Return what the update needs of scored completions."""
    config, made = trainer.config, found.completions
    device = device_of(trainer.model)
    sequences = right_padded([p.ids for p in found.prompts], made.lists(), device)
    mask = selected = sequences.selected
    if config.mask_truncated_completions:
        mask = mask & made.ended.to(device)[:, None]
    sampled = torch.zeros(mask.shape, device=device)
    inside = torch.arange(made.ids.shape[1]) < made.length.cpu()[:, None]
    sampled[selected] = made.log_prob[inside.to(made.log_prob.device)].to(device)
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
        log_prob = completion_log_probs(model, few, temperature=trainer.config.temperature).log_prob
        found[index, : few.ids.shape[1]] = log_prob.float()
    return found
