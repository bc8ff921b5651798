"""Group estimators against the truth, on a language model whose 15 completions are enumerated.

Every expectation is a sum over all completions or over all groups of them: nothing is sampled.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import upslope as us
from upslope.audit.completions import (
    CELL,
    COMPLETIONS,
    COUNT,
    LENGTH,
    MASK,
    PREFIXES,
    REFERENCE,
    REWARD,
    SIZE,
    THETA,
    VOCABULARY,
    log_prob,
    token_log_prob,
)
from upslope.losses import grpo_loss, kl_estimate
from upslope.losses.group import KL_TYPES, penalized_reward
from upslope.returns import group_advantage

OLD = THETA + 0.5 * torch.cos(torch.arange(SIZE, dtype=torch.float64))
GRADED = torch.tensor([2.0 ** sum(y) for y in COMPLETIONS], dtype=torch.float64)
UNCLIPPED = {"epsilon": 1.0, "epsilon_high": math.inf}
BETA = 0.3


def leaf(at: Tensor = THETA) -> Tensor:
    return at.clone().requires_grad_()


def gradient(value: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(value, theta)[0]


def exact(reward: Tensor, at: Tensor = THETA) -> Tensor:
    theta = leaf(at)
    return gradient(log_prob(theta).exp() @ reward, theta)


def scale_and_cosine(found: Tensor, truth: Tensor) -> tuple[float, float]:
    return float(found @ truth / (truth @ truth)), float(
        found @ truth / (found.norm() * truth.norm())
    )


def all_groups(size: int) -> Tensor:
    """Return every group of completions, [15 ** size, size]."""
    return torch.cartesian_prod(*[torch.arange(COUNT)] * size).reshape(-1, size)


def expected(
    size: int, loss_type: str, reward: Tensor = REWARD, old: Tensor = THETA, **o: object
) -> Tensor:
    """Return minus the loss's gradient in the mean over all groups that the old policy draws.

    Of a loss that is a mean over completions, all groups are one batch: each advantage carries the
    probability of its group.
    """
    theta, groups = leaf(), all_groups(size)
    how = {k: o.pop(k) for k in ("scale", "baseline") if k in o}
    advantage = group_advantage(reward[groups].reshape(-1), size, **how)
    chance = log_prob(old).exp()[groups].prod(1) * len(groups)
    y = groups.reshape(-1)
    loss = grpo_loss(
        token_log_prob(theta)[y],
        token_log_prob(old)[y],
        advantage * chance.repeat_interleave(size),
        MASK[y],
        loss_type=loss_type,
        max_completion_length=LENGTH,
        **o,
    )
    return -gradient(loss, theta)


def expected_one_by_one(size: int, loss_type: str, **o: object) -> Tensor:
    """Return the same of a loss that divides by the tokens of the group, group after group."""
    theta = leaf()
    tokens = token_log_prob(theta)
    total = torch.zeros((), dtype=torch.float64)
    for y in all_groups(size):
        advantage = group_advantage(REWARD[y], size, scale="none", baseline="leave_one_out")
        loss = grpo_loss(
            tokens[y], tokens[y].detach(), advantage, MASK[y], loss_type=loss_type, **o
        )
        total = total + log_prob(THETA)[y].sum().exp() * loss
    return -gradient(total, theta)


# ---------------------------------------------------------------- the referee
def test_the_completions_are_a_decision_problem_that_is_solved_exactly():
    """The same gradient from the policy-gradient theorem: states are prefixes."""
    transition = torch.zeros(len(PREFIXES), VOCABULARY, len(PREFIXES), dtype=torch.float64)
    reward = torch.zeros(len(PREFIXES), VOCABULARY, dtype=torch.float64)
    for y, r in zip(COMPLETIONS, REWARD.tolist(), strict=True):
        reward[PREFIXES.index(y[:-1]), y[-1]] = r
    for s, prefix in enumerate(PREFIXES):
        for token in range(VOCABULARY):
            if (*prefix, token) in PREFIXES:
                transition[s, token, PREFIXES.index((*prefix, token))] = 1
    start = torch.eye(len(PREFIXES), dtype=torch.float64)[0]
    mdp = us.exact.FiniteMDP(transition, reward, start, 1.0)

    def policy(theta: Tensor) -> Tensor:
        return theta.view(len(PREFIXES), VOCABULARY).softmax(-1)

    torch.testing.assert_close(us.exact.policy_gradient(mdp, policy, leaf()), exact(REWARD))
    solution = us.exact.solve(mdp, policy(THETA))
    assert float(solution.objective) == pytest.approx(float(log_prob(THETA).exp() @ REWARD))
    assert log_prob(THETA).exp().sum().item() == pytest.approx(1)
    assert exact(REWARD).norm() > 0.05


# ---------------------------------------------------------------- unbiased, and not
@pytest.mark.parametrize("reward", [REWARD, GRADED], ids=["verifiable", "graded"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
@pytest.mark.parametrize(("loss_type", "times"), [("rloo", 1), ("dr_grpo", LENGTH)])
def test_unbiased(loss_type, times, baseline, size, reward):
    found = times * expected(size, loss_type, reward, scale="none", baseline=baseline)
    torch.testing.assert_close(found, exact(reward), atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("loss_type", "times", "baseline", "scale"),
    [("rloo", 1, "leave_one_out", 1.0), ("dr_grpo", LENGTH, "mean", 0.5)],
)
def test_the_audit_says_the_same(loss_type, times, baseline, scale):
    theta = leaf()

    def surrogate(whole: Tensor, objective: Tensor, y: Tensor) -> Tensor:
        tokens = token_log_prob(theta)[y]
        advantage = group_advantage(objective, 2, scale="none", baseline=baseline)
        return -times * grpo_loss(
            tokens,
            tokens.detach(),
            advantage,
            MASK[y],
            loss_type=loss_type,
            max_completion_length=LENGTH,
        )

    report = us.gradient.check_unbiased(
        surrogate, Categorical(logits=log_prob(theta)), lambda y: REWARD[y], n=2, with_sample=True
    )
    assert report.method == "enumeration"
    assert report.unbiased == (scale == 1.0)
    assert report.scale == pytest.approx(scale)
    assert report.cosine == pytest.approx(1)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_own_mean_is_a_part_of_the_gradient(size):
    found = LENGTH * expected(size, "dr_grpo", scale="none", baseline="mean")
    torch.testing.assert_close(found, (size - 1) / size * exact(REWARD), atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("size", "scale", "graded_scale", "graded_cosine"),
    [(2, 0.70701, 0.03262, 0.9178), (4, 1.46325, 0.05472, 0.9472)],
)
def test_a_division_by_the_deviation(size, scale, graded_scale, graded_cosine):
    """Of 0 and 1 only the length is wrong, by how rare the rarer one is; else the direction too."""
    found = LENGTH * expected(size, "dr_grpo", scale="group", baseline="mean")
    assert scale_and_cosine(found, exact(REWARD)) == pytest.approx((scale, 1), abs=1e-4)
    found = LENGTH * expected(size, "dr_grpo", GRADED, scale="group", baseline="mean")
    expected_values = (graded_scale, graded_cosine)
    assert scale_and_cosine(found, exact(GRADED)) == pytest.approx(expected_values, abs=1e-4)


@pytest.mark.parametrize("loss_type", ["grpo", "gspo"])
def test_a_division_by_the_own_length_turns_the_gradient(loss_type):
    found = expected(3, loss_type, scale="none", baseline="leave_one_out")
    assert scale_and_cosine(found, exact(REWARD)) == pytest.approx((0.4739, 0.9369), abs=1e-4)


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "cispo"])
def test_a_division_by_the_tokens_of_the_batch(loss_type):
    """It turns the gradient a little in a batch of two; by a constant number of tokens it does not.

    As the batch grows it is 1 / 1.966 of the gradient, the mean length.
    """
    found = expected_one_by_one(2, loss_type)
    assert scale_and_cosine(found, exact(REWARD)) == pytest.approx((0.4515, 0.9957), abs=1e-4)
    constant = expected_one_by_one(2, loss_type, num_items=2 * LENGTH)
    torch.testing.assert_close(LENGTH * constant, exact(REWARD), atol=1e-14, rtol=0)


def test_off_policy_only_the_ratio_of_the_completion_is_unbiased():
    how = {"scale": "none", "baseline": "leave_one_out", "old": OLD}
    truth = exact(REWARD)
    found = expected(2, "rloo", **how, **UNCLIPPED)
    torch.testing.assert_close(found, truth, atol=1e-14, rtol=0)
    assert scale_and_cosine(expected(2, "rloo", **how), truth)[1] < 0.1  # most ratios are clipped
    token = LENGTH * expected(2, "dr_grpo", **how, **UNCLIPPED)
    assert scale_and_cosine(token, truth) == pytest.approx((0.8664, 0.9790), abs=1e-4)


# ---------------------------------------------------------------- the divergence as a loss
def divergence_gradient(kl: str, old: Tensor = THETA, level: str = "token") -> Tensor:
    """Return the mean gradient of Σ_t KL_t alone, over completions that the old policy draws."""
    theta = leaf()
    tokens, zero = token_log_prob(theta), torch.zeros(1, dtype=torch.float64)
    losses = [
        grpo_loss(
            tokens[y : y + 1],
            token_log_prob(old)[y : y + 1],
            zero,
            MASK[y : y + 1],
            loss_type="dr_grpo",
            max_completion_length=1,
            beta=1.0,
            reference_log_prob=token_log_prob(REFERENCE)[y : y + 1],
            kl=kl,
            importance_sampling_level=level,
        )
        for y in range(COUNT)
    ]
    return gradient(log_prob(old).exp() @ torch.stack(losses), theta)


def of_each_prefix(drawn_by: Tensor, forward: bool = False) -> Tensor:
    """Return Σ_prefix P(prefix) ∇KL(π || π_ref) of its next token, or of KL(π_ref || π)."""
    theta = leaf()
    row, other = (x.view(-1, VOCABULARY).log_softmax(-1) for x in (theta, REFERENCE))
    p, q = (other, row) if forward else (row, other)
    state = torch.zeros(COUNT, len(PREFIXES), dtype=torch.float64)
    state.scatter_(1, CELL // VOCABULARY, MASK.double())
    state[:, 0] = 1  # where a token does not count, CELL says 0
    visits = log_prob(drawn_by).exp() @ state
    return gradient(visits @ (p.exp() * (p - q)).sum(1), theta)


def of_the_completion() -> Tensor:
    theta = leaf()
    log_p = log_prob(theta)
    return gradient(log_p.exp() @ (log_p - log_prob(REFERENCE)), theta)


@pytest.mark.parametrize("old", [THETA, OLD], ids=["on-policy", "off-policy"])
def test_unbiased_is_the_divergence_of_each_token(old):
    found = divergence_gradient("unbiased", old)
    torch.testing.assert_close(found, of_each_prefix(old), atol=1e-14, rtol=0)


def test_k2_is_it_on_policy_only_and_sample_by_sample():
    on_policy = divergence_gradient("k2")
    torch.testing.assert_close(on_policy, of_each_prefix(THETA), atol=1e-14, rtol=0)
    off_policy = scale_and_cosine(divergence_gradient("k2", OLD), of_each_prefix(OLD))
    assert off_policy == pytest.approx((1.0497, 0.9959), abs=1e-4)
    x = leaf(torch.tensor([-1.0, -0.2, -3]).double())
    reference = torch.tensor([-0.5, -2, -3.1]).double()
    c_k3 = (x - x.detach()).exp() * kl_estimate(x, reference, "k3")
    k2 = kl_estimate(x, reference, "k2")
    torch.testing.assert_close(gradient(c_k3.sum(), x), gradient(k2.sum(), x))


def test_k1_is_nothing_and_k3_the_other_way_round():
    assert divergence_gradient("k1").abs().max() < 1e-15
    found = divergence_gradient("k3")
    torch.testing.assert_close(found, of_each_prefix(THETA, forward=True), atol=1e-14, rtol=0)
    wrong = scale_and_cosine(found, of_each_prefix(THETA))
    assert wrong == pytest.approx((0.6666, 0.9478), abs=1e-4)


def test_only_the_sequence_sees_the_divergence_of_later_tokens():
    whole = of_the_completion()
    torch.testing.assert_close(divergence_gradient("sequence"), whole, atol=1e-14, rtol=0)
    token = scale_and_cosine(of_each_prefix(THETA), whole)
    assert token == pytest.approx((0.7848, 0.9771), abs=1e-4)
    off_policy = scale_and_cosine(divergence_gradient("sequence", OLD), whole)
    assert off_policy == pytest.approx((0.9604, 0.9630), abs=1e-4)


def test_with_the_ratio_of_the_completion_unbiased_is_not():
    found = divergence_gradient("unbiased", level="sequence")
    token, whole = (
        scale_and_cosine(found, x) for x in (of_each_prefix(THETA), of_the_completion())
    )
    assert token == pytest.approx((0.8410, 0.9720), abs=1e-4)
    assert whole == pytest.approx((0.6910, 0.9944), abs=1e-4)


# ---------------------------------------------------------------- reward and divergence together
OPTIMUM_OF = log_prob(REFERENCE) + REWARD / BETA


def optimum() -> Tensor:
    """Return θ of π* ∝ π_ref exp(r/β), prefix by prefix: the logits are sums over what follows."""
    theta = torch.empty(SIZE, dtype=torch.float64)
    for s, prefix in enumerate(PREFIXES):
        for token in range(VOCABULARY):
            start = (*prefix, token)
            following = [i for i, y in enumerate(COMPLETIONS) if y[: len(start)] == start]
            theta[s * VOCABULARY + token] = OPTIMUM_OF[following].logsumexp(0)
    return theta


def at_optimum(kl: str | None) -> Tensor:
    """Return the mean gradient at π* of r and β KL: kl None has the divergence in the reward."""
    at = optimum()
    theta, y = leaf(at), torch.arange(COUNT)
    tokens, reference = token_log_prob(theta), token_log_prob(REFERENCE)
    p = log_prob(at).exp()
    reward = penalized_reward(REWARD, tokens, reference, MASK, BETA) if kl is None else REWARD
    options = {} if kl is None else {"beta": BETA, "reference_log_prob": reference, "kl": kl}
    total = torch.zeros((), dtype=torch.float64)
    for i in y:
        row = slice(i, i + 1)
        here = {k: v[row] if isinstance(v, Tensor) else v for k, v in options.items()}
        loss = grpo_loss(
            tokens[row],
            tokens[row].detach(),
            (reward - p @ reward)[row],
            MASK[row],
            loss_type="dr_grpo",
            max_completion_length=1,
            **here,
        )
        total = total + p[i] * loss
    return gradient(total, theta)


def test_the_optimum_is_where_only_the_right_divergences_stand_still():
    """π* maximises E[r] - β KL of whole completions; per-token forms push on from there."""
    torch.testing.assert_close(OPTIMUM_OF.log_softmax(0), log_prob(optimum()))
    assert at_optimum(None).abs().max() < 1e-14
    assert at_optimum("sequence").abs().max() < 1e-14
    alone = exact(REWARD, optimum()).norm()  # what the reward does there
    others = {kl: float(at_optimum(kl).norm() / alone) for kl in set(KL_TYPES) - {"sequence"}}
    found = {"unbiased": 0.4029, "k1": 1, "k2": 0.4029, "k3": 0.4468}
    assert others == pytest.approx(found, abs=1e-4)
