"""Sampling: the distribution that was asked for, log-probabilities that are those of the model."""

from __future__ import annotations

import pytest
import torch

from tests.language import tiny
from upslope.errors import ArgumentError
from upslope.language.generation import Completions, Sampler, left_padded, log_distribution
from upslope.language.logprobs import positions, token_log_probs

PROMPTS = [[3, 5, 7], [6], [8, 8, 4, 10]]


def sampler(model, **more) -> Sampler:
    return Sampler(**{"model": model, "end_ids": (1,), "max_tokens": 8} | more)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scored(model, prompts, made: Completions, temperature: float = 1.0) -> list[torch.Tensor]:
    """The log-probabilities of what was sampled, each sequence computed anew."""
    found = []
    group = len(made.length) // len(prompts)
    for k, completion in enumerate(made.lists()):
        prompt = prompts[k // group]
        ids = torch.tensor([prompt + completion])
        mask = torch.ones_like(ids, dtype=torch.bool)
        selected = positions(mask) >= len(prompt)
        with torch.no_grad():
            found.append(
                token_log_probs(model, ids, mask, selected, temperature=temperature).log_prob[
                    selected
                ]
            )
    return found


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "alike"])
def test_log_probs_are_those_of_the_model(name, prompts):
    """Through prompts of different lengths, a shared cache, and rows that leave the batch."""
    model = tiny.MODELS[name]()
    made = sampler(model, temperature=0.9, max_tokens=12)(prompts, 16, draws())
    assert made.ended.any()
    assert not made.ended.all()
    for k, expected in enumerate(scored(model, prompts, made, 0.9)):
        length = int(made.length[k])
        torch.testing.assert_close(made.log_prob[k, :length], expected, rtol=1e-4, atol=2e-5)
        assert (made.log_prob[k, length:] == 0).all()


@pytest.mark.parametrize("name", tiny.MODELS)
def test_greedy_is_that_of_transformers(name):
    model = tiny.MODELS[name](seed=3)
    made = sampler(model, temperature=0)(PROMPTS, 1, draws())
    for prompt, completion in zip(PROMPTS, made.lists(), strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8
        )
        assert completion == out[0, len(prompt) :].tolist()


def test_lengths_come_from_the_end_token():
    model = tiny.llama()
    made = sampler(model)(PROMPTS, 32, draws())
    for completion, ended in zip(made.lists(), made.ended.tolist(), strict=True):
        assert 1 not in completion[:-1]
        assert (completion[-1] == 1) == ended
        assert ended or len(completion) == 8


def test_frequencies_are_the_distribution():
    model = tiny.llama()
    made = sampler(model, max_tokens=1, temperature=0.8)([[3, 5]], 20_000, draws())
    p = (model(input_ids=torch.tensor([[3, 5]])).logits[0, -1] / 0.8).softmax(-1).detach()
    counts = torch.bincount(made.ids[:, 0], minlength=len(p))
    error = (p * (1 - p) / 20_000).sqrt()
    assert ((counts / 20_000 - p).abs() < 4.5 * error + 1e-6).all()


def test_top_k_and_top_p_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    torch.testing.assert_close(
        log_distribution(logits, 1.0, 2, 1.0).exp(), torch.tensor([[0.625, 0.375, 0, 0]])
    )
    alike = log_distribution(torch.zeros(1, 4), 1.0, 2, 1.0).exp()
    assert sorted(alike[0].tolist()) == [0, 0, 0.5, 0.5]
    for top_p, kept in ((0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4), (0.0, 1)):
        p = log_distribution(logits, 1.0, 0, top_p).exp()
        assert (p > 0).sum() == kept
        torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    # the temperature comes first, as everywhere: at 1/2 probabilities are squared, .685 of the mass
    p = log_distribution(logits, 0.5, 0, 0.7).exp()
    torch.testing.assert_close(p, torch.tensor([[25 / 34, 9 / 34, 0, 0]]))


def test_the_same_seed_samples_the_same_and_leaves_the_global_generator_alone():
    model = tiny.llama()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (sampler(model)(PROMPTS, 4, draws(s)).lists() for s in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_the_mode_of_the_model_is_left_alone():
    model = tiny.llama().train()
    sampler(model)(PROMPTS, 1, draws())
    assert all(module.training for module in model.modules())


def test_the_prompt_is_computed_once():
    model, seen = tiny.llama(), []
    model.model.embed_tokens.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    sampler(model, max_tokens=3, end_ids=(10**6,))(PROMPTS, 5, draws())
    assert [tuple(shape) for shape in seen] == [(3, 4), (15, 1), (15, 1)]


def test_finished_rows_leave_the_batch():
    model, seen = tiny.llama(), []
    model.model.embed_tokens.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    made = sampler(model, max_tokens=60)(PROMPTS, 32, draws())
    alive = [int((made.length > t).sum()) for t in range(1, int(made.length.max()))]
    assert all(rows <= max(1, n / 0.75) + 1 for rows, n in zip(seen[1:], alive, strict=True))
    assert seen[-1] < 0.3 * 96


def test_logits_that_are_no_numbers_are_left_to_the_loss():
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 0.0, 0.0]])
    token, log_prob = sampler(None).draw(logits, draws())
    assert token.min() >= 0
    assert token.max() <= 2
    assert log_prob.isnan().tolist() == [True, False]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ArgumentError, match="at least one token"):
        left_padded([[3], []])
    with pytest.raises(ArgumentError, match="top_p"):
        sampler(None, top_p=1.5)
