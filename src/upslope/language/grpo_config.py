"""What GRPO can be told, and the sizes that follow from it.

rollout     N = per_device_train_batch_size * steps_per_generation completions, in groups of G
update      per_device_train_batch_size * gradient_accumulation_steps of them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upslope.errors import ConfigError
from upslope.language.config import TrainingConfig
from upslope.losses.group import KL_TYPES, LEVELS, LOSS_TYPES


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(TrainingConfig):
    """The settings of GRPO."""

    loss_type: str = "dapo"
    """grpo, bnpo, dr_grpo, dapo, gspo, cispo or rloo."""
    num_generations: int = 8
    """G, completions of a prompt; more make the baseline better and take longer to sample."""
    beta: float = 0.0
    """Weight of the KL to the reference; 0 needs no reference, larger stays closer to it."""
    kl: str = "unbiased"
    """What beta weighs: unbiased, k1, k2, k3 or sequence; rloo has it in the reward instead."""
    epsilon: float = 0.2
    """How far c may fall below 1, and rise above it, before its incentive ends."""
    epsilon_high: float | None = None
    """How far c may rise, if not as far as it may fall (clip-higher); in cispo its cap, 5."""
    importance_sampling_level: str = "token"
    """token or sequence: what c is the ratio of."""
    scale_rewards: str | None = None
    """Divide advantages by the std of the group, of the batch, or none; None: as the loss type."""
    num_iterations: int = 1
    """Passes over a rollout; more reuse data further from the policy that sampled it."""
    per_device_train_batch_size: int = 8
    """Completions in a micro-batch."""
    steps_per_generation: int | None = None
    """Micro-batches in a rollout; None: gradient_accumulation_steps, one update per pass."""
    max_completion_length: int = 256
    """Tokens after which a completion is cut off."""
    temperature: float = 1.0
    """What logits are divided by, in sampling and in the loss; larger explores more."""
    top_p: float = 1.0
    """Takes 1 in training: the ratio is that of the whole distribution."""
    top_k: int = 0
    """Takes 0, likewise."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut off out of the loss (overlong masking)."""
    dynamic_sampling: bool = False
    """Draw further prompts until no group of the rollout has rewards that are all equal."""
    dynamic_sampling_limit: int = 10
    """Rounds of it, after which groups without a gradient fill the rollout."""
    eval_temperature: float | None = None
    """Temperature of evaluation: 0 is greedy; None is that of training."""
    log_completions: bool = False
    """Show a few completions with their rewards at each logged step."""
    num_completions_to_print: int = 4
    """How many of them are shown, and written."""

    # -- what follows --------------------------------------------------------------------------

    @property
    def parts_per_rollout(self) -> int:
        """Micro-batches in one pass over a rollout."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def completions_per_rollout(self) -> int:
        """N, completions in a rollout."""
        return self.per_device_train_batch_size * self.parts_per_rollout

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts in a rollout, each with a group of completions."""
        return self.completions_per_rollout // self.num_generations

    @property
    def updates_per_pass(self) -> int:
        """Optimiser steps in one pass over a rollout."""
        return self.parts_per_rollout // self.gradient_accumulation_steps

    @property
    def updates_per_rollout(self) -> int:
        """Optimiser steps on one rollout."""
        return self.updates_per_pass * self.num_iterations

    @property
    def needs_reference(self) -> bool:
        """Whether a divergence is weighed."""
        return self.beta > 0

    @property
    def penalizes_reward(self) -> bool:
        """Whether the divergence is in the reward, not in the loss."""
        return self.loss_type == "rloo" and self.beta > 0

    @property
    def advantage_scale(self) -> str:
        """What advantages are divided by the standard deviation of."""
        plain = self.loss_type in ("dr_grpo", "rloo")
        return self.scale_rewards or ("none" if plain else "group")

    @property
    def advantage_baseline(self) -> str:
        """What is taken from a reward: the mean of its group, or of the others in it."""
        return "leave_one_out" if self.loss_type == "rloo" else "mean"

    def check(self) -> None:
        """Raise ConfigError for settings that contradict each other."""
        if self.top_p != 1 or self.top_k != 0:
            raise ConfigError(
                f"top_p={self.top_p:g}, top_k={self.top_k}: training takes 1 and 0, since the "
                "ratio to the sampling policy is that of the whole distribution"
            )
        if self.completions_per_rollout % self.num_generations:
            raise ConfigError(
                f"a rollout is {self.completions_per_rollout} completions "
                "(per_device_train_batch_size times steps_per_generation), which is no multiple of "
                f"num_generations={self.num_generations}"
            )
        if self.parts_per_rollout % self.gradient_accumulation_steps:
            raise ConfigError(
                f"steps_per_generation={self.parts_per_rollout} is no multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}"
            )


LEAST: dict[str, float] = {
    "num_generations": 2,
    "num_iterations": 1,
    "steps_per_generation": 1,
    "max_completion_length": 1,
    "temperature": 1e-6,
    "dynamic_sampling_limit": 1,
    "beta": 0,
    "eval_temperature": 0,
    "num_completions_to_print": 0,
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "loss_type": LOSS_TYPES,
    "kl": KL_TYPES,
    "importance_sampling_level": LEVELS,
    "scale_rewards": (None, "group", "batch", "none"),
}
