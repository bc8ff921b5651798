"""Flappy Bird's state as named arrays: the random generator's part, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.errors import ArgumentError

HALF = 2**64 - 1


def generator_words(generator: np.random.Generator) -> NDArray[np.uint64]:
    """Return a PCG64 generator's state: two 128-bit numbers in halves, and its 32-bit leftover."""
    state = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        kind = state["bit_generator"]
        raise ArgumentError(f"get_state() takes a PCG64 generator as np_random, got {kind}")
    state_word, increment = state["state"]["state"], state["state"]["inc"]
    halves = [state_word >> 64, state_word & HALF, increment >> 64, increment & HALF]
    return np.array([*halves, state["has_uint32"], state["uinteger"]], np.uint64)


def generator_of(words: NDArray[np.uint64]) -> np.random.Generator:
    """Return the generator that `generator_words` describes."""
    high, low, increment_high, increment_low, has_leftover, leftover = (int(word) for word in words)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": increment_high << 64 | increment_low},
        "has_uint32": has_leftover,
        "uinteger": leftover,
    }
    return np.random.Generator(bits)


def check_state(
    state: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]], phases: int
) -> None:
    """Refuse a state whose arrays are not those of `expected` in name, shape and kind."""
    if state.keys() != expected.keys():
        raise ArgumentError(f"state takes the arrays {sorted(expected)}, got {sorted(state)}")
    for name, array in expected.items():
        got = np.asarray(state[name])
        if got.shape != array.shape or got.dtype != array.dtype:
            raise ArgumentError(
                f"state[{name!r}] takes {array.dtype} of shape {array.shape}, "
                f"got {got.dtype} of shape {got.shape}"
            )
    if state["phase"].min() < 0 or state["phase"].max() >= phases:
        raise ArgumentError(f"state['phase'] takes 0 to {phases - 1}, got {state['phase']}")
