"""Native calls where a process runs out of threads, or forks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from tests.engine.native_cases import PlainPolicy
from upslope.engine.native_engine import NativeEngine

ROWS = np.random.default_rng(0).normal(size=(20_000, 8)).astype(np.float32)


def values_of() -> tuple[NativeEngine, np.ndarray]:
    """An engine, and what it finds the values of ROWS to be."""
    engine = NativeEngine(
        PlainPolicy(8, [], [8], [64, 64], spaces.Discrete(2), "tanh"), max_grad_norm=None
    )
    expected = np.empty(len(ROWS), np.float32)
    engine.network.values(engine._value, ROWS, expected, 1)
    return engine, expected


def found(engine: NativeEngine, threads: int) -> np.ndarray:
    value = np.full(len(ROWS), np.nan, np.float32)
    engine.network.values(engine._value, ROWS, value, threads)
    return value


def begun(engine: NativeEngine, threads: int) -> np.ndarray:
    value = np.full(len(ROWS), np.nan, np.float32)
    engine.network.begin_values(engine._value, ROWS, value, threads)
    return value


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` returns True in a forked child, and within ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this process has threads
        child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does")
@pytest.mark.parametrize("how", [found, begun])
def test_where_no_thread_can_be_had_the_others_do_the_work(how):
    import resource

    engine, expected = values_of()
    many = 200  # more than the stacks that a forked child finds to use again
    engine.network.values(engine._value, ROWS[:1], np.empty(1, np.float32), many)  # their memory

    def limited() -> bool:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**22, most))
        value = how(engine, many)
        engine.network.finish()
        return np.array_equal(value, expected)

    assert in_child(limited)


def test_a_child_forked_during_a_call_of_another_thread_can_call():
    (engine, expected), (other, _) = values_of(), values_of()
    ending = threading.Event()

    def call() -> None:
        while not ending.is_set():
            found(engine, 2)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        for _ in range(5):
            for each in (engine, other):
                assert in_child(lambda each=each: np.array_equal(found(each, 2), expected))
    finally:
        ending.set()
        caller.join()


def test_what_was_begun_before_a_fork_is_there_in_parent_and_child():
    engine, expected = values_of()
    for _ in range(3):
        value = begun(engine, 2)

        def finished(value=value) -> bool:
            engine.network.finish()
            return np.array_equal(value, expected)

        assert in_child(finished)
        assert finished()
        assert in_child(lambda: np.array_equal(found(engine, 2), expected))
