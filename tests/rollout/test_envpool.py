"""EnvPool as a backend: taken where it is the same environment, true at ends, exact at a resume."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import upslope as us
from tests.rollout.test_collect import SEED, collector_of
from upslope.errors import ArgumentError
from upslope.returns import gae
from upslope.rollout import envpool
from upslope.rollout.make import make_stream
from upslope.rollout.pool import Pool, fast
from upslope.rollout.stream import Step, Stream
from upslope.rollout.values import evaluate_values
from upslope.seeding import derive32, generator

REQUIRED = os.environ.get("CI") == "true" and sys.platform == "linux"
if not (REQUIRED or envpool.installed()):
    pytest.skip("EnvPool is not installed here", allow_module_level=True)

PENDULUM = {"backend": "envpool", "env_kwargs": {"max_episode_steps": 7}}
# Both ways of ending: reset by the stream (DISABLED), and by EnvPool a step later (NEXT_STEP).
ENDS = [("Acrobot-v1", {"max_episode_steps": 7}), ("Pendulum-v1", {"max_episode_steps": 7})]
PONG = pytest.param("Pong-v5", marks=pytest.mark.slow)


def drawn(stream: Stream, count: int) -> list[np.ndarray]:
    """Return `count` random actions [N, ...], the same ones each time."""
    space, rng = stream.action_space, np.random.default_rng(0)
    if isinstance(space, gymnasium.spaces.Discrete):
        return [rng.integers(0, space.n, stream.n_envs) for _ in range(count)]
    shape = (stream.n_envs, *space.shape)
    return [rng.uniform(space.low, space.high, shape).astype(space.dtype) for _ in range(count)]


def played(stream: Stream, seed: int, steps: int = 40) -> list[Step]:
    stream.reset(seed)
    return [stream.step(action) for action in drawn(stream, steps)]


def same(one: list[Step], other: list[Step]) -> bool:
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x[:7], y[:7])]  # noqa: B905
    return all(np.array_equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------- which ids
@pytest.mark.parametrize(
    ("env", "kwargs", "chosen"),
    [
        ("Acrobot-v1", {}, "envpool"),
        ("HalfCheetah-v5", {"num_threads": 1}, "envpool"),
        ("CartPole-v1", {}, "vector_entry_point"),
        ("Pendulum-v1", {}, "sync"),  # not quite the same environment
        ("Acrobot-v1", {"max_episode_steps": 9}, "sync"),  # nobody compared it
        ("Pong-v5", {"episodic_life": True}, "envpool"),  # nobody else has it
    ],
)
def test_chosen_by_the_table(env, kwargs, chosen):
    with closing(make_stream(env, 2, env_kwargs=kwargs)) as stream:
        assert stream.backend == chosen


def test_without_envpool_the_next_backend_is_taken(monkeypatch):
    monkeypatch.setattr(envpool, "installed", lambda: False)
    envpool.ids.cache_clear()
    try:
        with closing(make_stream("Acrobot-v1", 2)) as stream:
            assert stream.backend == "sync"
        with pytest.raises(ArgumentError, match=r"cannot be made here: .*install 'upslope\[envp"):
            make_stream("Acrobot-v1", 2, backend="envpool")
        with pytest.raises(ArgumentError, match="EnvPool, which has more, is not installed"):
            make_stream("Pong-v5", 2)
    finally:
        envpool.ids.cache_clear()


@pytest.mark.parametrize("env", sorted(envpool.EQUAL))
def test_same_spaces_and_limit_as_gymnasium(env, tmp_path, monkeypatch):
    """So that an agent from one backend loads on the other; as text, as a checkpoint has them."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT
    try:
        reference = gymnasium.make(env)
    except gymnasium.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    with closing(reference), closing(make_stream(env, 2, backend="envpool")) as stream:
        assert str(stream.observation_space) == str(reference.observation_space)
        assert str(stream.action_space) == str(reference.action_space)
        assert stream._env._limit == reference.spec.max_episode_steps


def test_bounds_that_envpool_does_not_know_are_none():
    with closing(make_stream("BipedalWalkerHardcore-v3", 2, backend="envpool")) as stream:
        assert stream.observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (24,), np.float32)


def test_same_transitions_as_gymnasium():
    """From the same state, over ends: CartPole's observation is its state."""
    reference = gymnasium.make("CartPole-v1").unwrapped
    reference.reset(seed=0)
    with closing(make_stream("CartPole-v1", 4, backend="envpool")) as stream:
        steps = played(stream, 0, 60)
    for step in steps:
        for i, action in enumerate(step.action):
            reference.state = step.observation[i].astype(float)
            reference.steps_beyond_terminated = None
            observation, reward, terminated, _, _ = reference.step(int(action))
            np.testing.assert_allclose(step.next_observation[i], observation, atol=1e-6)
            assert (step.reward[i], step.terminated[i]) == (reward, terminated)
    assert sum(step.terminated.sum() for step in steps) >= 4


@pytest.mark.reference
@pytest.mark.parametrize("env", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Swimmer-v5"])
def test_same_transitions_as_gymnasium_in_mujoco(env, tmp_path, monkeypatch):
    """From a state read off the first observation; the place on the track has no influence."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT
    reference = gymnasium.make(env, disable_env_checker=True).unwrapped
    reference.reset(seed=0)
    with closing(make_stream(env, 1)) as stream:
        steps = played(stream, 0, 25)
    position = reference.model.nq
    places = np.zeros(position + reference.model.nv - steps[0].observation.shape[1])
    state = np.concatenate([places, steps[0].observation[0]])
    reference.set_state(state[:position], state[position:])
    for step in steps:
        observation, reward, terminated, _, _ = reference.step(step.action[0])
        np.testing.assert_allclose(step.next_observation[0], observation, atol=1e-8)
        assert step.reward[0] == pytest.approx(reward, abs=1e-6)
        assert step.terminated[0] == terminated
        if terminated:
            break
    assert len(places) == 1 + (env == "Swimmer-v5")


# ---------------------------------------------------------------- ends
@pytest.mark.parametrize(("env", "kwargs"), ENDS)
def test_the_last_observation_is_the_true_one(env, kwargs):
    """A stream with a later limit and the same seed and actions shows what would have come."""
    with (
        closing(make_stream(env, 3, backend="envpool", env_kwargs=kwargs)) as stream,
        closing(make_stream(env, 3, backend="envpool")) as longer,
    ):
        cut, whole = played(stream, 5, 20), played(longer, 5, 7)
    assert same(cut[:6], whole[:6])
    np.testing.assert_array_equal(cut[6].next_observation, whole[6].next_observation)
    assert cut[6].truncated.all()
    assert not cut[6].terminated.any()
    assert not whole[6].truncated.any()
    beginning = 7 if env == "Acrobot-v1" else 8  # EnvPool's reset is a row of its own
    assert [step.valid.all() for step in cut[7:9]] == [beginning == 7, True]
    assert not np.array_equal(cut[beginning].observation, whole[6].next_observation)
    ends = [t for t, step in enumerate(cut) if step.truncated.any()]
    assert ends == ([6, 13] if env == "Acrobot-v1" else [6, 14])


def test_a_death_in_the_last_step_of_the_limit_is_a_death():
    """EnvPool itself calls it truncated."""
    with closing(make_stream("CartPole-v1", 8, backend="envpool")) as stream:
        stream.reset(1)
        died, length = np.zeros(8, bool), 0
        while not died.any():
            died, length = stream.step(np.zeros(8, np.int64)).terminated, length + 1
    kwargs = {"max_episode_steps": length}
    with closing(make_stream("CartPole-v1", 8, backend="envpool", env_kwargs=kwargs)) as stream:
        stream.reset(1)
        for _ in range(length):
            step = stream.step(np.zeros(8, np.int64))
    np.testing.assert_array_equal(step.terminated, died)
    np.testing.assert_array_equal(step.truncated, ~died)
    assert 0 < died.sum() < 8


@pytest.mark.parametrize(("env", "kwargs"), ENDS)
def test_gae_is_that_of_a_double_loop_over_the_recorded_stream(env, kwargs, monkeypatch):
    collector, policy = collector_of(env, 3, 20, backend="envpool", env_kwargs=kwargs)
    steps: list[Step] = []
    step_of = collector.stream.step
    monkeypatch.setattr(
        collector.stream, "step", lambda *given: steps.append(step_of(*given)) or steps[-1]
    )
    rollout = collector.collect(policy, generator(SEED, "act", 0))
    evaluate_values(policy, rollout)
    collector.stream.close()
    gamma, gae_lambda = 0.9, 0.8
    ended = [torch.from_numpy(x) for x in (rollout.terminated, rollout.truncated)]
    reward = torch.as_tensor(rollout.reward)
    found = gae(
        reward, rollout.value, rollout.next_value, *ended, gamma=gamma, gae_lambda=gae_lambda
    )

    @torch.inference_mode()
    def value(observation):
        return float(policy.value(torch.from_numpy(observation)[None].float()))

    cuts = 0
    for i in range(3):
        for t in range(20):
            if not steps[t].valid[i]:
                continue
            expected, weight = 0.0, 1.0
            for step in steps[t:]:
                if not step.valid[i]:
                    break
                after = 0.0 if step.terminated[i] else value(step.next_observation[i])
                delta = step.reward[i] + gamma * after - value(step.observation[i])
                expected += weight * delta
                weight *= gamma * gae_lambda
                if step.terminated[i] or step.truncated[i]:
                    cuts += 1
                    break
            assert found[t, i].item() == pytest.approx(expected, abs=1e-4)
    assert cuts >= 3 * 12


# ---------------------------------------------------------------- seeds and replay
@pytest.mark.parametrize("env", ["Pendulum-v1", "Acrobot-v1", "HalfCheetah-v5", PONG])
def test_a_seed_gives_the_same_stream_again_with_any_number_of_threads(env):
    seen = []
    for threads in (1, 3):
        kwargs = {"num_threads": threads}
        with closing(make_stream(env, 3, backend="envpool", env_kwargs=kwargs)) as stream:
            assert stream.remakes
            seen += [played(stream, 11), played(stream, 11), played(stream, 12)]
    assert same(seen[0], seen[1])
    assert same(seen[0], seen[3])
    assert same(seen[2], seen[5])
    assert not same(seen[0], seen[2])
    rows = seen[0][-1].observation
    assert not np.array_equal(rows[0], rows[1])


def test_segments_have_different_beginnings():
    with closing(make_stream("Pendulum-v1", 2, **PENDULUM)) as stream:
        first = [stream.reset(derive32(0, "environment", k)) for k in range(4)]
        assert len(np.unique(np.concatenate(first), axis=0)) == 8
        assert not np.array_equal(stream.reset(None), stream.reset(None))
        stream.reset(2**31 - 1)  # the highest seed there is, and EnvPool adds to it
        assert stream._env._pool.pool.config["seed"] + stream.n_envs <= 2**31


def flat(tree: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], np.ndarray]:
    """What a result holds, by where: infos are nested."""
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in flat(part, (*path, name)).items()}
    if isinstance(tree, tuple):
        return flat({str(k): part for k, part in enumerate(tree)}, path)
    return {path: np.asarray(tree)}


@pytest.mark.parametrize("env", ["LunarLander-v3", "HalfCheetah-v5", PONG])
def test_a_pool_gives_what_envpools_own_python_gives(env):
    """Also in infos, at a time limit, and after a reset of some."""
    made = {"num_envs": 3, "seed": 7, "max_episode_steps": 5}
    own = envpool._envpool().make_gymnasium(env, **made)
    other = fast(envpool._envpool().make_gymnasium(env, **made))
    assert isinstance(other, Pool)
    ids, draws = np.arange(3, dtype=np.int32), np.random.default_rng(0)
    (name, spec) = list(own.spec.action_array_spec.items())[-1]
    results = [(own.reset(), other.reset(ids))]
    for t in range(12):
        shape = (3, *spec.shape[1:])
        values = draws.integers(0, 2, shape) if spec.dtype == np.int32 else draws.random(shape)
        actions = {"env_id": ids, "players.env_id": ids, name: values.astype(spec.dtype)}
        results.append((own.step(actions), other.step(actions)))
        if t == 6:
            results.append((own.reset(ids[1:2]), other.reset(ids[1:2])))
    for one, two in results:
        seen, wanted = flat(two), flat(one)
        assert seen.keys() == wanted.keys()
        assert all(np.array_equal(seen[k], wanted[k]) for k in wanted)
        assert all(seen[k].dtype == wanted[k].dtype for k in wanted)
    wrong = {"env_id": ids, "players.env_id": ids, name: np.zeros((3, 5, 5), spec.dtype)}
    with pytest.raises(RuntimeError, match="Expected shape"):
        fast(envpool._envpool().make_gymnasium(env, num_envs=3)).send(wrong)


def test_a_pool_of_another_make_is_taken_as_it_is():
    assert fast(other := object()) is other


@pytest.mark.parametrize("env", ["Pendulum-v1", "HalfCheetah-v5"])
def test_saved_and_resumed_ends_in_the_same_weights(env, tmp_path: Path):
    """In the middle of a segment, whose actions are replayed."""

    def agent() -> us.PPO:
        settings = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 4}
        return us.PPO(
            env, backend="envpool", segment_length=96, normalize_observation=True, **settings
        )

    whole = agent().learn(8 * 64)
    half = agent().learn(5 * 64)
    assert half.collector.replays
    half.save(tmp_path / "half")
    resumed = us.PPO.load(tmp_path / "half", env=env)
    assert resumed.stream.backend == "envpool"
    resumed.learn(3 * 64, reset_num_timesteps=False)
    expected, found = whole.policy.state_dict(), resumed.policy.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(expected[n], half.policy.state_dict()[n]) for n in expected)
    assert (resumed.collector.segment, whole.collector.segment) == (2, 2)


# ---------------------------------------------------------------- Atari
@pytest.mark.slow
def test_atari_is_what_a_network_for_images_takes():
    with closing(make_stream("Pong-v5", 2)) as stream:
        first = stream.reset(0)
        steps = [stream.step([0, 0]) for _ in range(60)]
    assert stream.observation_space == gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert stream.action_space == gymnasium.spaces.Discrete(6)
    assert (first.shape, first.dtype) == ((2, 4, 84, 84), np.uint8)
    last = steps[-1].next_observation
    assert not np.array_equal(last[0], last[1]), "up to 30 no-ops at the start, by chance"
    np.testing.assert_array_equal(steps[0].next_observation[:, :3], first[:, 1:])
    assert {float(r) for step in steps for r in step.reward} <= {-1.0, 0.0, 1.0}


def test_a_lost_life_ends_an_episode_and_not_the_game():
    kwargs = us.recipes.find("ppo", "Breakout-v5").env_kwargs
    with closing(make_stream("Breakout-v5", 1, env_kwargs=kwargs)) as stream:
        stream.reset(0)
        steps = [stream.step([0]) for _ in range(130)]
    lives = [int(step.info["lives"][0]) for step in steps if step.terminated[0]]
    assert lives == [4, 3, 2, 1, 0]


# ---------------------------------------------------------------- what is refused, what is left
@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        ("Pendulm-v1", {}, r"not an environment that EnvPool knows \(did you mean 'Pendulum-v1'"),
        ("Pendulum-v1", {"max_step": 3}, r"'max_step', which EnvPool's Pendulum-v1 does not take"),
        ("Pendulum-v1", {"seed": 3}, "'seed', which EnvPool's Pendulum-v1 does not take"),
        ("Pendulum-v1", {"num_threads": 0}, "num_threads=0, which takes at least 1"),
        ("Pendulum-v1", {"num_threads": 1.5}, "num_threads=1.5, where .* takes int"),
        ("Pendulum-v1", {"max_episode_steps": True}, "max_episode_steps=True, where .* takes int"),
        ("Pong-v5", {"task": "pon"}, "'task', which EnvPool's Pong-v5 does not take"),
        ("Pong-v5", {"img_height": -3}, "is not what EnvPool's Pong-v5 takes: negative dimen"),
    ],
)
def test_what_envpool_does_not_take(env, kwargs, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        make_stream(env, 2, backend="envpool", env_kwargs=kwargs)
    assert "\n" not in str(caught.value)


def test_other_refusals():
    with pytest.raises(ArgumentError, match="'Pong-v5' is EnvPool's, and takes backend='envpool'"):
        make_stream("Pong-v5", 2, backend="sync")
    with pytest.raises(ArgumentError, match="backend='envpool' is for an id, and env is a factory"):
        make_stream(lambda: gymnasium.make("CartPole-v1"), 2, backend="envpool")


def test_keyword_arguments_reach_the_environment():
    def first(kwargs):
        with closing(make_stream("HalfCheetah-v5", 1, backend="envpool", env_kwargs=kwargs)) as s:
            return played(s, 0, 1)[0].reward

    assert first({}) - first({"ctrl_cost_weight": 1}) > 0.1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_is_left():
    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    before = threads()  # of which those of other tests may end meanwhile

    def begun() -> int:
        return len(threads() - before)

    stream = make_stream("Pendulum-v1", 4, backend="envpool", env_kwargs={"num_threads": 4})
    assert begun() == 0
    for seed in range(3):
        stream.reset(seed)
        stream.step(np.zeros((4, 1), np.float32))
        assert begun() >= 4
    assert begun() < 8, "the threads of an earlier pool are left"
    stream.close()
    assert begun() == 0
