"""Finite Markov decision processes: the numbers that define one, checked.

    p(s'|s,a) [S, A, S]   r(s,a) or r(s,a,s')   h(s) start [S]   γ

A row p(·|s,a) that sums below 1 ends the episode with the missing probability: terminal states are
missing mass, never states. All numbers are float64 on the CPU. Sutton and Barto 2018, section 3.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import ArgumentError, ShapeError, check_range

ROW_TOLERANCE = 1e-9
"""How far from 1 a sum of probabilities may be and still count as 1."""

Array = Any
"""A tensor, a NumPy array or nested lists of numbers."""


class FiniteMDP:
    """A finite Markov decision process, dense or sparse.

    `transition` is [S, A, S], or for many states a SciPy sparse matrix [S A, S] whose row s A + a
    is p(·|s,a), or a list of A sparse matrices [S, S], one per action. Rows are probabilities that
    sum to at most 1; what is missing ends the episode, and a sum within 1e-9 of 1 counts as 1.
    `reward` is [S, A], paid on every step, also the last; or [S, A, S] (sparse where `transition`
    is), paid on arriving in s', so that a step which ends the episode pays 0. `start` [S] sums to
    1. `gamma` is in [0, 1].

    float32 is converted, its rows then summed with the precision it has. Raises ShapeError for
    shapes that do not fit, and ArgumentError, naming state and action, for a negative probability,
    a sum above 1, NaN or infinity.
    """

    transition: Array
    """p(s'|s,a): a tensor [S, A, S], or a SciPy CSR array [S A, S]."""
    reward: Tensor
    """E[r | s, a], [S, A]."""
    arrival_reward: Array | None
    """r(s,a,s') where the reward was given so, in the form of `transition`; else None."""
    ending: Tensor
    """The probability [S, A] that the step ends the episode; exactly 0 where a row counts as 1."""
    start: Tensor
    """h(s), [S]."""
    gamma: float
    """γ, the discount."""

    def __init__(self, transition: Array, reward: Array, start: Array, gamma: float) -> None:
        check_range("gamma", gamma, 0, 1)
        self.gamma = float(gamma)
        sparse = _is_sparse(transition) or _is_sparse_list(transition)
        read = _read_sparse if sparse else _read_dense
        self.transition, self.ending = read("transition", transition)
        states, actions = self.ending.shape
        self.start = _read_start(start, states)
        shape = tuple(reward.shape) if _is_sparse(reward) else np.shape(reward)
        self.arrival_reward = None
        if shape == (states, actions) and not _is_sparse(reward):
            self.reward = _finite("reward", to_float64("reward", reward))
        elif sparse:
            self.arrival_reward = _sparse_rows("reward", reward)
            if self.arrival_reward.shape != self.transition.shape:
                raise ShapeError(_reward_takes(states, actions, self.arrival_reward.shape))
            mean = self.transition.multiply(self.arrival_reward).sum(1)
            self.reward = torch.as_tensor(np.asarray(mean)).reshape(states, actions)
            _finite("reward", self.reward)
        elif shape == (states, actions, states):
            self.arrival_reward = _finite("reward", to_float64("reward", reward))
            self.reward = (self.transition * self.arrival_reward).sum(2)
        else:
            raise ShapeError(_reward_takes(states, actions, shape))

    @property
    def n_states(self) -> int:
        """S, the number of states; terminal ones are missing mass and not counted."""
        return self.ending.shape[0]

    @property
    def n_actions(self) -> int:
        """A, the number of actions, the same in all states."""
        return self.ending.shape[1]

    @property
    def is_sparse(self) -> bool:
        """Whether `transition` is a SciPy sparse array."""
        return not isinstance(self.transition, Tensor)

    def __repr__(self) -> str:
        kind = f"{self.transition.nnz} transitions, sparse" if self.is_sparse else "dense"
        return (
            f"FiniteMDP({self.n_states} states, {self.n_actions} actions, gamma={self.gamma:g}, "
            f"{kind})"
        )


def to_float64(name: str, value: Array) -> Tensor:
    """Return `value` as a float64 tensor on the CPU; gradients flow through the conversion."""
    try:
        if not isinstance(value, Tensor):
            value = torch.as_tensor(np.array(value, dtype=np.float64))
        if value.is_complex():
            raise TypeError
        return value.to("cpu", torch.float64)
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise ArgumentError(f"{name} takes an array of real numbers, got {kind}") from None


def sum_tolerance(value: Array) -> float:
    """Return how far from 1 a sum may be, given the precision in which `value` comes."""
    dtype = str(getattr(value, "dtype", "float64")).removeprefix("torch.")
    return {"float32": 1e-6, "float16": 1e-2, "bfloat16": 1e-2}.get(dtype, ROW_TOLERANCE)


def finite_dense(mdp: FiniteMDP, largest: float = 5e7) -> tuple[Tensor, Tensor | None]:
    """Return p and r(s,a,s') (or None) as dense tensors [S, A, S], where that is not too large."""
    if not mdp.is_sparse:
        return mdp.transition, mdp.arrival_reward
    shape = (mdp.n_states, mdp.n_actions, mdp.n_states)
    if np.prod(shape, dtype=float) > largest:
        raise ArgumentError(f"mdp is too large for this function, which needs [S, A, S] = {shape}")
    arrival = mdp.arrival_reward
    dense = torch.from_numpy(mdp.transition.toarray()).reshape(shape)
    return dense, None if arrival is None else torch.from_numpy(arrival.toarray()).reshape(shape)


# ---------------------------------------------------------------- reading
def _read_dense(name: str, given: Array) -> tuple[Tensor, Tensor]:
    """Return p [S, A, S] and 1 - its row sums, [S, A]."""
    p = to_float64(name, given).detach().clone()
    if p.ndim != 3 or p.shape[0] != p.shape[2] or 0 in p.shape:
        raise ShapeError(f"{name} takes an array of shape [S, A, S], got {list(p.shape)}")
    for wrong, what in ((~p.isfinite(), "NaN or infinity"), (p < 0, "a negative probability")):
        if wrong.any():
            s, a, _ = (int(i) for i in wrong.nonzero()[0])
            raise ArgumentError(_refuse_row(name, s, a, what))
    ending, factor = _check_sums(name, p.sum(2), sum_tolerance(given))
    return p * factor[:, :, None], ending


def _read_sparse(name: str, given: Array) -> tuple[Array, Tensor]:
    """Return p [S A, S] in CSR and 1 - its row sums, [S, A]."""
    p = _sparse_rows(name, given)
    if p.shape[1] == 0 or p.shape[0] == 0 or p.shape[0] % p.shape[1]:
        raise ShapeError(f"{name} takes a sparse array of shape [S A, S], got {list(p.shape)}")
    states, actions = p.shape[1], p.shape[0] // p.shape[1]
    for wrong, what in (
        (~np.isfinite(p.data), "NaN or infinity"),
        (p.data < 0, "a negative probability"),
    ):
        if wrong.any():
            row = int(np.searchsorted(p.indptr, wrong.argmax(), side="right")) - 1
            raise ArgumentError(_refuse_row(name, row // actions, row % actions, what))
    p.eliminate_zeros()
    sums = torch.as_tensor(np.asarray(p.sum(1))).reshape(states, actions)
    first = given if _is_sparse(given) else given[0]
    ending, factor = _check_sums(name, sums, sum_tolerance(first))
    p.data *= np.repeat(factor.numpy().reshape(-1), np.diff(p.indptr))
    return p, ending


def _check_sums(name: str, total: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Return 1 - sums, 0 where they count as 1, and what makes those rows sum to exactly 1."""
    if (total > 1 + tolerance).any():
        s, a = (int(i) for i in (total > 1 + tolerance).nonzero()[0])
        raise ArgumentError(_refuse_row(name, s, a, f"a sum of {total[s, a].item():.12g}"))
    full = total >= 1 - tolerance
    factor = torch.where(full, 1 / total.clamp(min=0.5), torch.ones_like(total))
    return (1 - total).masked_fill(full, 0.0), factor


def _refuse_row(name: str, s: int, a: int, what: str) -> str:
    return (
        f"{name} takes probabilities that sum to at most 1 for each state and action, got {what} "
        f"for state {s}, action {a}"
    )


def _read_start(given: Array, states: int) -> Tensor:
    h = to_float64("start", given).detach()
    if h.shape != (states,):
        raise ShapeError(
            f"start takes an array of shape [S] with S = {states}, got {list(h.shape)}"
        )
    if not h.isfinite().all() or (h < 0).any() or abs(h.sum() - 1) > sum_tolerance(given):
        raise ArgumentError(
            "start takes probabilities of at least 0 that sum to 1, "
            f"got a minimum of {h.min().item():g} and a sum of {h.sum().item():.12g}"
        )
    return h / h.sum()


def _finite(name: str, value: Tensor) -> Tensor:
    if not value.isfinite().all():
        where = [int(i) for i in (~value.isfinite()).nonzero()[0]]
        raise ArgumentError(f"{name} takes finite numbers, got NaN or infinity at {where}")
    return value.detach().clone()


def _reward_takes(states: int, actions: int, shape: tuple[int, ...]) -> str:
    return (
        "reward takes an array of shape [S, A] or [S, A, S] (sparse, if transition is: [S A, S]) "
        f"with S = {states} and A = {actions}, got {list(shape)}"
    )


def _is_sparse(value: object) -> bool:
    """Whether `value` is a SciPy sparse array, without importing SciPy to find out."""
    return type(value).__module__.startswith("scipy.sparse")


def _is_sparse_list(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_sparse, value))


def _sparse_rows(name: str, given: Array) -> Array:
    """Return [S A, S] in CSR, float64 and a copy, from any of the sparse forms."""
    from scipy import sparse

    if _is_sparse_list(given):
        actions, states = len(given), given[0].shape[0]
        if any(one.shape != (states, states) for one in given):
            shapes = [list(one.shape) for one in given]
            raise ShapeError(f"{name} takes sparse matrices of one shape [S, S], got {shapes}")
        stacked = sparse.vstack([sparse.csr_array(one) for one in given], format="csr")
        order = np.arange(actions * states).reshape(actions, states).T.reshape(-1)  # to s A + a
        rows = stacked[order]
    elif not _is_sparse(given):
        raise ShapeError(f"{name} takes a sparse array, as transition is one, or [S, A]")
    elif given.ndim == 3:
        rows = given.reshape((given.shape[0] * given.shape[1], given.shape[2]))
    else:
        rows = given
    rows = sparse.csr_array(rows, dtype=np.float64, copy=True)
    rows.sum_duplicates()
    return rows
