"""C1, C2: what ends or blocks a worker is named within five seconds, and none is left.

Not one that keeps the processor busy while it is made or reset: that is given sixty.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope as us
from tests import tiny
from tests.command import environment
from tests.failing import FAULTS, Local, TwoArguments, busy_for_two_seconds
from upslope.errors import ArgumentError, EnvironmentFault
from upslope.rollout.stream import Stream
from upslope.rollout.worker_env import LONGEST, VARIABLE, WorkerVectorEnv

pytestmark = pytest.mark.faults

WITHIN = 5.0


SAID = {
    "percent": (ValueError, "50% of %s and %d"),
    "two arguments": (TwoArguments, "cart at 9 %"),
    "unpicklable": (KeyError, "locked"),
    "local": (EnvironmentFault, r"environment 1 .* raised .*Unknown: nobody else"),
    "exits": (EnvironmentFault, r"environment 1 .* raised SystemExit: 3"),
    "ends": (EnvironmentFault, r"environment 1 .* ended with exit code 4"),
    "killed": (EnvironmentFault, r"environment 1 .* killed by signal 9 \(SIGKILL\)"),
    "blocked": (EnvironmentFault, r"environment 1 .* has not answered for [0-9.]+ s"),
}
PLACES = ("constructor", "reset", "step")
WAITS = {"blocked": ("step",)}  # four seconds each: once with the real patience


def play(makers: list[Any], calls: list[float]) -> None:
    """`calls` is told the second at which each call that may fail began."""
    calls.append(time.monotonic())
    stream = Stream(env=WorkerVectorEnv(makers))
    calls.append(time.monotonic())
    stream.reset(7)
    for _ in range(5):
        calls.append(time.monotonic())
        stream.step(np.array([0, 1]))


@pytest.mark.parametrize(("fault", "where"), [(f, w) for f in FAULTS for w in WAITS.get(f, PLACES)])
def test_a_failing_worker_is_named_and_none_is_left(fault, where):
    kind, said = SAID[fault]
    makers = [tiny.Walk, partial(Local, fault, where)]
    calls: list[float] = []
    with pytest.raises(kind, match=said) as caught:
        play(makers, calls)
    assert time.monotonic() - calls[-1] < WITHIN
    assert not multiprocessing.active_children()
    error = caught.value
    told = f"{error} {getattr(error, '__notes__', '')}"
    assert "environment 1" in told
    if where == "step":
        assert error.__notes__ == [
            "raised by environment 1 at step 3 since the reset, 3 in all, seed 7, action 1"
        ]
    if fault in ("percent", "two arguments", "unpicklable", "local"):
        assert "failing.py" in str(error.__cause__)  # the worker's traceback
    if fault == "two arguments":
        assert error.share == 9


@pytest.mark.parametrize("where", ["constructor", "reset"])
def test_one_that_is_blocked_there_is_too(where, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    calls: list[float] = []
    with pytest.raises(EnvironmentFault, match=r"environment 1 .* not answered for [0-9.]+ s"):
        play([tiny.Walk, partial(Local, "blocked", where)], calls)
    # Python itself begins first, which keeps a busy machine's processor for seconds.
    assert time.monotonic() - calls[-1] < {"constructor": LONGEST, "reset": WITHIN}[where]
    assert not multiprocessing.active_children()


def test_one_that_is_made_slowly_is_not_taken_for_blocked(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.8")
    env = WorkerVectorEnv([busy_for_two_seconds])
    env.close()


def test_a_worker_that_was_stopped_from_outside():
    env = WorkerVectorEnv([tiny.Walk] * 2)
    stream = Stream(env=env)
    stream.reset(0)
    os.kill(env.processes[0].pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match=r"environment 0 .* \(SIGKILL\)"):
        stream.step(np.array([0, 1]))
    assert not multiprocessing.active_children()
    with pytest.raises(ArgumentError, match="have ended: make the environments anew"):
        env.step(np.array([0, 1]))


@pytest.mark.parametrize("kind", [us.PPO, us.DQN, us.REINFORCE, us.ActorCritic])
def test_every_agent_says_it(kind):
    agent = kind(partial(Local, "killed", "step"), n_envs=2, backend="async")
    with pytest.raises(EnvironmentFault, match=r"environment 0 .* killed by signal 9"):
        agent.learn(200)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("masked", [False, True])
def test_workers_give_what_this_process_gives(masked):
    """C7: every field and every weight, bit for bit."""
    env = "Taxi-v4" if masked else "Pendulum-v1"
    weights = []
    for backend in ("sync", "async"):
        settings = {"n_steps": 220, "n_epochs": 1, "batch_size": 220, "segment_length": 220}
        agent = us.PPO(env, n_envs=2, seed=1, backend=backend, **settings).learn(880)
        rollout = agent.collector.rollout
        assert (rollout.action_mask is not None) == masked
        weights.append([agent.engine.flat.value.clone(), rollout.observation.copy()])
        agent.stream.close()
    assert not multiprocessing.active_children()
    assert bool((weights[0][0] == weights[1][0]).all())
    np.testing.assert_array_equal(weights[0][1], weights[1][1])


def test_python_ends_although_workers_are_left(tmp_path: Path):
    script = tmp_path / "left.py"
    script.write_text(
        "from tests.tiny import Walk\n"
        "from upslope.rollout.worker_env import WorkerVectorEnv\n"
        "if __name__ == '__main__':\n"
        "    env = WorkerVectorEnv([Walk, Walk]); print(*[p.pid for p in env.processes])\n"
    )
    done = subprocess.run(
        [sys.executable, script], env=environment(), capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    for process in done.stdout.split():
        assert not Path("/proc", process).exists()
