"""Completions sampled from a causal language model, each token with its log-probability.

    x_t ~ π_τ(. | prompt, x_<t),      π_τ ∝ exp(z / τ),  restricted to the top k or the nucleus

The prompt of a group is computed once, and its keys and values shared by the G completions. Keys
and values lie in memory that is reserved once; a cache that grows by concatenation copies itself
for every token. Rows that have ended leave the batch once they are a quarter of it.

`Backend` is all that training asks of a generator: prompts in, completions with log-probabilities
out. Another engine can stand behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from upslope.errors import ArgumentError, check_range
from upslope.language.decoding import decoding
from upslope.language.models import device_of, evaluating, precision, unwrapped
from upslope.language.requirements import need


@dataclass
class Completions:
    """G completions of each prompt, prompt-major; a row counts up to its length, end token too."""

    ids: Tensor
    """[n G, C] token ids."""
    length: Tensor
    """[n G], tokens that were sampled."""
    ended: Tensor
    """[n G], True where the last of them is an end token."""
    log_prob: Tensor
    """[n G, C], log π_τ of each token as it was sampled, in nats."""

    def lists(self) -> list[list[int]]:
        """Return the token ids of each completion."""
        rows = zip(self.ids.tolist(), self.length.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]


class Backend(Protocol):
    """What training asks of a generator."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], group_size: int, draws: torch.Generator
    ) -> Completions:
        """Return `group_size` completions of each prompt, sampled with the generator `draws`."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The backend that samples from a model of transformers, in this process."""

    model: Any
    end_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    """τ; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 takes all."""
    top_p: float = 1.0
    """Only the fewest tokens whose probabilities sum to at least this; 1 takes all."""
    bf16: bool = False

    def __post_init__(self) -> None:
        check_range("max_tokens", self.max_tokens, 1)
        check_range("temperature", self.temperature, 0)
        check_range("top_k", self.top_k, 0)
        check_range("top_p", self.top_p, 0, 1)

    def __call__(
        self, prompts: Sequence[Sequence[int]], group_size: int, draws: torch.Generator
    ) -> Completions:
        """Return `group_size` completions of each prompt; log-probabilities are of the draw made.

        Raises ArgumentError for an empty prompt.
        """
        device = device_of(self.model)
        ids, mask = left_padded(prompts, device)
        with (
            torch.inference_mode(),
            evaluating(self.model),
            precision(device, self.bf16),
            decoding(self.model, self.bf16),
        ):
            made = self._sample(ids, mask, group_size, draws)
        return Completions(*(part.clone() for part in made))  # as tensors that a gradient may see

    def _sample(
        self, ids: Tensor, mask: Tensor, group_size: int, draws: torch.Generator
    ) -> tuple[Tensor, ...]:
        rows, width = len(ids) * group_size, ids.shape[1]
        tokens = ids.new_zeros(rows, self.max_tokens)
        log_probs = torch.zeros(rows, self.max_tokens, device=ids.device)
        length = torch.full((rows,), self.max_tokens, device=ids.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=ids.device)
        ends = torch.tensor(self.end_ids, device=ids.device)

        decoder = Decoder(self.model, ids, mask, group_size, width + self.max_tokens)
        logits = decoder.logits
        row = torch.arange(rows, device=ids.device)  # which completion each row of the batch is
        alive = torch.ones(rows, dtype=torch.bool, device=ids.device)
        for t in range(self.max_tokens):
            token, log_prob = self.draw(logits, draws)
            live = row[alive]
            tokens[live, t], log_probs[live, t] = token[alive], log_prob[alive]
            stops = alive & torch.isin(token, ends)
            length[row[stops]], ended[row[stops]] = t + 1, True
            alive = alive & ~stops
            remaining = int(alive.sum())
            if remaining == 0 or t + 1 == self.max_tokens:
                break
            if remaining <= 0.75 * len(row):
                decoder.keep(alive)
                row, token, alive = row[alive], token[alive], alive[alive]
            logits = decoder.step(token)
        return tokens, length, ended, log_probs

    def draw(self, logits: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a token for each row of logits [n, V], and the log-probability it had."""
        log_p = log_distribution(logits.float(), self.temperature, self.top_k, self.top_p)
        if self.temperature == 0:
            token = log_p.argmax(-1)
        else:  # where the running sum of p first reaches what is drawn from (0, its last]
            reached = log_p.double().exp_().cumsum(-1)
            drawn = 1 - torch.rand(len(log_p), 1, generator=draws, device=draws.device).double()
            token = torch.searchsorted(reached, drawn.to(reached.device) * reached[:, -1:])[:, 0]
            token = token.clamp(max=log_p.shape[-1] - 1)  # NaN: the loss will say so, not an index
        return token, log_p.gather(-1, token[:, None])[:, 0]


def log_distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return log π_τ [n, V], -inf outside the top k and the nucleus; τ = 0 counts as 1."""
    if temperature not in (0, 1):
        logits = logits / temperature
    if top_k:
        best = logits.topk(min(top_k, logits.shape[-1]), -1)  # no more than k, where some are equal
        logits = torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)
    if top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        p = ordered.softmax(-1)
        outside = p.cumsum(-1) - p >= top_p  # what comes before it suffices
        outside[:, 0] = False
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits.log_softmax(-1)


class Decoder:
    """One token at a time for all rows of a batch, after their prompts."""

    def __init__(
        self, model: Any, ids: Tensor, mask: Tensor, group_size: int, capacity: int
    ) -> None:
        self.model = unwrapped(model)  # an adapter is in its layers
        self.cache = reserved_cache(model, capacity)
        self.padded = not bool(mask.all())
        there = {}
        if self.padded:
            there = {"position_ids": (mask.cumsum(1) - 1).clamp_(min=0)}
        found = self.model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **there,
        ).logits[:, -1]
        self.logits = found.repeat_interleave(group_size, 0)
        self.cache.batch_repeat_interleave(group_size)
        self.position = mask.sum(1, keepdim=True).repeat_interleave(group_size, 0)
        self.mask = mask.new_ones(len(self.position), capacity)
        self.mask[:, : ids.shape[1]] = mask.repeat_interleave(group_size, 0)
        self.seen = ids.shape[1]

    def step(self, token: Tensor) -> Tensor:
        """Take one token [n] per row; returns the logits [n, V] of what follows."""
        self.seen += 1
        there = {}
        if self.padded:
            there = {"attention_mask": self.mask[:, : self.seen], "position_ids": self.position}
        logits: Tensor = self.model(
            input_ids=token[:, None], past_key_values=self.cache, use_cache=True, **there
        ).logits[:, -1]
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop the rows of the batch where `rows` is False."""
        self.cache.batch_select_indices(rows.nonzero()[:, 0])
        self.position, self.mask = self.position[rows], self.mask[rows]


def reserved_cache(model: Any, capacity: int) -> Any:
    """Return an empty key-value cache for `capacity` tokens per row, its memory reserved once.

    Layers that attend to a part of the past (sliding windows) keep the layer that transformers has
    for them. Raises ArgumentError for recurrent ones, whose state is not given to a group's rows.
    """
    utils = need("transformers.cache_utils")

    class Reserved(utils.DynamicLayer):  # type: ignore[name-defined]
        """Keys and values of one layer, a growing view of memory [n, heads, capacity, width]."""

        def update(
            self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            """Append, and return all there is."""
            if self.get_seq_length() == 0:  # the prompts, as long as a group is one row
                self.dtype, self.device = key_states.dtype, key_states.device
                self.keys, self.values, self.is_initialized = key_states, value_states, True
                return key_states, value_states
            start = self.keys.shape[-2]
            end = start + key_states.shape[-2]
            self.memory[0][:, :, start:end] = key_states
            self.memory[1][:, :, start:end] = value_states
            self._view(end)
            return self.keys, self.values

        def batch_repeat_interleave(self, repeats: int) -> None:
            """Give each prompt's keys and values to the rows of its group."""
            self._reserve(self.keys, self.values, repeats)

        def batch_select_indices(self, indices: Tensor) -> None:
            """Keep some rows."""
            self._reserve(self.keys[indices], self.values[indices], 1)

        def _reserve(self, keys: Tensor, values: Tensor, repeats: int) -> None:
            n, heads, length, _ = keys.shape
            self.memory = []
            for part in (keys, values):
                memory = part.new_empty(n * repeats, heads, capacity, part.shape[-1])
                grouped = memory[:, :, :length].unflatten(0, (n, repeats))
                grouped.copy_(part[:, None].expand_as(grouped))
                self.memory.append(memory)
            self._view(length)

        def _view(self, length: int) -> None:
            self.keys, self.values = (part[:, :, :length] for part in self.memory)

    cache = utils.DynamicCache(config=unwrapped(model).config)
    for layer in cache.layers:
        if not hasattr(layer, "batch_repeat_interleave"):
            raise ArgumentError(
                f"{type(unwrapped(model)).__name__} has layers that keep a recurrent state, which "
                "the sampler does not share in a group: give GRPO a backend that samples"
            )
    cache.layers = [
        Reserved() if type(layer) is utils.DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return prompts as ids [n, P] that end together, and the mask of what is there."""
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise ArgumentError("prompts takes at least one prompt, each of at least one token")
    width = max(lengths)
    rows = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    length = torch.tensor(lengths, device=device)
    mask = torch.arange(width, device=device) >= width - length[:, None]
    return torch.tensor(rows, device=device), mask


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end a completion, as the tokenizer and the model's settings name them."""
    named = getattr(getattr(unwrapped(model), "generation_config", None), "eos_token_id", None)
    more: Iterable[int | None] = named if isinstance(named, list | tuple) else [named]
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *more) if i is not None))
