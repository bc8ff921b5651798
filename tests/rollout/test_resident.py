"""Environments of tensors: what is learned from them is what is learned from arrays, to the bit."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import upslope as us
from upslope.errors import ArgumentError, EnvironmentFault
from upslope.rollout.make import make_stream
from upslope.rollout.resident import ResidentCollector, ResidentStream, device_of

N = 6


class Tensors(VectorEnv):
    """A vector environment of arrays, as one of tensors."""

    def __init__(self, env: VectorEnv, device: torch.device | str = "cpu") -> None:
        self.env, self.device, self.num_envs = env, device, env.num_envs
        self.metadata = env.metadata
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.taken: list[torch.Tensor] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        observation, info = self.env.reset(seed=seed, options=options)
        return torch.tensor(observation, device=self.device), self.masks(info)

    def masks(self, info: dict[str, Any]) -> dict[str, Any]:
        told = info.get("action_mask")
        return {} if told is None else {"action_mask": torch.tensor(told, device=self.device)}

    def step(self, actions):
        assert isinstance(actions, torch.Tensor)
        self.taken.append(actions)
        observation, *signals, info = self.env.step(actions.cpu().numpy())
        found = [torch.tensor(each, device=self.device) for each in (observation, *signals)]
        told = self.masks(info)
        if "final_obs" in info:
            final = observation.copy()
            for row in np.flatnonzero(info["_final_obs"]):
                final[row] = info["final_obs"][row]
            told["final_obs"] = torch.tensor(final, device=self.device)
        return *found, told


class Walk(gymnasium.Env):
    """A walk on a line, by a Box or a MultiDiscrete action; cut after 9 steps, over beyond 2."""

    observation_space = spaces.Box(-10, 10, (2, 1), np.float32)

    def __init__(self, box: bool = True) -> None:
        self.box = box
        self.action_space = (
            spaces.Box(-0.5, 0.5, (1, 2)) if box else spaces.MultiDiscrete([2, 3], start=[1, -1])
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 1, (2, 1)), 0
        return self.place.astype(np.float32), {}

    def step(self, action):
        move = np.reshape(action, (2, 1)) if self.box else (np.reshape(action, (2, 1)) - 0.5) / 2
        self.place, self.steps = self.place + move, self.steps + 1
        over = bool(np.abs(self.place).max() > 2)
        seen = self.place.astype(np.float32)
        return seen, float(self.place.sum()), over, self.steps >= 9, {}


class Masked(Walk):
    """The walk by a MultiDiscrete action, of which some are not legal, and an error."""

    def __init__(self, strict: bool = True) -> None:
        super().__init__(box=False)
        self.strict = strict

    def mask(self) -> dict[str, Any]:
        self.legal = self.np_random.random(5) < 0.5
        self.legal[self.np_random.integers(2)] = self.legal[2 + self.np_random.integers(3)] = True
        return {"action_mask": self.legal.astype(np.int8)}

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, self.mask()

    def step(self, action):
        first, second = np.asarray(action) - [1, -1]
        if self.strict and not (self.legal[first] and self.legal[2 + second]):
            raise AssertionError("an action that is not legal")
        return *super().step(action)[:4], self.mask()


def cartpoles() -> VectorEnv:
    return gymnasium.make_vec("CartPole-v1", N, vectorization_mode="vector_entry_point")


def walks(mode: AutoresetMode, box: bool = True) -> VectorEnv:
    return SyncVectorEnv([lambda: Walk(box)] * N, autoreset_mode=mode)


class Careless(gymnasium.vector.VectorWrapper):
    """Pays, and says that an episode is over, in steps that only reset."""

    over = np.zeros(N, bool)

    def step(self, actions):
        observation, reward, terminated, truncated, info = self.env.step(actions)
        resets, self.over = self.over, terminated | truncated
        return observation, np.where(resets, 7.0, reward), terminated | resets, truncated, info


ENVIRONMENTS = {
    "careless": lambda: Careless(walks(AutoresetMode.NEXT_STEP)),
    "cartpole": cartpoles,
    "next step": lambda: walks(AutoresetMode.NEXT_STEP),
    "same step": lambda: walks(AutoresetMode.SAME_STEP),
    "multi": lambda: walks(AutoresetMode.SAME_STEP, box=False),
    "masked": lambda: SyncVectorEnv([Masked] * N, autoreset_mode=AutoresetMode.SAME_STEP),
    "masked, next step": lambda: SyncVectorEnv(
        [Masked] * N, autoreset_mode=AutoresetMode.NEXT_STEP
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("agent", [us.PPO, us.ActorCritic])
@pytest.mark.parametrize("engine", ["torch", "native"])
def test_learning_is_that_from_arrays(name, agent, engine):
    def learned(env: VectorEnv):
        seen: list[dict[str, float]] = []
        settings = {"n_steps": 16, "engine": engine, "seed": 5}
        if name == "next step" and engine == "torch":
            settings |= {"policy_kwargs": {"scale": "exploration"}}
        found = agent(env, **settings).learn(16 * N * 6, lambda _, metrics: seen.append(metrics))
        return found, seen

    arrays, expected = learned(ENVIRONMENTS[name]())
    tensors, metrics = learned(Tensors(ENVIRONMENTS[name]()))
    assert isinstance(tensors.collector, ResidentCollector)
    assert torch.equal(tensors.engine.flat.value, arrays.engine.flat.value)
    assert tensors.num_timesteps == arrays.num_timesteps
    np.testing.assert_equal(metrics, expected)
    assert tensors.collector.episodes.ended > 0
    assert tensors.collector.episodes.recent[-1][:2] == arrays.collector.episodes.recent[-1][:2]


def test_observations_and_actions_are_kept_as_tensors():
    env = Tensors(walks(AutoresetMode.SAME_STEP))
    agent = us.PPO(env, n_steps=8).learn(8 * N)
    rollout = agent.collector.rollout
    for kept in (rollout.observation, rollout.action, rollout.last_observation):
        assert isinstance(kept, torch.Tensor)
    assert rollout.flat(agent.device).observation.data_ptr() == rollout.observation.data_ptr()
    assert [action.shape for action in env.taken] == [(N, 1, 2)] * 8
    assert all(action.abs().max() <= 0.5 for action in env.taken)  # what was drawn reaches further
    assert rollout.action.abs().max() > 0.5


def test_squashed_actions_are_sent_as_evaluation_sends_them():
    env = Tensors(walks(AutoresetMode.SAME_STEP))
    agent = us.PPO(env, n_steps=8, policy_kwargs={"squash": True}).learn(8 * N)
    drawn = agent.collector.rollout.action
    assert drawn.abs().max() > 1  # where tanh matters, and bounds would clip
    for sent, action in zip(env.taken, drawn, strict=True):
        np.testing.assert_allclose(sent, agent.policy.head.to_environment(action.numpy()), 1e-5)


def test_evaluation_prediction_and_saving(tmp_path):
    agent = us.PPO(Tensors(cartpoles()), n_steps=32, seed=1).learn(32 * N * 4)
    expected = us.evaluate_policy(agent, cartpoles(), 10, seed=3)
    assert us.evaluate_policy(agent, Tensors(cartpoles()), 10, seed=3) == expected
    action, _ = agent.predict(np.zeros((2, 4), np.float32))
    assert action.shape == (2,)
    agent.save(tmp_path / "agent")
    loaded = us.PPO.load(tmp_path / "agent", Tensors(cartpoles()))
    assert torch.equal(loaded.engine.flat.value, agent.engine.flat.value)
    loaded.learn(32 * N, reset_num_timesteps=False)
    assert loaded.num_timesteps >= agent.num_timesteps + 32 * N


def test_what_is_taken_for_one():
    assert device_of(cartpoles()) is None
    assert device_of(Tensors(cartpoles())) == torch.device("cpu")
    assert isinstance(make_stream(Tensors(cartpoles())), ResidentStream)
    assert device_of(Tensors(cartpoles(), "gpu")) is None  # no name of torch's
    single = gymnasium.make("CartPole-v1")
    single.unwrapped.device = "cpu"
    assert device_of(single) is None


class Wrong(Tensors):
    """Returns something else in its third step."""

    def __init__(self, wrong) -> None:
        super().__init__(cartpoles())
        self.wrong = wrong

    def step(self, actions):
        answer = list(super().step(actions))
        if len(self.taken) == 3:
            self.wrong(answer)
        return tuple(answer)


def put(place, value):
    def change(answer) -> None:
        answer[place] = value(answer[place])

    return change


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed[4] = torch.nan
    return changed


FAULTS = {
    "an array": (put(0, lambda x: x.numpy()), "returned observation as .*ndarray.*, not a tensor"),
    "a shape": (put(1, lambda x: x[:, None]), r"returned reward as \(6, 1\) on cpu, not a tensor"),
    "a device": (put(2, lambda x: x.to("meta")), "returned terminated as .* on meta, not a tensor"),
    "a number": (put(0, with_nan), "environment 4 returned a number as observation that is not fi"),
    "a reward": (put(1, with_nan), "environment 4 returned a number as reward .* in row 2 of a"),
}


def put_info(**changed):
    def change(answer) -> None:
        answer[4].update(changed)

    return change


class WrongWalk(Wrong):
    """Returns something else in its ninth step, when all episodes are cut."""

    def __init__(self, wrong, env: VectorEnv) -> None:
        super().__init__(wrong)
        Tensors.__init__(self, env)

    def step(self, actions):
        answer = list(Tensors.step(self, actions))
        if len(self.taken) == 9:
            self.wrong(answer)
        return tuple(answer)


WALKS = {
    "no final observation": (
        lambda answer: answer[4].pop("final_obs"),
        r"environment \d returned no info\['final_obs'\] at the end of an episode",
    ),
    "a final observation of another shape": (
        put_info(final_obs=torch.zeros(N, 2)),
        r"returned final_obs as \(6, 2\) on cpu, not a tensor \(6, 2, 1\) on cpu",
    ),
    "no mask": (
        lambda answer: answer[4].pop("action_mask"),
        r"returned info\['action_mask'\] as .*NoneType.*, not a tensor \(6, 5\) on cpu",
    ),
    "no legal action": (
        put_info(action_mask=torch.tensor([[True] * 5] * 4 + [[True, True] + [False] * 3] * 2)),
        "environment 4 returned no legal action, in row 9 of a rollout",
    ),
}


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("name", WALKS)
def test_what_environments_may_not_say(name, engine):
    wrong, message = WALKS[name]
    masked = "mask" in name or "legal" in name
    env = (
        SyncVectorEnv([lambda: Masked(strict=False)] * N)
        if masked
        else walks(AutoresetMode.SAME_STEP)
    )
    agent = us.PPO(WrongWalk(wrong, env), n_steps=16, engine=engine)
    before = agent.engine.flat.value.clone()
    with pytest.raises(EnvironmentFault, match=message):
        agent.learn(16 * N)
    assert torch.equal(agent.engine.flat.value, before)


def test_masks_are_obeyed_where_asked_for():
    env = Tensors(SyncVectorEnv([Masked] * N, autoreset_mode=AutoresetMode.SAME_STEP))
    agent = us.PPO(env, n_steps=8).learn(16 * N)
    assert isinstance(agent.collector.rollout.action_mask, torch.Tensor)
    us.evaluate_policy(agent, env, 4)
    with pytest.raises(AssertionError, match="not legal"):
        us.PPO(env, n_steps=8, use_action_masks=False).learn(16 * N)


@pytest.mark.parametrize("name", FAULTS)
def test_what_environments_may_not_return(name):
    wrong, message = FAULTS[name]
    agent = us.PPO(Wrong(wrong), n_steps=8)
    before = agent.engine.flat.value.clone()
    with pytest.raises(EnvironmentFault, match=message):
        agent.learn(8 * N)
    assert torch.equal(agent.engine.flat.value, before)


def with_space(**changed) -> Tensors:
    env = Tensors(cartpoles())
    for name, value in changed.items():
        setattr(env, name, value)
    return env


DISABLED = {"metadata": {"autoreset_mode": AutoresetMode.DISABLED}}
REFUSED = {
    "normalised": (us.PPO, {}, {"normalize_observation": True}, "take environments that return ar"),
    "memory": (us.PPO, {}, {"policy": "lstm"}, "takes a policy without memory"),
    "REINFORCE": (us.REINFORCE, {}, {}, "PPO and ActorCritic without traces learn from them"),
    "DQN": (us.DQN, {}, {}, "PPO and ActorCritic without traces learn from them"),
    "traces": (us.ActorCritic, {}, {"traces": True}, "traces=True takes environments that return"),
    "disabled": (us.PPO, DISABLED, {}, "takes autoreset SAME_STEP or NEXT_STEP, and declares DIS"),
    "actions": (
        us.PPO,
        {"single_action_space": spaces.MultiBinary(3)},
        {},
        "takes Box, Discrete or MultiDiscrete actions",
    ),
    "observations": (
        us.PPO,
        {"single_observation_space": spaces.Dict(a=spaces.Discrete(2))},
        {},
        "takes Box observations",
    ),
    "device": (us.PPO, {"device": "meta"}, {}, "device='cpu', but the tensors .* are on meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    agent, changed, settings, message = REFUSED[name]
    with pytest.raises(ArgumentError, match=message):
        agent(with_space(**changed), **settings)
