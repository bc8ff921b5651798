"""Sampling by kernels made for it: the same logits, and a model that is left as it was."""

from __future__ import annotations

import pytest
import torch

from tests.language import tiny
from upslope.language import decoding as page
from upslope.language.decoding import decoding
from upslope.language.generation import Decoder, Sampler, left_padded
from upslope.language.models import add_adapter

PROMPTS = [[3, 5, 7], [6], [8, 8, 4, 10]]


class Counted:
    """The native part, counting what is called."""

    def __init__(self, native) -> None:
        self.native, self.layers, self.products, self.attended = native, 0, 0, 0

    def PackedLinear(self, weight, bias):
        self.layers += 1
        layer, counts = self.native.PackedLinear(weight, bias), self

        class Layer:
            outputs = layer.outputs

            def apply(self, *arguments):
                counts.products += 1
                layer.apply(*arguments)

        return Layer()

    def attend(self, *arguments):
        self.attended += 1
        self.native.attend(*arguments)


@pytest.fixture
def counted(monkeypatch) -> Counted:
    counts = Counted(page._native)
    monkeypatch.setattr(page, "_native", counts)
    return counts


def followed(model, prompts, tokens) -> torch.Tensor:
    """The logits after the prompts and each of some tokens, [1 + T, n, V]."""
    with torch.inference_mode():
        ids, mask = left_padded(prompts)
        decoder = Decoder(model, ids, mask, 2, ids.shape[1] + len(tokens))
        return torch.stack([decoder.logits, *(decoder.step(token) for token in tokens)])


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "alike"])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_logits_are_those_of_transformers(name, prompts, counted):
    model = tiny.MODELS[name](width=128)
    tokens = torch.randint(2, 19, (5, 2 * len(prompts)), generator=torch.Generator().manual_seed(0))
    expected = followed(model, prompts, tokens)
    assert counted.layers == 0
    with decoding(model, bf16=False):
        found = followed(model, prompts, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counted.layers == {"llama": 14, "gpt2": 8}[name]  # the head has few words
    assert counted.products == 6 * counted.layers  # the prompts and five tokens
    assert counted.attended == 2 * 5  # two layers


def test_a_row_does_not_depend_on_the_others():
    model = tiny.llama(width=128)
    with decoding(model, bf16=False):
        whole = followed(model, [[3, 5, 7]] * 3, torch.tensor([[4] * 6, [9] * 6]))
        alone = followed(model, [[3, 5, 7]], torch.tensor([[4] * 2, [9] * 2]))
    torch.testing.assert_close(whole[1:, :2], alone[1:], rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was(counted):
    model = tiny.llama(width=128)
    before = dict(vars(model.model.layers[0].mlp.up_proj))
    with decoding(model, bf16=False):
        assert model.config._attn_implementation == "upslope"
        assert "forward" in vars(model.model.layers[0].mlp.up_proj)
    assert vars(model.model.layers[0].mlp.up_proj) == before
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():  # the next sampling packs the weights that are there then
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    expected = followed(model, PROMPTS, torch.tensor([[4] * 6]))
    with decoding(model, bf16=False):
        found = followed(model, PROMPTS, torch.tensor([[4] * 6]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_where_it_does_not_apply(counted, monkeypatch):
    tokens = torch.tensor([[4] * 6])
    with decoding(tiny.llama(width=128), bf16=True):
        assert counted.layers == 0
    with decoding(tiny.llama(width=128).double(), bf16=False):
        assert counted.layers == 0
    eager = tiny.llama(width=128, attn_implementation="eager")
    with decoding(eager, bf16=False):
        followed(eager, PROMPTS, tokens)
        assert counted.products > 0
        assert counted.attended == 0
    monkeypatch.setattr(page, "BUILT", False)
    model = tiny.llama(width=128)
    with decoding(model, bf16=False):
        assert model.config._attn_implementation == "sdpa"
        assert "forward" not in vars(model.lm_head)


def test_many_rows_are_left_to_torch(counted):
    model = tiny.llama(width=128)
    prompts = [[3] * 30, [4] * 30, [5] * 30]  # 90 tokens at once
    with decoding(model, bf16=False):
        followed(model, prompts, torch.tensor([[4] * 6]))
    assert counted.products == counted.layers  # one token of six rows, not the prompts


def test_adapters_are_in_what_is_sampled(counted):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = add_adapter(tiny.llama(width=128), config).eval()
    tokens = torch.tensor([[4] * 6])
    expected = followed(model, PROMPTS, tokens)
    with decoding(model, bf16=False):
        found = followed(model, PROMPTS, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counted.products > 0


def test_the_sampler_uses_it(counted):
    made = Sampler(model=tiny.gpt2(width=128), end_ids=(1,), max_tokens=4)
    made(PROMPTS, 2, torch.Generator().manual_seed(0))
    assert counted.products > 0
    assert counted.attended > 0
