"""Optimal policies, by dynamic programming.

    policy evaluation   v ← r_π + γ P_π v
    value iteration     v ← max_a r(s,a) + γ Σ p(s'|s,a) v(s')
    policy iteration    solve v of π;  π ← argmax_a q(s,a) where that is better;  until none is

In the average-reward setting v and q are differential, and the chain is made lazy while it is
iterated, so that periodic ones converge: v ← (v + B v - max B v)/2 with B v the right-hand side.

Sutton and Barto 2018, chapter 4; Puterman 1994, sections 6.3, 6.4, 8.5 and 8.6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import ArgumentError, check_range
from upslope.exact.chain import chain_under, entries, expected_next
from upslope.exact.mdp import Array, FiniteMDP
from upslope.exact.solve import (
    Solution,
    as_policy,
    require_termination,
    resolve_setting,
    solve,
)
from upslope.exact.structure import recurrent_classes, steps_to

TOLERANCE = 1e-10  # of values, absolute
BETTER = 1e-12  # relative to the largest value: an action that is better by less is a tie
MOST_SWEEPS = 1_000_000
MOST_IMPROVEMENTS = 10_000


def policy_evaluation(
    mdp: FiniteMDP, policy: Array, setting: str | None = None, *, tolerance: float = TOLERANCE
) -> Tensor:
    """Return v [S] by sweeps v ← r + γ P v from 0, until it is within `tolerance` of the truth.

    What `solve` finds at once, found as the textbook does; for the discounted and the episodic
    setting. Raises what `solve` raises, and ArgumentError for the average-reward setting, or where
    a million sweeps do not suffice.
    """
    check_range("tolerance", tolerance, 0)
    if resolve_setting(mdp, setting) == "average":
        raise ArgumentError("setting takes 'discounted' or 'episodic' here, got 'average'")
    pi = as_policy(mdp, policy).detach()
    if mdp.gamma == 1:
        require_termination(mdp, pi, chain_under(mdp, pi))
    matrix = chain_under(mdp, pi).matrix()
    reward = (pi * mdp.reward).sum(1).numpy()
    v, going_on = np.zeros_like(reward), np.ones_like(reward)
    shrinks = 0  # after this many sweeps, errors have at least halved
    for sweep in range(1, MOST_SWEEPS + 1):
        new = reward + mdp.gamma * (matrix @ v)
        change = np.abs(new - v).max()
        v = new
        if not shrinks:
            going_on = mdp.gamma * (matrix @ going_on)
            shrinks = sweep if going_on.max() <= 0.5 else 0
        # what is still to come is at most change (1 + 1/2 + 1/4 + ...) for each of these sweeps
        if shrinks and 2 * shrinks * change <= tolerance + np.finfo(float).eps * np.abs(v).max():
            return torch.from_numpy(v)
    raise _did_not_converge("policy_evaluation", mdp)


def policy_iteration(mdp: FiniteMDP, setting: str | None = None) -> Solution:
    """Return the solution of an optimal deterministic policy, by Howard's policy iteration.

    `.policy` is one-hot; an action is changed only where another is better by more than rounding,
    so ties never cycle. Each evaluation is an exact `solve`. Raises ArgumentError where there is no
    optimum: γ = 1 and a state from which no policy ends the episode, or rewards that can be
    collected for ever; an average reward that depends on the start.
    """
    setting = resolve_setting(mdp, setting)
    return _improved(mdp, _first_actions(mdp, setting), setting)


def _improved(mdp: FiniteMDP, action: Tensor, setting: str) -> Solution:
    """Return the solution that policy iteration ends with, from actions [S]."""
    for _ in range(MOST_IMPROVEMENTS):
        solution = _solve_deterministic(mdp, action, setting)
        best = solution.q.argmax(1)
        rows = torch.arange(mdp.n_states)
        gain = solution.q[rows, best] - solution.q[rows, action]
        better = gain > BETTER * (1 + solution.q.abs().max())
        if not better.any():
            return solution
        action = torch.where(better, best, action)
        if setting == "average":
            action = _one_class(mdp, action, torch.ones_like(solution.q) > 0)
    raise _did_not_converge("policy_iteration", mdp)


def value_iteration(mdp: FiniteMDP, setting: str | None = None) -> Solution:
    """Return the solution of an optimal deterministic policy, by value iteration.

    Sweeps until a greedy policy, solved exactly, satisfies the Bellman equation, so that v and q
    are those of an optimal policy to 1e-10 and not merely close to a fixed point. With γ = 1 it
    begins with the values of a policy that ends: from 0, a loop that costs nothing would stay
    better than every end. Where greedy policies stay in several classes that are equally good,
    policy iteration leads to one of them. Raises ArgumentError as `policy_iteration` does.
    """
    setting = resolve_setting(mdp, setting)
    action = _first_actions(mdp, setting)  # refuses what has no policy that ends
    gamma = 1.0 if setting == "average" else mdp.gamma
    v = torch.zeros(mdp.n_states, dtype=torch.float64)
    if setting == "episodic":
        v = _solve_deterministic(mdp, action, setting).v
    threshold = 1e-2
    for _ in range(MOST_SWEEPS):
        backup = (mdp.reward + gamma * expected_next(mdp, v)).max(1).values
        new = (v + backup - backup.max()) / 2 if setting == "average" else backup
        change = new - v
        v = new
        spread = change.max() - change.min() if setting == "average" else change.abs().max()
        if spread > threshold:
            continue
        solution = _greedy_solution(mdp, v, spread.item(), setting)
        if solution is not None:
            return solution
        if spread <= torch.finfo(torch.float64).eps * (1 + v.abs().max()):
            break
        threshold = spread.item() / 10
    raise _did_not_converge("value_iteration", mdp)


def _greedy_solution(mdp: FiniteMDP, v: Tensor, near: float, setting: str) -> Solution | None:
    """Return the solution of a policy that is greedy in v up to `near`, if optimal; else None."""
    q = mdp.reward + (1.0 if setting == "average" else mdp.gamma) * expected_next(mdp, v)
    tied = q >= q.max(1, keepdim=True).values - near - BETTER * (1 + v.abs().max())
    action = q.argmax(1)
    try:
        if setting == "episodic":  # of equally good actions, those that end the episode
            action, _ = _towards(mdp, torch.zeros(mdp.n_states) > 0, mdp.ending > 0, tied)
            solution = _solve_deterministic(mdp, action, setting)
        elif setting == "average":
            solution = _average_solution(mdp, action, tied)
        else:
            solution = _solve_deterministic(mdp, action, setting)
    except ArgumentError:  # greedy in values that are not there yet, it may never end
        return None
    missing = (solution.q.max(1).values - solution.v).max()
    scale = _longest(mdp, solution) if setting != "average" else 1.0
    return solution if missing * scale <= TOLERANCE * (1 + solution.v.abs().max()) else None


def _average_solution(mdp: FiniteMDP, action: Tensor, tied: Tensor) -> Solution:
    """Return the solution of `action`, led to one class by tied actions or, if none do, by any."""
    try:
        return _solve_deterministic(mdp, _one_class(mdp, action, tied), "average")
    except ArgumentError:
        return _improved(mdp, _one_class(mdp, action, torch.ones_like(tied)), "average")


def _longest(mdp: FiniteMDP, solution: Solution) -> Tensor:
    """Return the largest expected (discounted) number of steps: what an error is multiplied by."""
    chain = chain_under(mdp, solution.policy)
    return chain.solve(torch.ones(mdp.n_states, dtype=torch.float64), mdp.gamma).max()


# ---------------------------------------------------------------- policies that can be solved
def _solve_deterministic(mdp: FiniteMDP, action: Tensor, setting: str) -> Solution:
    policy = torch.nn.functional.one_hot(action, mdp.n_actions).double()
    try:
        return solve(mdp, policy, setting)
    except ArgumentError as error:
        if setting == "discounted":
            raise
        raise ArgumentError(
            f"mdp takes one that has an optimal policy in the setting {setting!r}; of this one, a "
            f"policy that is better than every other cannot be solved ({error})"
        ) from None


def _first_actions(mdp: FiniteMDP, setting: str) -> Tensor:
    """Return actions [S] to begin with, of a policy that can be solved."""
    every = torch.ones_like(mdp.reward) > 0
    if setting == "discounted":
        return mdp.reward.argmax(1)
    if setting == "average":
        return _one_class(mdp, mdp.reward.argmax(1), every)
    nowhere = torch.zeros(mdp.n_states) > 0
    action, distance = _towards(mdp, nowhere, mdp.ending > 0, every)
    if (distance < 0).any():
        raise ArgumentError(
            "mdp takes one in which some policy ends the episode from every state, as gamma = 1; "
            f"from state {int((distance < 0).argmax())} none does"
        )
    return action


def _towards(
    mdp: FiniteMDP, goal: Tensor, ends: Tensor, allowed: Tensor
) -> tuple[Tensor, np.ndarray]:
    """Return allowed actions [S] that may come closer to an end or a goal, and how far that is.

    `goal` is of states, `ends` and `allowed` are [S, A]. The distance is -1 where none is reached.
    """
    uniform = allowed / allowed.sum(1, keepdim=True).double()
    done = goal | (ends & allowed).any(1)
    distance = steps_to(chain_under(mdp, uniform).matrix(), done.numpy())
    far = mdp.n_states + 1
    height = torch.from_numpy(np.where(distance < 0, far, distance))
    lowest = torch.full((mdp.n_states * mdp.n_actions,), far)
    row, target = _edges(mdp)
    lowest = lowest.scatter_reduce(0, row, height[target], "amin").reshape(mdp.reward.shape)
    lowest = lowest.masked_fill(ends, -1).masked_fill(~allowed, far + 1)
    return lowest.argmin(1), distance


def _edges(mdp: FiniteMDP) -> tuple[Tensor, Tensor]:
    """Return row s A + a and target s' of every transition that is possible."""
    if mdp.is_sparse:
        row, target, _ = entries(mdp)
        return row, target
    state, action, target = mdp.transition.nonzero().T
    return state * mdp.n_actions + action, target


def _one_class(mdp: FiniteMDP, action: Tensor, allowed: Tensor) -> Tensor:
    """Return `action`, or of several recurrent classes keep the best and lead the rest there."""
    policy = torch.nn.functional.one_hot(action, mdp.n_actions).double()
    matrix = chain_under(mdp, policy).matrix()
    classes = recurrent_classes(matrix)
    if len(classes) == 1:
        return action
    reward = (policy * mdp.reward).sum(1)
    gains = [_average_reward(matrix[c][:, c], reward[torch.from_numpy(c)]) for c in classes]
    goal = torch.zeros(mdp.n_states) > 0
    goal[torch.from_numpy(classes[int(np.argmax(gains))])] = True
    closer, distance = _towards(mdp, goal, torch.zeros_like(mdp.reward) > 0, allowed)
    if (distance < 0).any():
        raise ArgumentError(
            "mdp takes one whose best average reward is the same from every state; from state "
            f"{int((distance < 0).argmax())} no policy reaches the states with the best"
        )
    return torch.where(goal, action, closer)


def _average_reward(matrix: Any, reward: Tensor) -> float:
    """Return the average reward of a chain of one recurrent class."""
    size = len(reward)
    chain = FiniteMDP(matrix, reward[:, None], np.full(size, 1 / size), 1.0)
    return solve(chain, np.ones((size, 1)), "average").objective.item()


def _did_not_converge(name: str, mdp: FiniteMDP) -> ArgumentError:
    return ArgumentError(
        f"mdp takes one on which {name} converges, and it did not on {mdp!r}: an optimal policy "
        "may not exist, or episodes are too long for float64"
    )
