"""The trajectory surrogate, against every trajectory of a small problem."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.gradient import surrogate, trajectory_surrogate
from upslope.returns import discounted_return

GAMMA, STEPS = 0.7, 3
P = torch.tensor([[0.8, 0.3], [0.4, 0.9]]).double()  # P(s'=1 | s, a)
R = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
V = torch.tensor([0.4, -1.1]).double()  # no one's value: any function of the state will do


def all_trajectories() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States [T, N] and actions [T, N] of all trajectories from state 0, and their dynamics."""
    states, actions, dynamics = [], [], []
    for a in itertools.product(range(2), repeat=STEPS):
        for later in itertools.product(range(2), repeat=STEPS - 1):
            s = (0, *later)
            p = 1.0
            for t in range(STEPS - 1):
                one = P[s[t], a[t]].item()
                p *= one if s[t + 1] else 1 - one
            states.append(s)
            actions.append(a)
            dynamics.append(p)
    return torch.tensor(states).T, torch.tensor(actions).T, torch.tensor(dynamics).double()


STATE, ACTION, DYNAMICS = all_trajectories()
REWARD, VALUE = R[STATE, ACTION], V[STATE]
BEHAVIOUR = torch.tensor([[0.3, 0.7], [0.6, 0.4]]).double().log()[STATE, ACTION]


def policy(theta: torch.Tensor) -> torch.Tensor:
    return theta.view(2, 2).log_softmax(-1)[STATE, ACTION]


def theta() -> torch.Tensor:
    return torch.tensor([0.3, -0.5, 0.2, 0.8], dtype=torch.float64, requires_grad=True)


def gradient(value: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, at, retain_graph=True, create_graph=True)[0]


def exact(at: torch.Tensor) -> torch.Tensor:
    return (DYNAMICS * policy(at).sum(0).exp() * discounted_return(REWARD, GAMMA)).sum()


def expected(at: torch.Tensor, off_policy: bool, **options) -> torch.Tensor:
    drawn_by = BEHAVIOUR if off_policy else policy(at).detach()
    reference = BEHAVIOUR if off_policy else None
    terms = trajectory_surrogate(policy(at), REWARD, GAMMA, reference=reference, **options)
    return (DYNAMICS * drawn_by.sum(0).exp() * terms).sum()


def test_all_trajectories_are_there():
    assert (DYNAMICS * BEHAVIOUR.sum(0).exp()).sum().item() == pytest.approx(1)


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("values", [None, VALUE])
def test_value_gradient_and_hessian(off_policy, values):
    at = theta()
    found, truth = expected(at, off_policy, values=values), exact(at)
    assert found.item() == pytest.approx(truth.item())
    torch.testing.assert_close(gradient(found, at), gradient(truth, at))
    for i in range(4):
        torch.testing.assert_close(
            gradient(gradient(found, at)[i], at), gradient(gradient(truth, at)[i], at)
        )
    assert gradient(truth, at).abs().max() > 0.1


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("values", [None, VALUE])
def test_without_gamma_t_by_the_definition(off_policy, values):
    """E[Σ_t ρ_{0:t..} ∇ ln π_t (G_t - V_t)] by a double loop over each trajectory."""
    at = theta()
    log_prob = policy(at)
    drawn_by = BEHAVIOUR if off_policy else log_prob.detach()
    total = 0
    for k in range(len(DYNAMICS)):
        p = DYNAMICS[k] * drawn_by[:, k].sum().exp()
        for t in range(STEPS):
            weight = 0.0
            for later in range(t, STEPS):
                ratio = (log_prob - drawn_by)[: later + 1, k].sum().exp().detach()
                weight = weight + GAMMA ** (later - t) * ratio * REWARD[later, k]
            if values is not None:
                ratio = (log_prob - drawn_by)[: t + 1, k].sum().exp().detach()
                weight = weight - ratio * VALUE[t, k]
            total = total + p * weight * log_prob[t, k]
    found = expected(at, off_policy, values=values, discount_state=False)
    torch.testing.assert_close(gradient(found, at), gradient(total, at))
    truth = exact(at)
    if values is None:
        assert found.item() == pytest.approx(truth.item())
    assert (gradient(found, at) - gradient(truth, at)).abs().max() > 0.05  # another direction


def test_by_hand():
    """r = (1, 2), γ = .5, V = (.25, -1): slopes G_0 - V_0 = 1.75 and γ (G_1 - V_1) = 1.5."""
    log_prob = torch.tensor([[-0.5], [-2.0]], dtype=torch.float64, requires_grad=True)
    reward, values = torch.tensor([[1.0], [2]]).double(), torch.tensor([[0.25], [-1]]).double()
    found = trajectory_surrogate(log_prob, reward, 0.5, values)
    assert found.tolist() == [2]
    assert gradient(found.sum(), log_prob).flatten().tolist() == [1.75, 1.5]
    plain = trajectory_surrogate(log_prob, reward, 0.5, values, discount_state=False)
    assert plain.tolist() == [2]
    assert gradient(plain.sum(), log_prob).flatten().tolist() == [1.75, 3]


def test_the_gradient_of_the_reward_is_added():
    log_prob = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    reward = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    found = trajectory_surrogate(log_prob, reward, 0.5)
    assert gradient(found.sum(), reward).flatten().tolist() == [1, 0.5]
    found = trajectory_surrogate(log_prob, reward, 0.5, discount_state=False)
    assert gradient(found.sum(), reward).flatten().tolist() == [1, 1]


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 1), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_what_comes_after_the_end_may_hold_anything(steps, columns, gamma, off_policy, discount):
    generator = torch.Generator().manual_seed(steps * 7 + columns)
    log_prob, reward, values, reference = torch.randn(
        4, steps, columns, generator=generator, dtype=torch.float64
    )
    length = torch.randint(1, steps + 1, (columns,), generator=generator)
    mask = torch.arange(steps)[:, None] < length
    junk = [x.masked_fill(~mask, math.nan) for x in (log_prob, reward, values, reference)]
    junk[0].requires_grad_()
    found = trajectory_surrogate(
        junk[0],
        junk[1],
        gamma,
        junk[2],
        reference=junk[3] if off_policy else None,
        mask=mask,
        discount_state=discount,
    )
    slope = gradient(found.sum(), junk[0])
    for n in range(columns):
        own = [x[: length[n], n : n + 1].detach() for x in (log_prob, reward, values, reference)]
        own[0].requires_grad_()
        alone = trajectory_surrogate(
            own[0],
            own[1],
            gamma,
            own[2],
            reference=own[3] if off_policy else None,
            discount_state=discount,
        )
        assert found[n].item() == pytest.approx(alone.item(), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(slope[: length[n], n], gradient(alone.sum(), own[0])[:, 0])
        assert (slope[length[n] :, n] == 0).all()


def test_one_step_is_the_plain_surrogate():
    log_prob = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    f, b = torch.tensor([[3.0, 4.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    q = torch.tensor([[-0.5, -3.0]]).double()
    found = trajectory_surrogate(log_prob, f, 0.9, b, reference=q)
    torch.testing.assert_close(found, surrogate(log_prob, f, reference=q, baseline=b)[0])


@pytest.mark.parametrize("discount", [False, True])
def test_a_target_that_cannot_have_done_it(discount):
    """From the step that π cannot do, nothing counts; before it, everything, without NaN."""
    first = torch.tensor([[-0.5]], dtype=torch.float64, requires_grad=True)
    log_prob = torch.cat([first, torch.full((1, 1), -math.inf).double()])
    reward, q = torch.tensor([[2.0], [9.0]]).double(), torch.full((2, 1), -0.5).double()
    found = trajectory_surrogate(log_prob, reward, 0.5, reference=q, discount_state=discount)
    assert found.tolist() == [2]
    assert gradient(found.sum(), first).item() == 2


def test_refusals():
    x = torch.zeros(3, 2)
    with pytest.raises(ShapeError, match=r"reward takes .* T = 3 and N = 2"):
        trajectory_surrogate(x, x.T, 0.9)
    for name in ("values", "reference", "mask"):
        with pytest.raises(ShapeError, match=f"{name} takes"):
            trajectory_surrogate(x, x, 0.9, **{name: x[:, :1].bool() if name == "mask" else x[:1]})
    with pytest.raises(ArgumentError, match="gamma takes a number from 0 to 1"):
        trajectory_surrogate(x, x, 1.1)
    with pytest.raises(NotFiniteError, match="log_prob takes finite"):
        trajectory_surrogate(x - math.inf, x, 1)
    with pytest.raises(ArgumentError, match="at least one step"):
        trajectory_surrogate(x[:, :0], x[:, :0], 1)
