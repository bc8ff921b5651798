"""Group relative policy optimisation, and the methods related to it.

    y_1, ..., y_G ~ π_old(. | x),    A_i = (r_i - mean r) / (std r + 1e-4)    over the group
    c_it = π(y_it | x, y_i<t) / π_old(y_it | x, y_i<t)
    L    = -E[min(c_it A_i, clip(c_it, 1 - ε, 1 + ε_high) A_i)] + β KL(π || π_ref)

x a prompt, y_i one of G completions, r_i its reward. How the mean runs over tokens and completions,
whether c is of a token or of a completion, and whether it is clipped is the loss type's:
`upslope.losses.grpo_loss`. One rollout is used for `num_iterations` passes.

Shao et al. 2024, arXiv:2402.03300, equations 3 and 4. The other loss types' papers stand with the
loss.
Departures from the paper: β is 0 by default; the default loss type is DAPO's, where every token
counts alike; dropout is off; the KL's gradient is that of KL(π || π_ref), where the paper's is that
of KL(π_ref || π).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.language import rewards, rollouts
from upslope.language.datasets import Order, Prompt, columns_fingerprint, fingerprint, prompts_of
from upslope.language.experience import Experience, experience
from upslope.language.generation import Backend, Sampler, end_tokens, reserved_cache
from upslope.language.grpo_config import CHOICES, LEAST, GRPOConfig
from upslope.language.models import device_of
from upslope.language.optimization import MicroBatch
from upslope.language.prefix import completion_log_probs
from upslope.language.saving import as_meta
from upslope.language.trainer import Trainer, ordered
from upslope.losses.divergence import kl_estimate
from upslope.losses.group import PER_TOKEN, grpo_loss, log_ratio_of, past_clip
from upslope.seeding import generator

HEADLINE = (
    "reward",
    "kl",
    "entropy",
    "clip_fraction",
    "dead_group_fraction",
    "completion_length",
    "grad_norm",
    "signal_to_noise",
)


class GRPO(Trainer[GRPOConfig]):
    """Online training: `us.GRPO(model, reward_funcs=[f], tokenizer=t, train_dataset=d).train()`.

    `model` is a causal language model of transformers, in memory. A reward function is called as
    `f(prompts=..., completions=..., **columns)` and returns numbers (`upslope.language.rewards`);
    `reward_weights` weigh them, `metric_funcs` are logged and teach nothing. `train_dataset` has
    the column prompt, and what reward functions ask for. `peft_config` adds an adapter, which alone
    is trained; the reference is then the model with it switched off. `backend` samples in place of
    the model itself. Further keyword arguments are the fields of `GRPOConfig`.

    Raises ArgumentError for what it cannot take, rows by their number; RewardFault while training
    for a reward function that fails, NotFiniteError for a loss that is not finite.
    """

    config_class = GRPOConfig
    least = LEAST
    choices = CHOICES
    headline = HEADLINE
    best_metric, best_sign = "eval_reward", 1

    def __init__(
        self,
        model: Any,
        reward_funcs: rewards.RewardFunction | Sequence[rewards.RewardFunction],
        *,
        tokenizer: Any,
        train_dataset: Any,
        eval_dataset: Any = None,
        reference_model: Any = None,
        reward_weights: Sequence[float] | None = None,
        metric_funcs: Sequence[rewards.RewardFunction] = (),
        peft_config: Any = None,
        backend: Backend | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            model,
            tokenizer=tokenizer,
            reference_model=reference_model,
            peft_config=peft_config,
            settings=settings,
        )
        config = self.config
        self.reward_funcs = rewards.listed(reward_funcs, "reward_funcs")
        self.metric_funcs = rewards.listed(metric_funcs, "metric_funcs")
        self.weights = [1.0] * len(self.reward_funcs) if reward_weights is None else reward_weights
        self.own_backend = backend
        self.check(reference_model)
        longest = self.longest(config.max_completion_length)
        self.prompts: list[Prompt] = prompts_of(train_dataset, tokenizer, longest)
        self.eval_prompts: list[Prompt] = []
        if eval_dataset is not None:
            self.eval_prompts = prompts_of(eval_dataset, tokenizer, longest, "eval_dataset")
        for found, name in ((self.prompts, "train_dataset"), (self.eval_prompts, "eval_dataset")):
            rewards.check_columns([prompt.row for prompt in found], name)
        self.order = Order(len(self.prompts), config.seed)
        self.experience: Experience | None = None
        self.told: dict[str, float] = {}
        self.used = 0  # updates on the rollout at hand
        self.rollouts = 0
        rollouts_per_epoch = len(self.prompts) / config.prompts_per_rollout
        self.has_evaluation = bool(self.eval_prompts)
        self.start(
            rollouts_per_epoch * config.updates_per_rollout,
            data=fingerprint(self.prompts),
            eval_data=fingerprint(self.eval_prompts),
            columns=columns_fingerprint(self.prompts + self.eval_prompts),
            reward_weights=[float(weight) for weight in self.weights],
        )

    def check(self, reference_model: Any) -> None:
        """Raise ArgumentError for arguments that contradict each other."""
        self.config.check()
        if not self.reward_funcs:
            raise ArgumentError("reward_funcs takes at least one function")
        rewards.check_weights(self.weights, len(self.reward_funcs))
        if reference_model is not None and not self.needs_reference:
            raise ArgumentError("reference_model is read only where beta is above 0")
        if self.own_backend is None:
            reserved_cache(self.model, 1)  # says whether the sampler can take this model

    @property
    def needs_reference(self) -> bool:
        """Whether a divergence is weighed."""
        return self.config.beta > 0

    @property
    def shows_sample(self) -> bool:
        """Whether completions are shown."""
        return self.config.log_completions

    # -- the loss ------------------------------------------------------------------------------

    def loss(self, made: Experience, items: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the part that some completions have in an update's loss, and sums over tokens.

        `items` is what the loss type counts in the whole update: tokens, or completions.
        """
        config, sequences = self.config, made.sequences
        selected = sequences.selected
        log_prob, entropy = completion_log_probs(
            self.model, sequences, temperature=config.temperature, entropy=True
        )
        old = log_prob.detach() if made.old_log_prob is None else made.old_log_prob
        loss = grpo_loss(
            log_prob,
            old,
            made.advantage,
            made.mask,
            loss_type=config.loss_type,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            beta=0.0 if config.penalizes_reward else config.beta,
            reference_log_prob=made.reference_log_prob,
            kl=config.kl,
            importance_sampling_level=config.importance_sampling_level,
            max_completion_length=config.max_completion_length,
            num_items=items,
        )
        now, level = log_prob.detach(), config.importance_sampling_level
        ratio = log_ratio_of((now - old) * made.mask, made.mask, config.loss_type, level)
        past = past_clip(
            ratio, made.advantage, config.loss_type, config.epsilon, config.epsilon_high
        )
        sums = {
            "tokens": selected.sum(),
            "entropy": cast(Tensor, entropy).sum(),
            "clip_fraction": (past & made.mask).sum(),
            "sampling_gap": (now - made.sampled_log_prob).abs().sum(),
        }
        if made.reference_log_prob is not None:
            sums["kl"] = kl_estimate(now, made.reference_log_prob, "k3").sum()
        return loss, sums

    # -- the update ----------------------------------------------------------------------------

    def update(self) -> dict[str, float]:
        """Take one step on completions at hand, sampled anew when they are used up."""
        if self.experience is None:
            self.collect()
        made = self.experience
        assert made is not None
        parts = self.parts()
        rows = torch.cat(parts)
        counts = made.mask[rows].sum() if self.config.loss_type in PER_TOKEN else len(rows)
        seen: list[dict[str, Tensor]] = []

        def part(index: Tensor) -> MicroBatch:
            def loss() -> Tensor:
                value, sums = self.loss(made.take(index), int(counts))
                seen.append(sums)
                return value

            return MicroBatch(len(index), loss)

        taken = self.optimization.step([part(index) for index in parts], self.step)
        if any(len(index) % self.config.num_generations for index in parts):
            taken["signal_to_noise"] = math.nan  # parts of a group are not independent
        sums = {name: float(sum(s[name] for s in seen)) for name in seen[0]}
        tokens = max(sums.pop("tokens"), 1.0)
        metrics = self.told | {name: x / tokens for name, x in sums.items()} | taken
        if self.used > 0:
            del metrics["sampling_gap"]  # the policy is no longer the one that sampled
        self.used += 1
        if self.used == self.config.updates_per_rollout:
            self.experience, self.used = None, 0
        return ordered(self.headline, metrics)

    def parts(self) -> list[Tensor]:
        """Return the rows of each micro-batch of this update.

        Where a pass is several updates, groups are shuffled before each pass. One micro-batch of
        several groups is taken as two, whose difference tells the noise of their sum.
        """
        config = self.config
        passes, place = divmod(self.used, config.updates_per_pass)
        size, group = config.per_device_train_batch_size, config.num_generations
        rows = torch.arange(config.completions_per_rollout)
        if config.updates_per_pass > 1:
            draws = generator(config.seed, "minibatches", self.rollouts, passes)
            order = torch.randperm(config.prompts_per_rollout, generator=draws)
            rows = rows.view(-1, group)[order].flatten()
        count = config.gradient_accumulation_steps
        parts = list(rows.split(size)[place * count : (place + 1) * count])
        if len(parts) == 1 and size >= 2 * group and size % group == 0:
            parts = list(parts[0].split(math.ceil(size / group / 2) * group))
        return [part.to(device_of(self.model)) for part in parts]

    def collect(self) -> None:
        """Sample a rollout with the policy as it is now, and say what came of it."""
        found, self.told = rollouts.draw(self)
        self.rollouts += 1
        self.experience = experience(self, found)
        self.told = rollouts.summary(self, found) | self.told
        self.sample = rollouts.shown(self, found, self.experience)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the rewards of one completion of each held-out prompt."""
        config, size = self.config, self.config.per_device_eval_batch_size
        backend = self.backend
        if self.own_backend is None and config.eval_temperature is not None:
            backend = self.sampler(config.eval_temperature)
        found = []
        for k in range(0, len(self.eval_prompts), size):
            draws = generator(config.seed, "evaluation", self.step, k, device=device_of(self.model))
            few = self.eval_prompts[k : k + size]
            found.append(rollouts.sample(self, few, draws, group=1, backend=backend))
        told = rollouts.summary(self, rollouts.joined(found))
        return {f"eval_{name}": x for name, x in told.items()}

    @property
    def backend(self) -> Backend:
        """What completions are sampled with."""
        return self.own_backend or self.sampler(self.config.temperature)

    def sampler(self, temperature: float) -> Sampler:
        """Return a sampler from the policy."""
        return Sampler(
            model=self.model,
            end_ids=end_tokens(self.model, self.tokenizer),
            max_tokens=self.config.max_completion_length,
            temperature=temperature,
            bf16=self.config.bf16,
        )

    # -- what is saved -------------------------------------------------------------------------

    def own_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the rollout that is not used up, and how far it is."""
        numbers = {"used": self.used, "rollouts": self.rollouts, "told": as_meta(self.told)}
        return {} if self.experience is None else self.experience.tensors(), numbers

    def expected(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shapes of the rollout that a saved state with these numbers has."""
        return Experience.shapes(self.config) if numbers.get("used") else {}

    def load_own_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take up a rollout that is not used up."""
        device = device_of(self.model)
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.experience = Experience.of(here) if here else None
        self.used, self.rollouts = numbers["used"], numbers["rollouts"]
        self.told = dict(numbers["told"])
