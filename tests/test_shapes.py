"""The decorator that reads shapes: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import inspect
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from upslope.errors import ShapeError
from upslope.shapes import shaped


@shaped
def time_major(
    reward: Float[Tensor, "T N"],
    ended: Bool[Tensor, "T N"],
    scale: float = 1.0,
    bootstrap: Float[Tensor, "T N"] | None = None,
    *,
    weight: Float[Tensor, " T"] | None = None,
) -> str:
    """Say that it was called."""
    return "called"


@shaped
def any_shape(x: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]) -> str:
    """Say that it was called."""
    return "called"


@shaped
def batch(x: Float[Tensor, "*batch A"], index: Int[Tensor, "*batch"]) -> str:
    """Say that it was called."""
    return "called"


@shaped
def mixed(size: int | Int[Tensor, " K"], x: Shaped[Tensor, "_ 3"], y: Float[Tensor, "..."]) -> str:
    """Say that it was called."""
    return "called"


REWARD = torch.zeros(4, 2)
ENDED = torch.zeros(4, 2, dtype=torch.bool)


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(ShapeError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_what_fits_is_called():
    assert time_major(REWARD, ENDED) == "called"
    assert time_major(ended=ENDED, reward=REWARD.double(), scale=2.0) == "called"
    assert time_major(REWARD, ENDED, 1.0, None) == "called"
    assert time_major(REWARD, ENDED, 1.0, REWARD, weight=torch.zeros(4)) == "called"
    assert time_major(torch.nn.Parameter(REWARD), ENDED) == "called"


def test_a_shape_is_refused_with_the_letters_of_the_call():
    said = refusal(time_major, REWARD, ENDED[:, :1])
    assert said == (
        "time_major: ended takes a Bool tensor of shape [T, N] with T = 4 and N = 2 as in reward, "
        "got [4, 1]"
    )
    said = refusal(time_major, REWARD, ENDED, weight=torch.zeros(3))
    assert "weight takes a Float tensor of shape [T] with T = 4 as in reward, got [3]" in said


def test_the_first_argument_is_refused_without_letters():
    said = refusal(time_major, REWARD[0], ENDED)
    assert said == "time_major: reward takes a Float tensor of shape [T, N], got [2]"


def test_keywords_and_optional_arguments_are_checked():
    assert "bootstrap takes" in refusal(time_major, REWARD, ENDED, bootstrap=REWARD[:3])
    assert "ended takes" in refusal(time_major, ended=ENDED[:3], reward=REWARD)


def test_n_against_n_by_one_is_refused():
    said = refusal(any_shape, torch.zeros(5), torch.zeros(5, 1))
    assert said.endswith("of shape [*shape] with *shape = [5] as in x, got [5, 1]")
    assert "got [1]" in refusal(any_shape, torch.zeros(5), torch.zeros(1))
    assert "got []" in refusal(any_shape, torch.zeros(1), torch.zeros(()))


def test_kinds_of_numbers():
    assert "a Bool tensor of shape [T, N], got one of dtype float32" in refusal(
        time_major, REWARD, REWARD
    )
    assert "a Float tensor of shape [T, N], got one of dtype int64" in refusal(
        time_major, REWARD.long(), ENDED
    )
    assert "an Int tensor" in refusal(batch, REWARD, torch.zeros(4))


@pytest.mark.parametrize(
    ("value", "name"),
    [([[1.0]], "list"), (np.zeros((4, 2)), "numpy.ndarray"), (1.0, "float"), (None, "None")],
)
def test_what_is_no_tensor_is_refused(value, name):
    said = refusal(time_major, value, ENDED)
    assert said == f"time_major: reward takes a Float tensor of shape [T, N], got {name}"


def test_none_only_where_the_annotation_says_so():
    assert "or None, got list" in refusal(time_major, REWARD, ENDED, bootstrap=[])


def test_unions_with_numbers():
    assert mixed(3, torch.zeros(9, 3), torch.zeros(())) == "called"
    assert mixed(np.int64(3), torch.zeros(1, 3, dtype=torch.int8), torch.zeros(2, 2)) == "called"
    assert mixed(torch.tensor([3]), torch.zeros(9, 3), torch.zeros(1)) == "called"
    assert "or a whole number, got float" in refusal(mixed, 3.5, torch.zeros(9, 3), torch.zeros(1))
    assert "of shape [_, 3], got [9, 4]" in refusal(mixed, 3, torch.zeros(9, 4), torch.zeros(1))
    assert "of shape [K], got [1, 1]" in refusal(
        mixed, torch.tensor([[3]]), torch.zeros(9, 3), torch.zeros(1)
    )


@given(st.lists(st.integers(0, 3), max_size=3), st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=60)
def test_a_variadic_shape_is_equal_or_refused(left, right):
    if left == right:
        assert any_shape(torch.zeros(left), torch.zeros(right)) == "called"
    else:
        assert f"got {right}" in refusal(any_shape, torch.zeros(left), torch.zeros(right))


@given(st.lists(st.integers(1, 3), max_size=3), st.lists(st.integers(1, 3), max_size=3))
@settings(max_examples=60)
def test_a_variadic_shape_beside_a_letter(x, index):
    values, chosen = torch.zeros(x), torch.zeros(index, dtype=torch.int64)
    if x and x[:-1] == index:
        assert batch(values, chosen) == "called"
    else:
        refusal(batch, values, chosen)


def test_dimensions_without_a_name_are_free():
    @shaped
    def free(x: Float[Tensor, "_ _"], y: Float[Tensor, "_ _"], z: Float[Tensor, "..."]) -> str:
        return mixed(1, torch.zeros(1, 3), z)

    assert free(torch.zeros(1, 2), torch.zeros(3, 4), torch.zeros(5)) == "called"

    @shaped
    def any_two(x: Float[Tensor, "..."], y: Float[Tensor, "..."]) -> str:
        return "called"

    assert any_two(torch.zeros(1, 2), torch.zeros(3)) == "called"


def test_a_variadic_dimension_between_two_letters():
    @shaped
    def between(x: Float[Tensor, "T *shape N"]) -> str:
        return "called"

    assert between(torch.zeros(2, 3)) == between(torch.zeros(2, 5, 6, 3)) == "called"
    assert "of shape [T, *shape, N], got [3]" in refusal(between, torch.zeros(3))


def test_a_letter_twice_in_one_shape():
    @shaped
    def square(x: Float[Tensor, "S S"]) -> str:
        return "called"

    assert square(torch.zeros(3, 3)) == "called"
    assert "of shape [S, S], got [3, 2]" in refusal(square, torch.zeros(3, 2))


def test_a_method_is_checked():
    class Critic:
        @shaped
        def __call__(self, x: Float[Tensor, "M A"]) -> str:
            return "called"

    assert Critic()(torch.zeros(3, 2)) == "called"
    assert "x takes" in refusal(Critic(), torch.zeros(3))


def test_readers_see_the_function_itself():
    assert time_major.__name__ == "time_major"
    assert time_major.__doc__ == "Say that it was called."
    assert list(inspect.signature(time_major).parameters)[:2] == ["reward", "ended"]
    assert time_major.__annotations__ == time_major.__wrapped__.__annotations__


def test_a_missing_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'ended'"):
        time_major(REWARD)


def test_gradients_pass_through():
    x = torch.zeros(2, requires_grad=True)
    shaped(lambda x: x.sum())(x).backward()
    assert x.grad.tolist() == [1, 1]


def test_what_is_not_read_is_refused_at_decoration():
    def symbolic(x: Float[Tensor, "T+1"]) -> None: ...
    def several(*x: Float[Tensor, " N"]) -> None: ...
    def either(x: Float[Tensor, " N"] | Int[Tensor, " N"]) -> None: ...

    for function in (symbolic, several, either):
        with pytest.raises(TypeError, match=f"{function.__name__}: the annotation of x"):
            shaped(function)


def test_the_check_costs_microseconds():
    """A ceiling that only a change of kind passes (signature binding, say): idle, it is 2 to 3."""
    arguments = (REWARD, ENDED, 1.0, REWARD)
    plain, best = time_major.__wrapped__, []
    for function in (plain, time_major):
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(200):
                function(*arguments)
            times.append((time.perf_counter() - start) / 200)
        best.append(min(times))
    assert best[1] - best[0] < 15e-6
