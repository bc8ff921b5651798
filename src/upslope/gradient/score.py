"""The score: what the gradient of each sample's log-probability is, and what it is made for.

    s_i = ∇_θ ln p(x_i; θ)          E[s] = 0          F = E[s sᵀ], the Fisher information

The parameters θ of a `torch.distributions` object are the leaf tensors that its log-probability
depends on and that require a gradient, wherever they are: given to the distribution, or the weights
of a network before it.

Williams 1992, "Simple statistical gradient-following algorithms"; Amari 1998, "Natural gradient
works efficiently in learning".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.shapes import shaped

ELEMENTS_AT_ONCE = 2**22  # of the matrix of unit vectors that one batched backward pass takes


@shaped
def score(log_prob: Float[Tensor, "*shape"], parameters: Sequence[Tensor]) -> Float[Tensor, "M P"]:
    """Return ∇ ln p(x_i) of each of the M elements of `log_prob`, over the P flattened parameters.

    A parameter that an element does not depend on has 0 there. Raises ArgumentError where there is
    no sample, no parameter in a sequence, or one or `log_prob` that requires no gradient.
    """
    if log_prob.numel() == 0:
        raise ArgumentError(f"log_prob takes at least one sample, got {list(log_prob.shape)}")
    if isinstance(parameters, Tensor) or not all(isinstance(p, Tensor) for p in parameters):
        kind = type(parameters).__name__
        raise ArgumentError(f"parameters takes a sequence of tensors, such as [theta], got {kind}")
    if not parameters:
        raise ArgumentError("parameters takes at least one tensor, got none")
    if not all(p.requires_grad for p in parameters):
        raise ArgumentError("parameters takes tensors that require a gradient, got one without")
    if not log_prob.requires_grad:
        raise ArgumentError("log_prob takes a tensor that requires a gradient, got one without")
    terms = log_prob.reshape(-1)
    rows = max(1, ELEMENTS_AT_ONCE // terms.numel())
    starts = range(0, terms.numel(), rows)
    return torch.cat([_rows_of_jacobian(terms, parameters, i, rows) for i in starts])


@shaped
def fisher_information(score: Float[Tensor, "M P"]) -> Float[Tensor, "P P"]:
    """Return 1/M Σ s_i s_iᵀ, the Fisher information as samples from p itself see it.

    The samples must come from the distribution that the score is of. Without bias, since E[s] = 0
    is known and not subtracted. Raises ArgumentError where there is no sample.
    """
    if len(score) == 0:
        raise ArgumentError("score takes at least one row, got none")
    return score.mT @ score / len(score)


# ---------------------------------------------------------------- what autograd knows
def nodes(*results: Tensor) -> Iterator[Any]:
    """Yield each node of the graph behind `results` once, nearest first along the first input."""
    stack = [r.grad_fn for r in reversed(results) if r.grad_fn is not None]
    seen = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        stack += [n for n, _ in reversed(node.next_functions) if n is not None]


def leaves(*results: Tensor) -> list[Tensor]:
    """Return the leaf tensors requiring a gradient that `results` depend on, each once."""
    found = [r for r in results if r.requires_grad and r.grad_fn is None]
    found += [node.variable for node in nodes(*results) if hasattr(node, "variable")]
    return list({id(leaf): leaf for leaf in found}.values())


def depends_on(result: Tensor, source: Tensor) -> bool:
    """Return whether autograd would carry a gradient from `result` back to `source`."""
    if source.grad_fn is None:
        return source.requires_grad and any(leaf is source for leaf in leaves(result))
    return any(node is source.grad_fn for node in nodes(result))


def flat_gradient(result: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a scalar over all parameters, flattened, [P]; the graph is kept."""
    if not result.requires_grad:
        return torch.cat([torch.zeros_like(p).reshape(-1) for p in parameters])
    found = torch.autograd.grad(
        result, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.detach().reshape(-1) for g in found])


def _rows_of_jacobian(terms: Tensor, parameters: Sequence[Tensor], first: int, rows: int) -> Tensor:
    """Return the gradients of terms[first : first + rows], [rows, P], in one batched pass."""
    count = min(rows, len(terms) - first)
    unit = torch.zeros(count, len(terms), dtype=terms.dtype, device=terms.device)
    unit.diagonal(first).fill_(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # slow batching rules say so
            found = torch.autograd.grad(
                terms, parameters, unit, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except RuntimeError:  # a node that cannot be batched: one pass for each sample
        return torch.stack([flat_gradient(t, parameters) for t in terms[first : first + count]])
    pairs = zip(found, parameters, strict=True)
    return torch.cat(
        [
            unit.new_zeros(count, p.numel()) if g is None else g.detach().reshape(count, -1)
            for g, p in pairs
        ],
        1,
    )
