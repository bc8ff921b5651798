"""A prompt that is computed once gives what whole rows give, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tests.language import test_models as models
from tests.language import tiny
from upslope.language.logprobs import token_log_probs
from upslope.language.models import backbone, prepare
from upslope.language.prefix import completion_log_probs, distinct_prompts
from upslope.language.sequences import right_padded

PROMPTS = [[3, 4, 5, 6], [7, 8], [3, 4, 5, 6], [7, 8], [7, 8, 9]]
ANSWERS = [[9, 10, 1], [1], [4, 1], [5, 6, 7, 1], [11, 12]]
ALIKE = [[3, 4, 5]] * 5


def gradients(model, found, direction):
    model.zero_grad()
    sum((part * d).sum() for part, d in zip(found, direction, strict=True)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("prompts", [PROMPTS, ALIKE], ids=["mixed", "alike"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_whole_rows(name, prompts, temperature):
    model = tiny.MODELS[name]()
    rows = right_padded(prompts, ANSWERS)
    given = {"temperature": temperature, "entropy": True}
    whole = token_log_probs(model, rows.ids, rows.mask, rows.selected, **given)
    shared = completion_log_probs(model, rows, **given)
    torch.testing.assert_close(shared.log_prob, whole.log_prob, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.entropy, whole.entropy, rtol=1e-5, atol=1e-5)
    direction = [torch.randn(rows.ids.shape, generator=torch.Generator().manual_seed(0))]
    expected = gradients(model, [whole.log_prob], direction)
    found = gradients(model, [shared.log_prob], direction)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [tiny.gpt2(context=12), models.make("OPT", max_position_embeddings=12)],
    ids=["gpt2", "opt"],
)
def test_a_long_prompt_beside_a_long_completion_stays_in_the_context(model):
    """Each row fits, and so do the positions of its padding: there are as many as tokens."""
    rows = right_padded([[3] * 10, [4, 5]] * 2, [[6, 1], [7] * 10, [8, 1], [9] * 9])
    whole = token_log_probs(model, rows.ids, rows.mask, rows.selected)
    shared = completion_log_probs(model, rows)
    torch.testing.assert_close(shared.log_prob, whole.log_prob, rtol=1e-5, atol=1e-5)


def test_prompts_that_differ():
    ids, there, which = distinct_prompts(right_padded(PROMPTS, ANSWERS))
    found = [row[mask].tolist() for row, mask in zip(ids, there, strict=True)]
    assert [found[k] for k in which] == PROMPTS
    assert len(found) == 3
    assert there[:, -1].all()


def tokens_seen(model, rows) -> int:
    """How many tokens pass through the model."""
    seen = []
    hook = backbone(model).register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    completion_log_probs(model, rows)
    hook.remove()
    return sum(seen)


def test_a_prompt_is_computed_once():
    rows = right_padded([[3] * 20] * 4, [[5, 6, 1]] * 4)
    assert tokens_seen(tiny.llama(), rows) == 20 + 4 * 2
    apart = right_padded([[k] * 20 for k in (3, 4, 5, 6)], [[5, 6, 1]] * 4)
    assert tokens_seen(tiny.llama(), apart) == 4 * 23


def test_where_activations_are_computed_again_rows_are_whole():
    model = tiny.llama()
    prepare(model, gradient_checkpointing=True)
    assert tokens_seen(model, right_padded([[3] * 20] * 4, [[5, 6, 1]] * 4)) == 4 * 23
