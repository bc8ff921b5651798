"""The audit: what is right passes, and each mistake that others have shipped is caught."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import distributions as D

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.gradient import LeaveOneOut, check_unbiased, surrogate, trajectory_surrogate
from upslope.returns import discounted_return, gae, reward_to_go

F64 = torch.float64


def leaf(*numbers: float) -> torch.Tensor:
    value = numbers[0] if len(numbers) == 1 else numbers
    return torch.tensor(value, dtype=F64, requires_grad=True)


def softmax() -> tuple[D.Categorical, object]:
    f = torch.tensor([1.0, 2, 5], dtype=F64)
    return D.Categorical(logits=leaf(0, 1, -1)), lambda a: f[a]


def off(report, scale: float | None = None, cosine: float | None = None) -> None:
    assert not report.unbiased
    assert report.z_max > 4.5
    assert str(report).startswith("biased")
    if scale is not None:
        assert report.scale == pytest.approx(scale, abs=1e-9)
    if cosine is not None:
        assert report.cosine == pytest.approx(cosine, abs=1e-9)


# ---------------------------------------------------------------- what is right
def test_the_plain_surrogate_by_enumeration():
    policy, f = softmax()
    report = check_unbiased(surrogate, policy, f)
    truth = [-0.25093558007050, -0.01687267164465, 0.26780825171515]
    assert report.unbiased
    assert report.method == "enumeration"
    assert report.exact.tolist() == pytest.approx(truth, abs=1e-13)
    assert report.estimate.tolist() == pytest.approx(truth, abs=1e-13)
    assert report.scale == pytest.approx(1)
    assert report.cosine == pytest.approx(1)
    assert report.z_max == 0
    assert str(report) == "unbiased (enumeration, largest z 0)"


def test_a_scalar_a_loop_and_the_textbook_loss_are_taken():
    policy, f = softmax()
    for surrogate_fn in (
        lambda lp, f: surrogate(lp, f).mean(),
        lambda lp, f: lp * f,
        lambda lp, f: sum(lp[i] * f[i] for i in range(len(lp))) / len(lp),
    ):
        assert check_unbiased(surrogate_fn, policy, f).unbiased


def test_by_quadrature():
    mean, deviation = leaf(1.0), leaf(1.0)
    report = check_unbiased(surrogate, D.Normal(mean, deviation), lambda x: x**2)
    assert report.method == "quadrature"
    assert report.unbiased
    assert report.exact.tolist() == pytest.approx([2, 2], abs=1e-9)
    assert report.variance.tolist() == pytest.approx([15, 68], rel=1e-9)
    assert [p.data_ptr() for p in report.parameters] == [mean.data_ptr(), deviation.data_ptr()]


@pytest.mark.slow
def test_an_f_that_jumps_is_sampled_against_the_integral():
    mean = leaf(0.5)
    report = check_unbiased(surrogate, D.Normal(mean, 1.0), lambda x: (x > 0).double())
    density = math.exp(-0.125) / math.sqrt(2 * math.pi)
    assert report.method == "z-test"
    assert report.unbiased
    assert report.exact.item() == pytest.approx(density, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [lambda t: D.Poisson(t), lambda t: D.Gamma(t, 2.0), lambda t: D.Geometric(t / 4),
     lambda t: D.Independent(D.Normal(torch.stack([t, -t]), 1.0), 1)],
)  # fmt: skip
def test_by_z_test(make):
    theta = leaf(1.4)
    f = (lambda x: x**2) if not make(theta).event_shape else (lambda x: x.sum(-1) ** 2 + x[:, 0])
    right = check_unbiased(surrogate, make(theta), f, repetitions=2000)
    assert right.method == "z-test"
    assert right.unbiased
    wrong = check_unbiased(lambda lp, f: 1.5 * surrogate(lp, f), make(theta), f, repetitions=4000)
    off(wrong)
    assert wrong.scale == pytest.approx(1.5, abs=0.25)


def test_many_points_are_summed_and_their_tuples_sampled():
    logits = torch.linspace(-1, 1, 8, dtype=F64).requires_grad_()
    bits = D.Independent(D.Bernoulli(logits=logits), 1)
    report = check_unbiased(surrogate, bits, lambda x: x.sum(-1), repetitions=2000)
    assert report.method == "z-test"
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(report.exact, p * (1 - p))
    assert report.unbiased
    assert check_unbiased(surrogate, bits, lambda x: x.sum(-1), n=1).method == "enumeration"


def test_the_global_seed_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = check_unbiased(surrogate, D.Poisson(leaf(1.4)), lambda x: x, repetitions=200)
    assert torch.equal(torch.get_rng_state(), before)
    again = check_unbiased(surrogate, D.Poisson(leaf(1.4)), lambda x: x, repetitions=200)
    assert torch.equal(first.estimate, again.estimate)


def test_importance_sampling():
    policy, f = softmax()
    behaviour = D.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=F64))
    q = behaviour.log_prob(torch.arange(3))

    def right(log_prob, objective, action):
        return surrogate(log_prob, objective, reference=q[action])

    options = {"behaviour": behaviour, "with_sample": True}
    assert check_unbiased(right, policy, f, **options).unbiased
    off(check_unbiased(lambda lp, f, a: surrogate(lp, f), policy, f, **options))


def test_float32():
    logits = torch.tensor([0.0, 1, -1], requires_grad=True)
    f = torch.tensor([1.0, 2, 5])
    assert check_unbiased(surrogate, D.Categorical(logits=logits), lambda a: f[a]).unbiased
    off(
        check_unbiased(
            lambda lp, g: 0.99 * surrogate(lp, g), D.Categorical(logits=logits), lambda a: f[a]
        )
    )


def test_masked_logits():
    logits = leaf(0.0, 1, -1)
    policy = D.Categorical(logits=logits.masked_fill(torch.tensor([False, True, False]), -math.inf))
    report = check_unbiased(surrogate, policy, lambda a: a + 1.0)
    assert report.unbiased
    assert report.exact[1] == 0


def test_f_is_not_asked_about_what_is_impossible():
    logits = leaf(0.0, 1, -1)
    policy = D.Categorical(logits=logits.masked_fill(torch.tensor([False, True, False]), -math.inf))
    reward = torch.tensor([1.0, math.inf, 4], dtype=F64)

    def f(a):
        assert (a != 1).all()
        return reward[a]

    report = check_unbiased(surrogate, policy, f)
    assert report.unbiased
    p = logits.detach()[::2].softmax(0)
    assert report.exact.tolist() == pytest.approx([float(-3 * p.prod()), 0, float(3 * p.prod())])


def test_where_the_exact_gradient_is_zero():
    policy, _ = softmax()

    def constant(a):
        return torch.full((len(a),), 3.0)

    report = check_unbiased(surrogate, policy, constant)
    assert report.unbiased
    wrong = check_unbiased(lambda lp, f: lp.exp(), policy, constant)  # Σ p ∇p is not 0
    off(wrong)
    assert wrong.exact.abs().max() < 1e-14


# ---------------------------------------------------------------- what is wrong
@pytest.mark.parametrize("n", [2, 4])
def test_a_moving_average_that_contains_the_current_sample(n):
    """Gradient times 1 - (1 - d) / n."""
    policy, f = softmax()
    before, d = 1.3, 0.9

    def wrong(lp, f):
        return surrogate(lp, f, baseline=d * before + (1 - d) * f.detach().mean())

    report = check_unbiased(wrong, policy, f, n)
    off(report, scale=1 - (1 - d) / n, cosine=1)
    assert "times the exact gradient" in str(report)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_mean_of_the_own_sample(n):
    """A group baseline that contains the own sample: gradient times (G - 1) / G."""
    policy, f = softmax()
    wrong = check_unbiased(lambda lp, f: surrogate(lp, f, baseline=f.mean()), policy, f, n)
    off(wrong, scale=(n - 1) / n, cosine=1)
    assert check_unbiased(
        lambda lp, f: surrogate(lp, f, baseline=LeaveOneOut()), policy, f, n
    ).unbiased


def test_division_by_the_standard_deviation_of_the_group():
    policy, f = softmax()

    def wrong(lp, f):
        return lp * (f - f.mean()) / (f.std() + 1e-4)

    report = check_unbiased(wrong, policy, f, 3)
    off(report)
    assert 0 < report.cosine < 0.999
    assert "another direction" in str(report)


def test_an_optimal_baseline_from_the_own_sample():
    policy, f = softmax()
    off(check_unbiased(lambda lp, f: surrogate(lp, f, baseline=f), policy, f, 1), scale=0)


def test_a_dropped_event_dimension():
    logits = leaf(0.5, -0.2, 1.0)
    base = D.Bernoulli(logits=logits)
    bits, f = D.Independent(base, 1), lambda x: (x * torch.tensor([1.0, -2, 3])).sum(-1) ** 2

    def check(log_prob_of):
        return check_unbiased(
            lambda lp, f, x: surrogate(log_prob_of(x), f), bits, f, with_sample=True
        )

    assert check(lambda x: base.log_prob(x).sum(-1)).unbiased
    off(check(lambda x: base.log_prob(x)[:, 0]))
    off(check(lambda x: base.log_prob(x).mean(-1)), scale=1 / 3, cosine=1)


def test_n_against_n_by_1():
    policy, f = softmax()
    off(check_unbiased(lambda lp, f: (lp * f[:, None]).mean(), policy, f, 3), scale=1 / 3, cosine=1)
    with pytest.raises(ShapeError, match=r"returns \[3\] or \[\], got \[3, 3\]"):
        check_unbiased(lambda lp, f: lp * f[:, None], policy, f, 3)
    with pytest.raises(ShapeError, match="objective takes"):
        check_unbiased(lambda lp, f: surrogate(lp, f[:, None]), policy, f, 3)


def test_a_wrong_sign():
    policy, f = softmax()
    report = check_unbiased(lambda lp, f: -surrogate(lp, f), policy, f)
    off(report, scale=-1, cosine=-1)
    assert "-1 times" in str(report)


def test_a_missing_gradient_of_f():
    """An entropy bonus whose own gradient was dropped (it is 0 on average only for -ln p alone)."""
    theta = leaf(0.3, -0.4, 0.9)
    policy = D.Categorical(logits=theta)

    def f(a):
        return a + 1.0 + theta[0] ** 2 * a

    assert check_unbiased(surrogate, policy, f).unbiased
    off(check_unbiased(lambda lp, f: surrogate(lp, f.detach()), policy, f))


@pytest.mark.slow
def test_score_and_pathwise_counted_twice():
    """x ~ N(μ, 1), f = x²: 4 μ for 2 μ; with a live x in ln p the score cancels: 2 μ again."""
    mean = leaf(0.7)
    normal = D.Normal(mean, 1.0)

    def both(lp, f, x):
        live = mean + (x - mean.detach())
        return surrogate(lp, live**2)

    report = check_unbiased(both, normal, lambda x: x**2, with_sample=True)
    assert report.method == "quadrature"
    off(report, scale=2, cosine=1)
    assert report.estimate.item() == pytest.approx(4 * 0.7)
    assert report.exact.item() == pytest.approx(2 * 0.7)

    def cancelled(lp, f, x):
        live = mean + (x - mean.detach())
        return surrogate(normal.log_prob(live), f)

    off(check_unbiased(cancelled, normal, lambda x: x**2, with_sample=True), scale=0)


# ---- of trajectories: a chain that moves on or stays, ends at its third state
GAMMA, STEPS = 0.8, 3


def chain(theta: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every action sequence: ln π [T, K], states, rewards, steps that count, terminations [T, K].

    Action 1 moves to the next state and pays 1 + its number, action 0 stays and pays .3; moving on
    from state 1 terminates.
    """
    action = torch.tensor(list(itertools.product(range(2), repeat=STEPS))).T
    state, mask, terminated = (torch.zeros_like(action) for _ in range(3))
    here, alive = torch.zeros(action.shape[1]).long(), torch.ones(action.shape[1]).long()
    for t in range(STEPS):
        state[t], mask[t] = here.clamp(max=1), alive
        here = here + action[t] * alive
        terminated[t] = ((here == 2) & (alive == 1)).long()
        alive = (here < 2).long()
    log_prob = theta.view(2, 2).log_softmax(-1)[state, action]
    reward = torch.where(action == 1, 1.0 + state, 0.3).to(F64) * mask
    return log_prob, state, reward, mask.bool(), terminated.bool()


@pytest.fixture
def trajectories():
    """The distribution over whole trajectories, their return, and their tables.

    An action after the end is drawn all the same and changes nothing.
    """
    theta = leaf(0.3, -0.5, 0.2, 0.8)
    log_prob, state, reward, mask, terminated = chain(theta)
    distribution = D.Categorical(logits=log_prob.sum(0))
    returns = discounted_return(reward, GAMMA)
    return distribution, lambda k: returns[k], (log_prob, state, reward, mask, terminated)


def audit(trajectories, surrogate_of):
    distribution, f, tables = trajectories

    def with_steps(lp, f, k):
        return surrogate_of(*(table[:, k] for table in tables))

    return check_unbiased(with_steps, distribution, f, n=1, with_sample=True)


VALUE = torch.tensor([0.4, 1.5], dtype=F64)


def test_right_trajectories(trajectories):
    assert audit(trajectories, lambda lp, s, r, m, e: trajectory_surrogate(
        lp, r, GAMMA, VALUE[s], mask=m)).unbiased  # fmt: skip


def test_a_missing_gamma_t(trajectories):
    report = audit(trajectories, lambda lp, s, r, m, e: trajectory_surrogate(
        lp, r, GAMMA, mask=m, discount_state=False))  # fmt: skip
    off(report)
    assert 0.5 < report.cosine < 0.999


@pytest.mark.parametrize("through", [False, True])
def test_gae_bootstrapped_over_a_termination(trajectories, through):
    """λ = 1 is unbiased for any V, unless what follows the end is taken as worth something."""

    def surrogate_of(lp, s, r, m, ended):
        following = torch.cat([VALUE[s][1:], torch.zeros_like(r[:1])])  # 0 past the horizon
        value, following = VALUE[s] * m, following * torch.cat([m[1:], m[:1]])
        last = torch.where(ended, VALUE[1], following)  # what a careless loop finds there
        stop = torch.zeros_like(ended)
        advantage = gae(r, value, last, stop if through else ended, stop,
                        gamma=GAMMA, gae_lambda=1.0)  # fmt: skip
        discount = GAMMA ** torch.arange(STEPS, dtype=F64)[:, None]
        return (discount * lp * advantage * m).sum(0)

    report = audit(trajectories, surrogate_of)
    assert report.unbiased is not through
    if through:
        off(report)


@pytest.mark.parametrize("kind", ["per decision", "whole", "one step"])
def test_the_one_step_importance_ratio(trajectories, kind):
    distribution, f, tables = trajectories
    behaviour_steps = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=F64).log()
    log_prob, state, reward, mask, _ = tables
    actions = torch.tensor(list(itertools.product(range(2), repeat=STEPS))).T
    q = behaviour_steps[state, actions]
    behaviour = D.Categorical(logits=q.sum(0))

    def surrogate_of(lp, f, k):
        if kind == "per decision":
            return trajectory_surrogate(
                log_prob[:, k], reward[:, k], GAMMA, reference=q[:, k], mask=mask[:, k]
            )
        if kind == "whole":
            return surrogate(log_prob[:, k].sum(0), f, reference=q[:, k].sum(0))
        ratio = (log_prob - q)[:, k].exp()
        to_go = reward_to_go(reward[:, k], torch.zeros_like(mask[:, k]), GAMMA)
        discount = GAMMA ** torch.arange(STEPS, dtype=F64)[:, None]
        return (discount * ratio * to_go).sum(0)

    report = check_unbiased(
        surrogate_of, distribution, f, n=1, behaviour=behaviour, with_sample=True
    )
    assert report.unbiased is (kind != "one step")
    if kind == "one step":
        off(report)
        assert report.cosine < 0.999


# ---------------------------------------------------------------- refusals
def test_a_seed_is_a_whole_number():
    policy = D.Bernoulli(logits=torch.zeros((), requires_grad=True))
    for seed in ("a", 1.5, True):
        with pytest.raises(ArgumentError, match="seed takes a whole number, got"):
            check_unbiased(surrogate, policy, lambda b: b, seed=seed)


def test_refusals():
    policy, f = softmax()
    with pytest.raises(
        ShapeError, match=r"without batch shape, got \[3\]; make the batch an event"
    ):
        check_unbiased(surrogate, D.Bernoulli(logits=leaf(0, 1, 2)), lambda x: x)
    with pytest.raises(
        ArgumentError, match=r"takes a torch\.distributions\.Distribution, got Tensor"
    ):
        check_unbiased(surrogate, torch.ones(3), f)
    with pytest.raises(ArgumentError, match="parameter that requires a gradient, got none"):
        check_unbiased(surrogate, D.Categorical(torch.ones(3)), f)
    with pytest.raises(ArgumentError, match="support that does not depend on a parameter"):
        check_unbiased(surrogate, D.Uniform(0.0, leaf(1.0)), lambda x: x)
    for n in (0, 1.5, True):
        with pytest.raises(ArgumentError, match="n takes a whole number of at least 1"):
            check_unbiased(surrogate, policy, f, n)
    for surrogate_fn, objective in ((3, f), (surrogate, 3)):
        with pytest.raises(ArgumentError, match=r"(surrogate_fn|f) takes a function, got int"):
            check_unbiased(surrogate_fn, policy, objective)
    with pytest.raises(ArgumentError, match="repetitions takes a whole number from 100"):
        check_unbiased(surrogate, policy, f, repetitions=10)
    with pytest.raises(ShapeError, match=r"returns \[2\] or \[\], got NoneType"):
        check_unbiased(lambda lp, f: None, policy, f)
    with pytest.raises(NotFiniteError, match="surrogate_fn takes samples and returns what has"):
        check_unbiased(lambda lp, f: lp * (f - f.mean()) / f.std(), policy, f)
    with pytest.raises(ShapeError, match="f takes samples"):
        check_unbiased(surrogate, policy, lambda a: torch.ones(len(a), 1))


def test_a_surrogate_without_gradient_is_biased():
    policy, f = softmax()
    off(check_unbiased(lambda lp, f: f, policy, f), scale=0)


@pytest.mark.parametrize(
    ("scale", "f"), [(0.9, lambda b: 1000 + b), (0.98, lambda b: (b - 0.499) ** 2)]
)
def test_a_small_bias_is_seen_in_float32(scale, f):
    """The bound is of rounding, and does not grow with the noise of one estimate."""
    policy = D.Bernoulli(logits=torch.zeros((), requires_grad=True))
    report = check_unbiased(lambda *given: scale * surrogate(*given), policy, f, n=1)
    assert not report.unbiased
    assert report.scale == pytest.approx(scale, rel=0.01)
    assert check_unbiased(surrogate, policy, f, n=1).unbiased
    held = LeaveOneOut()
    assert check_unbiased(lambda *given: surrogate(*given, baseline=held), policy, f, n=3).unbiased
