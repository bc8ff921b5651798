"""The losses are TRL's, and so is the gradient of every parameter, on a tiny Llama and GPT-2.

TRL's own trainers compute the loss, from batches made here: prompts of one length, so that no row
is padded on the left, and completions of several. In single precision a gradient is held to 1e-6
plus 1e-5 of its tensor's largest element: what cancels is rounded as what it is the sum of.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from upslope.losses import dpo_loss, grpo_loss
from upslope.losses.group import penalized_reward
from upslope.returns import group_advantage

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("trl")
pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("default"),  # what TRL and transformers warn of is theirs
]

PROMPT, LENGTH, ROWS = 3, 5, 8
MODEL_NAMES = ("llama", "gpt2")
TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}


def per_token(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Return ln π of the tokens after the prompt, [n, L]: a plain forward pass."""
    log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None])[..., 0][:, PROMPT - 1 :]


def same(model: torch.nn.Module, ours: Tensor, theirs: Tensor, moved: bool = False) -> None:
    """Hold the loss and the gradient of every parameter to TRL's; `moved` may all be clipped."""
    torch.testing.assert_close(ours.detach(), theirs.detach(), **TOLERANCE)
    parameters = dict(model.named_parameters())
    found, expected = (
        torch.autograd.grad(x, list(parameters.values()), retain_graph=True) for x in (ours, theirs)
    )
    for name, mine, other in zip(parameters, found, expected, strict=True):
        bound = TOLERANCE["atol"] + TOLERANCE["rtol"] * other.abs().max()
        assert (mine - other).abs().max() <= bound, name
    assert moved or max(g.abs().max() for g in expected) > 1e-4  # there is something to compare


def rewards_of_lengths(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def make_trainer(kind: str, model_name: str, folder: Path) -> Any:
    """Return one of TRL's trainers, which never trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset, disable_progress_bars
        from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

        from tests.language.tiny_models import MODELS, tokenizer

        disable_progress_bars()
        common = {
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "per_device_train_batch_size": ROWS,
        }
        model = MODELS[model_name]()
        if kind == "dpo":
            rows = [{"prompt": "a b c", "chosen": " d", "rejected": " e"}] * ROWS
            trainer = DPOTrainer(
                model=model,
                ref_model=MODELS[model_name](seed=1),
                args=DPOConfig(**common),
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer(),
            )
        else:
            config, cls = {"grpo": (GRPOConfig, GRPOTrainer), "rloo": (RLOOConfig, RLOOTrainer)}[
                kind
            ]
            trainer = cls(
                model=model,
                reward_funcs=rewards_of_lengths,
                args=config(**common, beta=0.0, num_generations=4, max_completion_length=LENGTH),
                train_dataset=Dataset.from_list([{"prompt": "a b c"}] * ROWS),
                processing_class=tokenizer(),
            )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


@pytest.fixture(scope="module", params=MODEL_NAMES)
def dpo(request, tmp_path_factory):
    return make_trainer("dpo", request.param, tmp_path_factory.mktemp("dpo"))


@pytest.fixture(scope="module", params=MODEL_NAMES)
def grpo(request, tmp_path_factory):
    return make_trainer("grpo", request.param, tmp_path_factory.mktemp("grpo"))


@pytest.fixture(scope="module", params=MODEL_NAMES)
def rloo(request, tmp_path_factory):
    return make_trainer("rloo", request.param, tmp_path_factory.mktemp("rloo"))


def tokens(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return prompts with completions [n, 3 + L], and which tokens of those count [n, L]."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 16, (rows, PROMPT + LENGTH), generator=generator)
    length = torch.randint(1, LENGTH + 1, (rows,), generator=generator)
    return ids, torch.arange(LENGTH) < length[:, None]


# ---------------------------------------------------------------- preferences
@pytest.mark.parametrize(
    ("loss_type", "smoothing"),
    [
        ("sigmoid", 0.0),
        ("robust", 0.0),
        ("robust", 0.2),
        ("hinge", 0.0),
        ("ipo", 0.0),
        ("sigmoid_norm", 0.0),
        ("apo_zero", 0.0),
        ("sppo_hard", 0.0),
        ("bco_pair", 0.0),
    ],
)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo(dpo, loss_type, smoothing, beta):
    dpo.beta, dpo.loss_types, dpo.label_smoothing = beta, [loss_type], smoothing
    ids, mask = tokens(2 * ROWS, seed=int(100 * beta))
    seen = torch.cat([torch.ones(2 * ROWS, PROMPT, dtype=torch.bool), mask], 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": seen.long(),
        "completion_mask": torch.cat([torch.zeros(2 * ROWS, PROMPT).long(), mask.long()], 1),
    }
    theirs = dpo._compute_loss(dpo.model, inputs, return_outputs=False)

    policy = (per_token(dpo.model, ids) * mask).sum(1).chunk(2)
    with torch.no_grad():
        reference = (per_token(dpo.ref_model, ids) * mask).sum(1).chunk(2)
    chosen_length, rejected_length = mask.sum(1).chunk(2)
    ours = dpo_loss(
        *policy,
        *reference,
        beta=beta,
        loss_type=loss_type,
        label_smoothing=smoothing,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
    ).mean()
    same(dpo.model, ours, theirs)


def test_simpo():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.cpo import CPOTrainer
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (-torch.rand(ROWS, generator=generator).mul(9) for _ in range(2))
    n, m = (torch.randint(1, 9, (ROWS,), generator=generator) for _ in range(2))
    settings = SimpleNamespace(
        alpha=0.0,
        beta=2.0,
        loss_type="simpo",
        simpo_gamma=0.7,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    theirs = CPOTrainer.cpo_loss(settings, chosen / n, rejected / m)[0]
    ours = dpo_loss(
        chosen,
        rejected,
        None,
        None,
        beta=2.0,
        loss_type="simpo",
        gamma=0.7,
        chosen_length=n,
        rejected_length=m,
    )
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


# ---------------------------------------------------------------- groups
def group_batch(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Return a batch of TRL's GRPO: advantages of two groups, and a reference that is not old."""
    ids, mask = tokens(ROWS, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    reward = torch.randn(ROWS, generator=generator)
    with torch.no_grad():
        old = per_token(model, ids)
    return {
        "prompt_ids": ids[:, :PROMPT],
        "prompt_mask": torch.ones(ROWS, PROMPT).long(),
        "completion_ids": ids[:, PROMPT:],
        "completion_mask": mask.long(),
        "advantages": group_advantage(reward, 4),
        "old_per_token_logps": old,
        "ref_per_token_logps": old + 0.3 * torch.randn(ROWS, LENGTH, generator=generator),
        "num_items_in_batch": mask.sum(),
    }


def configure(trainer: Any, loss_type: str, level: str, beta: float, high: float) -> None:
    trainer.loss_type, trainer.importance_sampling_level = loss_type, level
    trainer.beta, trainer.epsilon_low, trainer.epsilon_high = beta, 0.2, high
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1


def ours_of(model: torch.nn.Module, batch: dict[str, Tensor], **options: object) -> Tensor:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    return grpo_loss(
        per_token(model, ids),
        batch["old_per_token_logps"],
        batch["advantages"],
        batch["completion_mask"].bool(),
        reference_log_prob=batch["ref_per_token_logps"],
        max_completion_length=LENGTH,
        **options,
    )


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("beta", "kl"), [(0.0, "unbiased"), (0.2, "unbiased"), (0.2, "k3")])
def test_grpo_over_several_inner_steps(grpo, loss_type, level, beta, kl):
    """Each of three steps moves the policy away from the one that sampled."""
    high = 1.1 if loss_type == "cispo" else 0.28
    configure(grpo, loss_type, level, beta, high)
    grpo.args.use_bias_correction_kl = kl == "unbiased"
    before = {k: v.clone() for k, v in grpo.model.state_dict().items()}
    batch = group_batch(grpo.model, seed=7)
    optimizer = torch.optim.SGD(grpo.model.parameters(), lr=0.1)
    options = {"epsilon_high": high, "beta": beta, "kl": kl, "importance_sampling_level": level}
    try:
        for step in range(3):
            theirs = grpo._compute_loss(grpo.model, batch)
            ours = ours_of(grpo.model, batch, loss_type=loss_type, **options)
            same(grpo.model, ours, theirs, moved=step > 0)
            optimizer.zero_grad()
            ours.backward()
            optimizer.step()
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        moved = (per_token(grpo.model, ids) - batch["old_per_token_logps"]).abs().max()
        assert moved > 0.3  # beyond the clip of some
    finally:
        grpo.model.load_state_dict(before)


def test_gspo_is_their_grpo_with_a_sequence_ratio(grpo):
    configure(grpo, "grpo", "sequence", 0.0, 0.2)
    batch = group_batch(grpo.model, seed=3)
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + 0.2 * torch.randn(
        ROWS, LENGTH, generator=torch.Generator().manual_seed(4)
    )
    ours = ours_of(grpo.model, batch, loss_type="gspo")
    same(grpo.model, ours, grpo._compute_loss(grpo.model, batch))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
def test_accumulated_over_two_micro_batches(grpo, loss_type):
    """Theirs with accumulation equals ours of the whole, except bnpo, on purpose: theirs divides by

    the tokens of each micro-batch, so that it changes with how the batch is cut.
    """
    configure(grpo, loss_type, "token", 0.0, 0.2)
    batch = group_batch(grpo.model, seed=11)
    whole = ours_of(grpo.model, batch, loss_type=loss_type, epsilon_high=0.2)
    grpo.current_gradient_accumulation_steps = grpo.args.steps_per_generation = 2
    parts, mine = [], []
    items = int(batch["completion_mask"].sum()) if loss_type in ("bnpo", "dapo", "cispo") else ROWS
    for rows in (slice(0, 4), slice(4, 8)):
        half = {k: v[rows] if v.dim() else v for k, v in batch.items()}
        parts.append(grpo._compute_loss(grpo.model, half))
        options = {"loss_type": loss_type, "epsilon_high": 0.2, "num_items": items}
        mine.append(ours_of(grpo.model, half, **options))
    same(grpo.model, sum(mine), whole)
    if loss_type == "bnpo":
        assert (sum(parts) - whole).abs() > 1e-3
    else:
        same(grpo.model, whole, sum(parts))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(grpo, scale):
    """Of rewards that they gave to completions of their own."""
    grpo.scale_rewards, seen = scale, []

    def reward(completions: list[str], **_: Any) -> list[float]:
        seen.extend(rewards_of_lengths(completions))
        return seen

    given, grpo.reward_funcs = grpo.reward_funcs, [reward]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            output = grpo._generate_and_score_completions([{"prompt": "a b c"}] * ROWS)
    finally:
        grpo.reward_funcs = given
    ours = group_advantage(torch.tensor(seen), 4, scale=scale)
    torch.testing.assert_close(ours, output["advantages"], **TOLERANCE)
    assert ours.abs().max() > 0.1


def test_rloo(rloo):
    """Its ratio is of the whole completion; its divergence is in the reward."""
    batch = group_batch(rloo.model, seed=5)
    noise = 0.1 * torch.randn(ROWS, LENGTH, generator=torch.Generator().manual_seed(6))
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + noise
    mask = batch["completion_mask"].bool()
    reward = penalized_reward(
        torch.arange(ROWS).float(),
        batch["old_per_token_logps"],
        batch["ref_per_token_logps"],
        mask,
        0.05,
    )
    divergence = (batch["old_per_token_logps"] - batch["ref_per_token_logps"]) * mask
    torch.testing.assert_close(reward, torch.arange(ROWS) - 0.05 * divergence.sum(1))
    batch["advantages"] = group_advantage(reward, 4, scale="none", baseline="leave_one_out")
    batch["old_logps"] = (batch["old_per_token_logps"] * mask).sum(1)
    theirs = rloo._compute_loss(rloo.model, batch)
    same(rloo.model, ours_of(rloo.model, batch, loss_type="rloo"), theirs)
