"""What native calls write, they write to the arrays that they are given, or they refuse them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

import tests.engine.native_cases  # noqa: F401  (skips where there is no native part)
from upslope import _native

N, A, H = 4, 3, 2
LAYER, ENDS = (N, A, 0, 0, N * A), N * A + A
SIZE = ENDS + N + 1


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def wholes(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int64)


def truths(*shape: int) -> np.ndarray:
    return np.ones(shape, np.bool_)


SEEN = {"parameters": floats(SIZE), "observation": floats(N, N)}
BUFFERS = {
    name: floats(SIZE) for name in ("parameters", "gradient", "first_moment", "second_moment")
} | {"metrics": np.zeros((1, 6))}
STEP = BUFFERS | {
    "observation": floats(N, N),
    "index": np.arange(N),
    "sizes": np.array([N]),
    "threads": 1,
}
TRAIN = STEP | dict(choice=wholes(N), action=None, mask=None, clipped=True, ratio=(0.8, 1.2, 0.2))
TRAIN |= dict.fromkeys(("old_log_prob", "old_value", "advantage", "target"), floats(N))
TRAIN |= dict(value_range=-1.0, value_weight=0.5, entropy_weight=0.0, bfloat16=False)
TRAIN |= dict(chunk_rows=np.array([2, 2]), chunk_gradients=floats(2, SIZE))
DIFFERENCES = STEP | dict(choice=wholes(N), reward=floats(N), discount=floats(N), huber=True)
DIFFERENCES |= dict(next_q=floats(N, A), next_observation=None, next_legal=truths(N, A))
NOISE = dict(uniform=np.zeros((N, A)), normal=None, mask=None)
NUMBERS = dict(uniform=None, normal=floats(N, A), mask=None, choice=None)
EXPLORE = SEEN | dict(uniform=floats(2, N), mask=None, epsilon=0.1, choice=wholes(N), threads=1)
CELL = dict(counts=[N, N], threads=1, hidden=floats(2 * N, H), before=floats(2 * N, H))
FORWARD = {name: value for name, value in CELL.items() if name != "before"}
BACK = CELL | {"d_hidden": floats(2 * N, H)}
LSTM = dict(weight=floats(4 * H, H), start=floats(N, 2 * H), gates=floats(2 * N, 4 * H))
LSTM |= {"cells": floats(2 * N, H)}
GRU = dict(weight=floats(3 * H, H), start=floats(N, H), gates=floats(2 * N, 3 * H))
GRU |= {"inner": floats(2 * N, H)}
D_GRU = dict(d_gates=floats(2 * N, 3 * H), d_products=floats(2 * N, 3 * H))
GAE = {name: floats(N, N) for name in ("reward", "value", "next_value", "advantage")}
GAE |= dict(terminated=truths(N, N), truncated=truths(N, N), gamma=0.9, decay=0.9)
ATTEND = dict(query=floats(N, 1, H), keys=floats(N, 1, 5, H), values=floats(N, 1, 5, H), seen=None)


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any], str]]:
    """Each function that writes to arrays, arguments that it takes, and which ones it writes."""
    network = _native.Network(N, [], [LAYER], [(N, 1, 0, ENDS, ENDS + N)], [A], -1)
    normal = _native.Network(N, [], [LAYER], [], [], ENDS)
    values = _native.Network(N, [], [LAYER], [], [A], -1)
    descent = {"descent": _native.Descent(0.1, 1, 1.0, 0.9, 0.999, 1e-5)}
    return {
        "train": (network.train, TRAIN | descent, f"{' '.join(BUFFERS)} chunk_gradients"),
        "train_action_values": (
            values.train_action_values,
            DIFFERENCES | descent,
            " ".join(BUFFERS),
        ),
        "act": (
            network.act,
            SEEN | NOISE | dict(choice=wholes(N), action=None, log_prob=floats(N), threads=1),
            "choice log_prob",
        ),
        "act on numbers": (
            normal.act,
            SEEN | NUMBERS | dict(action=floats(N, A), log_prob=floats(N), threads=1),
            "action log_prob",
        ),
        "explore": (values.explore, EXPLORE | {"log_prob": floats(N)}, "choice log_prob"),
        "action_values": (values.action_values, SEEN | dict(out=floats(N, A), threads=1), "out"),
        "values": (network.values, SEEN | dict(value=floats(N), threads=1), "value"),
        "begin_values": (network.begin_values, SEEN | dict(value=floats(N), threads=1), "value"),
        "gae": (_native.gae, GAE, "advantage"),
        "group": (
            _native.group,
            dict(rows=np.arange(N), n_envs=2, together=wholes(N), sizes=wholes(2)),
            "together sizes",
        ),
        "shuffle": (_native.shuffle, dict(valid=truths(2, N), seed=1, rows=wholes(2 * N)), "rows"),
        "standardize": (
            _native.standardize,
            dict(advantage=floats(N), index=np.arange(N), sizes=np.array([N]), epsilon=1.0)
            | {"out": floats(N)},
            "out",
        ),
        "lstm_forward": (
            _native.lstm_forward,
            FORWARD | LSTM | {"projected": floats(2 * N, 4 * H)},
            "hidden gates cells",
        ),
        "lstm_backward": (
            _native.lstm_backward,
            BACK | LSTM | {"d_gates": floats(2 * N, 4 * H)},
            "hidden gates cells d_gates before",
        ),
        "gru_forward": (
            _native.gru_forward,
            FORWARD | GRU | dict(projected=floats(2 * N, 3 * H), bias=floats(3 * H)),
            "hidden gates inner",
        ),
        "gru_backward": (
            _native.gru_backward,
            BACK | GRU | D_GRU,
            "hidden gates inner d_gates d_products before",
        ),
        "attend": (_native.attend, ATTEND | dict(out=floats(N, 1, H), scale=1.0, threads=1), "out"),
        "apply": (
            _native.PackedLinear(floats(A, N), None).apply,
            dict(x=floats(N, N), out=floats(N, A), threads=1),
            "out",
        ),
    }


def test_arrays_of_which_a_copy_would_be_written_are_refused():
    accepted = []
    for name, (call, given, written) in calls().items():
        call(**given)
        for each in written.split():
            right = given[each]
            other = right.astype(np.float32 if right.dtype == np.float64 else np.float64)
            for wrong in (other, np.zeros((*right.shape, 2), right.dtype)[..., 0]):
                with suppress(TypeError):
                    call(**given | {each: wrong})
                    accepted.append((name, each, wrong.dtype, wrong.strides))
    assert accepted == []
