"""Reward functions: what they are given, what is refused, and the shipped ones by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from upslope.errors import ArgumentError, RewardFault
from upslope.language import rewards

PROMPTS = ["1+1=", "2+2="]
COMPLETIONS = ["2", "5"]
COLUMNS = {"answer": ["2", "4"], "completion_lengths": [1, 1]}


def test_functions_get_what_they_name_and_none_is_nan():
    def named(completions, answer):
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    def everything(**given):
        assert set(given) == {"prompts", "completions", "answer", "completion_lengths"}
        return [None, 3]

    scores = rewards.score([named, everything], PROMPTS, COMPLETIONS, COLUMNS)
    assert scores[:, 0].tolist() == [1, 0]
    assert math.isnan(scores[0, 1])
    assert scores[1, 1] == 3
    assert rewards.total(scores, [1.0, 0.5], PROMPTS).tolist() == [1.0, 1.5]


def test_a_prompt_that_no_function_judges_is_named():
    scores = torch.tensor([[1.0], [math.nan]])
    with pytest.raises(RewardFault, match=r"every reward function returned None .*'2\+2='"):
        rewards.total(scores, [1.0], PROMPTS)


def raises(completions):
    raise KeyError("no such thing")


def no_number(completions):
    return [0.0, math.nan]


def infinite(completions):
    return [math.inf, 0.0]


def text(completions):
    return ["good", 0.0]


def endless(completions):
    return [0.0, 10**5000]


def too_large(completions):
    return [1e39, 0.0]


def too_few(completions):
    return [1.0]


def no_list(completions):
    return 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (raises, r"'raises' raised KeyError: 'no such thing'; .*'1\+1='"),
        (no_number, r"'no_number' returned nan, which is no finite number, .*'2\+2='"),
        (infinite, r"'infinite' returned inf, .*'1\+1='"),
        (text, r"'text' returned 'good', .*'1\+1='"),
        (endless, r"'endless' returned inf, which is no finite number, .*'2\+2='"),
        (too_large, r"'too_large' returned 1e\+39, .*'1\+1='"),
        (too_few, r"'too_few' returned 1 values for 2 completions; .*'1\+1='"),
        (no_list, r"'no_list' raised TypeError: .*'1\+1='"),
    ],
)
def test_a_function_that_fails_is_named_with_the_prompt(function, said):
    with pytest.raises(RewardFault, match=said):
        rewards.score([rewards.exact_match, function], PROMPTS, COMPLETIONS, COLUMNS)


def test_a_column_that_is_missing_is_named():
    def wants(completions, anwser):
        return []

    with pytest.raises(RewardFault, match=r"takes 'anwser', which is no column .*mean 'answer'"):
        rewards.score([wants], PROMPTS, COMPLETIONS, COLUMNS)


def test_exact_match():
    messages = [{"role": "assistant", "content": " 4\n"}]
    assert rewards.exact_match(["4 ", "5", messages], ["4", 4, 4]) == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        ("the answer is -12.", -12),
        ("7 apples and 1,234,567 pears", 1234567),
        ("0.5", Fraction(1, 2)),
        (".25", Fraction(1, 4)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("50%", Fraction(1, 2)),
        (r"\boxed{12} of 99", 12),
        (r"\boxed{\frac{1}{3}}", Fraction(1, 3)),
        ("1/0", None),
        ("1" * 5000, None),
        ("1/" + "1" * 5000, None),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_in_a_text(text, number):
    assert rewards.number_in(text) == number


def test_math_answer():
    found = rewards.math_answer(["it is 0.50", "2", "no", "1"], ["1/2", "3", "3", "unknown"])
    assert found == [1, 0, 0, None]
    assert rewards.math_answer(["1" * 5000, "2"], ["3", "2"]) == [0, 1]


def test_the_ones_that_are_made():
    form = rewards.regex_format(r"<a>\d+</a>")
    assert form(["<a>12</a>", "<a>12</a> ", "12"]) == [1, 0, 0]
    assert rewards.length_penalty(0.5)([0, 3]) == [0, -1.5]
    overlong = rewards.soft_overlong(10, 4)
    assert overlong([0, 6, 8, 10, 11]) == [0, 0, -0.5, -1, -1]
    for made, name in ((form, "regex_format"), (overlong, "soft_overlong")):
        assert rewards.name_of(made) == name


def test_the_shipped_ones_by_name():
    assert rewards.shipped("math_answer") is rewards.math_answer
    assert rewards.shipped("length_penalty", per_token=2)([1]) == [-2]
    for name, settings, said in (
        ("exact_mach", {}, "mean 'exact_match'"),
        ("exact_match", {"x": 1}, "takes no settings"),
        ("regex_format", {}, "pattern"),
        ("regex_format", {"pattern": "("}, "no regular expression"),
        ("soft_overlong", {"max_completion_length": 4, "cache": 5}, "cache takes from 1 to"),
    ):
        with pytest.raises(ArgumentError, match=said):
            rewards.shipped(name, **settings)
