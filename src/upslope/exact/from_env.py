"""The dynamics of a Gymnasium environment that publishes them, as a finite problem.

FrozenLake, CliffWalking and Taxi hold a table P[s][a] of (probability, next state, reward,
terminated), and the distribution of their first state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upslope.errors import ArgumentError, EnvironmentFault
from upslope.exact.mdp import FiniteMDP
from upslope.exact.problems import SPARSE_FROM


def from_gymnasium(env: Any, gamma: float = 0.99) -> FiniteMDP:
    """Return the problem that `env`, an id or an environment, publishes as its table `P`.

    A transition that terminates becomes missing mass; its reward counts. States keep their numbers.
    Those in which no episode goes on (a hole, the goal) keep the row that the table has; nothing
    arrives in them, so η is 0 there. Rewards are expected ones, [S, A]: means and gradients are
    those of the environment, and so are variances where the reward is a function of state and
    action. Time limits are not part of it. An environment without a distribution of its first state
    is reset and asked.

    Raises ArgumentError for an unknown id or an environment without a table, and EnvironmentFault
    for a table that is no distribution over its states.
    """
    import gymnasium

    if isinstance(env, str):
        try:
            made = gymnasium.make(env)
        except gymnasium.error.Error as error:
            raise ArgumentError(
                f"env takes a registered environment, got {env!r} ({error})"
            ) from None
        try:
            return from_gymnasium(made, gamma)
        finally:
            made.close()
    raw = getattr(env, "unwrapped", env)
    table = getattr(raw, "P", None)
    if not isinstance(table, dict) or not table:
        raise ArgumentError(
            "env takes an environment with a table P[state][action] of its dynamics, as "
            f"FrozenLake, CliffWalking and Taxi have, got {type(raw).__name__}"
        )
    states, actions = len(table), len(table[0])
    reward = np.zeros((states, actions))
    entries: list[tuple[int, int, float]] = []  # row, next state, probability
    for s in range(states):
        for a in range(actions):
            total = sum(outcome[0] for outcome in table[s][a])
            if abs(total - 1) > 1e-6 or len(table[s]) != actions:
                raise EnvironmentFault(
                    f"the table P of {type(raw).__name__} takes probabilities that sum to 1 for "
                    f"each of {actions} actions, got {total:g} for state {s}, action {a}"
                )
            for chance, following, paid, terminated in table[s][a]:
                reward[s, a] += chance / total * paid
                if not terminated:
                    entries.append((s * actions + a, int(following), chance / total))
    return FiniteMDP(_rows(entries, states, actions), reward, _first(raw, states), gamma)


def _rows(entries: list[tuple[int, int, float]], states: int, actions: int) -> Any:
    table = np.array(entries, float).reshape(-1, 3)  # of no entry too: every transition ends
    row, following, chance = table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2]
    if states >= SPARSE_FROM:
        from scipy import sparse

        return sparse.coo_array((chance, (row, following)), shape=(states * actions, states))
    p = np.zeros((states * actions, states))
    np.add.at(p, (row, following), chance)
    return p.reshape(states, actions, states)


def _first(raw: Any, states: int) -> np.ndarray:
    known = getattr(raw, "initial_state_distrib", None)
    if known is not None:
        return np.asarray(known, dtype=np.float64)
    state, _ = raw.reset()
    return np.eye(states)[int(state)]
