"""Episodes of a finite problem, many at once, and the policies that they follow.

A policy is softmax(θ M)(a|s): θ [P], and M [P, S, A] says which parameter is whose, so that states
may share them. ∇ ln π(a|s) = M(s,a) - Σ_b π(b|s) M(s,b).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.exact import FiniteMDP

LONGEST = 2_000  # steps of an episode; the shipped ones end long before


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes:
    """N episodes, time-major [T, N]; after the end of one, steps of another, which do not count."""

    state: Tensor
    """s_t."""
    action: Tensor
    """a_t."""
    reward: Tensor
    """r_t."""
    next_state: Tensor
    """s_{t+1}; where it terminated, state 0, which nobody may read."""
    terminated: Tensor
    """Where s_{t+1} is the end."""
    mask: Tensor
    """Where the step belongs to its episode."""


def tabular(states: int, actions: int) -> Tensor:
    """Return the M of one parameter for each state and action, [S A, S, A]."""
    count = states * actions
    return torch.eye(count, dtype=torch.float64).reshape(count, states, actions)


def shared(states: int, actions: int) -> Tensor:
    """Return the M of one parameter for each action, the same in all states, [A, S, A]."""
    one = torch.eye(actions, dtype=torch.float64)
    return one[:, None, :].expand(actions, states, actions).contiguous()


def probabilities(theta: Tensor, features: Tensor) -> Tensor:
    """Return π(a|s) [S, A]."""
    return torch.einsum("p,psa->sa", theta, features).softmax(1)


def scores(theta: Tensor, features: Tensor) -> Tensor:
    """Return ∇ ln π(a|s) [S, A, P]."""
    mean = torch.einsum("sa,psa->sp", probabilities(theta, features), features)
    return features.permute(1, 2, 0) - mean[:, None, :]


def play(
    mdp: FiniteMDP,
    policy: Tensor,
    count: int,
    source: torch.Generator,
    *,
    start: Tensor | None = None,
    steps: int | None = None,
) -> Episodes:
    """Return `count` episodes under a policy [S, A]; with `steps`, cut there and never sooner.

    They begin in `start` [S], by default the problem's own. Those that end before the longest one
    does begin anew in state 0, with `mask` False. Raises ArgumentError where an episode does not
    end within two thousand steps.
    """
    begin = mdp.start if start is None else start
    state = torch.multinomial(begin, count, replacement=True, generator=source)
    # columns: every next state, and the end
    arrive = torch.cat([mdp.transition, mdp.ending[:, :, None]], 2).cumsum(2)
    arrive[:, :, -1] = 1
    choose = policy.cumsum(1)
    choose[:, -1] = 1
    alive = torch.ones(count, dtype=torch.bool)
    rows: list[tuple[Tensor, ...]] = []
    while alive.any() if steps is None else len(rows) < steps:
        if len(rows) == LONGEST:
            raise ArgumentError(f"policy takes one that ends within {LONGEST} steps, got another")
        draw = torch.rand(2, count, 1, dtype=torch.float64, generator=source)
        action = (draw[0] >= choose[state]).sum(1)
        following = (draw[1] >= arrive[state, action]).sum(1)
        ended = following == mdp.n_states
        reward = mdp.reward[state, action]
        following = following.masked_fill(ended, 0)
        rows.append((state, action, reward, following, ended & alive, alive))
        state, alive = following, alive & ~ended
    columns = [torch.stack(part) for part in zip(*rows, strict=True)]
    return Episodes(**dict(zip(Episodes.__dataclass_fields__, columns, strict=True)))
