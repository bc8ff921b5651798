"""GRPO, as a trainer: each completion its own reward, gradients that no split changes, refusals."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

import upslope as us
from tests.language import cases, tiny
from upslope.errors import ArgumentError, NotFiniteError
from upslope.language import rewards, rollouts
from upslope.language.generation import Completions
from upslope.language.grpo import HEADLINE
from upslope.language.optimization import of_parts
from upslope.losses.group import LOSS_TYPES


def run(trainer) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    trainer.train(lambda trainer, metrics: rows.append(metrics))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.MODELS)
def test_it_learns(name):
    rows = run(cases.grpo(tiny.MODELS[name](), max_steps=25, per_device_train_batch_size=16))
    assert sum(row["reward"] for row in rows[-5:]) > 5 * rows[0]["reward"] + 5


def test_metrics_come_in_the_order_of_what_they_say():
    (row,) = run(cases.grpo(max_steps=1, beta=0.1))
    assert tuple(row)[: len(HEADLINE)] == HEADLINE
    assert list(row)[-1] == "loss"
    assert row["kl"] == pytest.approx(0, abs=1e-6)
    assert row["sampling_gap"] < 1e-5
    assert row["clip_fraction"] == 0


def counted(seen: list) -> us.GRPO:
    """A trainer whose backend copies the prompt, so that each completion is known."""

    def echo(prompts, group_size, draws) -> Completions:
        rows = [list(p)[: 1 + k] for p in prompts for k in range(group_size)]
        width = max(map(len, rows))
        return Completions(
            torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            torch.tensor([len(row) for row in rows]),
            torch.zeros(len(rows), dtype=torch.bool),
            torch.zeros(len(rows), width),
        )

    def reward(prompts, completions, chosen, **more):
        seen.extend(zip(prompts, completions, chosen, strict=True))
        return [float(len(c)) * int(a) for c, a in zip(completions, chosen, strict=True)]

    return cases.grpo(reward_funcs=reward, backend=echo, per_device_train_batch_size=16)


def test_each_completion_gets_the_reward_of_its_own_row():
    """Prompts of different lengths in one batch, in shuffled order; rewards tell them apart."""
    seen: list = []
    trainer = counted(seen)
    trainer.collect()
    made = trainer.experience
    assert made is not None
    assert len(seen) == 16
    truth = {row["prompt"]: row["chosen"] for row in cases.SUMS}
    for k, (prompt, completion, chosen) in enumerate(seen):
        assert chosen == truth[prompt]
        assert completion == prompt[: 1 + k % 4]  # prompt-major
        ids = made.sequences.ids[k, : made.sequences.length[k]]
        assert trainer.tokenizer.decode(ids) == prompt + completion
    reward = torch.tensor([len(c) * float(a) for _, c, a in seen]).view(4, 4)
    expected = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(made.advantage, expected.flatten())


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_gradient_does_not_depend_on_the_split(loss_type):
    """The same rollout in micro-batches of whole groups, of one, and of half a group."""
    rollout, found = None, []
    for size, parts in ((16, 1), (8, 2), (4, 4), (2, 8)):
        trainer = cases.grpo(
            loss_type=loss_type,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            beta=0.1,
            num_iterations=2,
            mask_truncated_completions=True,
            max_completion_length=9,
        )
        if rollout is None:
            trainer.collect()
            rollout = trainer.experience
            assert rollout is not None
            assert 0 < rollout.mask.any(1).sum() < 16
            rollout.old_log_prob.add_(0.1 * torch.randn(rollout.mask.shape))  # ratios beside 1
        trainer.experience = rollout
        found.append(cases.gradient(trainer))
    assert any((g != 0).any() for g in found[0].values())
    for other in found[1:]:
        for name in other:
            torch.testing.assert_close(other[name], found[0][name], rtol=2e-4, atol=1e-6)


def test_groups_of_equal_rewards_carry_no_gradient_and_are_counted():
    trainer = cases.grpo(reward_funcs=lambda completions: [0.1] * len(completions))
    found = cases.gradient(trainer)
    assert all((g == 0).all() for g in found.values())
    rows = run(cases.grpo(reward_funcs=lambda completions: [0.1] * len(completions), max_steps=1))
    assert rows[0]["dead_group_fraction"] == 1
    assert rows[0]["grad_norm"] == 0


def by_prompt(prompts, completions):
    """Equal within a group, unless the prompt begins with 3."""
    return [
        float(c.count("1") + len(c)) * (p[0] == "3")
        for p, c in zip(prompts, completions, strict=True)
    ]


def test_dynamic_sampling_fills_the_batch_with_live_groups():
    settings = {"reward_funcs": by_prompt, "per_device_train_batch_size": 16, "max_steps": 1}
    (plain,) = run(cases.grpo(**settings))
    trainer = cases.grpo(dynamic_sampling=True, dynamic_sampling_limit=50, **settings)
    trainer.collect()
    assert trainer.experience is not None
    assert rollouts.live_groups(trainer.experience.advantage, 4).all()
    assert trainer.told["groups_drawn"] > 4
    assert trainer.drawn == trainer.told["groups_drawn"]
    assert trainer.told["dead_group_fraction"] > 0.5
    assert plain["groups_drawn"] == 4
    few = cases.grpo(dynamic_sampling=True, dynamic_sampling_limit=2, **settings)
    few.collect()
    assert few.told["groups_drawn"] == 8
    assert few.experience is not None
    assert len(few.experience.advantage) == 16


def test_a_backend_may_return_completions_of_other_widths_at_each_call():
    sampler = cases.grpo().backend

    def narrow(prompts, group_size, draws) -> Completions:
        made = sampler(prompts, group_size, draws)
        width = int(made.length.max())
        widths.append(width)
        return Completions(made.ids[:, :width], made.length, made.ended, made.log_prob[:, :width])

    widths: list[int] = []
    settings = {"eval_dataset": cases.SUMS, "per_device_eval_batch_size": 1}
    settings |= {"dynamic_sampling": True, "reward_funcs": by_prompt}
    settings |= {"max_steps": 1, "learning_rate": 0.0}
    (found,) = run(cases.grpo(backend=narrow, **settings))
    (expected,) = run(cases.grpo(**settings))
    assert len(set(widths)) > 1
    assert found == pytest.approx(expected, nan_ok=True)


def test_weights_and_metrics_of_reward_functions():
    def one(completions):
        return [1.0] * len(completions)

    def length(completion_lengths):
        return [float(n) if n > 2 else None for n in completion_lengths]

    def true(completions):
        return [7.0] * len(completions)

    trainer = cases.grpo(
        reward_funcs=[one, length], reward_weights=[2.0, 0.5], metric_funcs=[true], max_steps=1
    )
    (row,) = run(trainer)
    assert row["reward/one"] == 1
    assert row["metric/true"] == 7
    assert 2 <= row["reward"] <= 2 + 0.5 * row["reward/length"]


def test_rewards_of_one_name_are_all_kept(tmp_path):
    def reward(completions):
        return [3.0] * len(completions)

    functions = [rewards.regex_format(pattern) for pattern in (".*", "x")]
    trainer = cases.grpo(
        reward_funcs=[*functions, reward],
        metric_funcs=[reward, reward],
        max_steps=1,
        output_dir=str(tmp_path),
    )
    (row,) = run(trainer)
    assert [row[f"reward/{n}"] for n in ("regex_format", "regex_format_2", "reward")] == [1, 0, 3]
    assert row["metric/reward_2"] == 3
    line = json.loads((tmp_path / "completions.jsonl").read_text().splitlines()[0])
    names = ("regex_format", "regex_format_2", "reward/reward", "reward")
    assert [line[name] for name in names] == [1, 0, 3, 4]


def test_overlong_masking_leaves_out_what_was_cut_off():
    trainer = cases.grpo(mask_truncated_completions=True, per_device_train_batch_size=32)
    trainer.collect()
    made = trainer.experience
    assert made is not None
    counted_rows = made.mask.any(1)
    ids = made.sequences.ids.gather(1, made.sequences.length[:, None] - 1)[:, 0]
    assert torch.equal(counted_rows, ids == trainer.tokenizer.eos_token_id)
    assert 0 < counted_rows.sum() < 32
    assert torch.equal(made.mask[counted_rows], made.sequences.selected[counted_rows])


@pytest.mark.parametrize("pad", ["<pad>", None, "<eos>"])
def test_the_end_token_counts_whatever_the_pad_token_is(pad):
    trainer = cases.grpo(tokenizer=tiny.tokenizer(pad=pad), per_device_train_batch_size=16)
    trainer.collect()
    made = trainer.experience
    assert made is not None
    ends = (made.sequences.ids == 1) & made.mask
    lengths = made.mask.sum(1)
    assert ends.any()
    assert torch.equal(lengths, made.sequences.length - made.sequences.prompt_length)
    last = made.sequences.length[ends.any(1)] - 1
    assert torch.equal(ends.nonzero()[:, 1], last)


def test_one_pass_of_two_updates_uses_each_completion_once():
    trainer = cases.grpo(
        per_device_train_batch_size=8,
        steps_per_generation=4,
        gradient_accumulation_steps=2,
        num_iterations=2,
    )
    rows = []
    for used in range(4):
        trainer.used = used
        rows.append(torch.cat(trainer.parts()))
    first, second = (torch.cat(rows[k : k + 2]) for k in (0, 2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(32))
    assert first.tolist() != second.tolist()
    assert [trainer.config.updates_per_rollout, trainer.config.prompts_per_rollout] == [4, 8]


def test_a_second_pass_is_off_policy_and_the_first_is_not():
    rows = run(cases.grpo(num_iterations=3, max_steps=6, learning_rate=3e-2))
    assert rows[0]["clip_fraction"] == rows[3]["clip_fraction"] == 0
    assert rows[2]["clip_fraction"] > 0
    assert rows[0]["reward"] == rows[1]["reward"] == rows[2]["reward"] != rows[3]["reward"]


def test_the_divergence_is_in_the_reward_of_rloo():
    """After an update, so that the policy is not the reference: A of r - β KL, leave one out."""
    trainer = cases.grpo(loss_type="rloo", beta=0.5, max_steps=2)
    trainer.train()
    trainer.collect()
    made = trainer.experience
    assert made is not None
    assert made.old_log_prob is not None
    assert made.reference_log_prob is not None
    texts = trainer.tokenizer.batch_decode(
        [
            ids[p:n]
            for ids, p, n in zip(
                made.sequences.ids.tolist(),
                made.sequences.prompt_length.tolist(),
                made.sequences.length.tolist(),
                strict=True,
            )
        ],
        skip_special_tokens=True,
    )
    divergence = (made.old_log_prob - made.reference_log_prob).sum(1)
    reward = (torch.tensor(cases.has_one(texts)) - 0.5 * divergence).view(-1, 4)
    expected = (reward - (reward.sum(1, keepdim=True) - reward) / 3).flatten()
    torch.testing.assert_close(made.advantage, expected, rtol=1e-4, atol=1e-5)
    assert divergence.abs().max() > 1e-3


def test_signal_to_noise_is_that_of_the_gradient_package():
    chunks = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)) + 1
    sizes = torch.tensor([3, 1, 4, 1, 5])
    parts = chunks * sizes[:, None] / sizes.sum()
    found = of_parts(
        parts.square().sum(1).tolist(), sizes.tolist(), float(parts.sum(0).square().sum())
    )
    assert found == pytest.approx(us.gradient.quality(chunks, sizes).signal_to_noise, rel=1e-4)
    assert math.isnan(of_parts([1.0], [3], 1.0))


def test_with_lora_only_the_adapter_is_trained_and_the_reference_is_without_it():
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = cases.grpo(peft_config=lora, beta=0.1, max_steps=5, learning_rate=3e-2)
    rows = run(trainer)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["kl"] > 1e-5
    plain = tiny.llama()
    ids = torch.tensor([[3, 4, 5]])
    with trainer.model.disable_adapter():
        torch.testing.assert_close(trainer.model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_evaluation_files_and_a_sample(tmp_path, capsys):
    trainer = cases.grpo(
        eval_dataset=cases.SUMS[:5],
        eval_steps=2,
        eval_temperature=0.0,
        output_dir=str(tmp_path),
        log_completions=True,
        max_steps=3,
    )
    rows = run(trainer)
    assert [("eval_reward" in row) for row in rows] == [False, True, True]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert list(lines[0])[1] == "reward"
    shown = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in shown] == [1] * 4 + [2] * 4 + [3] * 4
    assert {"prompt", "completion", "has_one", "reward", "advantage"} < set(shown[0])
    assert "advantage" in capsys.readouterr().err
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, trainer.model(input_ids=ids).logits)
    assert (tmp_path / "best" / "config.json").exists()


def test_evaluation_and_logging_do_not_change_training(tmp_path):
    plain = cases.grpo().train()
    other = cases.grpo(
        eval_dataset=cases.SUMS[:5], eval_steps=1, output_dir=str(tmp_path), logging_steps=2
    ).train()
    assert cases.same(cases.weights(plain), cases.weights(other))
    assert not cases.same(cases.weights(plain), cases.weights(cases.grpo(seed=1).train()))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_p": 0.9}, r"top_p=0.9, top_k=0: training takes 1 and 0"),
        ({"num_generations": 3}, "a rollout is 8 completions .*no multiple of num_generations=3"),
        ({"num_generations": 1}, "num_generations=1: .*at least 2"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "steps_per_generation=3 is no multiple of gradient_accumulation_steps=2",
        ),
        ({"temperature": 0.0}, "temperature=0.0: "),
        ({"reward_weights": [1.0, 2.0]}, "a number for each of the 1 reward functions, got 2"),
        ({"reward_weights": ["a"]}, r"reward_weights takes finite numbers, got \['a'\]"),
        ({"reward_weights": [math.nan]}, "reward_weights takes finite numbers"),
        ({"reward_weights": 2.0}, "reward_weights takes finite numbers, got 2.0"),
        ({"reward_funcs": []}, "reward_funcs takes at least one function"),
        ({"reward_funcs": None}, "reward_funcs takes functions, got None"),
        ({"reward_funcs": [max]}, "takes functions that say what they take, which <built-in"),
        ({"metric_funcs": [3]}, r"metric_funcs takes functions, got \[3\]"),
        ({"kl": "k4"}, "kl='k4': kl takes one of 'unbiased'"),
        ({"max_completion_length": 61}, "row 0: its prompt has 4 tokens, and there is room for 3"),
        ({"train_dataset": [{"prompt": ""}]}, "row 0: its prompt is empty"),
        ({"train_dataset": [{"question": "1"}]}, "row 0: it has no 'prompt'"),
        (
            {"train_dataset": [{"prompt": "1"}, {"prompt": "2", "completions": "3"}]},
            "train_dataset has the column 'completions', under which reward functions get what",
        ),
        (
            {"eval_dataset": [{"prompt": "1", "completion_ids": [3]}]},
            "eval_dataset has the column 'completion_ids'",
        ),
    ],
)
def test_what_it_cannot_take_is_said(settings, said):
    with pytest.raises(ArgumentError, match=said):
        cases.grpo(**settings)


def test_a_loss_that_is_not_finite_stops_before_the_step():
    trainer = cases.grpo()
    trainer.collect()
    assert trainer.experience is not None
    trainer.experience.advantage[0] = math.nan
    before = cases.weights(trainer)
    with pytest.raises(NotFiniteError, match="step 0: the loss is nan"):
        trainer.train()
    assert cases.same(before, cases.weights(trainer))
