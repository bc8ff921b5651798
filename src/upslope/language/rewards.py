"""Rewards of completions: functions of one's own, and a few that are verified by rule.

    r_i = Σ_k w_k r_k(prompt_i, completion_i),     over the functions that apply to i

A reward function is called with lists: `f(prompts=..., completions=..., answer=..., ...)`, with
`completion_ids`, `completion_lengths` and every column of the data set, each as long as
`completions`; it gets those that it names, or all where it takes `**kwargs`. It returns a list of
numbers, with None where it does not apply. Prompts and completions are what the data set holds:
text, or messages.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from upslope.errors import ArgumentError, RewardFault, suggest

RewardFunction = Callable[..., Sequence[float | None]]
LARGEST = torch.finfo(torch.float32).max
OURS = ("prompts", "completions", "completion_ids", "completion_lengths")
"""Names under which a reward function gets what was sampled."""


def name_of(function: Any) -> str:
    """Return the name that a reward is logged under."""
    return str(getattr(function, "__name__", type(function).__name__))


def listed(functions: Any, name: str) -> list[RewardFunction]:
    """Return one function or several as a list; raises ArgumentError for what are none."""
    found = [functions] if callable(functions) else functions
    if not isinstance(found, Sequence) or not all(map(callable, found)):
        raise ArgumentError(f"{name} takes functions, got {functions!r:.80}")
    for function in found:
        try:
            inspect.signature(function)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"{name} takes functions that say what they take, which {function!r:.80} does not"
            ) from None
    return list(found)


def names_of(functions: Sequence[RewardFunction]) -> list[str]:
    """Return the names that rewards are logged under, those that come again with a number."""
    names: list[str] = []
    for function in functions:
        name, count = name_of(function), 1
        while name in names:
            count += 1
            name = f"{name_of(function)}_{count}"
        names.append(name)
    return names


def check_weights(weights: Any, count: int) -> None:
    """Raise ArgumentError unless there is a finite number for each of `count` functions."""
    numbers = isinstance(weights, Sequence) and all(
        isinstance(w, int | float) and not isinstance(w, bool) and abs(w) <= LARGEST
        for w in weights
    )
    if not numbers:
        raise ArgumentError(f"reward_weights takes finite numbers, got {weights!r:.80}")
    if len(weights) != count:
        raise ArgumentError(
            f"reward_weights takes a number for each of the {count} reward functions, got "
            f"{len(weights)}"
        )


def check_columns(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raise ArgumentError for a column of data that would hide what was sampled."""
    taken = [column for column in OURS if any(column in row for row in rows)]
    if taken:
        raise ArgumentError(
            f"{name} has the column {taken[0]!r}, under which reward functions get what was "
            "sampled: it takes another name"
        )


def score(
    functions: Sequence[RewardFunction],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> Tensor:
    """Return what each function gave each completion, [completions, functions], nan for None.

    Raises RewardFault naming the function and the first prompt it failed on, when it raises, gives
    another number of values than there are completions, or one that is no finite number.
    """
    given = {**columns, "prompts": list(prompts), "completions": list(completions)}
    found = torch.empty(len(completions), len(functions))
    for k, function in enumerate(functions):
        found[:, k] = torch.tensor(_called(function, given))
    return found


def total(scores: Tensor, weights: Sequence[float], prompts: Sequence[Any]) -> Tensor:
    """Return Σ w r of each completion, over the functions that apply to it.

    Raises RewardFault where none does.
    """
    silent = scores.isnan().all(1)
    if bool(silent.any()):
        k = int(silent.int().argmax())
        raise RewardFault(f"every reward function returned None for the prompt {prompts[k]!r:.200}")
    return (scores.nan_to_num(0.0) * torch.tensor(weights)).sum(1)


def _called(function: RewardFunction, given: Mapping[str, Sequence[Any]]) -> list[float]:
    name, prompts = name_of(function), given["prompts"]
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    chosen = {p.name: given[p.name] for p in parameters if p.name in given}
    needed = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    missing = [
        p.name
        for p in parameters
        if p.name in needed and p.default is p.empty and p.name not in given
    ]
    if missing:
        raise RewardFault(
            f"reward function {name!r} takes {missing[0]!r}, which is no column of the data set"
            f"{suggest(missing[0], given)}: it has {', '.join(sorted(given))}"
        )
    try:
        values = list(function(**(given if takes_all else chosen)))
    except Exception as error:
        raise RewardFault(
            f"reward function {name!r} raised {type(error).__name__}: {error}; the first prompt it "
            f"was given: {prompts[0]!r:.200}"
        ) from error
    if len(values) != len(prompts):
        raise RewardFault(
            f"reward function {name!r} returned {len(values)} values for {len(prompts)} "
            f"completions; the first prompt: {prompts[0]!r:.200}"
        )
    return [_number(name, value, prompts[k]) for k, value in enumerate(values)]


def _number(name: str, value: Any, prompt: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:  # an integer, perhaps of more digits than Python writes
        number = value = math.inf
    if not abs(number) <= LARGEST:
        raise RewardFault(
            f"reward function {name!r} returned {value!r:.80}, which is no finite number, for the "
            f"prompt {prompt!r:.200}"
        )
    return number


# ---------------------------------------------------------------- shipped
def text_of(completion: Any) -> str:
    """Return the text of a completion, which is text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)


def exact_match(completions: Sequence[Any], answer: Sequence[Any]) -> list[float]:
    """1 where the completion is the column `answer`, apart from blanks around it; else 0."""
    pairs = zip(completions, answer, strict=True)
    return [float(text_of(c).strip() == str(a).strip()) for c, a in pairs]


def math_answer(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
    """1 where the completion's last number equals that in the column `answer`; else 0.

    What stands in \\boxed{...} comes before other numbers. Commas between thousands, fractions a/b,
    decimals and percent are read exactly. None where `answer` holds no number.
    """
    found = []
    for completion, wanted in zip(completions, answer, strict=True):
        truth = number_in(str(wanted))
        found.append(None if truth is None else float(number_in(text_of(completion)) == truth))
    return found


_NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?%?")


def number_in(text: str) -> Fraction | None:
    """Return the last number of a text, that in its last \\boxed{} if there is one; else None."""
    boxed = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", text)
    inside = re.sub(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", boxed[-1] if boxed else text)
    numbers = [match.group() for match in _NUMBER.finditer(inside)]
    if not numbers:
        return None
    plain = re.sub(r"[,\s%]", "", numbers[-1])
    above, _, below = plain.partition("/")
    try:
        value = Fraction(above) / (int(below) if below else 1)
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, or n/0
        return None
    return value / 100 if numbers[-1].endswith("%") else value


def named(name: str, function: RewardFunction) -> RewardFunction:
    """Give a function made from settings the name that it is logged under."""
    function.__name__ = name
    return function


def regex_format(pattern: str) -> RewardFunction:
    """Return a reward of 1 where the whole completion matches a regular expression; else 0."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ArgumentError(f"pattern={pattern!r} is no regular expression: {error}") from None

    def reward(completions: Sequence[Any]) -> list[float]:
        return [float(compiled.fullmatch(text_of(c)) is not None) for c in completions]

    return named("regex_format", reward)


def length_penalty(per_token: float = 0.001) -> RewardFunction:
    """Return a reward of -per_token for every token."""

    def reward(completion_lengths: Sequence[int]) -> list[float]:
        return [-per_token * length for length in completion_lengths]

    return named("length_penalty", reward)


def soft_overlong(max_completion_length: int, cache: int) -> RewardFunction:
    """Return a reward that falls from 0 to -1 over the last `cache` of the tokens allowed.

    0 up to max - cache tokens, then (max - cache - length) / cache, and -1 beyond max. Yu et al.
    2025 (DAPO), arXiv:2503.14476, equation 13.
    """
    if not 0 < cache <= max_completion_length:
        raise ArgumentError(
            f"cache takes from 1 to max_completion_length ({max_completion_length}), got {cache}"
        )

    def reward(completion_lengths: Sequence[int]) -> list[float]:
        free = max_completion_length - cache
        return [min(0.0, max(-1.0, (free - length) / cache)) for length in completion_lengths]

    return named("soft_overlong", reward)


PLAIN: dict[str, RewardFunction] = {"exact_match": exact_match, "math_answer": math_answer}
MADE: dict[str, Callable[..., RewardFunction]] = {
    "regex_format": regex_format,
    "length_penalty": length_penalty,
    "soft_overlong": soft_overlong,
}
NAMES = (*PLAIN, *MADE)


def shipped(name: str, **settings: Any) -> RewardFunction:
    """Return a shipped reward function by name; raises ArgumentError for one there is not."""
    if name in PLAIN and not settings:
        return PLAIN[name]
    if name in PLAIN:
        raise ArgumentError(f"reward {name!r} takes no settings, got {settings}")
    if name not in MADE:
        options = ", ".join(NAMES)
        raise ArgumentError(f"reward {name!r}{suggest(name, NAMES)}: it takes one of {options}")
    try:
        return MADE[name](**settings)
    except TypeError as error:
        raise ArgumentError(f"reward {name!r}: {error}") from None
