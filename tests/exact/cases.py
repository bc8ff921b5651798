"""Random finite problems and policies for the tests of `upslope.exact`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse

from upslope.exact import FiniteMDP


def random_problem(
    seed: int,
    states: int = 4,
    actions: int = 3,
    *,
    gamma: float = 0.9,
    ends: bool = True,
    arrival: bool = False,
    as_sparse: bool = False,
) -> FiniteMDP:
    """Return a problem in which about half of all transitions are possible."""
    rng = np.random.default_rng(seed)
    p = rng.random((states, actions, states)) * (rng.random((states, actions, states)) < 0.6)
    p[np.arange(states), :, (np.arange(states) + 1) % states] += 0.1  # one recurrent class
    p /= p.sum(2, keepdims=True)
    if ends:
        p *= rng.uniform(0.5, 1, (states, actions, 1))
        p[0, 0] /= p[0, 0].sum()  # one row that does not end
    reward = rng.normal(size=(states, actions, states) if arrival else (states, actions))
    start = rng.dirichlet(np.ones(states))
    if not as_sparse:
        return FiniteMDP(p, reward, start, gamma)
    rows = sparse.csr_array(p.reshape(-1, states))
    paid = sparse.csr_array(reward.reshape(-1, states)) if arrival else reward
    return FiniteMDP(rows, paid, start, gamma)


def layered_problem(seed: int, gamma: float, *, arrival: bool = False) -> FiniteMDP:
    """Return a problem of two states in each of three layers, over after at most three steps."""
    rng = np.random.default_rng(seed)
    p = np.zeros((6, 2, 6))
    for layer in (0, 1):
        p[2 * layer : 2 * layer + 2, :, 2 * layer + 2 : 2 * layer + 4] = rng.dirichlet(
            np.ones(3), (2, 2)
        )[:, :, :2]
    reward = rng.normal(size=(6, 2, 6) if arrival else (6, 2))
    return FiniteMDP(p, reward, [0.7, 0.3, 0, 0, 0, 0], gamma)


def random_policy(seed: int, mdp: FiniteMDP, zeros: bool = False) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.ones(mdp.n_actions), mdp.n_states)
    if zeros:
        pi[:, -1] = 0
        pi /= pi.sum(1, keepdims=True)
    return torch.from_numpy(pi)


def tabular(theta: torch.Tensor) -> torch.Tensor:
    """Softmax of one parameter per state and action."""
    return torch.softmax(theta, -1)


def linear(mdp: FiniteMDP, parameters: int = 2, seed: int = 0) -> Callable:
    """Return a softmax policy whose logits are linear in few parameters, shared by all states."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(mdp.n_states, mdp.n_actions, parameters)))
    return lambda theta: torch.softmax(features @ theta.reshape(-1), -1)


def shared(mdp: FiniteMDP) -> Callable:
    """Return the softmax policy of logits [A] that is the same in all states."""
    return lambda theta: torch.softmax(theta, 0).expand(mdp.n_states, -1)


def masked(mask: torch.Tensor) -> Callable:
    """Return a tabular softmax with the logits where `mask` is False at -inf."""
    return lambda theta: torch.softmax(theta.masked_fill(~mask, -torch.inf), -1)


def finite_difference(function: Callable, at: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Return the derivative of `function` (of any shape) in each entry of `at`: [P, ...]."""
    rows = []
    for i in range(at.numel()):
        shift = torch.zeros(at.numel(), dtype=torch.float64)
        shift[i] = step
        shift = shift.reshape(at.shape)
        rows.append((function(at + shift) - function(at - shift)) / (2 * step))
    return torch.stack(rows)


def close(found: object, truth: object, atol: float = 1e-10, rtol: float = 0.0) -> None:
    found, truth = (torch.as_tensor(x, dtype=torch.float64) for x in (found, truth))
    torch.testing.assert_close(found, truth, atol=atol, rtol=rtol)
