"""Running the audit: all estimators on all problems, from one seed.

The estimators of a problem see the same episodes, so that their variances can be compared; those of
one distribution the same seed. Nothing global is left changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from upslope.audit import continuing, episodes, estimators, groups, played
from upslope.audit.continuing import ContinuingProblem, Windows
from upslope.audit.estimators import Case, Estimator
from upslope.audit.measure import Row, measure
from upslope.audit.played import EpisodicProblem
from upslope.audit.problems import DISTRIBUTIONS, Exact, Problem
from upslope.audit.sampling import shared, tabular
from upslope.errors import ArgumentError, suggest
from upslope.exact import (
    access_control_queue,
    gridworld,
    kakade_two_states,
    random_walk,
    short_corridor,
)
from upslope.seeding import derive, generator

ESTIMATES = 20_000
LEAST = 10_000  # with fewer, means of products of ratios are not near enough to normal for a z

AnyProblem = Problem | EpisodicProblem | ContinuingProblem


def _waves(count: int, size: float) -> Tensor:
    """Return parameters that are all different, [count]."""
    return size * torch.sin(torch.arange(1, count + 1, dtype=torch.float64) ** 2)


TABLES = {
    groups.REWARDED: groups.OF_REWARD,
    groups.DIVERGENCE: groups.OF_DIVERGENCE,
    groups.PREFERENCES: groups.OF_PREFERENCES,
}
"""The problems with estimators of their own."""

_QUEUE = access_control_queue(servers=3, free_probability=0.2)

PROBLEMS: tuple[AnyProblem, ...] = (
    *DISTRIBUTIONS,
    *TABLES,
    EpisodicProblem(
        name="corridor: γ = 1, P(right) = 1/2",
        mdp=short_corridor(),
        features=shared(3, 2),
        theta=torch.zeros(2, dtype=torch.float64),
        shift=torch.tensor([-0.05, 0.05], dtype=torch.float64),
    ),
    EpisodicProblem(
        name="gridworld: 3 x 3, γ = .9",
        mdp=gridworld(3, 3, terminal=[(2, 2)], wall_reward=-2.0, gamma=0.9),
        features=tabular(9, 4),
        theta=_waves(36, 0.5) + torch.tensor([0, 0.8, 0.8, 0], dtype=torch.float64).repeat(9),
        shift=_waves(36, 0.4).flip(0),
    ),
    EpisodicProblem(
        name="walk: 5 states, γ = .9",
        mdp=random_walk(5, gamma=0.9),
        features=tabular(5, 2),
        theta=_waves(10, 0.3),
        shift=_waves(10, 0.6).flip(0),
    ),
    ContinuingProblem(
        name="two states: average reward, P(stay) = .8, .1",
        mdp=kakade_two_states(),
        features=tabular(2, 2),
        theta=torch.tensor([[0.8, 0.2], [0.1, 0.9]], dtype=torch.float64).log().reshape(-1),
    ),
    ContinuingProblem(
        name="queue: average reward, 3 servers",
        mdp=_QUEUE,
        features=tabular(_QUEUE.n_states, 2),
        theta=_waves(2 * _QUEUE.n_states, 0.5),
    ),
)


def audit(
    *,
    estimates: int = ESTIMATES,
    seed: int = 0,
    problem: str | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Return one Row for each estimator on each problem, from `estimates` samples of each.

    `estimates` is the number of episodes or windows, and of estimates from four draws where the
    problem is one distribution. `problem` is how the name of one begins, by default all of them.
    `progress` is called with the name of each problem before it begins.

    Raises ArgumentError for fewer than 10,000 estimates, with which right estimators would be
    accused by their skewness, or a problem that there is not.
    """
    if isinstance(estimates, bool) or not isinstance(estimates, int) or estimates < LEAST:
        raise ArgumentError(f"estimates takes a whole number from {LEAST}, got {estimates!r}")
    rows: list[Row] = []
    for chosen in _choose(problem):
        progress(chosen.name)
        rows += _rows(chosen, estimates, seed)
    return rows


def passed(rows: Iterable[Row]) -> bool:
    """Return whether every declaration stands: what is declared unbiased is, also a scale."""
    return all(row.holds for row in rows)


def _choose(name: str | None) -> list[AnyProblem]:
    if name is None:
        return list(PROBLEMS)
    found = [p for p in PROBLEMS if p.name.startswith(name)]
    if not name or not found:
        known = [p.name.split(":")[0] for p in PROBLEMS]
        raise ArgumentError(
            f"problem takes one of {', '.join(known)}, got {name!r}{suggest(name, known)}"
        )
    return found


def _rows(problem: AnyProblem, count: int, seed: int) -> Iterator[Row]:
    if isinstance(problem, Problem):
        return _of_distribution(problem, count, seed)
    source = generator(seed, f"audit {problem.name}")
    if isinstance(problem, EpisodicProblem):
        return _of_episodes(problem, count, source)
    return _of_continuing(problem, count, source)


def _of_distribution(problem: Problem, count: int, seed: int) -> Iterator[Row]:
    exact = Exact(problem)
    for estimator in TABLES.get(problem, estimators.ESTIMATORS):
        if not estimator.takes(problem):
            continue
        parts, left = [], min(count, estimator.estimates)
        with torch.random.fork_rng(devices=[]):  # torch's distributions know only this generator
            torch.manual_seed(derive(seed, f"audit {problem.name}"))
            while left > 0:
                size = min(left, estimator.at_once)
                theta = torch.tensor(problem.theta, dtype=torch.float64).expand(size, -1)
                case = Case(problem=problem, exact=exact, theta=theta.clone().requires_grad_())
                parts.append(estimators.gradients(case, estimator))
                left -= size
        yield _row(problem, estimator, torch.cat(parts), exact.gradient)


def _of_episodes(problem: EpisodicProblem, count: int, source: torch.Generator) -> Iterator[Row]:
    truth = problem.exact()
    on_policy, off_policy = played.draw(problem, count, source)
    for which, table in ((on_policy, episodes.ON_POLICY), (off_policy, episodes.OFF_POLICY)):
        for estimator in table:
            yield _row(problem, estimator, played.gradients(problem, which, estimator), truth)


def _of_continuing(
    problem: ContinuingProblem, count: int, source: torch.Generator
) -> Iterator[Row]:
    truth = problem.exact()
    windows = Windows(problem, count, source)
    for estimator in continuing.WINDOWS:
        yield _row(problem, estimator, continuing.gradients(problem, windows, estimator), truth)
    cycles = problem.cycles()
    own, _ = played.draw(cycles, count, source)
    for estimator in continuing.CYCLES:
        yield _row(cycles, estimator, played.gradients(cycles, own, estimator), truth)


def _row(problem: Any, estimator: Estimator, gradients: Tensor, exact: Tensor) -> Row:
    return measure(
        gradients,
        exact,
        problem=problem.name,
        estimator=estimator.name,
        bias=estimator.declares(problem),
        declared_scale=estimator.declared_scale(problem),
        samples=estimator.samples,
        exact_variance=estimator.variance(problem),
    )
