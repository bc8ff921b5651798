"""Group advantages: hand numbers, groups of equal rewards, no group sees another, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.errors import ArgumentError, NotFiniteError, ShapeError
from upslope.returns import GROUP_EPSILON, group_advantage

SCALES, BASELINES = ("group", "batch", "none"), ("mean", "leave_one_out", "none")


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_by_hand():
    reward = row(1, 2, 6, 0, 0, 3)  # means 3 and 1; deviations √7 and √3
    centred = row(-2, -1, 3, -1, -1, 2)
    spread = row(*[7**0.5] * 3, *[3**0.5] * 3)
    whole = reward.std()  # √(26/5)
    assert whole.item() == pytest.approx(math.sqrt(26 / 5))
    for found, expected in (
        (group_advantage(reward, 3), centred / (spread + 1e-4)),
        (group_advantage(reward, 3, scale="batch"), centred / (whole + 1e-4)),
        (group_advantage(reward, 3, scale="none"), centred),
        (group_advantage(reward, 3, scale="none", baseline="none"), reward),
        (
            group_advantage(reward, 3, scale="none", baseline="leave_one_out"),
            row(1 - 4, 2 - 3.5, 6 - 1.5, 0 - 1.5, 0 - 1.5, 3 - 0),
        ),
    ):
        torch.testing.assert_close(found, expected)


def test_the_deviation_is_never_without_the_own_reward():
    """Of 1, 0, 0, 0 the others of the first have no deviation: 1 / 1e-4 would be its advantage."""
    found = group_advantage(row(1, 0, 0, 0), 4, baseline="leave_one_out")
    torch.testing.assert_close(found, row(1, -1 / 3, -1 / 3, -1 / 3) / (0.5 + GROUP_EPSILON))


@given(
    rewards=st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    scale=st.sampled_from(SCALES),
    baseline=st.sampled_from(BASELINES),
)
@settings(max_examples=80)
def test_is_its_definition(rewards, scale, baseline):
    found = group_advantage(row(*rewards), 3, scale=scale, baseline=baseline).tolist()
    deviation = {"none": lambda g: 1 - GROUP_EPSILON, "batch": lambda g: std(rewards), "group": std}
    for first in (0, 3):
        group, advantages = rewards[first : first + 3], found[first : first + 3]
        for i, advantage in enumerate(advantages):
            others = [r for j, r in enumerate(group) if j != i]
            b = {"mean": sum(group) / 3, "leave_one_out": sum(others) / 2, "none": 0.0}[baseline]
            expected = (group[i] - b) / (deviation[scale](group) + GROUP_EPSILON)
            if max(group) == min(group) and (baseline != "none" or scale == "group"):
                expected = 0.0
            assert advantage == pytest.approx(expected, rel=1e-6, abs=1e-9)


def std(x):
    mean = sum(x) / len(x)
    return math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_equal_rewards_give_exactly_zero(dtype, scale, baseline):
    generator = torch.Generator().manual_seed(0)
    for value in (*torch.randn(200, generator=generator).mul(1000).tolist(), 0.1, 1e-30, 0):
        reward = torch.tensor([value] * 7 + [1.0, 2, 3, 4, 5, 6, 7], dtype=dtype)
        found = group_advantage(reward, 7, scale=scale, baseline=baseline)
        assert (found[:7] == 0).all()
        assert (found[7:] != 0).sum() >= 6


def test_without_baseline_and_scale_a_reward_is_left_as_it_is():
    """An equal group without a baseline has a gradient of its own; dropping it would be a bias."""
    reward = row(2, 2, 2)
    assert group_advantage(reward, 3, scale="none", baseline="none").tolist() == [2, 2, 2]
    assert group_advantage(reward, 1, scale="none", baseline="none").tolist() == [2, 2, 2]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_no_group_sees_another(baseline):
    reward = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = group_advantage(reward, 4, baseline=baseline)
    parts = [group_advantage(g, 4, baseline=baseline) for g in reward.split(4)]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert whole.view(3, 4).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_constant_for_a_prompt_changes_nothing(scale, baseline):
    reward = row(1, 2, 6, 0, 0, 3)
    shifted = (
        reward + row(5, 5, 5, 5, 5, 5) if scale == "batch" else reward + row(*[9] * 3, *[-4] * 3)
    )
    found = (group_advantage(x, 3, scale=scale, baseline=baseline) for x in (reward, shifted))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (3,),
            {"scale": "groups"},
            r"scale takes 'group', 'batch', 'none', got 'groups' \(did you",
        ),
        ((3,), {"baseline": "loo"}, "baseline takes 'mean', 'leave_one_out', 'none', got 'loo'"),
        ((1,), {}, "group_size takes a whole number of at least 2 with baseline 'mean' and scale"),
        ((1,), {"baseline": "none"}, "group_size takes a whole number of at least 2"),
        ((0,), {"baseline": "none", "scale": "none"}, "a whole number of at least 1 .* got 0"),
        ((3.0,), {}, "group_size takes a whole number .* got 3.0"),
        ((True,), {}, "group_size takes a whole number .* got True"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ArgumentError, match=message):
        group_advantage(torch.zeros(6), *arguments, **options)


def test_shapes_and_numbers_are_refused():
    with pytest.raises(
        ShapeError, match="reward takes a multiple of group_size = 4 rewards, got 6"
    ):
        group_advantage(torch.zeros(6), 4)
    with pytest.raises(ShapeError, match="reward takes a Float tensor of shape"):
        group_advantage(torch.zeros(3, 2), 2)
    with pytest.raises(ShapeError, match="dtype int64"):
        group_advantage(torch.zeros(6).long(), 2)
    for bad in (math.nan, math.inf):
        with pytest.raises(
            NotFiniteError, match=rf"reward takes finite numbers, got {bad} at \[2\]"
        ):
            group_advantage(torch.tensor([0.0, 1, bad, 1]), 2)
