"""Finite problems whose answers are known, for tests, teaching and audits.

Terminal states are missing mass: an episode that reaches one is over. Where a grid has terminal
cells, they keep their number, so that `v.reshape(rows, columns)` is the grid; nothing ever arrives
in them and nothing is paid there, so v = 0 and η = 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

from upslope.errors import ArgumentError, ShapeError
from upslope.exact.mdp import Array, FiniteMDP, to_float64

Cell = tuple[int, int]

UP, DOWN, RIGHT, LEFT = range(4)
MOVES = {UP: (-1, 0), DOWN: (1, 0), RIGHT: (0, 1), LEFT: (0, -1)}
SPARSE_FROM = 1_000  # states


def short_corridor(gamma: float = 1.0) -> FiniteMDP:
    """Return the corridor of three states in which the second one reverses the actions.

    Actions: 0 left, 1 right. Every step pays -1, also the last. With p = P(right) the same in all
    states, v(0) = -(4 - 2p) / (p (1 - p)), best at p = 2 - √2: the optimal policy is stochastic.

    Sutton and Barto 2018, example 13.1.
    """
    p = np.zeros((3, 2, 3))
    p[0, 0, 0] = p[0, 1, 1] = 1
    p[1, 0, 2] = p[1, 1, 0] = 1
    p[2, 0, 1] = 1  # right, from the last state, ends the episode
    return FiniteMDP(p, np.full((3, 2), -1.0), [1, 0, 0], gamma)


def random_walk(n: int = 19, gamma: float = 1.0) -> FiniteMDP:
    """Return the walk of n states in a row: -1 for leaving on the left, +1 on the right.

    Actions: 0 left, 1 right; it starts in the middle (left of it, if n is even). Under the uniform
    policy v(i) = 2 (i + 1) / (n + 1) - 1, for n = 19 (i - 10) / 10 when counted from 1.

    Sutton and Barto 2018, examples 6.2 and 7.1, with a reward of -1 instead of 0 on the left.
    """
    _check_count("n", n, 1)
    state = np.arange(n)
    p, reward = np.zeros((n, 2, n)), np.zeros((n, 2))
    p[state[1:], 0, state[:-1]] = 1
    p[state[:-1], 1, state[1:]] = 1
    reward[0, 0], reward[-1, 1] = -1, 1
    return FiniteMDP(p, reward, np.eye(n)[(n - 1) // 2], gamma)


def gridworld(
    rows: int = 4,
    columns: int = 4,
    *,
    terminal: Sequence[Cell] = ((0, 0), (-1, -1)),
    jumps: Mapping[Cell, tuple[Cell, float]] | None = None,
    step_reward: float = -1.0,
    wall_reward: float | None = None,
    start: Sequence[Cell] | None = None,
    gamma: float = 1.0,
    sparse: bool | None = None,
) -> FiniteMDP:
    """Return a grid; the default is that of figure 4.1, whose first row is 0, -14, -20, -22.

    States are cells, row by row. Actions: 0 up, 1 down, 2 right, 3 left; one into the wall stays.
    A step pays `step_reward`, one into the wall `wall_reward` if that is given. Entering a cell of
    `terminal` ends the episode. From a cell of `jumps` every action leads to the cell given there,
    for the reward given there. `start` lists the cells to begin in, with equal probability; by
    default all that are not terminal. `sparse` is chosen by size: from a thousand cells on.

    Raises ArgumentError for a cell outside the grid, a grid without cells, or with terminal ones
    only.

    Sutton and Barto 2018, example 4.1.
    """
    _check_count("rows", rows, 1)
    _check_count("columns", columns, 1)
    states = rows * columns
    grid = (rows, columns)
    ends = [_cell("terminal", cell, grid) for cell in terminal]
    begin = _start(grid, ends, start)
    state = np.arange(states)
    target = np.empty((states, 4), dtype=np.int64)
    reward = np.full((states, 4), float(step_reward))
    for action, (down, right) in MOVES.items():
        row = np.clip(state // columns + down, 0, rows - 1)
        column = np.clip(state % columns + right, 0, columns - 1)
        target[:, action] = row * columns + column
        if wall_reward is not None:
            reward[target[:, action] == state, action] = wall_reward
    for cell, (landing, paid) in (jumps or {}).items():
        origin = _cell("jumps", cell, grid)
        target[origin], reward[origin] = _cell("jumps", landing, grid), paid
    alive = np.ones(states)
    alive[ends] = 0
    reward[ends] = 0
    chance = alive[:, None] * alive[target]
    large = states >= SPARSE_FROM if sparse is None else sparse
    return FiniteMDP(_transition(target, chance, large), reward, begin, gamma)


def jumping_gridworld(gamma: float = 0.9) -> FiniteMDP:
    """Return the grid of five by five with two jumps, that never ends.

    From A, cell (0, 1), every action pays 10 and leads to (4, 1); from B, (0, 3), it pays 5 and
    leads to (2, 3). A step into the wall pays -1, others nothing. Actions and numbering as in
    `gridworld`. Under the uniform policy the first row is 3.3, 8.8, 4.4, 5.3, 1.5.

    Sutton and Barto 2018, example 3.5, figures 3.2 and 3.5.
    """
    jumps = {(0, 1): ((4, 1), 10.0), (0, 3): ((2, 3), 5.0)}
    return gridworld(5, 5, terminal=(), jumps=jumps, step_reward=0.0, wall_reward=-1.0, gamma=gamma)


def kakade_two_states(gamma: float = 0.99) -> FiniteMDP:
    """Return two states of which the second pays more to stay in; for the average reward.

    Actions: 0 stay, 1 move. Staying pays 1 in state 0 and 2 in state 1, moving nothing; episodes
    begin in state 0. From P(stay) = .8 and .1 the average reward is .6909 and the best one 2. Plain
    gradient ascent first learns to stay in state 0, where the policy is, and is then all but stuck
    near 1; the natural gradient is not. Solve it with setting="average".

    Kakade 2001, "A natural policy gradient", section 4.
    """
    p = np.zeros((2, 2, 2))
    p[0, 0, 0] = p[1, 0, 1] = p[0, 1, 1] = p[1, 1, 0] = 1
    return FiniteMDP(p, [[1.0, 0.0], [2.0, 0.0]], [1.0, 0.0], gamma)


def access_control_queue(
    servers: int = 10,
    priorities: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    free_probability: float = 0.06,
    gamma: float = 0.99,
) -> FiniteMDP:
    """Return the queue for servers, for the average reward.

    State f K + k: f servers are free, and the customer at the head of the queue has the k-th of K
    priorities, each equally likely. Actions: 0 reject, 1 accept; accepting pays the priority, and
    where no server is free it is the same as rejecting. Then each busy server, also one just taken,
    becomes free with `free_probability`. It starts with all servers free. Solve it with
    setting="average".

    Sutton and Barto 2018, example 10.2.
    """
    _check_count("servers", servers, 1)
    kinds = len(to_float64("priorities", priorities))
    p = np.zeros((servers + 1, kinds, 2, servers + 1, kinds))
    reward = np.zeros((servers + 1, kinds, 2))
    for free in range(servers + 1):
        for action in range(2):
            left = free - action if free else 0
            busy = servers - left
            for done in range(busy + 1):
                chance = free_probability**done * (1 - free_probability) ** (busy - done)
                p[free, :, action, left + done, :] += comb(busy, done) * chance / kinds
        reward[free, :, 1] = priorities if free else 0.0
    states = (servers + 1) * kinds
    start = np.zeros(states)
    start[-kinds:] = 1 / kinds
    return FiniteMDP(p.reshape(states, 2, states), reward.reshape(states, 2), start, gamma)


def bandit(reward: Array) -> FiniteMDP:
    """Return one state whose actions pay `reward` [A], and end the episode.

    J = Σ_a π(a) r(a), the expectation of any function of a discrete choice.

    Sutton and Barto 2018, chapter 2.
    """
    paid = to_float64("reward", reward)
    if paid.ndim != 1 or len(paid) == 0:
        raise ShapeError(f"reward takes an array of shape [A], got {list(paid.shape)}")
    return FiniteMDP(np.zeros((1, len(paid), 1)), paid[None], [1.0], 1.0)


# ---------------------------------------------------------------- grids
def _transition(target: np.ndarray, chance: np.ndarray, large: bool) -> Array:
    """Return p of moves that are certain, or end the episode where `chance` is 0; all [S, A]."""
    states, actions = target.shape
    if large:
        from scipy import sparse

        row = np.arange(target.size)
        entries = (chance.reshape(-1), (row, target.reshape(-1)))
        return sparse.csr_array(entries, shape=(target.size, states))
    p = np.zeros((states, actions, states))
    state, action = np.indices(target.shape)
    p[state, action, target] = chance
    return p


def _start(grid: Cell, ends: list[int], given: Sequence[Cell] | None) -> np.ndarray:
    h = np.zeros(grid[0] * grid[1])
    if given is None:
        h[:] = 1
        h[ends] = 0
    else:
        for cell in given:
            h[_cell("start", cell, grid)] += 1
    if h.sum() == 0:
        raise ArgumentError(
            "start takes at least one cell, and by default one that is not terminal"
        )
    return h / h.sum()


def _cell(name: str, cell: Cell, grid: Cell) -> int:
    """Return the state of a cell (row, column), counted from the end where negative."""
    (rows, columns), (row, column) = grid, cell
    if not (-rows <= row < rows and -columns <= column < columns):
        raise ArgumentError(f"{name} takes cells inside the {rows} x {columns} grid, got {cell}")
    return row % rows * columns + column % columns


def _check_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} takes a whole number of at least {least}, got {value!r}")
