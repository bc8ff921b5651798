"""Which states lead where: does every episode end, and is there one recurrent class?

Both are questions about the graph of the chain, not about its numbers: they have exact answers.
Kemeny and Snell 1960, "Finite Markov chains", chapter 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def steps_to(graph: Any, goal: np.ndarray) -> np.ndarray:
    """Return the fewest edges of `graph` [S, S] from each state to a state in `goal`; -1: none."""
    backward = graph.T.tocsr()
    distance = np.full(graph.shape[0], -1)
    frontier = np.flatnonzero(goal)
    distance[frontier] = 0
    while len(frontier):
        begin, end = backward.indptr[frontier], backward.indptr[frontier + 1]
        count = end - begin
        offset = np.repeat(end - count.cumsum(), count)
        before = backward.indices[offset + np.arange(count.sum())]
        new = np.unique(before[distance[before] < 0])
        distance[new] = distance[frontier[0]] + 1
        frontier = new
    return distance


def recurrent_classes(graph: Any) -> list[np.ndarray]:
    """Return the closed communicating classes of the chain with the edges of `graph` [S, S]."""
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(graph, directed=True, connection="strong")
    edges = graph.tocoo()
    left = np.zeros(count, dtype=bool)
    leaving = label[edges.row] != label[edges.col]
    left[label[edges.row[leaving]]] = True
    closed = np.flatnonzero(~left)
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(count + 1))
    return sorted((order[bounds[c] : bounds[c + 1]] for c in closed), key=lambda c: c[0])


def often_visited(matrix: Any, states: np.ndarray, steps: int = 200) -> int:
    """Return one of `states` that the chain visits often: where a lazy walk from all of them is."""
    h = np.zeros(matrix.shape[0])
    h[states] = 1 / len(states)
    backward = matrix.T.tocsr()
    for _ in range(steps):
        h = (h + backward @ h) / 2
    return int(states[h[states].argmax()])
