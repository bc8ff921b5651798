"""The shipped problems, and what Gymnasium publishes."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from scipy.stats import binom

from tests.exact.cases import close, shared
from upslope import exact
from upslope.errors import ArgumentError, EnvironmentFault, ShapeError
from upslope.exact import from_gymnasium, gradient_ascent, natural_gradient, solve, value_iteration


# ---------------------------------------------------------------- shipped
def test_gridworld_moves():
    grid = exact.gridworld(2, 3, terminal=((1, 2),), step_reward=-1.0, wall_reward=-5.0)
    p, reward = grid.transition, grid.reward
    for action, target in enumerate((0, 3, 1, 0)):  # up, down, right, left from the corner
        assert p[0, action, target] == 1
    close(reward[0], [-5, -1, -1, -5])
    assert grid.ending[2, 1] == grid.ending[4, 2] == 1  # into the goal from above, from the left
    assert (p[:, :, 5] == 0).all()
    assert (p[5] == 0).all()
    close(reward[5], np.zeros(4))
    close(grid.start, [0.2] * 5 + [0])
    close(exact.gridworld(start=((0, 1), (-1, 0))).start.nonzero()[:, 0], [1, 12])
    assert exact.gridworld(40, 40).is_sparse
    assert not exact.gridworld(40, 40, sparse=False).is_sparse
    assert exact.gridworld(3, 3, sparse=True).is_sparse
    jump = exact.gridworld(2, 2, terminal=((1, 1),), jumps={(0, 0): ((1, 1), 3.0)})
    close(jump.ending[0], np.ones(4))
    close(jump.reward[0], np.full(4, 3))


def test_gridworld_refuses():
    with pytest.raises(
        ArgumentError, match=r"terminal takes cells inside the 2 x 2 grid.*\(2, 0\)"
    ):
        exact.gridworld(2, 2, terminal=((2, 0),))
    with pytest.raises(ArgumentError, match="jumps takes cells"):
        exact.gridworld(2, 2, jumps={(0, 5): ((0, 0), 1.0)})
    with pytest.raises(ArgumentError, match="start takes at least one cell"):
        exact.gridworld(1, 2)
    with pytest.raises(ArgumentError, match="rows takes a whole number of at least 1, got 0"):
        exact.gridworld(0)


def test_random_walks():
    for n in (1, 2, 5):
        s = solve(exact.random_walk(n), np.full((n, 2), 0.5))
        close(s.v, 2 * torch.arange(1, n + 1) / (n + 1) - 1, atol=1e-6)
    with pytest.raises(ArgumentError, match="n takes a whole number"):
        exact.random_walk(0)


def test_bandit_refuses():
    with pytest.raises(ShapeError, match=r"shape \[A\], got \[1, 2\]"):
        exact.bandit([[1, 2]])


def test_access_control_queue_dynamics():
    mdp = exact.access_control_queue(servers=3, priorities=(1.0, 2.0), free_probability=0.3)
    assert mdp.n_states == 8
    accept = mdp.transition[2 * 2 + 1, 1].reshape(4, 2)  # 2 free, accepted: 1 left, 2 busy
    close(accept.sum(1), [0, *binom.pmf(range(3), 2, 0.3)])
    close(accept[:, 0], accept[:, 1])
    none = mdp.transition[0:2].reshape(2, 2, 4, 2)
    close(none[:, 0], none[:, 1])
    close(none[0, 0].sum(1), binom.pmf(range(4), 3, 0.3))
    close(mdp.reward, [[0, 0], [0, 0]] + [[0, 1], [0, 2]] * 3)
    assert (mdp.ending == 0).all()


# ---------------------------------------------------------------- ascent
def stay_or_move(theta: torch.Tensor) -> torch.Tensor:
    """P(stay) = sigmoid of one parameter per state."""
    stay = torch.sigmoid(theta)
    return torch.stack([stay, 1 - stay], -1)


@pytest.mark.slow
def test_kakade_plateau():
    """The plain gradient sits near 1, the natural one reaches 2."""
    mdp = exact.kakade_two_states()
    start = torch.logit(torch.tensor([0.8, 0.1], dtype=torch.float64))
    options = {"step_size": 0.5, "steps": 60, "setting": "average"}
    plain = gradient_ascent(mdp, stay_or_move, start, **options)
    natural = gradient_ascent(mdp, stay_or_move, start, direction=natural_gradient, **options)
    assert round(plain.objective[0].item(), 4) == 0.6909
    assert plain.objective.shape == (61,)
    assert plain.parameters.shape == (61, 2)
    assert 0.9 < plain.objective[-1] < 1.1
    assert natural.objective[-1] > 1.9
    close(natural.solution.objective, natural.objective[-1], atol=0)
    for path in (plain, natural):
        assert (path.objective.diff() >= 0).all()


def test_ascent_by_hand():
    mdp = exact.short_corridor()
    path = gradient_ascent(mdp, shared(mdp), torch.zeros(2), step_size=0.1, steps=1)
    close(path.parameters, [[0, 0], [-0.2, 0.2]])
    close(path.objective[0], -12)
    path = gradient_ascent(mdp, shared(mdp), torch.zeros(2), step_size=0.1, steps=200)
    close(path.objective[-1], -11.6568542495)
    still = gradient_ascent(mdp, shared(mdp), torch.zeros(2), step_size=0.1, steps=0)
    assert still.objective.shape == (1,)


def test_ascent_refuses():
    mdp = exact.short_corridor()
    with pytest.raises(ArgumentError, match="steps takes"):
        gradient_ascent(mdp, shared(mdp), torch.zeros(2), step_size=0.1, steps=-1)
    for step_size in (0, -1.0, float("nan"), float("inf"), "0.1"):
        with pytest.raises(ArgumentError, match="step_size takes a finite number above 0"):
            gradient_ascent(mdp, shared(mdp), torch.zeros(2), step_size=step_size, steps=1)


# ---------------------------------------------------------------- Gymnasium
def taxi() -> str:
    return max(name for name in gymnasium.registry if name.startswith("Taxi-v"))


@pytest.mark.parametrize(
    "name",
    [
        "FrozenLake-v1",
        "FrozenLake8x8-v1",
        "CliffWalking-v1",
        pytest.param(taxi(), marks=pytest.mark.slow),
    ],
)
def test_values_by_sweeps_over_the_table(name):
    env = gymnasium.make(name)
    table, gamma = env.unwrapped.P, 0.9
    mdp = from_gymnasium(env, gamma)
    v = np.zeros(len(table))
    for _ in range(300):
        v = np.array(
            [
                np.mean(
                    [
                        sum(p * (r + gamma * v[t] * (not end)) for p, t, r, end in outcomes)
                        for outcomes in row.values()
                    ]
                )
                for row in table.values()
            ]
        )
    s = solve(mdp, np.full((mdp.n_states, mdp.n_actions), 1 / mdp.n_actions))
    close(s.v, v, atol=1e-9)
    close(s.objective, env.unwrapped.initial_state_distrib @ v, atol=1e-9)
    env.close()


def test_known_environments():
    lake = from_gymnasium("FrozenLake-v1", gamma=1.0)
    assert lake.gamma == 1
    close(value_iteration(lake).objective, 14 / 17)  # 0.8235, the known best
    cliff = value_iteration(from_gymnasium("CliffWalking-v1", gamma=1.0))
    close(cliff.objective, -13)
    hole = solve(lake, np.full((16, 4), 0.25))
    close(hole.visitation[[5, 7, 11, 12, 15]], np.zeros(5), atol=0)
    close(hole.v[[5, 7, 11, 12, 15]], np.zeros(5), atol=0)
    best = value_iteration(from_gymnasium(taxi(), gamma=1.0)).objective
    assert 7 < best < 9  # about 13 steps at -1, and 20 at the end


@pytest.mark.parametrize("sparse", [False, True])
def test_every_transition_terminates(sparse, monkeypatch):
    """A bandit: each of two actions pays and ends."""
    if sparse:
        monkeypatch.setattr(exact.from_env, "SPARSE_FROM", 1)
    table = {0: {0: [(1.0, 0, 1.0, True)], 1: [(0.5, 0, 4.0, True), (0.5, 0, 0.0, True)]}}
    env = SimpleNamespace(P=table, initial_state_distrib=[1.0])
    mdp = from_gymnasium(env, gamma=1.0)
    close(mdp.reward, [[1, 2]])
    close(value_iteration(mdp).v, [2])


def test_gymnasium_refusals():
    with pytest.raises(ArgumentError, match=r"table P.* got CartPoleEnv"):
        from_gymnasium("CartPole-v1")
    with pytest.raises(ArgumentError, match="registered environment, got 'FrozenPond-v1'"):
        from_gymnasium("FrozenPond-v1")
    with pytest.raises(ArgumentError, match="got int"):
        from_gymnasium(3)

    class Broken:
        P: dict = {0: {0: [(0.5, 0, 0.0, False)]}}  # noqa: RUF012

    with pytest.raises(EnvironmentFault, match=r"Broken .* got 0.5 for state 0, action 0"):
        from_gymnasium(Broken())


def test_a_first_state_that_is_asked_for():
    class Two:
        P: dict = {  # noqa: RUF012
            s: {0: [(0.5, 1, 2.0, False), (0.25, 1, 2.0, False), (0.25, 0, 6.0, True)]}
            for s in (0, 1)
        }

        def reset(self) -> tuple[int, dict]:
            return 1, {}

    mdp = from_gymnasium(Two(), gamma=1.0)
    close(mdp.start, [0, 1])
    close(mdp.transition[0, 0], [0, 0.75])
    close(mdp.reward, [[3.0], [3.0]])
    close(solve(mdp, [[1.0], [1.0]]).objective, 12)
