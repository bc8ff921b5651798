"""A language model so small that all its completions are enumerated: three tokens, three at most.

    π(y) = Π_t π(y_t | y_<t)        softmax of a row of logits θ [7, 3] for each of the 7 prefixes

Token 0 ends a completion, so that there are 15 of them, of 1, 2 and 3 tokens, which all count, the
end included. Every expectation over completions is a sum of 15 terms.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

END, VOCABULARY, LENGTH = 0, 3, 3

PREFIXES = tuple(
    prefix for size in range(LENGTH) for prefix in itertools.product((1, 2), repeat=size)
)
COMPLETIONS = tuple(
    (*prefix, token)
    for prefix in PREFIXES
    for token in range(VOCABULARY)
    if token == END or len(prefix) == LENGTH - 1
)
COUNT = len(COMPLETIONS)
SIZE = len(PREFIXES) * VOCABULARY

MASK = torch.tensor([[t < len(y) for t in range(LENGTH)] for y in COMPLETIONS])
"""Which tokens of each completion count, [15, 3]."""

CELL = torch.tensor(
    [
        [PREFIXES.index(y[:t]) * VOCABULARY + y[t] if t < len(y) else 0 for t in range(LENGTH)]
        for y in COMPLETIONS
    ]
)
"""Where the logit of each token of each completion is in the flat θ, [15, 3]."""


def token_log_prob(theta: Tensor) -> Tensor:
    """Return ln π(y_t | y_<t) of all completions, [*batch, 15, 3], of θ [*batch, 21]; else 0."""
    table = theta.unflatten(-1, (len(PREFIXES), VOCABULARY)).log_softmax(-1).flatten(-2)
    return table[..., CELL].masked_fill(~MASK, 0.0)


def log_prob(theta: Tensor) -> Tensor:
    """Return ln π(y) of all completions, [*batch, 15]."""
    return token_log_prob(theta).sum(-1)


def _waves(count: int, size: float) -> Tensor:
    """Return numbers that are all different, [count]."""
    return size * torch.sin(torch.arange(1, count + 1, dtype=torch.float64) ** 2)


THETA = _waves(SIZE, 0.5)
"""A policy, [21]."""

REFERENCE = _waves(SIZE, 2.0).flip(0)
"""Another, to which a divergence is taken, [21]."""

REWARD = torch.tensor([float(sum(y) == 3) for y in COMPLETIONS], dtype=torch.float64)
"""A verifiable reward of each completion, [15]: 1 where its tokens add up to three, else 0."""
