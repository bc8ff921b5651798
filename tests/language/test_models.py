"""Models of other kinds than the two that all tests use: the same numbers, or a refusal.

Rotary, learned and linear-bias positions; keys shared by heads; windows; experts. What is compared
with is the model of transformers alone, row by row, without padding, cache or shared prompt.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from tests.language import cases
from upslope.errors import ArgumentError
from upslope.language.generation import Sampler
from upslope.language.prefix import completion_log_probs
from upslope.language.sequences import right_padded

SHAPE: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SHARED = {"num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3": SHAPE | SHARED | {"head_dim": 8},
    "Mistral": SHAPE | SHARED | {"sliding_window": 3},
    "Mixtral": SHAPE | SHARED | {"num_local_experts": 4},
    "GPTNeoX": SHAPE,
    "OPT": SHAPE | {"ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.3},
    "Falcon": SHAPE | {"hidden_size": 64},  # asks whether its attention is called sdpa
    "Bloom": SHAPE | {"n_layer": 2, "n_head": 4},  # positions as a bias that grows with distance
}
PROMPTS = [[3, 4, 5, 6], [7, 8], [3, 4, 5, 6], [7, 8], [7, 8, 9]]
ANSWERS = [[9, 10, 1], [1], [4, 1], [5, 6, 7, 1], [11, 12]]


def make(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**KINDS.get(kind, SHAPE) | more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def alone(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([prompt + answer])
    log_p = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    return log_p.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_probs_and_gradients_are_those_of_each_row_alone(kind):
    model, rows = make(kind), right_padded(PROMPTS, ANSWERS)
    found, gradients = [], []
    for values in (
        torch.cat([alone(model, p, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]),
        completion_log_probs(model, rows).log_prob[rows.selected],
    ):
        model.zero_grad()
        (values * torch.linspace(-1, 2, len(values))).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        found.append(values.detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert (gradients[1] - gradients[0]).abs().max() < 1e-5 * gradients[0].abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sampled_has_the_log_probs_of_each_row_alone(kind):
    model = make(kind)
    draws = torch.Generator().manual_seed(0)
    made = Sampler(model=model, end_ids=(1,), max_tokens=6)(PROMPTS[:2], 4, draws)
    with torch.no_grad():
        for k, answer in enumerate(made.lists()):
            expected = alone(model, PROMPTS[k // 4], answer)
            torch.testing.assert_close(made.log_prob[k, : len(answer)], expected, atol=1e-5, rtol=0)


def test_capped_logits_are_refused_while_they_are_small():
    settings = {"head_dim": 8, "query_pre_attn_scalar": 8, "initializer_range": 0.02, **SHARED}
    with pytest.raises(ArgumentError, match="Gemma2ForCausalLM changes its logits after its head"):
        cases.grpo(make("Gemma2", **settings))
    assert cases.grpo(make("Gemma2", final_logit_softcapping=None, **settings)).step == 0


def test_a_recurrent_model_is_refused_before_anything_is_sampled():
    model = make("Mamba", state_size=4)
    with pytest.raises(ArgumentError, match="MambaForCausalLM has layers that keep a recurrent"):
        cases.grpo(model)
    assert cases.grpo(model, backend=lambda prompts, group_size, draws: None).step == 0
