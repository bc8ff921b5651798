"""What every agent has: how it is made, learns, predicts, is saved and goes on."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

import upslope as us
from tests.agents.probes import ActionDecides, Both, ConstantReward, ReachHalf
from tests.rollout.chain import Chain
from upslope import recipes
from upslope.agents.evaluation import Best
from upslope.errors import ArgumentError, CheckpointError, ConfigError

SMALL: dict[str, Any] = {"n_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 2}


def weights(agent: Any) -> torch.Tensor:
    return agent.engine.flat.value.clone()


def frozen(agent: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The agent's state as a checkpoint would give it back: tensors, of their own."""
    tensors, meta = agent.state()
    return {name: torch.as_tensor(x).detach().clone() for name, x in tensors.items()}, meta


class Spaces(gymnasium.Env):
    """Episodes of 5 steps over any spaces; refuses an action that is not of its space."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert np.asarray(action).shape == self.action_space.shape
        assert self.action_space.contains(self.action_space.dtype.type(action))
        self.left -= 1
        return self.observation_space.sample(), 1.0, self.left == 0, False, {}


BOX = spaces.Box(-1, 1, (3,), np.float32)


def of_spaces(observation: spaces.Space = BOX, action: spaces.Space | None = None) -> Any:
    return lambda: Spaces(observation, spaces.Discrete(2) if action is None else action)


# ---- how it is made ------------------------------------------------------------------------------
def test_the_policy_first_as_elsewhere_is_answered_with_the_right_call():
    wanted = r'us\.PPO\(env, policy="mlp"\), or just us\.PPO\(env\)'
    for arguments in (("MlpPolicy", "CartPole-v1"), ("MlpPolicy",), ("CartPole-v1", "mlp")):
        with pytest.raises(ArgumentError, match=wanted):
            us.PPO(*arguments)


def test_an_unknown_environment_is_refused_with_a_suggestion():
    with pytest.raises(ArgumentError, match=r"CartPole-v2.*CartPole-v"):
        us.PPO("CartPole-v2")
    with pytest.raises(ArgumentError, match=r"env takes .* got int"):
        us.PPO(3)


def test_a_misspelt_setting_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"PPO has no setting 'learning_rte' .*'learning_rate'"):
        us.PPO("CartPole-v1", learning_rte=1e-3)
    with pytest.raises(ConfigError, match=r"gamma=1.5: gamma takes a number from 0 to 1"):
        us.PPO("CartPole-v1", gamma=1.5)


def test_a_number_of_environments_that_is_not_there_is_refused():
    env = SyncVectorEnv([ConstantReward] * 3)
    with pytest.raises(ArgumentError, match=r"n_envs=8, but the environment given has 3"):
        us.PPO(env, n_envs=8)
    with pytest.raises(ArgumentError, match=r"n_envs=8, but the environment given has 1"):
        us.PPO(ConstantReward(), n_envs=8)
    assert us.PPO(env).config.n_envs == 3
    assert us.PPO(env, n_envs=3).config.n_envs == 3


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Box(0, 5, (2,), np.int64),
    ],
    ids=str,
)
def test_action_spaces_that_are_not_supported_are_refused(space):
    with pytest.raises(ArgumentError, match=r"action space.* is not supported"):
        us.PPO(of_spaces(action=space))


def test_observation_spaces_that_are_not_supported_are_refused():
    with pytest.raises(ArgumentError, match=r"observation space\['b'\] Graph.* is not supported"):
        us.PPO(of_spaces(spaces.Dict(a=BOX, b=spaces.Graph(BOX, None))))


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Box(-1, 1, (), np.float32), spaces.Discrete(3, start=-1)),
        (spaces.Box(0, 255, (4, 4, 1), np.uint8), spaces.Discrete(2)),
        (spaces.Box(-1, 1, (2, 2), np.float64), spaces.Box(-1, 1, (2, 3), np.float64)),
        (BOX, spaces.Box(np.array([0, -3], np.float32), np.array([1, -2], np.float32))),
    ],
    ids=str,
)
def test_spaces_that_are_supported(observation, action, tmp_path):
    factory = of_spaces(observation, action)
    agent = us.PPO(factory, **SMALL).learn(128)
    assert weights(agent).isfinite().all()
    assert agent.num_timesteps == 128
    found, _ = agent.predict(observation.sample())
    assert action.contains(found) or action.contains(np.int64(found))
    batch, _ = agent.predict(np.stack([observation.sample() for _ in range(6)]))
    assert batch.shape == (6, *action.shape)
    agent.save(tmp_path / "agent")
    other = us.PPO.load(tmp_path / "agent", env=factory)
    assert torch.equal(weights(other), weights(agent))


KINDS = {
    "id": lambda: "CartPole-v1",
    "factory": lambda: Both,
    "one environment": Both,
    **{
        f"vector environment, {mode.value}": lambda mode=mode: SyncVectorEnv(
            [Both] * 4, autoreset_mode=mode
        )
        for mode in AutoresetMode
    },
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_it_can_be_made_on(kind):
    env = kind()
    agent = us.PPO(env, n_steps=16, n_epochs=1)
    n_envs = {"Both": 1, "SyncVectorEnv": 4}.get(type(env).__name__, 8)
    assert agent.stream.n_envs == agent.config.n_envs == n_envs
    before = weights(agent)
    assert agent.learn(3 * 16 * n_envs) is agent
    assert agent.num_timesteps >= 3 * 16 * n_envs
    assert not torch.equal(weights(agent), before)


def test_environments_are_made_with_env_kwargs():
    agent = us.PPO(Chain, env_kwargs={"limit": 2}, **SMALL).learn(64)
    assert agent.collector.episodes.summary()["episode_length"] == 2
    agent = us.PPO("CartPole-v1", env_kwargs={"max_episode_steps": 3}, **SMALL).learn(64)
    assert agent.collector.episodes.summary()["episode_length"] == 3


class Own(nn.Module):
    """A module of a user's own, with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.pi, self.v = nn.Linear(1, 8), nn.Linear(8, 2), nn.Linear(8, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, observation):
        if self.training and not torch.is_inference_mode_enabled():
            self.seen += 1
        features = torch.tanh(self.trunk(observation))
        return self.pi(features), self.v(features).squeeze(-1)


def test_a_policy_of_ones_own(tmp_path):
    torch.manual_seed(0)
    network = Own()
    settings = {"n_envs": 16, "n_steps": 8, "batch_size": 64, "learning_rate": 2e-2}
    agent = us.PPO(Both, policy=network, **settings).learn(3_000)
    assert agent.policy.network is network
    assert us.evaluate_policy(agent, Both, 50) == (1, 0)
    agent.save(tmp_path / "own")
    with pytest.raises(ArgumentError, match="with a module of your own: give policy="):
        us.load(tmp_path / "own", env=Both)
    other = us.load(tmp_path / "own", env=Both, policy=Own())
    assert torch.equal(weights(other), weights(agent))
    assert other.policy.network.seen == network.seen > 0


# ---- learning ------------------------------------------------------------------------------------
def test_learn_counts_steps_and_iterations():
    agent = us.PPO(ConstantReward, **SMALL)
    rows: list[dict[str, float]] = []
    agent.learn(100, lambda _, row: rows.append(row))
    assert (agent.num_timesteps, agent.iteration, len(rows)) == (128, 2, 2)
    agent.learn(1, reset_num_timesteps=False)
    assert (agent.num_timesteps, agent.iteration) == (192, 3)
    agent.learn(1)
    assert (agent.num_timesteps, agent.iteration) == (64, 4)
    expected = {"episodes", "episode_return", "episode_length", "policy_loss", "value_loss"}
    expected |= {"entropy", "approx_kl", "clip_fraction", "gradient_norm", "learning_rate"}
    expected |= {"epochs", "explained_variance", "signal_to_noise"}
    assert rows[-1].keys() == expected
    assert all(isinstance(x, float | int) for x in rows[-1].values())


@pytest.mark.parametrize("steps", [0, -1, 1.5, "100", None])
def test_no_steps_are_refused(steps):
    with pytest.raises(ArgumentError, match=r"total_timesteps=.* whole number of at least 1"):
        us.PPO(ConstantReward).learn(steps)


@pytest.mark.parametrize("no", [False, np.False_])
def test_a_callback_that_returns_false_stops(no):
    agent = us.PPO(ConstantReward, **SMALL)
    seen: list[int] = []

    def callback(given, row):
        assert given is agent
        seen.append(given.num_timesteps)
        return len(seen) < 3 or no

    agent.learn(10_000, callback)
    assert seen == [64, 128, 192]
    agent.go_on(lambda *_: len(seen.append(0) or seen) < 5)  # None and True go on
    assert (agent.num_timesteps, agent.target_timesteps) == (320, 10_000)
    agent.learn(64, lambda *_: None)
    assert agent.num_timesteps == 64


# ---- evaluation while learning -------------------------------------------------------------------
def test_evaluations_come_as_often_as_asked():
    rows: list[dict[str, float]] = []
    us.PPO(ActionDecides, **SMALL).learn(
        640, lambda _, row: rows.append(row), eval_freq=160, n_eval_episodes=4
    )
    assert [k for k, row in enumerate(rows, 1) if "eval_return" in row] == [3, 5, 8, 10]
    assert all(row["eval_return"] in (-1, 1) for row in rows if "eval_return" in row)


def test_the_best_policy_is_kept_and_comes_back(monkeypatch, tmp_path):
    """Also what its observations were scaled by, which is a part of it, and over a save."""
    scores, at = [1.0, 3.0, 2.0], []

    def scripted(agent, *args, **kwargs):
        scale = agent.collector.observation_normalizer.state_dict()
        at.append((weights(agent), scale, agent.num_timesteps))
        return scores[len(at) - 1], 0.0

    monkeypatch.setattr("upslope.agents.agent.evaluate_policy", scripted)
    agent = us.PPO(Both, normalize_observation=True, **SMALL)
    with pytest.raises(ArgumentError, match=r"no best policy yet: learn with eval_freq="):
        agent.restore_best()
    agent.learn(192, eval_freq=64)
    assert len(at) == 3
    assert (agent.best.mean, agent.best.timesteps) == (3, 128)
    agent.save(tmp_path / "agent")
    for one in (us.load(tmp_path / "agent", env=Both), agent):
        assert not torch.equal(weights(one), at[1][0])
        assert one.restore_best() is one
        assert torch.equal(weights(one), at[1][0])
        scale = one.collector.observation_normalizer.state_dict()
        assert all(np.array_equal(scale[name], x) for name, x in at[1][1].items())
    assert at[1][1]["count"] < at[2][1]["count"]


def test_of_equal_evaluations_the_later_is_kept(monkeypatch):
    monkeypatch.setattr("upslope.agents.agent.evaluate_policy", lambda *_, **__: (1.0, 0.0))
    agent = us.PPO(Both, **SMALL).learn(192, eval_freq=64)
    assert agent.best.timesteps == 192


def test_evaluation_has_its_own_environments_and_seeds(monkeypatch):
    calls: list[dict[str, Any]] = []

    def noting(agent, env, **kwargs):
        calls.append({"env": env, **kwargs})
        return 0.0, 0.0

    monkeypatch.setattr("upslope.agents.agent.evaluate_policy", noting)
    agent = us.PPO(Chain, env_kwargs={"limit": 3}, **SMALL)
    agent.learn(128, eval_freq=64, n_eval_episodes=7)
    agent.learn(64, eval_freq=64, eval_env_kwargs={"limit": 9})
    agent.learn(64, eval_freq=64, eval_env="CartPole-v1")
    assert [call["env"] for call in calls] == [Chain] * 3 + ["CartPole-v1"]
    made_with = [call["env_kwargs"] for call in calls]
    assert made_with == [{"limit": 3}, {"limit": 3}, {"limit": 9}, None]
    assert calls[0]["n_eval_episodes"] == 7
    assert calls[0]["seed"] != calls[1]["seed"]


def test_evaluation_that_cannot_be_is_refused_before_anything_is_learned():
    agent = us.PPO(SyncVectorEnv([Both] * 2), n_steps=8)
    with pytest.raises(ArgumentError, match="eval_freq needs eval_env="):
        agent.learn(64, eval_freq=1000)
    with pytest.raises(ArgumentError, match=r"eval_freq=0: .* at least 1"):
        agent.learn(64, eval_freq=0)
    assert agent.iteration == 0
    agent.learn(64, eval_freq=32, eval_env=Both)
    assert agent.best.tensors is not None


# ---- predict -------------------------------------------------------------------------------------
def test_predict_takes_one_observation_or_a_batch():
    agent = us.PPO("CartPole-v1", **SMALL)
    batch = np.random.default_rng(0).normal(size=(9, 4))
    actions, state = agent.predict(batch)
    assert (actions.shape, actions.dtype, state) == ((9,), np.int64, None)
    one, _ = agent.predict(batch[3].tolist())
    assert one.shape == ()
    assert one == actions[3]
    assert agent.predict(np.zeros((0, 4)))[0].shape == (0,)
    with torch.no_grad():
        expected = agent.policy.distribution(torch.tensor(batch, dtype=torch.float32)).mode()
    assert actions.tolist() == expected.tolist()


def test_predict_clips_and_shapes():
    agent = us.PPO("Pendulum-v1", **SMALL)
    with torch.no_grad():
        agent.policy.actor[-1].bias.fill_(100)
    action, _ = agent.predict(np.zeros(3, np.float32))
    assert (action.tolist(), action.dtype) == ([2.0], np.float32)


def test_predict_does_not_mind_how_an_array_lies_in_memory():
    agent = us.PPO("CartPole-v1", **SMALL)
    batch = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected = agent.predict(batch)[0].tolist()
    frozen = batch.copy()
    frozen.flags.writeable = False
    assert agent.predict(frozen)[0].tolist() == expected
    assert agent.predict(batch[::-1])[0].tolist() == expected[::-1]
    assert agent.predict(np.asfortranarray(batch))[0].tolist() == expected
    assert agent.predict(torch.from_numpy(batch))[0].tolist() == expected


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 2, 4), ()])
def test_predict_refuses_another_shape(shape):
    agent = us.PPO("CartPole-v1", **SMALL)
    with pytest.raises(ArgumentError, match=r"observation has shape .*; predict takes \(4,\) or"):
        agent.predict(np.zeros(shape))


def test_predict_refuses_what_it_cannot_use():
    agent = us.PPO("CartPole-v1", **SMALL)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ArgumentError, match="predict takes finite numbers"):
            agent.predict(np.full(4, wrong))
    with pytest.raises(ArgumentError, match="state=tuple: this policy has no memory"):
        agent.predict(np.zeros(4), state=(1,))
    with pytest.raises(
        ArgumentError, match=r"action_masks: .* shape \(1, 3\), which takes \(1, 2\)"
    ):
        agent.predict(np.zeros(4), action_masks=np.ones(3, bool))
    with pytest.raises(ArgumentError, match="action_masks: no action is legal in row 0"):
        agent.predict(np.zeros(4), action_masks=np.zeros(2, bool))


def test_random_predictions_are_reproducible_and_random():
    observation = np.zeros((200, 4), np.float32)

    def drawn(seed: int) -> list[list[int]]:
        agent = us.PPO("CartPole-v1", seed=seed, **SMALL)
        return [agent.predict(observation, deterministic=False)[0].tolist() for _ in range(2)]

    first = drawn(0)
    torch.manual_seed(9)
    assert drawn(0) == first
    assert drawn(1) != first
    assert first[0] != first[1]
    assert 0.3 < np.mean(first) < 0.7  # the first policy is nearly uniform


def test_predict_scales_observations_as_in_training():
    agent = us.PPO(Both, normalize_observation=True, **SMALL).learn(640)
    observation = np.array([[1.0], [-1.0]], np.float32)
    with torch.no_grad():
        rows = torch.from_numpy(agent.collector.observation_normalizer(observation))
        expected = agent.policy.distribution(rows).mode()
    before = agent.collector.observation_normalizer.state_dict()
    assert agent.predict(observation)[0].tolist() == expected.tolist()
    after = agent.collector.observation_normalizer.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


# ---- saving, loading, going on -------------------------------------------------------------------
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "vector entry point": ("CartPole-v1", {}),
    "not the preferred backend": ("CartPole-v1", {"backend": "sync"}),
    "continuous, normalised": (
        "Pendulum-v1",
        {"normalize_observation": True, "normalize_reward": True},
    ),
    "segments end in between": ("CartPole-v1", {"segment_length": 48}),
    "saves its own state": ("upslope/FlappyBird-v0", {"env_kwargs": {"score_limit": 3}}),
    "schedules": ("CartPole-v1", {"learning_rate": "linear(1e-2)", "clip_range": "linear(0.3)"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("env", "settings"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("before", [0, 1, 3, 4])
def test_learning_goes_on_after_loading_as_if_nothing_had_been(env, settings, before, tmp_path):
    """Bit for bit, wherever it was saved: after `before` iterations of 6."""
    agent = us.PPO(env, seed=2, **SMALL, **settings)
    agent.target_timesteps = 6 * 64
    for _ in range(before):
        agent.iterate()
    agent.save(tmp_path / "agent")
    other = us.load(tmp_path / "agent")
    assert type(other) is us.PPO
    assert other.config == agent.config
    assert torch.equal(weights(other), weights(agent))
    for _ in range(before, 6):
        mine, its = agent.iterate(), other.iterate()
        assert str(its) == str(mine)  # nan counts as equal
    assert torch.equal(weights(other), weights(agent))
    assert torch.equal(other.engine.flat.second_moment, agent.engine.flat.second_moment)
    (tensors, meta), (others, other_meta) = frozen(agent), frozen(other)
    assert other_meta == meta
    assert others.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_learn_after_load():
    """By the public names only; a `learn` that was stopped is gone on with by `go_on`."""
    agent = us.PPO(Both, **SMALL)
    agent.learn(640, lambda a, _: a.num_timesteps < 256)
    tensors, meta = frozen(agent)
    other = us.PPO.from_state(tensors, meta, Both)
    assert (other.num_timesteps, other.target_timesteps) == (256, 640)
    assert torch.equal(weights(other.go_on()), weights(agent.go_on()))
    assert other.num_timesteps == 640
    first = agent.learn(128, reset_num_timesteps=False)
    second = other.learn(128, reset_num_timesteps=False)
    assert torch.equal(weights(first), weights(second))
    assert first.num_timesteps == 768


def test_loading_on_environments_that_were_given(tmp_path):
    def made() -> SyncVectorEnv:
        return SyncVectorEnv([Both] * 4)

    us.PPO(made(), n_steps=8).learn(64).save(tmp_path / "agent")
    with pytest.raises(ArgumentError, match=r"environments without an id: give env="):
        us.load(tmp_path / "agent")
    agent = us.load(tmp_path / "agent", env=made())
    agent.learn(64, reset_num_timesteps=False)
    assert agent.num_timesteps >= 128


def test_a_factory_is_called_again_with_its_env_kwargs(tmp_path):
    agent = us.PPO(Chain, env_kwargs={"limit": 3}, **SMALL).learn(64)
    agent.save(tmp_path / "agent")
    other = us.load(tmp_path / "agent", env=Chain)
    other.learn(64)
    assert other.collector.episodes.summary()["episode_length"] == 3


def test_saving_again_replaces(tmp_path):
    agent = us.PPO(Both, **SMALL).learn(64)
    agent.save(tmp_path / "agent")
    agent.learn(64)
    path = agent.save(tmp_path / "agent")
    assert torch.equal(weights(us.load(path, env=Both)), weights(agent))


def test_another_agents_file_is_refused(tmp_path):
    agent = us.PPO(Both, **SMALL)
    agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="does not fit this PPO"):
        us.load(tmp_path / "agent", env=ReachHalf)
    tensors, meta = agent.state()
    with pytest.raises(CheckpointError, match="holds an agent of DQN, not of PPO"):
        us.PPO.from_state(tensors, meta | {"algorithm": "DQN"}, Both)
    with pytest.raises(CheckpointError, match="no-agent"):
        us.load(tmp_path / "no-agent")


def test_a_refused_state_changes_nothing():
    agent = us.PPO(Both, normalize_observation=True, **SMALL).learn(128)
    good, meta = frozen(us.PPO(Both, normalize_observation=True, **SMALL).learn(192))
    before = weights(agent), agent.iteration, agent.collector.state()[1]
    for name in good:
        bad = {key: x for key, x in good.items() if key != name}
        with pytest.raises(CheckpointError, match="1 difference"):
            agent.load_state(bad, meta)
    assert torch.equal(weights(agent), before[0])
    assert (agent.iteration, agent.collector.state()[1]) == before[1:]
    agent.load_state(good, meta)
    assert agent.iteration == 3
    assert isinstance(agent.best, Best)


def test_from_recipe():
    agent = us.PPO.from_recipe("upslope/FlappyBird-v0", n_envs=8, env_kwargs={"score_limit": 2})
    told = recipes.find("PPO", "upslope/FlappyBird-v0").settings
    assert (agent.config.n_envs, agent.config.n_steps) == (8, told["n_steps"])
    assert agent.config.gamma == told["gamma"] != us.PPO("CartPole-v1").config.gamma
    assert agent.env_kwargs == {"score_limit": 2}
    with pytest.raises(ConfigError, match="no PPO recipe for 'NoSuch-v0'"):
        us.PPO.from_recipe("NoSuch-v0")
