"""The Markov chain under a policy, and linear systems in it.

    P_π(s,s') = Σ_a π(a|s) p(s'|s,a)      x = (I - γ P_π)⁻¹ b      x = (I - γ P_πᵀ)⁻¹ b

Dense systems are torch's. Sparse ones are solved by BiCGSTAB where that reaches the accuracy of a
factorisation (chains that mix fast, whose factors would be full), else by a sparse LU. Both can be
differentiated, any number of times: with x = A⁻¹ b and λ = A⁻ᵀ ∂x,

    ∂b = λ      ∂A = -λ xᵀ
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.exact.mdp import FiniteMDP

DIRECT_BELOW = 2_000  # states up to which a sparse LU is always cheap
ROUNDS, STEPS = 8, 300  # of refinement (BiCGSTAB may break down: start again), and in each
BACKWARD_ERROR = 1e-14  # of a residual, relative to |b| + |A||x|: that of a good factorisation


class Chain:
    """P_π: dense [S, S], or the values of its entries (`source`, `target`), which may repeat."""

    def __init__(self, value: Tensor, source: Tensor | None, target: Tensor | None, states: int):
        self.value, self.source, self.target, self.states = value, source, target, states
        self._systems: dict[float, Any] = {}

    @property
    def is_sparse(self) -> bool:
        """Whether the chain is held as entries."""
        return self.source is not None

    def without_arrivals(self, state: int) -> Chain:
        """Return the chain in which arriving in `state` ends the episode."""
        if self.source is None or self.target is None:
            kept = torch.ones(self.states, dtype=torch.float64)
            kept[state] = 0
            return Chain(self.value * kept, None, None, self.states)
        kept = (self.target != state).double()
        return Chain(self.value * kept, self.source, self.target, self.states)

    def matrix(self) -> Any:
        """Return P_π as a SciPy CSR array, without gradients or entries that are 0."""
        from scipy import sparse

        if self.source is None or self.target is None:
            return sparse.csr_array(self.value.detach().numpy())
        entries = (self.value.detach().numpy(), (self.source.numpy(), self.target.numpy()))
        matrix = sparse.coo_array(entries, shape=(self.states, self.states)).tocsr()
        matrix.eliminate_zeros()
        return matrix

    def solve(self, b: Tensor, discount: float, *, transpose: bool = False) -> Tensor:
        """Return x with x = b + γ P_π x, or x = b + γ P_πᵀ x; b is [S] or [S, K].

        A system that is singular in float64 gives infinite or NaN entries: the caller refuses.
        """
        if self.source is not None and self.target is not None:
            if discount not in self._systems:
                self._systems[discount] = SparseSystem(self.matrix(), discount)
            system = self._systems[discount]
            return _SparseSolve.apply(
                self.value, b, self.source, self.target, system, discount, transpose
            )
        a = torch.eye(self.states, dtype=torch.float64) - discount * self.value
        try:
            column = b[:, None] if b.ndim == 1 else b
            return torch.linalg.solve(a.mT if transpose else a, column).reshape(b.shape)
        except torch.linalg.LinAlgError:
            return torch.full_like(b, torch.inf)


def chain_under(mdp: FiniteMDP, policy: Tensor) -> Chain:
    """Return the chain of `mdp` under `policy` [S, A]; differentiable in the policy."""
    if not mdp.is_sparse:
        return Chain(torch.einsum("sa,sat->st", policy, mdp.transition), None, None, mdp.n_states)
    row, target, probability = entries(mdp)
    value = policy.reshape(-1)[row] * probability
    return Chain(value, row // mdp.n_actions, target, mdp.n_states)


def entries(mdp: FiniteMDP) -> tuple[Tensor, Tensor, Tensor]:
    """Return row s A + a, target s' and probability of every entry of a sparse transition."""
    p = mdp.transition
    row = torch.from_numpy(np.repeat(np.arange(p.shape[0]), np.diff(p.indptr)))
    return row, torch.from_numpy(p.indices.astype(np.int64)), torch.from_numpy(p.data)


def expected_next(mdp: FiniteMDP, value: Tensor) -> Tensor:
    """Return Σ_s' p(s'|s,a) value(s'), [S, A]."""
    if not mdp.is_sparse:
        return mdp.transition @ value
    if not value.requires_grad:
        product = mdp.transition @ value.numpy()
        return torch.from_numpy(product).reshape(mdp.n_states, mdp.n_actions)
    row, target, probability = entries(mdp)
    total = torch.zeros(mdp.n_states * mdp.n_actions, dtype=torch.float64)
    total = total.index_add(0, row, probability * value[target])
    return total.reshape(mdp.n_states, mdp.n_actions)


class SparseSystem:
    """I - γ P and its transpose, solved by the cheaper of two ways; nothing is differentiated."""

    def __init__(self, matrix: Any, discount: float):
        from scipy import sparse

        eye = sparse.eye_array(matrix.shape[0], format="csr")
        self._matrix = (eye - discount * matrix).tocsr()
        self._transposed = self._matrix.T.tocsr()
        self._iterate = matrix.shape[0] > DIRECT_BELOW
        self._factors: Any = None

    def solve(self, b: Tensor, transpose: bool) -> Tensor:
        """Return A⁻¹ b or A⁻ᵀ b, [S] or [S, K]; not finite where A is singular."""
        columns = b.detach().numpy().reshape(len(b), -1)
        found = [self._solve_one(columns[:, k], transpose) for k in range(columns.shape[1])]
        return torch.from_numpy(np.stack(found, 1)).reshape(b.shape)

    def _solve_one(self, b: np.ndarray, transpose: bool) -> np.ndarray:
        if self._iterate:
            x = _refine(self._transposed if transpose else self._matrix, b)
            if x is not None:
                return x
            self._iterate = False
        if self._factors is None:
            self._factors = _factorise(self._matrix)
        if self._factors is None:
            return np.full_like(b, np.inf)
        return self._factors.solve(np.ascontiguousarray(b), trans="T" if transpose else "N")


class _SparseSolve(torch.autograd.Function):
    """x = A⁻¹ b or A⁻ᵀ b, with A = I - γ P and P's entries given by their values."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        b: Tensor,
        source: Tensor,
        target: Tensor,
        system: SparseSystem,
        discount: float,
        transpose: bool,
    ) -> Tensor:
        x = system.solve(b, transpose)
        ctx.save_for_backward(value, x, source, target)
        ctx.system, ctx.discount, ctx.transpose = system, discount, transpose
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        value, x, source, target = ctx.saved_tensors
        rest = (source, target, ctx.system, ctx.discount)
        adjoint = _SparseSolve.apply(value, gradient, *rest, not ctx.transpose)
        left, right = (x, adjoint) if ctx.transpose else (adjoint, x)
        product = left[source] * right[target]
        by_value = ctx.discount * (product if product.ndim == 1 else product.sum(1))
        return by_value, adjoint, None, None, None, None, None


def _refine(matrix: Any, b: np.ndarray) -> np.ndarray | None:
    """Return matrix⁻¹ b by BiCGSTAB with iterative refinement, or None where that falls short."""
    from scipy.sparse.linalg import bicgstab

    x, residual = np.zeros_like(b), b
    size = np.abs(matrix).sum(1).max()
    for _ in range(ROUNDS):
        if np.abs(residual).max() <= BACKWARD_ERROR * (np.abs(b).max() + size * np.abs(x).max()):
            return x
        with np.errstate(all="ignore"):
            step, status = bicgstab(matrix, residual, rtol=1e-8, atol=0.0, maxiter=STEPS)
        if status > 0 or not np.isfinite(step).all():
            return None
        x = x + step  # a negative status is a breakdown: what was found until then still counts
        residual = b - matrix @ x
    return None


def _factorise(matrix: Any) -> Any:
    """Return a sparse LU; its rows are dominated by their diagonal, so few pivots are needed."""
    from scipy.sparse.linalg import splu

    try:
        return splu(
            matrix.tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=1e-3,
            options={"SymmetricMode": True},
        )
    except RuntimeError:  # "Factor is exactly singular"
        return None
