"""Returns and advantages: hand numbers, double loops, special cases, and what must not leak."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError, ShapeError
from upslope.returns import (
    discounted_return,
    eligibility,
    gae,
    lambda_return,
    mean_baseline,
    n_step,
    reward_to_go,
    vtrace,
)


def columns(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def flags(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.bool)[:, None]


def close(left: torch.Tensor, right: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(left, right, atol=atol, rtol=0)


class Rollout:
    """Random numbers of shape [T, N] with ends everywhere, also two in a row."""

    def __init__(self, seed: int, steps: int, envs: int, dtype: torch.dtype = torch.float64):
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, envs)
        self.reward = torch.randn(shape, generator=generator, dtype=dtype)
        self.value = torch.randn(shape, generator=generator, dtype=dtype)
        self.next_value = torch.randn(shape, generator=generator, dtype=dtype)
        self.terminated = torch.rand(shape, generator=generator) < 0.15
        self.truncated = (torch.rand(shape, generator=generator) < 0.15) & ~self.terminated

    def consistent(self) -> Rollout:
        """Let the value of the next observation be the next row's value, where nothing ended."""
        going_on = ~self.ended[:-1]
        self.next_value[:-1][going_on] = self.value[1:][going_on]
        return self

    @property
    def ended(self) -> torch.Tensor:
        return self.terminated | self.truncated

    def ends(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.next_value, self.terminated, self.truncated

    def gae(self, **kwargs: float) -> torch.Tensor:
        return gae(self.reward, self.value, *self.ends(), **kwargs)


def last_step(data: Rollout, t: int, i: int, longest: int) -> int:
    """Return the last step that the sum from step t reaches: an end, the last row, or `longest`."""
    steps = len(data.reward)
    u = t
    while u + 1 < steps and u + 1 < t + longest and not data.ended[u, i]:
        u += 1
    return u


def by_the_definition(data: Rollout, gamma: float, longest: int) -> torch.Tensor:
    """The n-step return as a double loop: rewards, then the value of what follows."""
    out = torch.empty_like(data.reward)
    for i in range(out.shape[1]):
        for t in range(out.shape[0]):
            u = last_step(data, t, i, longest)
            total = sum(gamma ** (k - t) * data.reward[k, i].item() for k in range(t, u + 1))
            if not data.terminated[u, i]:
                total += gamma ** (u + 1 - t) * data.next_value[u, i].item()
            out[t, i] = total
    return out


rollouts = st.builds(
    Rollout, st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 3)
)  # seed, T, N
unit = st.floats(0, 1)


# ---------------------------------------------------------------- hand numbers
REWARD, VALUE = columns(1, 0, -1, 2), columns(0.5, 0.2, -0.3, 1)
NEXT = columns(0.2, -0.3, 1, 0.7)  # V of what follows the last step is 0.7
NOWHERE, AT_THE_END = flags(0, 0, 0, 0), flags(0, 0, 0, 1)


@pytest.mark.parametrize(
    ("terminated", "truncated", "gae_lambda", "expected"),
    [
        (AT_THE_END, NOWHERE, 0.8, (0.818528, 0.1924, 0.92, 1)),
        (NOWHERE, AT_THE_END, 0.8, (1.05367424, 0.518992, 1.3736, 1.63)),
        (NOWHERE, NOWHERE, 0.8, (1.05367424, 0.518992, 1.3736, 1.63)),
        (AT_THE_END, NOWHERE, 0.0, (0.68, -0.47, 0.2, 1)),
        (AT_THE_END, NOWHERE, 1.0, (1.148, 0.52, 1.1, 1)),
    ],
)
def test_gae_by_hand(terminated, truncated, gae_lambda, expected):
    found = gae(REWARD, VALUE, NEXT, terminated, truncated, gamma=0.9, gae_lambda=gae_lambda)
    close(found, columns(*expected))


def test_reward_to_go_by_hand():
    close(reward_to_go(REWARD, AT_THE_END, 0.5), columns(1, 0, 0, 2))
    close(reward_to_go(REWARD, flags(0, 1, 0, 0), 0.5), columns(1, 0, 0, 2))
    follows = columns(9, 0.5, 9, 0.7)  # the nines are not read
    close(reward_to_go(REWARD, flags(0, 1, 0, 0), 0.5, follows), columns(1.125, 0.25, 0.175, 2.35))


def test_n_step_by_hand():
    found = n_step(REWARD, NEXT, NOWHERE, flags(0, 1, 0, 0), gamma=0.5, n=2)
    close(found, columns(1 - 0.25 * 0.3, -0.5 * 0.3, -1 + 1 + 0.25 * 0.7, 2 + 0.5 * 0.7))


def test_discounted_return_by_hand():
    close(
        discounted_return(torch.cat([REWARD, VALUE], 1), 0.5),
        torch.tensor([1.0, 0.65], dtype=torch.float64),
    )


# ---------------------------------------------------------------- the definition, by double loop
@given(rollouts, unit)
@settings(max_examples=60)
def test_reward_to_go_is_its_definition(data, gamma):
    follows = data.next_value.masked_fill(data.terminated, 0.0)
    found = reward_to_go(data.reward, data.ended, gamma, follows)
    close(found, by_the_definition(data, gamma, len(found)))
    data.next_value = torch.zeros_like(data.reward)
    close(reward_to_go(data.reward, data.ended, gamma), by_the_definition(data, gamma, len(found)))


@given(rollouts, unit, st.integers(1, 12))
@settings(max_examples=60)
def test_n_step_is_its_definition(data, gamma, n):
    close(n_step(data.reward, *data.ends(), gamma=gamma, n=n), by_the_definition(data, gamma, n))


@given(rollouts, unit, unit)
@settings(max_examples=60)
def test_gae_is_its_definition(data, gamma, gae_lambda):
    """Equation 16: Σ_k (γλ)ᵏ δ_{t+k}, to the end of the episode."""
    out = torch.empty_like(data.reward)
    for i in range(out.shape[1]):
        for t in range(out.shape[0]):
            total = 0.0
            for u in range(t, last_step(data, t, i, len(out)) + 1):
                follows = 0.0 if data.terminated[u, i] else data.next_value[u, i].item()
                delta = data.reward[u, i].item() + gamma * follows - data.value[u, i].item()
                total += (gamma * gae_lambda) ** (u - t) * delta
            out[t, i] = total
    close(data.gae(gamma=gamma, gae_lambda=gae_lambda), out)


@given(rollouts, unit)
@settings(max_examples=30)
def test_discounted_return_is_its_definition(data, gamma):
    total = sum(gamma**t * row for t, row in enumerate(data.reward))
    close(discounted_return(data.reward, gamma), total)


# ---------------------------------------------------------------- special cases
@given(rollouts, unit)
@settings(max_examples=30)
def test_gae_special_cases(data, gamma):
    one_step = n_step(data.reward, *data.ends(), gamma=gamma, n=1) - data.value
    close(data.gae(gamma=gamma, gae_lambda=0), one_step)
    data.consistent()
    follows = data.next_value.masked_fill(data.terminated, 0.0)
    whole = reward_to_go(data.reward, data.ended, gamma, follows)
    close(data.gae(gamma=gamma, gae_lambda=1), whole - data.value)
    close(data.gae(gamma=0, gae_lambda=0.5), data.reward - data.value)


def test_the_mixture_of_n_step_returns_is_gae():
    """(1 - λ) Σ_n λⁿ⁻¹ G⁽ⁿ⁾ - v, the rest of the weight on the last one, without ends."""
    data = Rollout(0, 7, 2)
    data.terminated[:] = data.truncated[:] = False
    data.consistent()
    gamma, lam = 0.9, 0.7
    steps = len(data.reward)
    n_steps = [n_step(data.reward, *data.ends(), gamma=gamma, n=n + 1) for n in range(steps)]
    mixture = torch.zeros_like(data.reward)
    for t in range(steps):
        longest = steps - t
        for n in range(1, longest + 1):
            weight = lam ** (n - 1) * (1 - lam if n < longest else 1)
            mixture[t] += weight * n_steps[n - 1][t]
    close(data.gae(gamma=gamma, gae_lambda=lam), mixture - data.value)


@pytest.mark.parametrize("gamma", [0, 1, 0.9])
def test_first_reward_to_go_is_the_discounted_return(gamma):
    data = Rollout(1, 8, 3)
    nowhere = torch.zeros_like(data.terminated)
    first = reward_to_go(data.reward, nowhere, gamma)[0]
    close(first, discounted_return(data.reward, gamma))


def test_truncation_that_never_ends_has_the_infinite_value():
    """Reward 1 for ever, cut by a time limit of 5: v = 1 / (1 - γ), so every advantage is 0."""
    gamma, shape = 0.9, (15, 2)
    value = torch.full(shape, 1 / (1 - gamma), dtype=torch.float64)
    limit = torch.zeros(shape, dtype=torch.bool)
    limit[4::5] = True
    for gae_lambda in (0, 0.95, 1):
        found = gae(
            torch.ones_like(value),
            value,
            value,
            torch.zeros_like(limit),
            limit,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        close(found, torch.zeros_like(value))


# ---------------------------------------------------------------- nothing leaks
@given(rollouts, st.integers(0, 8))
@settings(max_examples=30)
def test_nothing_leaks_across_an_end(data, row):
    """Nothing after an end changes what is before it, nor does NaN as the value of a terminal."""
    row = min(row, len(data.reward) - 1)
    data.terminated[row] = torch.arange(data.terminated.shape[1]) % 2 == 0
    data.truncated[row] = ~data.terminated[row]
    before = data.gae(gamma=0.9, gae_lambda=0.9)
    target = n_step(data.reward, *data.ends(), gamma=0.9, n=5)
    data.next_value[data.terminated] = math.nan
    for tensor in (data.reward, data.value, data.next_value):
        tensor[row + 1 :] = 1e9
    close(data.gae(gamma=0.9, gae_lambda=0.9)[: row + 1], before[: row + 1])
    again = n_step(data.reward, *data.ends(), gamma=0.9, n=5)
    close(again[: row + 1], target[: row + 1])


def test_columns_do_not_mix():
    data = Rollout(2, 6, 3)
    alone = Rollout(2, 6, 3)
    for name in ("reward", "value", "next_value", "terminated", "truncated"):
        setattr(alone, name, getattr(data, name)[:, 1:2])
    found, expected = data.gae(gamma=0.9, gae_lambda=0.9), alone.gae(gamma=0.9, gae_lambda=0.9)
    close(found[:, 1:2], expected)


def test_what_is_given_is_left_as_it_was():
    data, copy = Rollout(3, 6, 3), Rollout(3, 6, 3)
    data.gae(gamma=0.9, gae_lambda=0.9)
    reward_to_go(data.reward, data.terminated, 0.9, data.next_value)
    n_step(data.reward, *data.ends(), gamma=0.9, n=3)
    discounted_return(data.reward, 0.9)
    assert all(torch.equal(value, getattr(copy, name)) for name, value in vars(data).items())


# ---------------------------------------------------------------- dtypes, edges, gradients
def every_result(data: Rollout, gamma: float = 0.9) -> list[torch.Tensor]:
    return [
        data.gae(gamma=gamma, gae_lambda=0.9),
        reward_to_go(data.reward, data.ended, gamma),
        reward_to_go(data.reward, data.ended, gamma, data.next_value),
        n_step(data.reward, *data.ends(), gamma=gamma, n=3),
        discounted_return(data.reward, gamma),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    assert {x.dtype for x in every_result(Rollout(0, 4, 2, dtype))} == {dtype}


def test_dtypes_that_differ_become_the_wider():
    data = Rollout(0, 4, 2)
    expected = every_result(data)
    data.reward = data.reward.float()
    for found, wanted in zip(every_result(data), expected, strict=True):
        close(found.double(), wanted, atol=1e-6)


def test_single_precision_is_enough_for_long_rollouts():
    data, single = Rollout(5, 2048, 2), Rollout(5, 2048, 2)
    single.reward, single.value, single.next_value = (
        x.float() for x in (data.reward, data.value, data.next_value)
    )
    for x, y in zip(every_result(single, 0.9999), every_result(data, 0.9999), strict=True):
        close(x.double(), y, atol=2e-5)


@pytest.mark.parametrize(("steps", "envs"), [(0, 3), (3, 0), (1, 1)])
def test_small_rollouts(steps, envs):
    *per_step, total = every_result(Rollout(0, steps, envs))
    assert all(x.shape == (steps, envs) for x in per_step)
    assert total.shape == (envs,)


def test_gradients_are_right():
    """A weight can be differentiated, though agents do not: in the reward, G_0 has gradient γᵗ."""
    reward = REWARD.clone().requires_grad_()
    reward_to_go(reward, NOWHERE, 0.5)[0].sum().backward()
    close(reward.grad, columns(1, 0.5, 0.25, 0.125))
    value = VALUE.clone().requires_grad_()
    gae(REWARD, value, NEXT, AT_THE_END, NOWHERE, gamma=0.9, gae_lambda=0.8)[0].sum().backward()
    close(value.grad, -columns(1, 0.72, 0.72**2, 0.72**3))


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize("function", [gae, n_step, reward_to_go, discounted_return])
def test_shapes_are_refused_never_broadcast(function):
    good = {
        "reward": REWARD,
        "value": VALUE,
        "next_value": NEXT,
        "terminated": NOWHERE,
        "truncated": NOWHERE,
        "ended": NOWHERE,
        "bootstrap": NEXT,
        "gamma": 0.9,
        "gae_lambda": 0.9,
        "n": 2,
    }
    good = {k: v for k, v in good.items() if k in inspect.signature(function).parameters}
    function(**good)
    for name, value in good.items():
        if not isinstance(value, torch.Tensor):
            continue
        for wrong in (value[:, 0], value[:, :, None], value.tolist(), value.numpy(), value.int()):
            with pytest.raises(ShapeError, match=f"{function.__name__}: {name} takes"):
                function(**{**good, name: wrong})
        if name != "reward":
            with pytest.raises(ShapeError, match=f"{name} takes .*T = 4 and N = 1 as in reward"):
                function(**{**good, name: value[:1]})


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, "0.9", None])
def test_a_discount_outside_the_unit_interval_is_refused(gamma):
    with pytest.raises(ArgumentError, match="gamma takes a number from 0 to 1"):
        discounted_return(REWARD, gamma)
    with pytest.raises(ArgumentError, match="gamma takes a number from 0 to 1"):
        reward_to_go(REWARD, NOWHERE, gamma)
    with pytest.raises(ArgumentError, match="gamma takes a number from 0 to 1"):
        n_step(REWARD, NEXT, NOWHERE, NOWHERE, gamma=gamma, n=1)
    with pytest.raises(ArgumentError, match="gamma takes a number from 0 to 1"):
        gae(REWARD, VALUE, NEXT, NOWHERE, NOWHERE, gamma=gamma, gae_lambda=0.9)
    with pytest.raises(ArgumentError, match="gae_lambda takes a number from 0 to 1"):
        gae(REWARD, VALUE, NEXT, NOWHERE, NOWHERE, gamma=0.9, gae_lambda=gamma)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2"])
def test_n_is_a_whole_number(n):
    with pytest.raises(ArgumentError, match="n takes a whole number of at least 1"):
        n_step(REWARD, NEXT, NOWHERE, NOWHERE, gamma=0.9, n=n)


# ---- V-trace -------------------------------------------------------------------------------------
def log_ratios(data: Rollout, spread: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(11)
    return spread * torch.randn(data.reward.shape, generator=draw, dtype=data.reward.dtype)


def vtrace_by_loops(
    data: Rollout, log_ratio: torch.Tensor, gamma: float, lam: float, clip_rho: float, clip_c: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 1 as it stands: sums of products, from each step to the end of its episode."""
    steps, envs = data.reward.shape
    ratio = log_ratio.exp()
    rho, c = ratio.clamp(max=clip_rho), lam * ratio.clamp(max=clip_c)
    following = data.next_value.masked_fill(data.terminated, 0.0)
    target, advantage = data.value.clone(), torch.zeros_like(data.value)
    for i in range(envs):
        for s in range(steps):
            product = 1.0
            for t in range(s, last_step(data, s, i, steps) + 1):
                error = data.reward[t, i] + gamma * following[t, i] - data.value[t, i]
                target[s, i] += gamma ** (t - s) * product * rho[t, i] * error
                product *= c[t, i]
    for i in range(envs):
        for s in range(steps):
            over = data.ended[s, i] or s == steps - 1
            ahead = following[s, i] if over else target[s + 1, i]
            advantage[s, i] = rho[s, i] * (data.reward[s, i] + gamma * ahead - data.value[s, i])
    return target, advantage


@pytest.mark.parametrize("clips", [(1.0, 1.0), (2.0, 0.5), (math.inf, math.inf), (0.0, 1.0)])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_vtrace_is_equation_1(lam, clips):
    data = Rollout(4, 12, 5).consistent()
    log_ratio = log_ratios(data)
    options = {"gae_lambda": lam, "clip_rho": clips[0], "clip_c": clips[1]}
    found = vtrace(log_ratio, data.reward, data.value, *data.ends(), gamma=0.9, **options)
    target, advantage = vtrace_by_loops(data, log_ratio, 0.9, lam, *clips)
    close(found.target, target)
    close(found.advantage, advantage)


def test_vtrace_on_policy_is_the_n_step_return_and_with_lambda_the_gae():
    data = Rollout(5, 12, 5).consistent()
    zero, given = torch.zeros_like(data.reward), (data.reward, data.value, *data.ends())
    found = vtrace(zero, *given, gamma=0.9)
    close(found.target, n_step(data.reward, *data.ends(), gamma=0.9, n=12))
    close(found.advantage, data.gae(gamma=0.9, gae_lambda=1.0))
    found = vtrace(zero, *given, gamma=0.9, gae_lambda=0.6)
    close(found.target, data.value + data.gae(gamma=0.9, gae_lambda=0.6))


def test_vtrace_without_clips_is_importance_sampling_per_decision():
    """v_0 = E[sum_t gamma^t rho_0:t r_t], with V as the control variate: equal where V = 0."""
    data = Rollout(6, 8, 4)
    never, none = torch.zeros_like(data.ended), torch.zeros_like(data.value)
    last = never.clone()
    last[-1] = True
    log_ratio, infinite = log_ratios(data, 0.5), {"clip_rho": math.inf, "clip_c": math.inf}
    found = vtrace(log_ratio, data.reward, none, none, last, never, gamma=0.9, **infinite)
    discount = 0.9 ** torch.arange(8, dtype=torch.float64)[:, None]
    close(found.target[0], (discount * log_ratio.cumsum(0).exp() * data.reward).sum(0))


def test_vtrace_by_hand_and_beyond_what_exp_holds():
    """One step, ratio 2 clipped to 1, then 1/2 in full: 1 + .5 (.9) (.5 (2 + .9 - 1)) ..."""
    given = columns(1, 2), columns(0.5, 1), columns(1, 1), flags(0, 0), flags(0, 1)
    found = vtrace(columns(math.log(2), math.log(0.5)), *given, gamma=0.9)
    second = 1 + 0.5 * (2 + 0.9 - 1)
    first = 0.5 + (1 + 0.9 - 0.5) + 0.9 * (second - 1)
    close(found.target, columns(first, second))
    close(found.advantage, columns(1 + 0.9 * second - 0.5, 0.5 * (2 + 0.9 - 1)))
    far = vtrace(columns(1e4, -1e4), *given, gamma=0.9)
    close(far.target, columns(0.5 + (1 + 0.9 - 0.5), 1.0))


def test_vtrace_refuses_what_it_does_not_take():
    given = columns(0, 0), columns(1, 2), columns(0.5, 1), columns(1, 1), flags(0, 0), flags(0, 1)
    for name in ("clip_rho", "clip_c"):
        with pytest.raises(ArgumentError, match=f"{name} takes a number of at least 0, got -1"):
            vtrace(*given, gamma=0.9, **{name: -1})
    with pytest.raises(ArgumentError, match="gae_lambda takes a number from 0 to 1, got 2"):
        vtrace(*given, gamma=0.9, gae_lambda=2)
    with pytest.raises(ShapeError):
        vtrace(columns(0), *given[1:], gamma=0.9)


# ---- the mean over episodes ----------------------------------------------------------------------
def test_mean_baseline_by_hand():
    """Three episodes of 3, 2 and 1 steps; where no other is left there is nothing to compare."""
    target = torch.tensor([[6.0, 3, 9], [2, 4, 50], [5, 70, 80]])
    valid = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    others = mean_baseline(target, valid, leave_one_out=True)
    assert others.tolist() == [[6, 7.5, 4.5], [4, 2, 0], [0, 0, 0]]
    everyone = mean_baseline(target, valid, leave_one_out=False)
    assert everyone.tolist() == [[6, 6, 6], [3, 3, 0], [5, 0, 0]]


def test_leave_one_out_does_not_depend_on_the_own_return():
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    valid = torch.arange(6)[:, None] < torch.tensor([6, 3, 6, 1])
    before = mean_baseline(target, valid, leave_one_out=True)
    target[:, 2] += 10
    after = mean_baseline(target, valid, leave_one_out=True)
    close(after[:, 2], before[:, 2])
    assert not torch.equal(after[:, 0], before[:, 0])


# ---- lambda-returns and traces -------------------------------------------------------------------
@pytest.mark.parametrize("trace_decay", [0.0, 0.3, 0.9, 1.0])
def test_lambda_return_is_the_mean_of_n_step_returns(trace_decay):
    """Weights (1 - lambda) lambda^(n-1), and what is left on the longest there is."""
    data = Rollout(3, 12, 4)
    found = lambda_return(data.reward, *data.ends(), gamma=0.9, trace_decay=trace_decay)
    returns = [n_step(data.reward, *data.ends(), gamma=0.9, n=n) for n in range(1, 13)]
    for i in range(4):
        for t in range(12):
            longest = last_step(data, t, i, 12) - t + 1
            total = sum(
                (1 - trace_decay) * trace_decay ** (n - 1) * returns[n - 1][t, i]
                for n in range(1, longest)
            )
            total = total + trace_decay ** (longest - 1) * returns[longest - 1][t, i]
            close(found[t, i], total)


def test_lambda_return_is_gae_plus_the_value():
    data = Rollout(4, 20, 3).consistent()
    found = lambda_return(data.reward, *data.ends(), gamma=0.95, trace_decay=0.7)
    close(found, data.gae(gamma=0.95, gae_lambda=0.7) + data.value)


@pytest.mark.parametrize("trace_decay", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_backward_td_lambda_is_the_forward_view(trace_decay, gamma):
    """Linear v = w.x with w kept fixed: sum of delta_t z_t is that of (G_t^lambda - v) x_t."""
    data = Rollout(5, 40, 3)
    source = torch.Generator().manual_seed(6)
    x = torch.randn(41, 3, 7, generator=source, dtype=torch.float64)
    ends = torch.randn(40, 3, 7, generator=source, dtype=torch.float64)  # where episodes are cut
    w = torch.randn(7, generator=source, dtype=torch.float64)
    value = x[:40] @ w
    next_value = torch.where(data.ended, ends @ w, x[1:] @ w)
    next_value = next_value.masked_fill(data.terminated, 0)
    delta = data.reward + gamma * next_value - value
    z = eligibility(x[:40], data.ended, gamma * trace_decay)
    backward = torch.einsum("tn,tnp->p", delta, z)
    target = lambda_return(
        data.reward,
        next_value,
        data.terminated,
        data.truncated,
        gamma=gamma,
        trace_decay=trace_decay,
    )
    forward = torch.einsum("tn,tnp->p", target - value, x[:40])
    assert forward.norm() > 10
    close(backward, forward, atol=1e-12 * float(forward.norm()))


def test_traces_by_hand():
    g = torch.tensor([1.0, 2, 4, 8], dtype=torch.float64).view(4, 1, 1)
    found = eligibility(g, flags(0, 1, 0, 0), 0.5)
    assert found.flatten().tolist() == [1, 2.5, 4, 10]
    with pytest.raises(ArgumentError, match="decay"):
        eligibility(g, flags(0, 1, 0, 0), 1.5)
    with pytest.raises(ShapeError):
        eligibility(g, flags(0, 1, 0), 0.5)
    with pytest.raises(ArgumentError, match="trace_decay"):
        lambda_return(*(Rollout(0, 4, 1).reward,), *Rollout(0, 4, 1).ends(), gamma=1, trace_decay=2)
