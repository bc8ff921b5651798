"""Surrogates: what to write down so that autograd returns the gradient of an expectation.

    L_i = ρ_i (f_i - b_i) + b_i,        ρ_i = exp(ln p(x_i; θ) - ln q(x_i)),    x_i ~ q

Without `reference`, q is p itself, held still: ρ = exp(ln p - detach(ln p)) is exactly 1. Then the
value of L is f, its gradient (f - b) ∇ ln p + ∇ f is the score-function estimator of ∇ E[f], and
its second derivative is right in the same way. With q another distribution, the behaviour that the
samples came from, it is importance sampling: E_q[L] = E_p[f] at every order.

Foerster et al. 2018, arXiv:1802.05098, section 3: the ratio, also for several draws, and its
baselines. Departure: there a baseline is a network's output, here any number that does not depend
on its own sample.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.shapes import shaped


@shaped
def surrogate(
    log_prob: Float[Tensor, "*shape"],
    objective: Float[Tensor, "*shape"],
    *,
    reference: Float[Tensor, "*shape"] | None = None,
    baseline: Tensor | float | Callable[..., Tensor] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return ρ (f - b) + b of each sample; its mean estimates E[f], its gradient ∇ E[f].

    `log_prob` is ln p(x; θ) in nats, of samples that are held still: detach x before. `objective`
    is f(x), of which autograd may know nothing; where it depends on θ itself, its gradient is
    added. `reference` is ln q(x) of the distribution that x was drawn from, detached here, and p
    itself by default. `baseline` is a tensor, a number, or a baseline of this module, which sees
    samples along the first dimension. It is detached, and must not depend on its own sample.

    Raises ShapeError unless all shapes are equal, ArgumentError for no samples, NotFiniteError
    for a baseline of NaN or infinity, and for a drawn sample that its own distribution gives
    probability 0. With `reference`, p may be 0.
    """
    ratio = likelihood_ratio(log_prob, reference)
    if baseline is None:
        return ratio * objective
    b = baseline(objective.detach(), log_prob) if callable(baseline) else baseline
    if isinstance(b, Tensor):
        if b.dim() and b.shape != objective.shape:
            raise ShapeError(
                f"surrogate: baseline takes one number for each objective, "
                f"{list(objective.shape)}, or one for all, got {list(b.shape)}"
            )
        b = b.detach()
    elif isinstance(b, bool) or not isinstance(b, numbers.Real):
        kind = type(b).__name__
        raise ArgumentError(f"baseline takes a tensor, a number or a function, got {kind}")
    elif not math.isfinite(b):
        raise NotFiniteError(f"baseline takes a finite number, got {b}")
    return ratio * (objective - b) + b


def graph_surrogate(
    costs: Sequence[tuple[Tensor, Sequence[Tensor]]],
    baselines: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Return the surrogate of a stochastic computation graph: several draws, costs on some of them.

        L = Σ_c ρ(W_c) c - Σ_w [ρ(w) - 1] b_w,          ρ(W) = exp Σ_{v in W} (ln p_v - held)

    `costs` are pairs of a cost and the log-probabilities of all draws that influence it, directly
    or through later draws: for x ~ p(x), y ~ p(y|x), the cost f(y) has (ln p(x), ln p(y|x)).
    `baselines` are pairs (b_w, ln p_w): a number that depends on draws before w only, detached
    here, and the draw that it belongs to. The value is the sum of the costs; first, second and
    further derivatives are right. All tensors have one shape, which is returned. Samples are held
    still: detach them before the next distribution sees them.

    Raises ShapeError for different shapes, ArgumentError for no cost or one that is no tensor,
    NotFiniteError as `surrogate` does. A cost that no draw influences has an empty sequence.
    """
    if not costs:
        raise ArgumentError("costs takes at least one pair of a cost and log-probabilities")
    first = costs[0][0]
    _require_tensor("a cost", first)
    shape, total = first.shape, torch.zeros_like(first)
    for cost, influences in costs:
        _same_shape(shape, "a cost", cost)
        total = total + _ratio_of_all(influences, shape) * cost
    for b, log_prob in baselines:
        _same_shape(shape, "a baseline", b)
        total = total - (_ratio_of_all([log_prob], shape) - 1) * b.detach()
    return total


def likelihood_ratio(log_prob: Tensor, reference: Tensor | None) -> Tensor:
    """Return exp(ln p - ln q), q detached; without reference exactly 1, with the score as slope."""
    if log_prob.numel() == 0:
        raise ArgumentError(f"log_prob takes at least one sample, got {list(log_prob.shape)}")
    held = log_prob.detach() if reference is None else reference.detach()
    _check_drawn("log_prob" if reference is None else "reference", held)
    if reference is not None and (log_prob.detach() == math.inf).any() | log_prob.isnan().any():
        raise NotFiniteError("log_prob takes finite numbers or -inf, got NaN or inf")
    return (log_prob - held).exp()


def _check_drawn(name: str, log_prob: Tensor) -> None:
    """Refuse NaN, inf, and -inf: what has probability 0 was not drawn."""
    if math.isfinite(log_prob.sum().item()) or log_prob.isfinite().all():
        return
    index = (~log_prob.isfinite()).nonzero()[0].tolist()
    raise NotFiniteError(
        f"{name} takes finite numbers, the log-probabilities of what was drawn, "
        f"got {log_prob[tuple(index)].item()} at {index}"
    )


def _ratio_of_all(log_probs: Sequence[Tensor], shape: torch.Size) -> Tensor | float:
    """Return the ratio of the product of some draws; of none, 1."""
    if not log_probs:
        return 1.0
    for log_prob in log_probs:
        _same_shape(shape, "a log-probability", log_prob)
    return likelihood_ratio(torch.stack(list(log_probs)).sum(0), None)


def _require_tensor(name: str, got: object) -> None:
    if not isinstance(got, Tensor):
        raise ArgumentError(f"graph_surrogate: {name} takes a tensor, got {type(got).__name__}")


def _same_shape(shape: torch.Size, name: str, got: Tensor) -> None:
    _require_tensor(name, got)
    if got.shape != shape:
        raise ShapeError(
            f"graph_surrogate: {name} takes the shape of the first cost, {list(shape)}, "
            f"got {list(got.shape)}"
        )
