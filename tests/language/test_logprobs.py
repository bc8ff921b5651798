"""Log-probabilities of tokens: equal to the plain form, whatever the padding and the chunks."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.language import tiny
from upslope.errors import ArgumentError, ShapeError
from upslope.language.generation import left_padded
from upslope.language.logprobs import positions, token_log_probs

ROWS = [[3, 5, 7, 9, 4], [6, 3, 1], [8, 8, 4, 10]]


def right_padded(rows: list[list[int]], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def plainly(model, row: list[int], temperature: float = 1.0) -> torch.Tensor:
    """The definition: one row, no padding, all logits."""
    logits = model(input_ids=torch.tensor([row])).logits[0, :-1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0]


def test_positions_count_what_is_there():
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_padded_row_is_a_row(name, side, temperature):
    model = tiny.MODELS[name]()
    ids, mask = left_padded(ROWS) if side == "left" else right_padded(ROWS)
    selected = mask & (positions(mask) > 0)
    found = token_log_probs(model, ids, mask, selected, temperature=temperature).log_prob
    for k, row in enumerate(ROWS):
        expected = plainly(model, row, temperature)
        torch.testing.assert_close(found[k][selected[k]], expected, rtol=1e-5, atol=1e-6)
    assert (found[~selected] == 0).all()


def test_positions_matter_for_gpt2():
    """Without them a left-padded row of GPT-2 is another row, which the test above would see."""
    model = tiny.gpt2()
    ids, mask = left_padded(ROWS)
    wrong = model(input_ids=ids, attention_mask=mask).logits[1, -2].log_softmax(-1)[1]
    assert abs(wrong - plainly(model, ROWS[1])[-1]) > 0.01


@pytest.mark.parametrize("name", tiny.MODELS)
def test_chunks_change_neither_value_nor_gradient(name):
    model = tiny.MODELS[name]()
    ids, mask = right_padded(ROWS)
    selected = mask.clone()
    selected[:, 0] = False
    weight = torch.randn(ids.shape, generator=torch.Generator().manual_seed(0))
    results = []
    for elements in (20 * 2, 10**6):
        model.zero_grad()
        found = token_log_probs(
            model, ids, mask, selected, temperature=0.8, entropy=True, chunk_elements=elements
        )
        (weight * found.log_prob).sum().backward()
        assert found.entropy is not None
        results.append([found.log_prob, found.entropy, *(p.grad for p in model.parameters())])
    for chunked, whole in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)


def test_the_entropy_is_that_of_the_distribution():
    model = tiny.llama()
    ids, mask = right_padded(ROWS[:1])
    selected = mask.clone()
    selected[:, 0] = False
    found = token_log_probs(model, ids, mask, selected, temperature=1.7, entropy=True).entropy
    p = (model(input_ids=ids).logits[0, :-1] / 1.7).softmax(-1)
    assert found is not None
    torch.testing.assert_close(found[0, 1:], -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("elements", [200 * 4, 10**9])
def test_the_logits_never_exist_in_full(elements):
    """What is kept for the gradient, and what the head is given, forward and backward."""
    model = tiny.llama(vocab_size=200)
    ids = torch.randint(3, 200, (4, 21))
    mask = torch.ones_like(ids, dtype=torch.bool)
    selected = mask.clone()
    selected[:, 0] = False
    rows, kept = [], []
    model.lm_head.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    with saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        found = token_log_probs(model, ids, mask, selected, chunk_elements=elements)
    found.log_prob.sum().backward()
    if elements == 10**9:
        assert rows == [80]
        assert max(kept) == 80 * 200
    else:
        assert rows == [4] * 40  # 20 chunks, each forward and again backward
        assert max(kept) < 80 * 200


def test_what_nothing_predicts_is_refused():
    model = tiny.llama()
    ids, mask = right_padded(ROWS)
    with pytest.raises(ArgumentError, match="have one before them"):
        token_log_probs(model, ids, mask, mask)
    with pytest.raises(ArgumentError, match="temperature takes a number"):
        token_log_probs(model, ids, mask, mask, temperature=0)
    with pytest.raises(ShapeError, match="mask takes"):
        token_log_probs(model, ids, mask[:, :2], mask)
