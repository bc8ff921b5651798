"""Every trajectory of a finite problem, with its probability.

    τ = (s_0, a_0, r_0, ..., s_{T-1}, a_{T-1}, r_{T-1}, s_T)
    P(τ) = h(s_0) Π_{t<T} π(a_t|s_t) p(s_{t+1}|s_t, a_t)      J = Σ_τ P(τ) R(τ)

There are about (A S)ᵀ of them, so they are made one at a time and never stored. It is the slowest
way to an expectation there is, and the one that needs no theory: the others are held against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from upslope.errors import ArgumentError
from upslope.exact.mdp import Array, FiniteMDP
from upslope.exact.solve import as_policy, resolve_setting


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One trajectory of T steps."""

    states: tuple[int, ...]
    """s_0 ... s_{T-1}, the states that were acted in."""
    actions: tuple[int, ...]
    """a_0 ... a_{T-1}."""
    rewards: tuple[float, ...]
    """r_0 ... r_{T-1}."""
    final_state: int | None
    """s_T, or None where the episode ended: terminal states are not states."""

    @property
    def terminated(self) -> bool:
        """Whether the episode ended, rather than being cut at the horizon."""
        return self.final_state is None

    def discounted_return(self, gamma: float, since: int = 0) -> float:
        """Return G_t = Σ_{k>=t} γᵏ⁻ᵗ r_k, with t = `since`; R(τ) is the one since 0."""
        total = 0.0
        for reward in reversed(self.rewards[since:]):
            total = reward + gamma * total
        return total


def enumerate_trajectories(
    mdp: FiniteMDP, policy: Array, horizon: int
) -> Iterator[tuple[float, Trajectory]]:
    """Yield (P(τ), τ) for every trajectory of positive probability; the probabilities sum to 1.

    Episodes end by themselves or are cut after `horizon` steps. Depth first, so memory is that of
    one trajectory. Raises what `solve` raises for a wrong policy (any policy that never ends is
    fine here), and ArgumentError for a horizon that is not a whole number of at least 0; both at
    the call, before the first trajectory.
    """
    resolve_setting(mdp, None)
    if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 0:
        raise ArgumentError(f"horizon takes a whole number of at least 0, got {horizon!r}")
    pi = as_policy(mdp, policy).detach()
    return _walk(mdp, pi, horizon)


def _walk(mdp: FiniteMDP, pi: torch.Tensor, horizon: int) -> Iterator[tuple[float, Trajectory]]:
    known: dict[int, list[_Branch]] = {}
    starts = [(int(s), mdp.start[s].item()) for s in mdp.start.nonzero().reshape(-1).flip(0)]
    todo = [(chance, Trajectory((), (), (), s)) for s, chance in starts]
    while todo:
        probability, tau = todo.pop()
        state = tau.final_state
        if state is None or len(tau.states) == horizon:
            yield probability, tau
            continue
        if state not in known:
            known[state] = _branches(mdp, pi, state)
        for action, reward, following, chance in known[state]:
            longer = Trajectory(
                (*tau.states, state), (*tau.actions, action), (*tau.rewards, reward), following
            )
            todo.append((probability * chance, longer))


_Branch = tuple[int, float, int | None, float]  # action, reward, next state, probability


def _branches(mdp: FiniteMDP, pi: torch.Tensor, state: int) -> list[_Branch]:
    """Return what can happen in one step from `state`; the last one is walked first."""
    found: list[_Branch] = []
    for action in reversed(range(mdp.n_actions)):
        taken = pi[state, action].item()
        if taken == 0:
            continue
        ending, reward = mdp.ending[state, action].item(), mdp.reward[state, action].item()
        arrival = _row(mdp.arrival_reward, mdp, state, action)
        if ending > 0:
            found.append((action, reward if arrival is None else 0.0, None, taken * ending))
        arriving = _row(mdp.transition, mdp, state, action) or {}
        for following, chance in arriving.items():
            paid = reward if arrival is None else arrival.get(following, 0.0)
            found.append((action, paid, following, taken * chance))
    return found


def _row(array: Array, mdp: FiniteMDP, state: int, action: int) -> dict[int, float] | None:
    """Return the entries of row (state, action) that are not 0."""
    if array is None:
        return None
    if not mdp.is_sparse:
        row = array[state, action]
        return {int(i): row[i].item() for i in row.nonzero().reshape(-1)}
    start, end = array.indptr[state * mdp.n_actions + action :][:2]
    return dict(zip(array.indices[start:end].tolist(), array.data[start:end].tolist(), strict=True))
