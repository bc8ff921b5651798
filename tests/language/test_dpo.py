"""DPO, as a trainer: what it learns, what its gradient does not depend on, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.language import cases, tiny
from upslope.errors import ArgumentError, ConfigError, NotFiniteError
from upslope.language.models import Reference, add_adapter
from upslope.losses.preference import LOSSES

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def run(trainer) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    trainer.train(lambda trainer, metrics: rows.append(metrics))
    return rows


@pytest.mark.parametrize("name", tiny.MODELS)
def test_it_learns_the_preferences(name):
    rows = run(
        cases.dpo(
            tiny.MODELS[name](), max_steps=20, learning_rate=2e-2, eval_dataset=cases.SUMS[:6]
        )
    )
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/margins"] == 0
    assert rows[-1]["eval_rewards/accuracies"] > 0.5
    assert rows[-1]["eval_rewards/margins"] > 0.1
    assert rows[-1]["eval_loss"] < 0.65
    assert list(rows[0])[-1] == "loss"
    assert list(rows[0])[:3] == ["rewards/margins", "rewards/accuracies", "logps/chosen"]


def test_one_step_is_the_equation():
    """By hand: the model row by row, summed over the completion and its end token."""
    model, tokenizer = tiny.gpt2(), tiny.tokenizer()
    reference, beta = tiny.gpt2(seed=1), 0.3

    def summed(model, prompt: str, answer: str) -> torch.Tensor:
        ids = tokenizer(prompt + answer + "<eos>", return_tensors="pt")["input_ids"]
        log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        every = log_p.gather(1, ids[0, 1:, None])[:, 0]
        return every[-(len(answer) + 1) :].sum()

    trainer = cases.dpo(model, reference, beta=beta, train_dataset=cases.SUMS[:4])
    found = cases.gradient(trainer)
    total = torch.zeros(())
    for row in cases.SUMS[:4]:
        margin = [
            summed(model, row["prompt"], row[kind])
            - summed(reference, row["prompt"], row[kind]).detach()
            for kind in ("chosen", "rejected")
        ]
        total = total - torch.nn.functional.logsigmoid(beta * (margin[0] - margin[1])) / 4
    model.zero_grad()
    total.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_does_not_depend_on_the_split(loss_type):
    found = []
    for size, parts in ((8, 1), (4, 2), (1, 8)):
        model = tiny.llama()
        trainer = cases.dpo(
            model,
            None if loss_type == "simpo" else tiny.llama(seed=1),
            loss_type=loss_type,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        found.append(cases.gradient(trainer))
    for other in found[1:]:
        assert cases.difference(other, found[0]) < 1e-5


@pytest.mark.parametrize("name", tiny.MODELS)
def test_gradient_checkpointing_changes_nothing(name):
    """Nor does dropout that the model's settings ask for: it is off."""
    make, dropout = tiny.MODELS[name], {"llama": "attention_dropout", "gpt2": "resid_pdrop"}[name]
    found = [
        cases.gradient(cases.dpo(make(**{dropout: 0.3}), make(seed=1), gradient_checkpointing=on))
        for on in (False, True)
    ]
    for parameter in found[0]:
        torch.testing.assert_close(found[1][parameter], found[0][parameter], rtol=1e-5, atol=1e-7)


def test_dropout_stays_off_where_someone_turns_it_on():
    """A callback in the model, whoever made the reference in that."""
    found = []
    for on in (False, True):
        model, reference = (tiny.gpt2(resid_pdrop=0.3).train(on) for _ in range(2))
        trainer = cases.dpo(model, reference)
        rows: list[float] = []

        def callback(trainer, metrics, on=on, rows=rows) -> None:
            trainer.model.train(on)
            rows.append(metrics["loss"])

        trainer.train(callback)
        found.append(rows)
        assert reference.training == on
    assert found[0] == found[1]
    assert found[0][0] == pytest.approx(math.log(2), abs=1e-6)


def test_with_lora_the_reference_is_the_model_as_given():
    given = cases.weights(cases.dpo())
    trainer = cases.dpo(peft_config=LORA)
    rows = run(trainer)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["rewards/margins"] != 0
    after = cases.weights(trainer)
    assert any("lora" in name for name in after)
    for name, value in given.items():
        wrapped = "base_model.model." + name
        key = wrapped if wrapped in after else wrapped.replace(".weight", ".base_layer.weight")
        assert torch.equal(after[key], value)
    plain = tiny.llama()
    ids = torch.tensor([[3, 4, 5]])
    with trainer.reference.use() as reference:
        torch.testing.assert_close(reference(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not torch.allclose(trainer.model(input_ids=ids).logits, plain(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"bias": "all"}, "peft_config has bias='all', which changes .* it takes 'none', or a"),
        ({"bias": "lora_only"}, "peft_config has bias='lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', .* True or False or 'gauss"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
def test_an_adapter_that_does_not_switch_off_is_no_reference(setting, said):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **setting)
    model = tiny.llama()
    with pytest.raises(ArgumentError, match=said):
        cases.dpo(model, peft_config=config)
    assert cases.same(dict(model.named_parameters()), dict(tiny.llama().named_parameters()))
    assert cases.dpo(peft_config=config, loss_type="simpo").reference is None
    assert cases.dpo(reference_model=tiny.llama(), peft_config=config).reference is not None
    assert cases.grpo(peft_config=config).reference is None


def test_without_lora_the_reference_is_the_model_as_it_was():
    model, before = tiny.llama(), tiny.llama()
    trainer = cases.dpo(model)
    run(trainer)
    ids = torch.tensor([[3, 4, 5]])
    after = model(input_ids=ids).logits
    with trainer.reference.use() as reference:
        assert torch.equal(reference(input_ids=ids).logits, before(input_ids=ids).logits)
    assert torch.equal(model(input_ids=ids).logits, after)
    assert not torch.allclose(after, before(input_ids=ids).logits)


def test_an_adapter_that_is_given_belongs_to_the_reference():
    wrapped = add_adapter(tiny.llama(), LORA)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            p.data.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 4, 5]])
    as_given = wrapped(input_ids=ids).logits
    trainer = cases.dpo(wrapped)
    run(trainer)
    assert isinstance(trainer.reference, Reference)
    with trainer.reference.use() as reference:
        torch.testing.assert_close(reference(input_ids=ids).logits, as_given)


def test_an_adapter_that_transformers_loaded_is_trained_further(tmp_path):
    tiny.llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    run(cases.dpo(base, peft_config=lora, output_dir=str(tmp_path / "out")))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "last")
    with pytest.raises(ArgumentError, match=r"a gradient: model.set_adapter\(NAME\) has an"):
        cases.dpo(model)
    model.set_adapter("default")
    trainer = cases.dpo(model, output_dir=str(tmp_path / "more"))
    assert all("lora" in name for name in trainer.optimization.parameters)
    rows = run(trainer)
    assert rows[0]["rewards/margins"] == 0
    assert rows[-1]["rewards/margins"] > 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "more" / "last")
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("peft", [None, LORA], ids=["whole", "lora"])
def test_what_is_saved_is_what_transformers_loads(tmp_path, peft):
    trainer = cases.dpo(
        peft_config=peft,
        output_dir=str(tmp_path / "out"),
        eval_dataset=cases.SUMS[:4],
        eval_steps=3,
    ).train()
    ids = torch.tensor([[3, 4, 5]])
    if peft is None:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "last")
    else:
        from peft import PeftModel

        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # peft's own
            model = PeftModel.from_pretrained(tiny.llama(), tmp_path / "out" / "last")
    torch.testing.assert_close(model(input_ids=ids).logits, trainer.model(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "best")
    assert tokenizer("1+2=")["input_ids"] == trainer.tokenizer("1+2=")["input_ids"]
    assert trainer.best is not None
    assert trainer.best["step"] in (3, 6)


def test_bf16_trains_and_keeps_float32_weights():
    trainer = cases.dpo(bf16=True, max_steps=10)
    rows = run(trainer)
    assert rows[-1]["loss"] < 0.65
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", tiny.MODELS)
def test_in_bf16_policy_and_reference_keep_their_own_weights(name):
    """Once they are nats apart: what is logged is what each says of the rows, in bf16, alone."""
    model, given = tiny.MODELS[name](), tiny.MODELS[name]()
    trainer = cases.dpo(model, bf16=True, learning_rate=1e-1, lr_scheduler_type="constant")
    for _ in range(5):
        rows = [trainer.rows[k] for k in trainer.order.take(trainer.drawn, 4)]
        policy, reference = (mean_log_prob(which, rows) for which in (model, given))
        logged = trainer.one_step()
        assert logged["logps/chosen"] == pytest.approx(policy, abs=0.1)
        pull = logged["logps/chosen"] - logged["rewards/chosen"] / trainer.config.beta
        assert pull == pytest.approx(reference, abs=0.1)
    assert abs(policy - reference) > 1


def mean_log_prob(model, rows) -> float:
    """Mean log-probability of the chosen completions, row by row, in bf16."""
    found = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for row in rows:
            ids = torch.tensor([row.prompt + row.chosen])
            log_p = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            of_tokens = log_p.gather(1, ids[0, 1:, None])[len(row.prompt) - 1 :]
            found += float(of_tokens.sum()) / len(rows)
    return found


def test_gradients_that_the_model_came_with_are_left_out():
    model = tiny.llama()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    found = cases.gradient(cases.dpo(model))
    assert cases.same(found, cases.gradient(cases.dpo()))


def test_the_schedule_is_that_of_transformers():
    rates = [row["learning_rate"] for row in run(cases.dpo(max_steps=4, warmup_steps=2))]
    assert rates == pytest.approx([0, 5e-3, 1e-2, 5e-3])


def test_epochs_count_the_rows():
    assert cases.dpo(max_steps=-1, num_train_epochs=2).total_steps == 10
    assert (
        cases.dpo(max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=2).total_steps == 3
    )


def test_a_loss_that_is_not_finite_stops_before_the_step():
    trainer = cases.dpo()
    trainer.model.lm_head.weight.data[0, 0] = math.nan
    before = cases.weights(trainer)
    with pytest.raises(NotFiniteError, match="step 0: the loss is nan"):
        trainer.train()
    for name, p in cases.weights(trainer).items():
        torch.testing.assert_close(p, before[name], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: cases.dpo(beta="big"), "beta='big': beta takes a finite number"),
        (lambda: cases.dpo(beta=math.nan), "beta=nan: beta takes a finite number"),
        (lambda: cases.dpo(learning_rate=math.inf), "takes a finite number of at least 0"),
        (lambda: cases.dpo(num_train_epochs=math.inf), "takes a finite number of at least 0"),
        (lambda: cases.dpo(learning_rate=10**400), "takes a finite number of at least 0"),
        (lambda: cases.dpo(max_grad_norm=math.nan), "takes a number of at least 0"),
        (lambda: cases.dpo(adam_beta1=1.0), "adam_beta1=1.0: .* of at least 0 and below 1"),
        (lambda: cases.dpo(adam_beta2=2), "adam_beta2=2: .* of at least 0 and below 1"),
        (lambda: cases.dpo(learning_rte=1), "no setting 'learning_rte' .*mean 'learning_rate'"),
        (lambda: cases.dpo(loss_type="sigmod"), "loss_type='sigmod': .*one of 'sigmoid'"),
        (lambda: cases.dpo(lr_scheduler_type="cosin"), "lr_scheduler_type='cosin'.*mean 'cosine'"),
        (lambda: cases.dpo(tiny.llama(vocab_size=12)), "tokenizer has 20 tokens .*vocabulary 12"),
        (lambda: cases.dpo(tiny.llama().model), "with a head"),
        (lambda: cases.dpo("meta/llama"), "in memory, got 'meta/llama'"),
        (lambda: cases.dpo(max_length=65), "max_length=65: the model takes at most 64 tokens"),
        (lambda: cases.dpo(peft_config={"r": 8}), "peft_config takes an adapter .*, got dict"),
        (
            lambda: cases.dpo(peft_config=LoraConfig(target_modules=["q"])),
            "peft_config does not fit the model: Target modules {'q'} not found",
        ),
        (
            lambda: cases.dpo(peft_config=LoraConfig(r=0, target_modules=["q_proj"])),
            "peft_config does not fit the model: `r` should be",
        ),
        (
            lambda: cases.dpo(peft_config=LoraConfig(r="16", target_modules=["q_proj"])),
            "peft_config does not fit the model: ",
        ),
        (lambda: cases.dpo(tokenizer=None), "tokenizer takes a tokenizer"),
        (lambda: cases.dpo(loss_type="simpo", reference_model=tiny.llama()), "no reference_model"),
    ],
)
def test_what_it_cannot_take_is_said(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()
    assert issubclass(ConfigError, ArgumentError)


def test_the_model_itself_is_no_reference():
    model = tiny.llama()
    with pytest.raises(ArgumentError, match="reference_model is the model itself"):
        cases.dpo(model, model)
    with pytest.raises(ArgumentError, match="reference_model is the model itself"):
        cases.dpo(add_adapter(model, LORA), model)


def test_a_reference_shares_no_weight_that_is_trained():
    model, other = tiny.llama(), tiny.llama()
    other.lm_head = model.lm_head
    with pytest.raises(ArgumentError, match="reference_model shares weights with the model"):
        cases.dpo(model, other)
    assert cases.dpo(model, other, peft_config=LORA).reference is not None


def test_no_pad_token_is_reported_and_changes_nothing(capsys):
    trainer = cases.dpo(tokenizer=tiny.tokenizer(pad=None)).train()
    assert "no pad token" in capsys.readouterr().err
    assert cases.same(cases.weights(trainer), cases.weights(cases.dpo().train()))
