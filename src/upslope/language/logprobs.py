"""The log-probability of each token of a sequence, without all logits at once.

    log π(x_t | x_<t) = z_t[x_t] - log Σ_v exp z_t[v],      z_t = W h_{t-1} / τ

h are the last hidden states, W the model's head, τ the temperature at which tokens were sampled.
Logits [tokens, vocabulary] are the largest tensor of a language model's training step. Here the
head sees a chunk of tokens at a time, and its logits are computed again in the backward pass.

Masks say which tokens of a row are there; nothing is read from token values, so a pad token that is
also the end token is no special case. Positions are counted over what is there:

    position_t = Σ_{s<=t} mask_s - 1

so that a row padded on the left gives what the row without padding gives.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from upslope.errors import ArgumentError, check_range
from upslope.language.models import backbone, head, vocabulary_size
from upslope.shapes import shaped

CHUNK_ELEMENTS = 2**24
"""Logits that may exist at a time: 64 MiB in float32."""


class TokenLogProbs(NamedTuple):
    """What `token_log_probs` returns; both are 0 where nothing was asked."""

    log_prob: Tensor
    """[n, L], log π(x_t | x_<t) in nats."""
    entropy: Tensor | None
    """[n, L], H(π(. | x_<t)) in nats, without a gradient; None when not asked for."""


@shaped
def positions(mask: Bool[Tensor, "n L"]) -> Int[Tensor, "n L"]:
    """Return the position of each token among those of its row that are there; padding is at 0."""
    return (mask.cumsum(1) - 1).clamp_(min=0)


@shaped
def token_log_probs(
    model: Any,
    ids: Int[Tensor, "n L"],
    mask: Bool[Tensor, "n L"],
    selected: Bool[Tensor, "n L"],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TokenLogProbs:
    """Return log π(x_t | x_<t) of the selected tokens under a causal model of transformers.

    `mask` is True where a token is there, `selected` where its log-probability is wanted; padding
    may be on either side. At most `chunk_elements` logits exist at a time, forward and backward.

    Raises ShapeError for other shapes, and ArgumentError where the first column or padding is
    selected, which nothing predicts, or the temperature is not above 0.
    """
    check_range("temperature", temperature, 1e-6)
    if bool((selected[:, 0] | (selected & ~mask).any(1)).any()):
        raise ArgumentError("selected takes tokens that are there and have one before them")
    predicts = selected[:, 1:]
    states = hidden_states(model, ids, mask)[:, :-1][predicts]  # [tokens, width]
    found = of_states(model, states, ids[:, 1:][predicts], temperature, entropy, chunk_elements)
    return placed(found, selected)


def placed(found: tuple[Tensor, Tensor | None], selected: Tensor) -> TokenLogProbs:
    """Return log-probability and entropy of the selected tokens [tokens] where they are, [n, L]."""
    full = [
        None if part is None else part.new_zeros(selected.shape).masked_scatter(selected, part)
        for part in found
    ]
    return TokenLogProbs(cast(Tensor, full[0]), full[1])


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states [n, L, width].

    Where all padding is on the right, causality alone hides it and no mask is built.
    """
    there: dict[str, Tensor] = {"attention_mask": torch.ones_like(mask)}
    if bool((mask[:, 1:] & ~mask[:, :-1]).any() | ~mask[:, 0].all()):
        there = {"attention_mask": mask, "position_ids": positions(mask)}
    states: Tensor = backbone(model)(input_ids=ids, use_cache=False, **there)[0]
    return states


def of_states(
    model: Any,
    states: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probability and entropy [tokens] of `targets` after hidden states [tokens, width].

    With more than one chunk its logits are dropped, and computed again for the gradient.
    """
    rows = max(1, chunk_elements // vocabulary_size(model))
    project = head(model)
    if len(states) <= rows:
        return _chunk(project, states, targets, temperature, entropy)
    parts = [
        checkpoint(
            _chunk,
            project,
            states[i : i + rows],
            targets[i : i + rows],
            temperature,
            entropy,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in a head is random
        )
        for i in range(0, len(states), rows)
    ]
    log_probs, entropies = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropies) if entropy else None


def _chunk(
    project: Any, states: Tensor, targets: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    logits = project(states).float()
    if temperature != 1:
        logits = logits / temperature
    log_p = logits.log_softmax(-1)
    log_prob = log_p.gather(-1, targets[:, None])[:, 0]
    return log_prob, entropy_of(log_p.detach()) if entropy else None


def entropy_of(log_p: Tensor) -> Tensor:
    """Return H = -Σ p log p, in nats, over the last dimension; what cannot happen adds nothing."""
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
