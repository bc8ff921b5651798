"""Preference losses: hand numbers, the table by itself, what each one's optimum is, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.audit.completions import COUNT, MASK, SIZE, log_prob
from upslope.errors import ArgumentError, ShapeError
from upslope.losses import dpo_loss
from upslope.losses.preference import AVERAGED, LOSSES, implicit_reward

WITH_REFERENCE = [name for name in LOSSES if name != "simpo"]


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def leaf(*numbers: float) -> torch.Tensor:
    return row(*numbers).requires_grad_()


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---------------------------------------------------------------- the equations
# D_w = 2, D_l = -1, of 4 and 2 tokens, β = 1/2: margin 3/2, averages 1/2 and -1/2, 1/2β = 1
BY_HAND = {
    "sigmoid": 0.20141327798,
    "robust": 0.20141327798,
    "hinge": 0.0,
    "ipo": 0.0,
    "sigmoid_norm": 0.47407698418,
    "apo_zero": 0.64648209017,
    "sppo_hard": 1.0,
    "bco_pair": 0.78733867169,
    "simpo": 0.69314718056,
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_by_hand(loss_type):
    reference = (row(-5), row(-3)) if loss_type != "simpo" else (None, None)
    policy = (row(-3), row(-4)) if loss_type != "simpo" else (row(2), row(-1))
    found = dpo_loss(
        *policy,
        *reference,
        beta=0.5,
        loss_type=loss_type,
        chosen_length=torch.tensor([4]),
        rejected_length=torch.tensor([2]),
    )
    assert found.tolist() == pytest.approx([BY_HAND[loss_type]], abs=1e-10)


def definition(name, w, l, nw, nl, beta, e, gamma):  # noqa: E741
    def plus(x):
        return math.log1p(math.exp(-x))  # -ln σ(x)

    d, mean = w - l, w / nw - l / nl
    return {
        "sigmoid": (1 - e) * plus(beta * d) + e * plus(-beta * d),
        "robust": ((1 - e) * plus(beta * d) - e * plus(-beta * d)) / (1 - 2 * e),
        "hinge": max(0.0, 1 - beta * d),
        "ipo": (mean - 1 / (2 * beta)) ** 2,
        "sigmoid_norm": plus(beta * mean),
        "apo_zero": 1 - logistic(beta * w) + logistic(beta * l),
        "sppo_hard": (w - 0.5 / beta) ** 2 + (l + 0.5 / beta) ** 2,
        "bco_pair": plus(beta * w) + plus(-beta * l),
        "simpo": plus(beta * mean - gamma),
    }[name]


@given(
    loss_type=st.sampled_from(sorted(LOSSES)),
    pairs=st.lists(
        st.tuples(*[st.floats(-20, 0)] * 4, *[st.integers(1, 9)] * 2), min_size=1, max_size=5
    ),
    beta=st.floats(0.01, 3),
    e=st.floats(0, 0.4),
    gamma=st.floats(0, 2),
)
@settings(max_examples=120)
def test_is_its_definition(loss_type, pairs, beta, e, gamma):
    e = e if loss_type in ("sigmoid", "robust") else 0.0
    gamma = gamma if loss_type == "simpo" else 0.5
    cw, cl, rw, rl = (row(*column) for column in list(zip(*pairs, strict=True))[:4])
    nw, nl = (torch.tensor(column) for column in list(zip(*pairs, strict=True))[4:])
    free = loss_type == "simpo"
    found = dpo_loss(
        cw,
        cl,
        None if free else rw,
        None if free else rl,
        beta=beta,
        loss_type=loss_type,
        label_smoothing=e,
        gamma=gamma,
        chosen_length=nw,
        rejected_length=nl,
    ).tolist()
    for loss, (w, l, rw_, rl_, n, m) in zip(found, pairs, strict=True):  # noqa: E741
        d = (w, l) if free else (w - rw_, l - rl_)
        expected = definition(loss_type, *d, n, m, beta, e, gamma)
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-9)


# ---------------------------------------------------------------- invariances
def test_at_the_reference_it_is_log_2():
    x, y = row(-3, -1, -20), row(-2, -9, -1)
    for beta in (0.01, 0.1, 5):
        assert dpo_loss(x, y, x, y, beta=beta).tolist() == pytest.approx([math.log(2)] * 3)
        smooth = dpo_loss(x, y, x, y, beta=beta, label_smoothing=0.3)
        assert smooth.tolist() == pytest.approx([math.log(2)] * 3)


def test_gradient_at_the_reference_is_half_beta_of_the_difference():
    """Rafailov et al., section 4: the gradient is -β σ(r_l - r_w) (∇ ln π_w - ∇ ln π_l)."""
    chosen, rejected = leaf(-3), leaf(-2)
    dpo_loss(chosen, rejected, row(-3), row(-2), beta=0.4).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.2)
    assert rejected.grad.item() == pytest.approx(0.2)


@pytest.mark.parametrize("loss_type", WITH_REFERENCE)
def test_the_reference_is_a_constant(loss_type):
    values = [leaf(-3, -2), leaf(-1, -4), leaf(-2, -2), leaf(-3, -1)]
    lengths = dict(chosen_length=torch.tensor([2, 3]), rejected_length=torch.tensor([1, 5]))
    dpo_loss(*values, loss_type=loss_type, **lengths).sum().backward()
    assert [v.grad is None for v in values] == [False, False, True, True]


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust", "hinge"])
def test_only_the_difference_counts(loss_type):
    """What is added to both log-ratios of a prompt changes nothing."""
    a, b, c, d = row(-3.0, -2), row(-1.0, -4), row(-2.0, -2), row(-3.0, -1)
    shifted = dpo_loss(a + 7, b + 7, c, d, loss_type=loss_type)
    torch.testing.assert_close(dpo_loss(a, b, c, d, loss_type=loss_type), shifted)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_extremes_are_finite(loss_type):
    values = [leaf(-1e4, 0, -700), leaf(0, -1e4, -700)]
    zero = row(0, 0, 0)
    reference = (None, None) if loss_type == "simpo" else (zero, zero)
    lengths = dict(chosen_length=torch.ones(3), rejected_length=torch.ones(3))
    loss = dpo_loss(*values, *reference, loss_type=loss_type, **lengths)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(v.grad.isfinite().all() for v in values)


def test_implicit_reward():
    policy = leaf(-3, -1)
    found = implicit_reward(policy, row(-4, -1.5), 0.1)
    assert found.tolist() == pytest.approx([0.1, 0.05])
    assert not found.requires_grad


# ---------------------------------------------------------------- what they make of preferences
BETA = 0.5
REWARD = torch.sin(3 * torch.arange(COUNT, dtype=torch.float64))
REFERENCE = log_prob(0.7 * torch.cos(torch.arange(SIZE, dtype=torch.float64)))
CHOSEN, REJECTED = (
    i.reshape(-1) for i in torch.meshgrid(*[torch.arange(COUNT)] * 2, indexing="ij")
)


RIGHT = torch.sigmoid(REWARD[CHOSEN] - REWARD[REJECTED])  # Bradley and Terry
OPTIMUM = (REFERENCE + REWARD / BETA).log_softmax(0)
LENGTH = MASK.sum(1)


def divergence(optimum: torch.Tensor, flipped: float = 0.0, length=LENGTH, **options) -> float:
    """Return KL(π || optimum) after minimising E[L] over all pairs, of which some are flipped."""
    theta = torch.zeros(SIZE, dtype=torch.float64, requires_grad=True)
    weight = ((1 - flipped) * RIGHT + flipped * (1 - RIGHT)) / COUNT**2
    optimizer = torch.optim.LBFGS(
        [theta],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        policy = log_prob(theta)
        losses = dpo_loss(
            policy[CHOSEN],
            policy[REJECTED],
            REFERENCE[CHOSEN],
            REFERENCE[REJECTED],
            beta=BETA,
            chosen_length=length[CHOSEN],
            rejected_length=length[REJECTED],
            **options,
        )
        total = (weight * losses).sum()
        total.backward()
        return total

    optimizer.step(loss)
    policy = log_prob(theta).detach()
    return float((policy.exp() * (policy - optimum)).sum())


def test_dpo_reaches_the_optimum_of_reward_and_divergence():
    """π* ∝ π_ref exp(r/β), from preferences alone."""
    assert divergence(OPTIMUM) < 1e-9
    assert float((REFERENCE.exp() * (REFERENCE - OPTIMUM)).sum()) > 0.5


def test_robust_reaches_it_from_flipped_labels_and_the_others_do_not():
    assert divergence(OPTIMUM, 0.2, loss_type="robust", label_smoothing=0.2) < 1e-9
    assert divergence(OPTIMUM, 0.2) > 0.1
    assert divergence(OPTIMUM, 0.2, label_smoothing=0.2) > 0.1


def test_ipo_reaches_its_own_optimum():
    """π ∝ π_ref exp(P/β), with P the chance to be preferred to another (Azar et al., equation 8),

    where lengths are 1; with an average over tokens D / |y| is that exponent, up to a constant.
    """
    preferred = RIGHT.view(COUNT, COUNT).mean(1)
    plain = (REFERENCE + preferred / BETA).log_softmax(0)
    assert divergence(plain, length=torch.ones(COUNT), loss_type="ipo") < 1e-9
    assert divergence(averaged(preferred), loss_type="ipo") < 1e-9
    assert float((plain.exp() * (plain - averaged(preferred))).sum()) > 0.01


def test_dpo_on_averages_reaches_another_optimum():
    """D / |y| is the reward up to a constant: a long completion moves further than DPO's."""
    assert divergence(averaged(REWARD), loss_type="sigmoid_norm") < 1e-9
    assert divergence(OPTIMUM, loss_type="sigmoid_norm") > 0.1


def averaged(score: torch.Tensor) -> torch.Tensor:
    """Return ln π_ref + |y| (score / β + c), with the c that makes it a distribution."""
    low, high = -20.0, 20.0
    for _ in range(100):
        middle = (low + high) / 2
        found = REFERENCE + LENGTH * (score / BETA + middle)
        low, high = (low, middle) if found.logsumexp(0) > 0 else (middle, high)
    return found


# ---------------------------------------------------------------- refusals
def test_shapes_are_refused():
    x = torch.zeros(4)
    for bad in (x[:, None], torch.zeros(1), torch.tensor(0.0), x.int()):
        with pytest.raises(ShapeError, match="dpo_loss: policy_rejected takes"):
            dpo_loss(x, bad, x, x)
    with pytest.raises(ShapeError, match="chosen_length takes"):
        dpo_loss(x, x, x, x, loss_type="ipo", chosen_length=x[:, None], rejected_length=x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmod"}, r"loss_type takes .*, got 'sigmod' \(did you mean 'sigmoid'\?\)"),
        ({"beta": 0}, "beta takes a number above 0, got 0"),
        ({"beta": -1.0}, "beta takes a number of at least 0, got -1.0"),
        ({"beta": math.nan}, "beta takes a number of at least 0, got nan"),
        ({"label_smoothing": 0.5}, "label_smoothing takes a number below 0.5, .*, got 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing takes a number from 0 to 0.5, got -0.1"),
        ({"label_smoothing": 0.1, "loss_type": "hinge"}, "label_smoothing takes 0 for .*'hinge'"),
        ({"gamma": 1.0}, "gamma is taken by loss_type 'simpo' only, got gamma 1.0 for 'sigmoid'"),
        ({"loss_type": "simpo"}, "reference_chosen takes None for loss_type 'simpo'"),
    ],
)
def test_settings_are_refused(options, message):
    x, n = torch.zeros(4), torch.ones(4)
    with pytest.raises(ArgumentError, match=message):
        dpo_loss(x, x, x, x, chosen_length=n, rejected_length=n, **options)


def test_what_a_loss_needs_is_named():
    x, n = torch.zeros(4), torch.ones(4)
    with pytest.raises(
        ArgumentError, match=r"reference_rejected takes log-probabilities .* got None"
    ):
        dpo_loss(x, x, x, None)
    for loss_type in AVERAGED:
        reference = (None, None) if loss_type == "simpo" else (x, x)
        with pytest.raises(ArgumentError, match=r"chosen_length takes tokens .* got None"):
            dpo_loss(x, x, *reference, loss_type=loss_type, rejected_length=n)
        with pytest.raises(
            ArgumentError, match=r"rejected_length takes at least 1, got 0.0 at \[3\]"
        ):
            dpo_loss(
                x,
                x,
                *reference,
                loss_type=loss_type,
                chosen_length=n,
                rejected_length=torch.tensor([1.0, 1, 1, 0]),
            )
