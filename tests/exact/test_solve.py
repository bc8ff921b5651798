"""Values, visitation and objective: known numbers, sums over time, structure, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.exact.cases import close, random_policy, random_problem
from upslope import exact
from upslope.errors import ArgumentError, ShapeError
from upslope.exact import FiniteMDP, chain, solve


def corridor_policy(p: float) -> np.ndarray:
    return np.tile([1 - p, p], (3, 1))


# ---------------------------------------------------------------- known numbers
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 2 - math.sqrt(2), 0.95])
def test_short_corridor(p):
    s = solve(exact.short_corridor(), corridor_policy(p))
    close(s.v[0], -(4 - 2 * p) / (p * (1 - p)))
    close(s.objective, s.v[0])
    close(s.scale, -s.objective)  # -1 on every step


def test_short_corridor_as_printed():
    half = solve(exact.short_corridor(), corridor_policy(0.5))
    close(half.v, [-12, -10, -6])
    close(half.visitation, [6, 4, 2])
    assert half.objective.item() == pytest.approx(-12)
    best = solve(exact.short_corridor(), corridor_policy(2 - math.sqrt(2))).objective
    assert round(best.item(), 10) == -11.6568542495
    assert best.item() == pytest.approx(-(6 + 4 * math.sqrt(2)), abs=1e-12)
    for p, value in ((0.95, -44.2105), (0.05, -82.1053)):
        assert round(solve(exact.short_corridor(), corridor_policy(p)).v[0].item(), 4) == value


def test_gridworlds_and_random_walk():
    grid = solve(exact.jumping_gridworld(), np.full((25, 4), 0.25))
    assert [round(x, 1) for x in grid.v[:5].tolist()] == [3.3, 8.8, 4.4, 5.3, 1.5]
    assert [round(x, 1) for x in grid.v[5:10].tolist()] == [1.5, 3.0, 2.3, 1.9, 0.5]
    grid = solve(exact.gridworld(), np.full((16, 4), 0.25))
    close(grid.v.reshape(4, 4)[0], [0, -14, -20, -22])
    close(grid.v.reshape(4, 4)[1], [-14, -18, -20, -20])
    assert grid.visitation[0] == grid.visitation[15] == 0
    walk = solve(exact.random_walk(19), np.full((19, 2), 0.5))
    close(walk.v, (torch.arange(1, 20) - 10) / 10, atol=1e-7)


def test_kakade_two_states():
    s = solve(exact.kakade_two_states(), [[0.8, 0.2], [0.1, 0.9]], setting="average")
    assert round(s.objective.item(), 4) == 0.6909
    close(s.distribution, [9 / 11, 2 / 11])
    best = solve(exact.kakade_two_states(), [[0.0, 1.0], [1.0, 0.0]], setting="average")
    close(best.objective, 2)
    close(best.distribution, [0, 1])


# ---------------------------------------------------------------- definitions, by brute force
@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("arrival", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_sums_over_time(gamma, arrival, as_sparse):
    """v = Σ γᵗ Pᵗ r and η = Σ γᵗ hᵀ Pᵗ, with P and r by a triple loop."""
    mdp = random_problem(3, gamma=gamma, arrival=arrival)
    policy = random_policy(4, mdp)
    p, r = np.zeros((4, 4)), np.zeros(4)
    for s in range(4):
        for a in range(3):
            for t in range(4):
                chance = (policy[s, a] * mdp.transition[s, a, t]).item()
                p[s, t] += chance
                r[s] += chance * mdp.arrival_reward[s, a, t].item() if arrival else 0
            r[s] += 0 if arrival else (policy[s, a] * mdp.reward[s, a]).item()
    v, eta, h, power = np.zeros(4), np.zeros(4), mdp.start.numpy(), np.eye(4)
    for _ in range(400):
        v, eta, power = v + power @ r, eta + h @ power, gamma * power @ p
    found = solve(random_problem(3, gamma=gamma, arrival=arrival, as_sparse=as_sparse), policy)
    close(found.v, v)
    close(found.visitation, eta)
    close(found.objective, h @ v)
    close(found.scale, eta.sum())
    close(found.distribution, eta / eta.sum())
    close((policy * found.q).sum(1), v)
    close((policy * found.advantage).sum(1), np.zeros(4))


@pytest.mark.parametrize("as_sparse", [False, True])
def test_average_reward_is_the_limit_of_averages(as_sparse):
    mdp = random_problem(5, ends=False, arrival=True, as_sparse=as_sparse)
    dense = random_problem(5, ends=False, arrival=True)
    policy = random_policy(6, mdp)
    s = solve(mdp, policy, setting="average")
    p = torch.einsum("sa,sat->st", policy, dense.transition)
    r = (policy * dense.reward).sum(1)
    far = torch.linalg.matrix_power(p, 2000)
    close(s.distribution, far[0])
    close(s.objective, far[0] @ r)
    differential = sum(torch.linalg.matrix_power(p, t) @ r - s.objective for t in range(300))
    close(s.v, differential)  # Σ_t E[r_t] - ρ, which has mean 0 under μ
    close(s.q, dense.reward - s.objective + dense.transition @ differential)
    close(s.distribution @ s.v, 0)
    assert s.scale == 1
    assert torch.equal(s.visitation, s.distribution)


def test_average_reward_by_the_least_squares_of_its_definition():
    mdp = random_problem(8, 6, 2, ends=False)
    policy = random_policy(9, mdp)
    p = torch.einsum("sa,sat->st", policy, mdp.transition).numpy()
    r = (policy * mdp.reward).sum(1).numpy()
    system = np.vstack([np.eye(6) - p.T, np.ones(6)])
    mu = np.linalg.lstsq(system, np.append(np.zeros(6), 1), rcond=None)[0]
    v = np.linalg.solve(np.eye(6) - p + np.outer(np.ones(6), mu), r - mu @ r)
    s = solve(mdp, policy, "average")
    close(s.distribution, mu)
    close(s.v, v)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_periodic_chains(length):
    """A ring that is walked around: no limit exists, averages do."""
    p = np.zeros((length, 1, length))
    p[np.arange(length), 0, (np.arange(length) + 1) % length] = 1
    reward = np.arange(length, dtype=float)[:, None]
    mdp = FiniteMDP(p, reward, np.eye(length)[0], 0.9)
    s = solve(mdp, np.ones((length, 1)), "average")
    close(s.distribution, np.full(length, 1 / length))
    close(s.objective, (length - 1) / 2)
    close(s.v.numpy() - reward[:, 0] + (length - 1) / 2, torch.roll(s.v, -1))
    close(
        solve(mdp, np.ones((length, 1))).v[0],
        sum(0.9**k * k for k in range(length)) / (1 - 0.9**length),
    )


def test_transient_states_count_nothing_in_the_average():
    p = np.zeros((3, 1, 3))
    p[0, 0, 1] = p[1, 0, 2] = p[2, 0, 1] = 1
    s = solve(FiniteMDP(p, [[100.0], [1.0], [3.0]], [1, 0, 0], 1.0), np.ones((3, 1)), "average")
    close(s.distribution, [0, 0.5, 0.5])
    close(s.objective, 2)


def test_average_far_from_the_state_it_is_first_tried_on():
    """A walk that drifts right through 200 states: the left end is visited once in 9^199 steps."""
    n, state = 200, np.arange(200)
    p = np.zeros((n, 2, n))
    p[state, 0, np.maximum(state - 1, 0)] = 1
    p[state, 1, np.minimum(state + 1, n - 1)] = 1
    policy = np.tile([0.1, 0.9], (n, 1))
    s = solve(FiniteMDP(p, np.tile(state[:, None] * 1.0, 2), np.eye(n)[0], 0.5), policy, "average")
    ratio = 9.0 ** (state - n + 1)
    close(s.distribution, ratio / ratio.sum())
    close(s.objective, (ratio @ state) / ratio.sum())


def test_discounted_tends_to_average():
    mdp = random_problem(11, ends=False, gamma=0.999999)
    policy = random_policy(12, mdp)
    discounted, average = solve(mdp, policy), solve(mdp, policy, "average")
    close((1 - mdp.gamma) * discounted.objective, average.objective, atol=1e-4)
    close(discounted.distribution, average.distribution, atol=1e-4)
    close(discounted.advantage, average.advantage, atol=1e-4)


# ---------------------------------------------------------------- dense and sparse
@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.booleans())
def test_sparse_equals_dense(seed, gamma, average):
    kinds = [random_problem(seed, 5, 2, gamma=gamma, ends=not average, as_sparse=k) for k in (0, 1)]
    policy = random_policy(seed + 1, kinds[0])
    one, two = (solve(k, policy, "average" if average else None) for k in kinds)
    for name in ("v", "q", "visitation", "distribution", "scale", "objective", "advantage"):
        close(getattr(one, name), getattr(two, name), atol=1e-8)


def test_forms_of_sparse():
    dense = random_problem(0, 5, 3, arrival=True)
    policy = random_policy(1, dense)
    p, r = dense.transition.numpy(), dense.arrival_reward.numpy()
    by_action = [sparse.coo_array(p[:, a]) for a in range(3)]
    paid = [sparse.csc_array(r[:, a]) for a in range(3)]
    for transition, reward in (
        (by_action, paid),
        (by_action, dense.reward),
        (sparse.csc_matrix(p.reshape(15, 5)), sparse.csr_matrix(r.reshape(15, 5))),
        (sparse.coo_array(p), sparse.coo_array(r)),
    ):
        mdp = FiniteMDP(transition, reward, dense.start, 0.9)
        assert mdp.is_sparse
        close(solve(mdp, policy).v, solve(dense, policy).v)
        close(mdp.reward, dense.reward)


def test_large_systems_are_factorised_or_iterated(monkeypatch):
    """A grid needs a factorisation; a chain without locality converges by iteration."""
    factorised = []
    monkeypatch.setattr(chain, "DIRECT_BELOW", 100)
    monkeypatch.setattr(chain, "STEPS", 40)
    real = chain._factorise
    monkeypatch.setattr(chain, "_factorise", lambda m: factorised.append(m) or real(m))
    grid = exact.gridworld(20, 30, sparse=True)
    policy = np.full((600, 4), 0.25)
    dense = exact.gridworld(20, 30, sparse=False)
    close(solve(grid, policy).v, solve(dense, policy).v, rtol=1e-11)
    assert len(factorised) == 1
    rng = np.random.default_rng(0)
    entries = (np.full(3600, 0.5), (np.repeat(np.arange(1800), 2), rng.integers(0, 600, 3600)))
    mixing = sparse.csr_array(entries, shape=(1800, 600))
    reward, start = rng.normal(size=(600, 3)), np.arange(600) == 7
    policy = rng.dirichlet(np.ones(3), 600)
    p = sparse.csr_array(mixing.multiply(policy.reshape(-1, 1)))
    p = p.toarray().reshape(600, 3, 600).sum(1)
    for gamma in (0.999, 0.0):
        s = solve(FiniteMDP(mixing, reward, start, gamma), policy)
        close(s.v, np.linalg.solve(np.eye(600) - gamma * p, (policy * reward).sum(1)))
        close(s.visitation, np.linalg.solve(np.eye(600) - gamma * p.T, start * 1.0))
    assert len(factorised) == 1


@pytest.mark.slow
def test_a_hundred_thousand_states():
    grid = exact.gridworld(316, 317, gamma=1.0)
    s = solve(grid, np.full((grid.n_states, 4), 0.25))
    assert grid.n_states > 100_000
    close(s.scale, -s.objective, rtol=1e-10)
    close((s.policy * s.q).sum(1), s.v, atol=0, rtol=1e-12)


# ---------------------------------------------------------------- edges
def test_absorbing_start_states():
    """An empty row: one step, its reward, and the end."""
    mdp = FiniteMDP(np.zeros((2, 2, 2)), [[1.0, 3.0], [5.0, 5.0]], [0.5, 0.5], 1.0)
    s = solve(mdp, np.full((2, 2), 0.5))
    close(s.v, [2, 5])
    close(s.visitation, [0.5, 0.5])
    close(s.scale, 1)
    everywhere = FiniteMDP(np.ones((1, 1, 1)), [[2.0]], [1.0], 0.75)
    close(solve(everywhere, [[1.0]]).objective, 8)


def test_zero_probabilities_hide_what_never_ends():
    p = np.zeros((1, 2, 1))
    p[0, 1, 0] = 1
    mdp = FiniteMDP(p, [[1.0, 7.0]], [1.0], 1.0)
    close(solve(mdp, [[1.0, 0.0]]).objective, 1)
    close(solve(mdp, [[0.5, 0.5]]).objective, 8)
    with pytest.raises(ArgumentError, match="from state 0 it never does"):
        solve(mdp, [[0.0, 1.0]])


def test_float32_is_converted():
    third = torch.full((3, 3), 1 / 3)
    assert third.dtype == torch.float32
    mdp = FiniteMDP(third[:, None].expand(3, 3, 3), torch.zeros(3, 3) + 1, third[0], 0.5)
    s = solve(mdp, third)
    assert s.v.dtype == torch.float64
    close(mdp.ending, torch.zeros(3, 3), atol=0)
    close(s.v, [2, 2, 2], atol=1e-15)
    close(s.distribution.sum(), 1, atol=1e-15)
    close(solve(mdp, third, "average").objective, 1, atol=1e-15)


def test_rows_near_one_count_as_one():
    mdp = FiniteMDP([[[1 - 5e-10]]], [[1.0]], [1.0], 1.0)
    with pytest.raises(ArgumentError, match="never does"):
        solve(mdp, [[1.0]])
    close(solve(mdp, [[1.0]], "average").objective, 1)
    mdp = FiniteMDP([[[1 - 2e-9]]], [[1.0]], [1.0], 1.0)
    assert solve(mdp, [[1.0]]).objective == pytest.approx(5e8, rel=1e-6)


def test_nothing_given_is_changed():
    p, reward, policy = np.full((2, 1, 2), 0.4), np.ones((2, 1)), np.ones((2, 1))
    rows = sparse.csr_array(p.reshape(2, 2))
    for transition in (p, rows):
        solve(FiniteMDP(transition, reward, [1.0, 0.0], 1.0), policy)
    assert (p == 0.4).all()
    assert (rows.data == 0.4).all()


def test_the_solution_follows_the_gradient_of_the_policy():
    mdp = random_problem(0)
    policy = random_policy(0, mdp).requires_grad_()
    s = solve(mdp, policy)
    for value in (s.v, s.q, s.visitation, s.distribution, s.scale, s.objective):
        assert value.requires_grad
    assert not solve(mdp, policy.detach()).v.requires_grad


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize("as_sparse", [False, True])
def test_a_policy_that_does_not_terminate_is_named_by_state(as_sparse):
    mdp = exact.gridworld(3, 3, terminal=((2, 2),), sparse=as_sparse)
    policy = np.full((9, 4), 0.25)
    policy[4] = [0, 0, 0, 1]  # the centre goes left,
    policy[3] = [0, 0, 1, 0]  # and its left neighbour goes right
    with pytest.raises(ArgumentError, match=r"ends the episode from every state.*from state 3 it"):
        solve(mdp, policy)
    policy[0] = [1, 0, 0, 0]
    with pytest.raises(ArgumentError, match="from state 0 it never does"):
        solve(mdp, policy)


def test_what_ends_in_theory_only():
    p = np.zeros((1, 2, 1))
    p[0, 1, 0] = 1
    mdp = FiniteMDP(p, [[1.0, 1.0]], [1.0], 1.0)
    close(solve(mdp, [[1e-9, 1 - 1e-9]]).objective, 1e9, atol=1e3)
    for tiny in (1e-13, 1e-30, 1e-300):
        with pytest.raises(ArgumentError, match="float64 can resolve; from state 0"):
            solve(mdp, [[tiny, 1 - tiny]])


@pytest.mark.parametrize("as_sparse", [False, True])
def test_several_recurrent_classes(as_sparse):
    p = np.zeros((3, 1, 3))
    p[0, 0, 1] = p[0, 0, 2] = 0.5
    p[1, 0, 1] = p[2, 0, 2] = 1
    transition = sparse.csr_array(p.reshape(3, 3)) if as_sparse else p
    mdp = FiniteMDP(transition, np.ones((3, 1)), [1, 0, 0], 0.9)
    with pytest.raises(ArgumentError, match="got 2 of them, states 1 and 2 in different ones"):
        solve(mdp, np.ones((3, 1)), "average")
    close(solve(mdp, np.ones((3, 1))).objective, 10)


def test_average_refuses_rows_below_one():
    with pytest.raises(ArgumentError, match=r"sums to 0 for state 2, action 1"):
        solve(exact.short_corridor(), corridor_policy(0.5), "average")


def test_settings():
    mdp, policy = random_problem(0), random_policy(0, random_problem(0))
    assert solve(mdp, policy).setting == solve(mdp, policy, "discounted").setting == "discounted"
    with pytest.raises(ArgumentError, match=r"'episodic' takes an mdp with gamma = 1, got 0.9"):
        solve(mdp, policy, "episodic")
    with pytest.raises(ArgumentError, match="'discounted' takes an mdp with gamma below 1, got 1"):
        solve(random_problem(0, gamma=1.0), policy, "discounted")
    with pytest.raises(ArgumentError, match=r"got 'avrage'.*did you mean 'average'"):
        solve(mdp, policy, "avrage")
    with pytest.raises(ArgumentError, match="mdp takes a FiniteMDP, got ndarray"):
        solve(np.zeros(3), policy)


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (np.full((3, 4), 0.25), ShapeError, r"\[4, 3\], got \[3, 4\]"),
        (np.full(3, 1 / 3), ShapeError, r"\[4, 3\], got \[3\]"),
        (np.full((1, 3), 1 / 3), ShapeError, r"got \[1, 3\]"),
        (np.full((4, 3), 0.3), ArgumentError, "sum to 1 in each state, got .* in state 0"),
        ([[1.5, -0.5, 0]] + [[1, 0, 0]] * 3, ArgumentError, r"got \[1.5, -0.5, 0.0\] in state 0"),
        ([[1, 0, 0]] * 3 + [[math.nan, 1, 0]], ArgumentError, "in state 3"),
        ("greedy", ArgumentError, "policy takes an array of real numbers, got str"),
        (torch.zeros(4, 3, dtype=torch.complex64), ArgumentError, "real numbers"),
    ],
)
def test_policies_that_are_none(policy, error, message):
    with pytest.raises(error, match=message):
        solve(random_problem(0), policy)
