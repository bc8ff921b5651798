"""Log-probabilities of completions, with the prompt that several of them share computed once.

    rows        x y_1,  x y_2, ..., x y_G            G (P + C) tokens
    computed    x,  then y_1, y_2, ..., y_G after    P + G C tokens

What a prompt gives to its completions are its keys and values, and the state at its last token,
which predicts their first. Both are computed once for each prompt that differs; gradients of all
its completions flow back through them. A chosen and a rejected completion share theirs, and so do
the G completions of a group. The numbers are those of whole rows, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upslope.language.logprobs import TokenLogProbs, of_states, placed, token_log_probs
from upslope.language.models import backbone, unwrapped
from upslope.language.requirements import need
from upslope.language.sequences import Sequences


def completion_log_probs(
    model: Any, sequences: Sequences, *, temperature: float = 1.0, entropy: bool = False
) -> TokenLogProbs:
    """Return ln π of each token of the completions [n, L], 0 elsewhere; see `token_log_probs`.

    Rows without a common prompt, layers that keep something else than keys and values, and
    activations that are computed again are the cases where whole rows are computed instead.
    """
    selected = sequences.selected
    states = shared_states(model, sequences)
    if states is None:
        return token_log_probs(
            model, sequences.ids, sequences.mask, selected, temperature=temperature, entropy=entropy
        )
    return placed(of_states(model, states, sequences.ids[selected], temperature, entropy), selected)


def shared_states(model: Any, sequences: Sequences) -> Tensor | None:
    """Return the hidden states [tokens, width] that predict the completions' tokens, row by row.

    None where nothing is shared, or cannot be.
    """
    cache = plain_cache(model)
    if cache is None:
        return None
    ids, there, which = distinct_prompts(sequences)
    if len(ids) == len(which):
        return None
    compute, rows = backbone(model), torch.arange(len(which), device=ids.device)
    length = there.sum(1)[which]  # of each row's prompt
    padded = not bool(there.all())
    known = (
        {"attention_mask": there, "position_ids": (there.cumsum(1) - 1).clamp_(min=0)}
        if padded
        else {}
    )
    of_prompts = compute(input_ids=ids, past_key_values=cache, use_cache=True, **known)[0]
    if cache.get_seq_length() != ids.shape[1]:
        return None  # this model keeps its past elsewhere
    count = sequences.length - length
    column = torch.arange(int(count.max()), device=ids.device)
    states = of_prompts[:, -1:].index_select(0, which)
    if len(column) > 1:
        for layer in cache.layers:
            layer.keys = layer.keys.index_select(0, which)
            layer.values = layer.values.index_select(0, which)
        place = (length[:, None] + column[:-1]).clamp(max=sequences.ids.shape[1] - 1)
        tokens = sequences.ids[rows[:, None], place]
        if padded:
            last = sequences.length[:, None] - 1  # padding has no position of its own to be in
            known = {
                "attention_mask": torch.cat([there[which], torch.ones_like(tokens).bool()], 1),
                "position_ids": torch.minimum(length[:, None] + column[:-1], last),
            }
        after = compute(input_ids=tokens, past_key_values=cache, use_cache=True, **known)[0]
        states = torch.cat([states, after], 1)
    return states[column < count[:, None]]


def distinct_prompts(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prompts that differ, as ids [k, P] that end together, and which each row has.

    Second is where a token is there [k, P]; third the prompt of each row [n].
    """
    length = sequences.prompt_length
    width = int(length.max())
    column = torch.arange(width, device=length.device)
    ids = sequences.ids[:, :width].where(column < length[:, None], 0)
    table, which = torch.unique(torch.cat([ids, length[:, None]], 1), dim=0, return_inverse=True)
    ids, length = table[:, :-1], table[:, -1]
    source = column - (width - length[:, None])
    return ids.gather(1, source.clamp(min=0)), source >= 0, which


def plain_cache(model: Any) -> Any:
    """Return an empty cache where all layers keep the keys and values of the whole past, or None.

    None too where activations are computed again, for which transformers takes no cache.
    """
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return None
    utils = need("transformers.cache_utils")
    cache = utils.DynamicCache(config=unwrapped(model).config)
    plain = cache.layers and all(type(layer) is utils.DynamicLayer for layer in cache.layers)
    return cache if plain else None
