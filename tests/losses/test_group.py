"""Group-relative losses: the equations by loops, micro-batches, masks, PPO's clip, refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.agents import ppo
from upslope.errors import ArgumentError, ShapeError
from upslope.losses import clipped_surrogate, group, grpo_loss, kl_estimate
from upslope.losses.group import KL_TYPES, LEVELS, LOSS_TYPES, aggregate, penalized_reward
from upslope.returns import group_advantage

N, L = 5, 4
COUNTS_TOKENS = ("bnpo", "dapo", "cispo")


def batch(seed: int = 0, n: int = N, spread: float = 0.5) -> dict[str, torch.Tensor]:
    """Return what grpo_loss takes, with NaN wherever a token does not count."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    length = torch.randint(1, L + 1, (n,), generator=generator)
    mask = torch.arange(L) < length[:, None]
    old = -draw(n, L).abs().where(mask, math.nan)
    return {
        "log_prob": (old + spread * draw(n, L)).requires_grad_(),
        "old_log_prob": old,
        "advantage": draw(n),
        "mask": mask,
        "reference_log_prob": old + spread * draw(n, L),
    }


def settings_of(loss_type: str, **options: object) -> dict[str, object]:
    options = {"beta": 0.0, "max_completion_length": 6, **options, "loss_type": loss_type}
    return options | ({"beta": 0.0} if loss_type == "rloo" else {})


def gradient(loss: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, at)[0]


# ---------------------------------------------------------------- the equations, by loops
def by_loops(b, loss_type, level, kl, beta, low, high) -> float:
    """Return the loss from LANGUAGE's definitions, one completion and one token after another."""
    total, tokens = 0.0, int(b["mask"].sum())
    for i in range(N):
        size = int(b["mask"][i].sum())
        new, old, reference = (
            b[name][i][:size].tolist()
            for name in ("log_prob", "old_log_prob", "reference_log_prob")
        )
        a = b["advantage"][i].item()
        whole = sum(new) - sum(old)
        row = 0.0
        for l, lo, lr in zip(new, old, reference, strict=True):  # noqa: E741
            if loss_type == "rloo":
                c = math.exp(whole)
            elif loss_type == "gspo" or level == "sequence":
                c = math.exp(whole / size)
            else:
                c = math.exp(l - lo)
            if loss_type == "cispo":
                x = -min(c, high) * a * l
            else:
                x = -min(c * a, min(max(c, 1 - low), 1 + high) * a)
            d = lr - l
            x += (
                beta
                * {
                    "unbiased": c * (math.exp(d) - d - 1),
                    "k1": -d,
                    "k2": d * d / 2,
                    "k3": math.exp(d) - d - 1,
                    "sequence": (sum(new) - sum(reference)) ** 2 / 2 / size,
                }[kl]
            )
            row += x
        if loss_type in ("grpo", "gspo", "rloo"):
            total += row / size / N
        elif loss_type == "dr_grpo":
            total += row / (N * 6)
        else:
            total += row / tokens
    return total


@pytest.mark.parametrize("kl", KL_TYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_is_its_definition(loss_type, level, kl):
    for seed, (beta, low, high) in enumerate([(0.0, 0.2, 0.2), (0.3, 0.2, 0.28), (0.3, 0.1, 0.6)]):
        b = batch(seed)
        options = settings_of(loss_type, beta=beta, epsilon=low, epsilon_high=high)
        found = grpo_loss(**b, kl=kl, importance_sampling_level=level, **options)
        expected = by_loops(b, loss_type, level, kl, options["beta"], low, high)
        assert found.item() == pytest.approx(expected, rel=1e-12)


def test_by_hand():
    """Two completions, ratios 1.5 and .5; 1 and .9. Clip .2: objectives 1.2, .5; -2, -1.8."""
    ratio = torch.tensor([[1.5, 0.5], [1.0, 0.9]]).double()
    arguments = (ratio.log(), torch.zeros_like(ratio), torch.tensor([1.0, -2.0]).double())
    mask = torch.tensor([[True, True], [True, False]])
    expected = {
        "grpo": -(1.7 / 2 - 2) / 2,
        "bnpo": -(1.7 - 2) / 3,
        "dapo": -(1.7 - 2) / 3,
        "dr_grpo": -(1.7 - 2) / (2 * 10),
        "gspo": -(0.75**0.5 - 2) / 2,  # √(1.5 · 0.5) = .866, inside the clip
        "rloo": -(0.75 - 2) / 2,  # 1.5 · 0.5 = .75, below it, and A > 0
        "cispo": -(1.5 * math.log(1.5) + 0.5 * math.log(0.5) + 0) / 3,
    }
    for loss_type, loss in expected.items():
        found = grpo_loss(*arguments, mask, loss_type=loss_type, max_completion_length=10)
        assert found.item() == pytest.approx(loss, abs=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_high_clip_is_the_low_one_unless_given(loss_type):
    b = batch() | {"advantage": torch.ones(N).double()}
    b["log_prob"] = b["old_log_prob"] + 0.3
    found = grpo_loss(**b, **settings_of(loss_type, epsilon=0.1))
    high = 5.0 if loss_type == "cispo" else 0.1
    assert torch.equal(
        found, grpo_loss(**b, **settings_of(loss_type, epsilon=0.1, epsilon_high=high))
    )
    other = grpo_loss(**b, **settings_of(loss_type, epsilon=0.1, epsilon_high=0.4))
    assert not torch.equal(found, other)


def test_gspo_is_grpo_with_the_sequence_ratio():
    b = batch()
    grpo = grpo_loss(**b, loss_type="grpo", importance_sampling_level="sequence")
    for level in LEVELS:
        assert torch.equal(grpo_loss(**b, loss_type="gspo", importance_sampling_level=level), grpo)


def test_the_cispo_cap_does_not_stop_the_gradient():
    """Past the cap a token's weight stays at the cap; a clipped surrogate's would be 0."""
    b = batch() | {"advantage": torch.ones(N).double()}
    mask = b["mask"]
    b["log_prob"] = (b["old_log_prob"].nan_to_num() + 3).requires_grad_()
    for loss_type, weight in (("cispo", 5.0), ("dapo", 0.0)):
        found = gradient(grpo_loss(**b, loss_type=loss_type), b["log_prob"])
        torch.testing.assert_close(found, -weight * mask.double() / mask.sum())


# ---------------------------------------------------------------- one surrogate, one divergence
def test_ppo_and_grpo_call_the_same_functions():
    assert ppo.clipped_surrogate is clipped_surrogate
    assert group.clipped_surrogate is clipped_surrogate
    assert group.kl_estimate is kl_estimate


def test_with_one_token_each_it_is_ppo():
    log_ratio, advantage = torch.randn(2, 30, generator=torch.Generator().manual_seed(3)).double()
    mask = torch.ones(30, 1, dtype=torch.bool)
    ppo_loss = clipped_surrogate(log_ratio, advantage, 0.2, 0.3).mean()
    for loss_type in set(LOSS_TYPES) - {"cispo"}:
        found = grpo_loss(
            log_ratio[:, None],
            torch.zeros(30, 1).double(),
            advantage,
            mask,
            loss_type=loss_type,
            epsilon_high=0.3,
            max_completion_length=1,
        )
        torch.testing.assert_close(found, ppo_loss)


# ---------------------------------------------------------------- micro-batches
@pytest.mark.slow
@given(
    loss_type=st.sampled_from(LOSS_TYPES),
    level=st.sampled_from(LEVELS),
    kl=st.sampled_from(KL_TYPES),
    cuts=st.sets(st.integers(1, 7), max_size=7),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150)
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(loss_type, level, kl, cuts, seed):
    """Every row of 8 has 1 to 4 tokens; the last one is masked as a whole."""
    b = batch(seed, n=8)
    b["mask"][-1] = False
    options = settings_of(loss_type, beta=0.2, kl=kl, importance_sampling_level=level)
    whole = grpo_loss(**b, **options)
    items = int(b["mask"].sum()) if loss_type in COUNTS_TOKENS else 8
    edges = [0, *sorted(cuts), 8]
    parts = [
        grpo_loss(**{k: v[i:j] for k, v in b.items()}, **options, num_items=items)
        for i, j in itertools.pairwise(edges)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-14)
    found, expected = (gradient(x, b["log_prob"]) for x in (sum(parts), whole))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert expected.isfinite().all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_rows_may_come_in_any_order(loss_type):
    b = batch()
    order = torch.tensor([3, 1, 4, 0, 2])
    found = grpo_loss(**{k: v[order] for k, v in b.items()}, **settings_of(loss_type, beta=0.1))
    torch.testing.assert_close(found, grpo_loss(**b, **settings_of(loss_type, beta=0.1)))


# ---------------------------------------------------------------- what has no gradient
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_group_of_equal_rewards_has_no_gradient(loss_type):
    b = batch(n=6)
    b["advantage"] = group_advantage(torch.tensor([0.1, 0.1, 0.1, 1, 0, 0]).double(), 3)
    found = gradient(grpo_loss(**b, **settings_of(loss_type)), b["log_prob"])
    assert (found[:3] == 0).all()
    assert found[3:].abs().max() > 0.01


@pytest.mark.parametrize("kl", KL_TYPES)
@pytest.mark.parametrize("loss_type", sorted(set(LOSS_TYPES) - {"rloo"}))
def test_only_the_policy_is_differentiated(loss_type, kl):
    b = batch()
    for name in ("old_log_prob", "advantage", "reference_log_prob"):
        b[name].requires_grad_()
    grpo_loss(**b, **settings_of(loss_type, beta=0.1, kl=kl)).backward()
    assert [v.grad is None for v in b.values() if v.is_floating_point()] == [
        False,
        True,
        True,
        True,
    ]
    assert (b["log_prob"].grad[~b["mask"]] == 0).all()
    assert b["log_prob"].grad[b["mask"]].isfinite().all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_where_nothing_counts_the_loss_is_zero(loss_type):
    b = batch()
    b["mask"] = torch.zeros_like(b["mask"])
    loss = grpo_loss(**b, **settings_of(loss_type, beta=0.2))
    assert loss.item() == 0
    assert (gradient(loss, b["log_prob"]) == 0).all()
    empty = {k: v[:0] for k, v in b.items()}
    assert grpo_loss(**empty, **settings_of(loss_type, beta=0.2)).item() == 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_extremes_are_finite(loss_type, level):
    old = torch.tensor([[-1000.0, -1], [0, -1000]])
    log_prob = torch.tensor([[0.0, -1], [-1000, 0]], requires_grad=True)
    loss = grpo_loss(
        log_prob,
        old,
        torch.tensor([-1.0, 2]),
        torch.ones(2, 2, dtype=torch.bool),
        **settings_of(loss_type),
        importance_sampling_level=level,
    )
    assert loss.isfinite()
    assert gradient(loss, log_prob).isfinite().all()


def test_penalized_reward():
    b = batch()
    found = penalized_reward(
        b["advantage"], b["old_log_prob"], b["reference_log_prob"], b["mask"], 0.5
    )
    for i in range(N):
        size = int(b["mask"][i].sum())
        whole = (b["old_log_prob"] - b["reference_log_prob"])[i, :size].sum()
        assert found[i].item() == pytest.approx((b["advantage"][i] - 0.5 * whole).item())


# ---------------------------------------------------------------- refusals
def test_shapes_are_refused_never_broadcast():
    x, a, m = torch.zeros(3, 2), torch.zeros(3), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ShapeError, match="grpo_loss: old_log_prob takes"):
        grpo_loss(x, x[:, :1], a, m)
    for bad in (a[:, None], x, torch.zeros(1), torch.tensor(0.0)):
        with pytest.raises(ShapeError, match="grpo_loss: advantage takes"):
            grpo_loss(x, x, bad, m)
    with pytest.raises(ShapeError, match="mask takes a Bool tensor"):
        grpo_loss(x, x, a, m.float())
    with pytest.raises(ShapeError, match="reference_log_prob takes"):
        grpo_loss(x, x, a, m, beta=0.1, reference_log_prob=x[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "drgrpo"}, r"loss_type takes .*, got 'drgrpo' \(did you mean 'dr_grpo'\?\)"),
        ({"kl": "k4"}, "kl takes 'unbiased', 'k1', 'k2', 'k3', 'sequence', got 'k4'"),
        ({"importance_sampling_level": "tokens"}, "importance_sampling_level takes 'token', 'seq"),
        ({"epsilon": -0.1}, "epsilon takes a number from 0 to 1, got -0.1"),
        ({"epsilon_high": math.nan}, "epsilon_high takes a number of at least 0, got nan"),
        ({"beta": -1}, "beta takes a number of at least 0, got -1"),
        ({"beta": 0.1}, r"reference_log_prob takes a tensor where beta is 0.1, got None"),
        ({"beta": 0.1, "loss_type": "rloo"}, "beta takes 0 for loss_type 'rloo', .*, got 0.1"),
        (
            {"loss_type": "dr_grpo"},
            "max_completion_length takes a whole number of at least 1 .*None",
        ),
        ({"num_items": 5}, "num_items takes the tokens that count .* at least the 6 .*, got 5"),
        ({"num_items": 2, "loss_type": "grpo"}, "num_items takes the completions .* 3 .*, got 2"),
    ],
)
def test_settings_are_refused(options, message):
    x, a, m = torch.zeros(3, 2), torch.zeros(3), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ArgumentError, match=message):
        grpo_loss(x, x, a, m, **options)


def test_the_aggregation_is_one_function():
    """Of a loss of 1 for each token, what is counted shows."""
    mask = torch.tensor([[True] * 3, [True, False, False], [False] * 3])
    ones = torch.ones(3, 3).masked_fill(~mask, math.nan)
    found = {name: aggregate(ones, mask, name, None, 10).item() for name in LOSS_TYPES}
    mean, tokens = pytest.approx(2 / 3), pytest.approx(1)
    assert found == {
        "grpo": mean,
        "gspo": mean,
        "rloo": mean,
        "bnpo": tokens,
        "dapo": tokens,
        "cispo": tokens,
        "dr_grpo": pytest.approx(4 / 30),
    }


def test_past_the_clip_by_hand():
    ratio = torch.tensor([[1.3, 1.15, 0.7], [1.3, 1.15, 0.7], [9.0, 0.1, 1.0]])
    advantage = torch.tensor([1.0, -1.0, 0.0])
    T, F = True, False
    past = group.past_clip(ratio.log(), advantage, "dapo", 0.2, None)
    assert past.tolist() == [[T, F, F], [F, F, T], [F, F, F]]
    past = group.past_clip(ratio.log(), advantage, "dapo", 0.2, 0.1)
    assert past.tolist() == [[T, T, F], [F, F, T], [F, F, F]]
    assert group.past_clip(ratio.log(), advantage, "cispo", 0.2, None).tolist()[2] == [T, F, F]
