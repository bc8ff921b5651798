"""G1, G2, G3, D1: Rows, rewards, losses and completions of language models: all is named."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import upslope as us
from tests.language import cases, tiny
from upslope.errors import ArgumentError, CheckpointError, NotFiniteError, RewardFault, RunError

pytestmark = pytest.mark.faults

GRPO: dict[str, Any] = {
    "num_iterations": 2,
    "steps_per_generation": 4,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 4,
    "beta": 0.05,
    "dynamic_sampling": True,
    "max_steps": 7,
    "save_steps": 1,
}
DPO: dict[str, Any] = {"max_steps": 8, "save_steps": 1, "eval_steps": 3}
DPO |= {"eval_dataset": cases.SUMS[:5]}


def grpo(folder: Path, **more: Any) -> us.GRPO:
    return cases.grpo(output_dir=str(folder), **GRPO | more)


def dpo(folder: Path, **more: Any) -> us.DPO:
    return cases.dpo(output_dir=str(folder), **DPO | more)


# ---- G1 ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "1=", "chosen": "1"}, "row 2: it has no 'rejected'"),
        ({"prompt": "1=", "chosen": "1", "rejected": ""}, "row 2: its 'rejected' is empty"),
        (cases.SUMS[0], "row 2: it is a duplicate of row 0"),
    ],
)
def test_g1_a_preference_that_is_none_is_named_before_the_first_step(row, said, tmp_path):
    with pytest.raises(ArgumentError, match=said):
        dpo(tmp_path / "out", train_dataset=[*cases.SUMS[:2], row])
    assert not (tmp_path / "out").exists()


# ---- G2 ------------------------------------------------------------------------------------------
def failing(how: str, at: int) -> Any:
    calls = []

    def judge(completions: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) < at:
            return cases.has_one(completions)
        if how == "raises":
            raise OSError("the judge is out")
        return [math.nan] * len(completions) if how == "nan" else [1.0]

    return judge


@pytest.mark.parametrize("how", ["raises", "nan", "count"])
def test_g2_a_reward_function_that_fails_is_named_and_the_run_goes_on_from_its_last_save(
    how, tmp_path
):
    whole = grpo(tmp_path / "whole", dynamic_sampling=False).train()
    broken = grpo(tmp_path / "out", dynamic_sampling=False, reward_funcs=failing(how, 2))
    with pytest.raises(RewardFault, match=r"'judge' (raised OSError:|returned) .*='"):
        broken.train()
    mended = grpo(tmp_path / "out", dynamic_sampling=False)
    mended.train(resume_from_checkpoint=True)
    assert cases.same(cases.weights(mended), cases.weights(whole))


@pytest.mark.parametrize("make", [grpo, dpo])
def test_d1_a_loss_that_is_not_finite_stops_and_keeps_what_it_was_computed_from(
    make, tmp_path, monkeypatch
):
    trainer = make(tmp_path / "out")
    accumulate = trainer.optimization.accumulate

    def fails_later(micro_batches: Any) -> tuple[float, list[float]]:
        loss, squares = accumulate(micro_batches)
        return (math.nan if trainer.step == 3 else loss), squares

    monkeypatch.setattr(trainer.optimization, "accumulate", fails_later)
    before: list[Any] = []
    with pytest.raises(NotFiniteError, match="step 3: the loss is nan") as caught:
        trainer.train(lambda trainer, _: before.append(cases.weights(trainer)) and None)
    assert cases.same(cases.weights(trainer), before[-1])
    assert caught.value.__notes__ == [
        f"What it was computed from is in {tmp_path / 'out' / 'not-finite'}."
    ]
    whole = make(tmp_path / "whole").train()
    again = make(tmp_path / "again")
    again.train(resume_from_checkpoint=tmp_path / "out" / "not-finite")
    assert again.step == whole.step
    assert cases.same(cases.weights(again), cases.weights(whole))


# ---- G3 ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [grpo, dpo])
def test_g3_a_stop_after_any_step_resumes_to_the_same_weights(make, tmp_path, capsys):
    """Of the GRPO run, most steps are inside a batch of completions that is half used."""
    whole = make(tmp_path / "whole").train()
    expected = cases.weights(whole)
    middle = 0
    for k in range(1, whole.total_steps):
        folder = tmp_path / f"stop{k}"
        stopped = make(folder)
        stopped.train(lambda trainer, metrics, k=k: trainer.step < k)
        assert stopped.step == k
        middle += make is grpo and stopped.experience is not None
        resumed = make(folder)
        resumed.train(resume_from_checkpoint=True)
        assert cases.same(cases.weights(resumed), expected)
        for name in ("metrics.jsonl", "completions.jsonl"):
            assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
        assert resumed.best == whole.best
        shutil.rmtree(folder)
    assert middle >= 4 or make is dpo


def test_g3_lora_resumes_to_the_same_weights(tmp_path):
    from peft import LoraConfig

    def make(folder: Path) -> us.GRPO:
        import torch

        torch.manual_seed(0)  # peft draws the adapter from the global generator
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return grpo(folder, peft_config=lora)

    whole = make(tmp_path / "whole").train()
    make(tmp_path / "out").train(lambda trainer, metrics: trainer.step < 3)
    resumed = make(tmp_path / "out").train(resume_from_checkpoint=True)
    assert cases.same(cases.weights(resumed), cases.weights(whole))


def test_g3_a_gradient_that_is_never_clipped_is_saved_and_resumed(tmp_path):
    whole = dpo(tmp_path / "whole", max_grad_norm=math.inf).train()
    dpo(tmp_path / "out", max_grad_norm=math.inf).train(lambda trainer, metrics: trainer.step < 2)
    resumed = dpo(tmp_path / "out", max_grad_norm=math.inf).train(resume_from_checkpoint=True)
    assert cases.same(cases.weights(resumed), cases.weights(whole))
    with pytest.raises(CheckpointError, match=r"max_grad_norm: 'inf' in the .* expected 1\.0"):
        dpo(tmp_path / "out").train(resume_from_checkpoint=True)


def test_an_evaluation_that_is_not_finite_is_never_the_best(tmp_path, monkeypatch):
    trainer = dpo(tmp_path / "out")
    evaluate = trainer.evaluate
    told = iter([math.nan, 0.5, math.nan])
    monkeypatch.setattr(trainer, "evaluate", lambda: evaluate() | {"eval_loss": next(told)})
    trainer.train()
    assert trainer.best == {"step": 6, "value": 0.5}


def test_g3_a_damaged_checkpoint_is_said_and_the_one_before_it_used(tmp_path, capsys):
    whole = grpo(tmp_path / "whole").train()
    grpo(tmp_path / "out").train(lambda trainer, metrics: trainer.step < 4)
    state = tmp_path / "out" / "checkpoints" / "step-000000000004" / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-9] ^= 1
    state.write_bytes(damaged)
    resumed = grpo(tmp_path / "out").train(resume_from_checkpoint=True)
    assert "state.safetensors is damaged" in capsys.readouterr().err
    assert cases.same(cases.weights(resumed), cases.weights(whole))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"beta": 0.2}, "config.beta: 0.05 in the checkpoint, expected 0.2"),
        ({"seed": 3}, "config.seed: 0 in the checkpoint, expected 3"),
        ({"model": tiny.llama(seed=9)}, "given.reference: "),
        ({"model": tiny.llama(width=32)}, r"tensor model/model.norm.weight: float32 \[16\] in the"),
        ({"train_dataset": cases.SUMS[:9]}, "given.data: "),
    ],
)
def test_g3_another_run_is_refused_with_its_differences(change, said, tmp_path):
    grpo(tmp_path, max_steps=2).train()
    with pytest.raises(CheckpointError, match=said):
        grpo(tmp_path, max_steps=2, **change).train(resume_from_checkpoint=True)


def frozen(seed: int) -> Any:
    """A model of which a layer is trained that is the same for every seed."""
    model = tiny.llama(seed=seed)
    for name, p in model.named_parameters():
        p.requires_grad = name == "model.norm.weight"
    return model


@pytest.mark.parametrize(
    ("make", "begun", "change", "said"),
    [
        (dpo, {}, {"eval_dataset": cases.SUMS[5:10]}, "given.eval_data: "),
        (grpo, {}, {"eval_dataset": cases.SUMS[:3]}, "given.eval_data: "),
        (grpo, {}, {"reward_weights": [2.0]}, r"given.reward_weights: \[1.0\] in the"),
        (
            grpo,
            {},
            {"train_dataset": [row | {"chosen": "1"} for row in cases.SUMS]},
            r"1 difference:\n  - given.columns: ",
        ),
        (dpo, {"model": frozen(0)}, {"model": frozen(9)}, r"1 difference:\n  - given.frozen: "),
    ],
)
def test_g3_what_no_checkpoint_holds_is_known_again(make, begun, change, said, tmp_path):
    make(tmp_path, max_steps=2, **begun).train()
    with pytest.raises(CheckpointError, match=said):
        make(tmp_path, max_steps=2, **change).train(resume_from_checkpoint=True)


def test_g3_another_model_beneath_an_adapter_is_refused(tmp_path):
    from peft import LoraConfig

    def make(seed: int) -> us.DPO:
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        return dpo(tmp_path, model=tiny.llama(seed=seed), peft_config=config, max_steps=2)

    make(0).train()
    with pytest.raises(CheckpointError, match=r"1 difference:\n  - given.frozen: "):
        make(9).train(resume_from_checkpoint=True)


def test_g3_a_checkpoint_that_says_less_of_what_was_given_is_gone_on_with(tmp_path, monkeypatch):
    started = grpo(tmp_path)
    started.given = {name: started.given[name] for name in ("data", "reference")}
    with monkeypatch.context() as before:
        before.setattr("upslope.language.trainer.frozen", lambda model: None)
        started.train(lambda trainer, metrics: trainer.given.pop("frozen", None) and False)
    assert grpo(tmp_path).train(resume_from_checkpoint=True).step == GRPO["max_steps"]


def test_g3_a_run_is_not_overwritten(tmp_path):
    dpo(tmp_path, max_steps=1).train()
    with pytest.raises(RunError, match="holds a run: train\\(resume_from_checkpoint=True\\)"):
        dpo(tmp_path, max_steps=1).train()
    with pytest.raises(RunError, match="goes on in output_dir, which is None"):
        cases.dpo().train(resume_from_checkpoint=True)
