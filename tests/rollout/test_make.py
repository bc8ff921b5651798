from __future__ import annotations

import sys
from contextlib import closing
from functools import partial
from types import ModuleType

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.rollout.chain import Chain, Scripted
from upslope.errors import ArgumentError
from upslope.rollout.make import make_stream


@pytest.fixture
def registered():
    """Register ids for one test."""
    names = []

    def register(name: str, **kwargs) -> str:
        gymnasium.register(name, **kwargs)
        names.append(name)
        return name

    yield register
    for name in names:
        del gymnasium.registry[name]


# ---------------------------------------------------------------- the table of preference
@pytest.mark.parametrize(
    ("env", "backend", "chosen", "mode"),
    [
        ("CartPole-v1", "auto", "vector_entry_point", AutoresetMode.NEXT_STEP),
        ("CartPole-v1", "vector_entry_point", "vector_entry_point", AutoresetMode.NEXT_STEP),
        ("CartPole-v1", "sync", "sync", AutoresetMode.DISABLED),
        ("Pendulum-v1", "auto", "sync", AutoresetMode.DISABLED),
        ("upslope/FlappyBird-v0", "auto", "vector_entry_point", AutoresetMode.SAME_STEP),
        (Chain, "auto", "sync", AutoresetMode.DISABLED),
        (Chain, "sync", "sync", AutoresetMode.DISABLED),
    ],
)
def test_backend(env, backend, chosen, mode):
    with closing(make_stream(env, 3, backend=backend)) as stream:
        assert (stream.backend, stream.autoreset_mode, stream.n_envs) == (chosen, mode, 3)
        assert stream.remakes
        assert stream.reset(0).shape == (3, *stream.observation_space.shape)


def test_entry_point_that_cannot_be_imported_falls_through(registered):
    entry = "tests.rollout.chain:Chain"
    name = registered("Falls-v0", entry_point=entry, vector_entry_point="no_such_module:Env")
    with closing(make_stream(name, 2)) as stream:
        assert stream.backend == "sync"
    with pytest.raises(ArgumentError, match=r"'Falls-v0' cannot be made here: .* 'no_such_module'"):
        make_stream(name, 2, backend="vector_entry_point")


def test_environment_that_cannot_be_imported_at_all(registered):
    name = registered("Gone-v0", entry_point="no_such_module:Env")
    with pytest.raises(
        ArgumentError, match="no vectorised entry point; sync fails with No module named"
    ):
        make_stream(name, 2)


def test_backend_that_the_id_does_not_have():
    with pytest.raises(ArgumentError, match=r"'Acrobot-v1' .*: it has no vectorised entry point"):
        make_stream("Acrobot-v1", 2, backend="vector_entry_point")
    with pytest.raises(ArgumentError, match="for an id, and env is a factory"):
        make_stream(Chain, 2, backend="vector_entry_point")
    with pytest.raises(ArgumentError, match=r"got 'snyc' \(did you mean 'sync'\?\)"):
        make_stream("Acrobot-v1", 2, backend="snyc")


@pytest.mark.slow
def test_workers_give_the_same_stream_as_this_process():
    """Bit for bit, also over ends, and again after a reset."""
    rng = np.random.default_rng(0)
    actions, seen = rng.integers(0, 2, (60, 2)), {}
    for backend in ("sync", "async"):
        with closing(make_stream("CartPole-v1", 2, backend=backend)) as stream:
            assert stream.backend == backend
            stream.reset(7)
            steps = [stream.step(action) for action in actions]
        seen[backend] = [field for step in steps for field in step[:-1]]
    assert sum(step.terminated.sum() for step in steps) >= 4
    for one, other in zip(*seen.values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_workers_are_spawned_and_gone_after_closing():
    stream = make_stream(partial(Chain, limit=2), 1, backend="async")
    processes = stream._env.processes
    assert type(processes[0]).__name__ == "SpawnProcess"
    stream.reset(0)
    stream.step([0])
    assert stream.step([0]).truncated.all()
    stream.close()
    assert not processes[0].is_alive()


# ---------------------------------------------------------------- ids
def test_misspelt_id_is_answered_with_the_right_one():
    with pytest.raises(ArgumentError, match=r"'CartPol-v1' .*\(did you mean 'CartPole-v1'\?\)"):
        make_stream("CartPol-v1", 1)
    with pytest.raises(ArgumentError, match=r"did you mean 'upslope/FlappyBird-v0'"):
        make_stream("FlappyBird-v0", 1)


def test_module_named_in_an_id(monkeypatch, registered):
    module = ModuleType("chains_to_import")
    monkeypatch.setitem(sys.modules, "chains_to_import", module)
    registered("Chained-v0", entry_point="tests.rollout.chain:Chain")
    with closing(make_stream("chains_to_import:Chained-v0", 1)) as stream:
        assert stream.backend == "sync"
    with pytest.raises(ArgumentError, match="imports the module 'chains_to_import', which is not"):
        make_stream("chains_to_import:Chained-v0", 1, allow_import=False)
    with pytest.raises(ArgumentError, match="'no_such_module' cannot be imported"):
        make_stream("no_such_module:Chained-v0", 1)


def test_keyword_arguments_reach_the_environment():
    with closing(make_stream("CartPole-v1", 2, env_kwargs={"max_episode_steps": 3})) as stream:
        stream.reset(0)
        ends = [stream.step(np.zeros(2, int)).truncated.all() for _ in range(3)]
        assert ends == [False, False, True]
    with closing(make_stream(Chain, 2, env_kwargs={"limit": 1})) as stream:
        stream.reset(0)
        assert stream.step(np.zeros(2, int)).truncated.all()


@pytest.mark.parametrize("backend", ["vector_entry_point", "sync"])
def test_keyword_arguments_that_it_does_not_take(backend):
    with pytest.raises(
        ArgumentError, match=r"cannot be made as .* with env_kwargs=\{'gravty': 1\}"
    ):
        make_stream("CartPole-v1", 2, env_kwargs={"gravty": 1}, backend=backend)


# ---------------------------------------------------------------- what exists, and what is neither
def test_vector_environment_that_exists():
    env = SyncVectorEnv([Chain] * 3)
    for n_envs in (None, 3):
        stream = make_stream(env, n_envs)
        assert (stream.backend, stream.n_envs, stream.remakes) == ("given", 3, False)
    with pytest.raises(ArgumentError, match="n_envs=4, but the environment given counts 3"):
        make_stream(env, 4)


def test_environment_that_exists():
    class Closes(Chain):
        closed = False

        def close(self) -> None:
            self.closed = True

    env = Closes()
    stream = make_stream(env)
    assert (stream.backend, stream.n_envs, stream.remakes) == ("given", 1, False)
    stream.reset(0)
    for _ in range(5):
        step = stream.step([0])
    assert step.truncated.tolist() == [True]
    assert step.next_observation.tolist() == [[1, 5, 0]]
    stream.close()
    del stream
    assert not env.closed
    with pytest.raises(ArgumentError, match="n_envs=2, but the environment given counts 1"):
        make_stream(env, 2)


@pytest.mark.parametrize("option", [{"env_kwargs": {"limit": 3}}, {"backend": "sync"}])
def test_options_that_come_too_late_for_what_exists(option):
    with pytest.raises(ArgumentError, match="is for an id or a factory"):
        make_stream(Scripted(2), **option)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (3, "env takes an environment id, .* got int"),
        (
            lambda: "CartPole-v1",
            "a factory that takes to return a gymnasium.Env, got 'CartPole-v1'",
        ),
    ],
)
def test_what_is_no_environment(env, message):
    with pytest.raises(ArgumentError, match=message):
        make_stream(env, 2)


@pytest.mark.parametrize("n_envs", [0, -1, 2.0, True, "2"])
def test_number_of_environments(n_envs):
    with pytest.raises(ArgumentError, match="n_envs takes a whole number of at least 1"):
        make_stream("CartPole-v1", n_envs)
