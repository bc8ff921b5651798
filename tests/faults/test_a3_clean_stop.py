"""A3: stopped cleanly after any iteration and gone on with from disk: the same final state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope as us
from upslope import checkpoint
from upslope.runs import run
from upslope.runs.configuration import Evaluation, RunConfig
from upslope.runs.metrics import read_metrics

SMALL: dict[str, Any] = {"batch_size": 16, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}
SCHEDULES: dict[str, Any] = {"learning_rate": "linear(3e-3)", "clip_range": "linear(0.2)"}
TASKS: dict[str, dict[str, Any]] = {
    # a vectorised entry point: rows that only reset (NEXT_STEP); segments of three iterations
    "cartpole": {"env": "CartPole-v1", "n_envs": 3, "n_steps": 16, "segment_length": 48},
    # in this process (DISABLED), both normalisers
    "pendulum": {
        **{"env": "Pendulum-v1", "n_envs": 2, "n_steps": 50, "segment_length": 150},
        **{"normalize_observation": True, "normalize_reward": True, "recompute_advantage": True},
    },
    # its own state is saved; rows of the next episode (SAME_STEP)
    "flappy": {"env": "upslope/FlappyBird-v0", "n_envs": 3, "n_steps": 32, "n_epochs": 1},
}
BACKENDS = {"cartpole": "vector_entry_point", "pendulum": "sync", "flappy": "vector_entry_point"}
EVALUATED: dict[str, Any] = {"eval_freq": 350, "n_eval_episodes": 1}
ITERATIONS = 8

pytestmark = pytest.mark.slow


def make(task: str) -> tuple[us.PPO, int]:
    """Return an agent, and the steps of ITERATIONS iterations without a row that only resets."""
    settings = SMALL | SCHEDULES | TASKS[task]
    return us.PPO(**settings, seed=3), ITERATIONS * settings["n_envs"] * settings["n_steps"]


def final_state(agent: us.PPO) -> dict[str, Any]:
    tensors, meta = agent.state()
    return {name: np.asarray(tensor).copy() for name, tensor in tensors.items()} | {"meta": meta}


def assert_equal(one: dict[str, Any], other: dict[str, Any], when: str) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "meta":
            assert value == other[name], when
        else:  # bytes, so that NaN equals NaN and -0 is not 0
            kinds = value.dtype, value.shape, value.tobytes()
            found = other[name].dtype, other[name].shape, other[name].tobytes()
            assert kinds == found, f"{name} differs, {when}"


@pytest.fixture(scope="module", params=list(TASKS))
def whole(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], int]:
    """Return a task, the final state of the run never stopped, and its number of iterations."""
    agent, steps = make(request.param)
    assert agent.stream.backend == BACKENDS[request.param]
    agent.learn(steps, **EVALUATED)
    if agent.collector.replays:
        assert agent.collector.segment >= 2, "no boundary of a segment was crossed"
    assert agent.best.tensors is not None
    return request.param, final_state(agent), agent.iteration


def test_a_stop_after_every_iteration(
    whole: tuple[str, dict[str, Any], int], tmp_path: Path
) -> None:
    task, state, iterations = whole
    assert iterations >= ITERATIONS
    for k in range(1, iterations + 1):
        agent, steps = make(task)
        agent.learn(steps, lambda a, _, k=k: a.iteration < k, **EVALUATED)
        assert agent.iteration == k
        again = us.PPO.load(agent.save(tmp_path / task))
        again.go_on(**EVALUATED)
        assert_equal(final_state(again), state, f"stopped after iteration {k}")


def test_a_stop_after_each_iteration_of_one_run(
    whole: tuple[str, dict[str, Any], int], tmp_path: Path
) -> None:
    task, state, iterations = whole
    agent, steps = make(task)
    agent.target_timesteps = steps
    for _ in range(iterations):
        agent.go_on(lambda *_: False, **EVALUATED)
        agent = us.PPO.load(agent.save(tmp_path / task))
        again, _ = make(task)  # saved before it had begun to collect anew: twice the same
        again.load_state(*checkpoint.read(agent.save(tmp_path / "again")))
        assert_equal(final_state(again), final_state(agent), "saved and loaded without a step")
    assert_equal(final_state(agent), state, "stopped after each iteration")


@pytest.mark.parametrize("task", TASKS)
def test_stops_of_a_run_on_disk(task: str, tmp_path: Path) -> None:
    agent, steps = make(task)
    settings = SMALL | SCHEDULES | {"seed": 3} | TASKS[task]
    config = RunConfig(
        algorithm="ppo",
        env=settings.pop("env"),
        total_timesteps=steps,
        backend=agent.stream.backend,
        evaluation=Evaluation(freq=350, episodes=1),
        settings=settings,
    )
    said: list[str] = []
    ends = {}
    for name, seconds in (("whole", None), ("stopped", 0.0)):
        folder = tmp_path / name
        run.create(folder, config)
        finished = False
        while not finished:
            config = RunConfig.read(folder)
            outcome = run.train(
                folder, config, max_seconds=seconds, progress=False, say=said.append
            )
            finished = outcome.finished
        newest = checkpoint.list_checkpoints(folder / "checkpoints")[0]
        files = [*newest.iterdir(), *(folder / "best").iterdir()]
        ends[name] = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}
    assert ends["whole"] == ends["stopped"]
    said = [sentence for sentence in said if not sentence.startswith("engine: ")]
    assert len(said) == len(read_metrics(tmp_path / "stopped" / "metrics.csv")) - 1
    assert all(sentence.startswith("going on from step-") for sentence in said)


def test_an_agent_that_has_begun_takes_up_another_state(tmp_path: Path) -> None:
    """Loading leaves nothing of what the agent was doing before."""
    for task in TASKS:
        agent, steps = make(task)
        agent.learn(steps, lambda a, _: a.iteration < 3)
        path = agent.save(tmp_path / task)
        agent.go_on()
        busy, _ = make(task)
        busy.learn(steps, lambda a, _: a.iteration < 4)
        busy.load_state(*checkpoint.read(path))
        busy.go_on()
        assert_equal(final_state(busy), final_state(agent), f"{task}, loaded into a busy agent")
        fresh, _ = make(task)
        start = fresh.save(tmp_path / "start")
        busy.load_state(*checkpoint.read(start))
        fresh.learn(steps, lambda a, _: a.iteration < 3)
        busy.learn(steps, lambda a, _: a.iteration < 3)
        states = [final_state(one) for one in (busy, fresh)]
        for state in states:  # counts the steps of the stream, for its messages only
            state.pop("experience/environment/steps", None)
        assert_equal(*states, f"{task}, back to its start")
