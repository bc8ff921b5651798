"""Which losses the native engine has a twin of: an algorithm's page registers its own.

    @twin("clipped")                                          @twin("plain")
    def ppo_loss(policy, batch, *, clip_range, ...)           def a2c_loss(policy, batch, *, ...)

    clipped    -E[min(rho A, clip(rho, 1-eps, 1+eps) A)] + c_v E[(v - G)^2] - c_e E[H]
    plain      -E[A ln pi(a|s)]                          + c_v E[(v - G)^2] - c_e E[H]
    temporal   E[huber(q(s, a) - y)]

The twin is the same function in C++, read from the coefficients that the loss is called with:
`clip_range` (eps), `clip_range_vf`, `vf_coef` (c_v), `ent_coef` (c_e); `double`, `huber`. The first
two read a batch's observation, action, log_prob, value, advantage, target (and action_mask, where
there is one), the third is DQN's, of `Transitions`. Metrics are those of METRICS. Tests hold a loss
and its twin equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

METRICS = {
    "clipped": ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"),
    "plain": ("policy_loss", "value_loss", "entropy"),
    "temporal": ("value_loss", "td_error", "q"),
}
_SURROGATES: dict[Callable[..., Any], str] = {}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Coefficients:
    """What a twin is called with."""

    surrogate: str
    clip_range: float = 0.0
    clip_range_vf: float | None = None
    vf_coef: float = 0.0
    ent_coef: float = 0.0
    double: bool = False
    huber: bool = True


COEFFICIENTS = frozenset(Coefficients.__dataclass_fields__) - {"surrogate"}


def twin(surrogate: str) -> Callable[[F], F]:
    """Register a loss as one of METRICS; it stays as it is."""
    assert surrogate in METRICS, surrogate

    def register(loss: F) -> F:
        _SURROGATES[loss] = surrogate
        return loss

    return register


@cache
def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    takes = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in takes if p.kind is p.KEYWORD_ONLY}


def coefficients(loss: Callable[..., Any]) -> Coefficients | str:
    """Return what the twin of `loss`, a registered function or a partial of one, is called with.

    If it has none, or is called with something the twin does not know, returns the reason.
    """
    function, given = loss, {}
    if isinstance(loss, partial):
        if loss.args:
            return "its loss is given arguments by position"
        function, given = loss.func, loss.keywords
    if function not in _SURROGATES:
        return f"it has no twin of the loss {getattr(function, '__qualname__', function)}"
    found = _defaults(function) | given
    unknown = {name for name, value in found.items() if value is not None} - COEFFICIENTS
    if unknown:
        return f"its twin of {function.__qualname__} does not know {', '.join(sorted(unknown))}"
    return Coefficients(_SURROGATES[function], **{n: found[n] for n in COEFFICIENTS & set(found)})
