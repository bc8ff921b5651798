"""C3, D1 and E1 for every agent: NaN never reaches a weight, and a seed decides every weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import upslope as us
from tests import tiny
from upslope import checkpoint
from upslope.errors import EnvironmentFault, NotFiniteError
from upslope.runs import run
from upslope.runs.configuration import RunConfig

pytestmark = pytest.mark.faults

NETWORK: dict[str, Any] = {"n_envs": 2, "policy_kwargs": {"net_arch": [8]}}
AGENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "q_learning": (us.QLearning, {"n_envs": 2, "bins": [4, 4]}),
    "dqn": (us.DQN, NETWORK | {"learning_starts": 20, "batch_size": 16}),
    "reinforce": (us.REINFORCE, NETWORK),
    "actor_critic": (us.ActorCritic, NETWORK),
    "ppo": (us.PPO, NETWORK | {"n_steps": 32, "batch_size": 32, "n_epochs": 2}),
}


class NotFinite(tiny.Walk):
    """A walk of ten steps in a box, whose observation or reward is not finite at its step `at`."""

    observation_space = gymnasium.spaces.Box(-20, 20, (2,), np.float32)

    def __init__(self, what: str, number: float, at: int) -> None:
        super().__init__(10)
        self.what, self.number, self.at = what, number, at

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.total == self.at and self.what == "observation":
            observation = observation + np.float32([0, self.number])
        if self.total == self.at and self.what == "reward":
            reward = self.number
        return observation, reward, *rest


def numbers(agent: Any) -> dict[str, np.ndarray]:
    tensors, _ = agent.state()
    return {
        name: np.asarray(tensor).copy()
        for name, tensor in tensors.items()
        if name.startswith(("policy", "adam", "own"))
    }


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("name", AGENTS)
def test_what_is_not_finite_stops_before_any_gradient(name, what, number):
    kind, settings = AGENTS[name]
    at = 5 if name == "reinforce" else 75  # it makes its environments anew for each iteration
    agent = kind(lambda: NotFinite(what, number, at), seed=0, **settings)
    before = [numbers(agent)]
    with pytest.raises(EnvironmentFault, match=f"environment 0 returned {number} as {what}.* {at}"):
        agent.learn(1_000, lambda agent, row: before.append(numbers(agent)) and None)
    after = numbers(agent)
    for field, value in after.items():
        assert np.isfinite(value).all(), field
        if name != "actor_critic" or field.startswith("policy"):
            np.testing.assert_array_equal(value, before[-1][field])


@pytest.mark.parametrize("name", AGENTS)
def test_the_seed_decides_and_watching_changes_nothing(name, tmp_path):
    kind, settings = AGENTS[name]

    env = "CartPole-v1"
    if name == "q_learning":
        env, settings = "Taxi-v4", {"n_envs": 2}

    def learn(seed: int, callback: Any = None, **options: Any) -> dict[str, np.ndarray]:
        np.random.seed(seed + len(options))  # noqa: NPY002
        torch.manual_seed(seed + len(options))
        agent = kind(env, seed=seed, **settings)
        return numbers(agent.learn(240, callback, **options))

    def watch(agent: Any, row: dict[str, float]) -> None:
        agent.save(tmp_path / "agent")
        agent.predict(agent.stream.observation, deterministic=False)
        torch.manual_seed(agent.iteration)

    plain, watched, other = learn(3), learn(3, watch, eval_freq=100, n_eval_episodes=1), learn(4)
    for field, value in plain.items():
        np.testing.assert_array_equal(value, watched[field], err_msg=field)
    assert any((value != other[field]).any() for field, value in plain.items())


@pytest.mark.parametrize("name", ["dqn", "reinforce", "actor_critic", "ppo"])
def test_a_gradient_that_is_not_finite_stops_and_keeps_the_batch(name, tmp_path, monkeypatch):
    """D1: the weights stay, the last checkpoint is there, what was learned from is put aside."""
    _, settings = AGENTS[name]
    config = RunConfig(
        algorithm=name,
        env="CartPole-v1",
        total_timesteps=2_000,
        checkpoint_seconds=0.0,
        settings=settings | {"engine": "torch"},
    )
    run.create(tmp_path / "a", config)
    agent, states = run.make_agent(config), []
    check = type(agent.engine).check_finite

    def fails_later(engine: Any, norm: float) -> None:
        states.append(engine.flat.value.clone())
        check(engine, norm if engine.steps < 3 else math.nan)

    monkeypatch.setattr(type(agent.engine), "check_finite", fails_later)
    with pytest.raises(NotFiniteError, match="step 4 is not finite") as caught:
        run.train(tmp_path / "a", config, agent=agent, progress=False, say=lambda _: None)
    evidence, last = caught.value.__notes__
    assert evidence == f"What it was computed from is in {tmp_path / 'a' / 'not-finite'}."
    assert "checkpoint" in last
    assert torch.equal(agent.engine.flat.value, states[-1])
    tensors, _ = checkpoint.read(tmp_path / "a" / "not-finite")
    rollout = agent.collector.rollout
    assert np.array_equal(tensors["rollout/reward"], rollout.reward)
    assert np.array_equal(tensors["rollout/observation"], rollout.observation)


def test_the_evidence_is_no_reason_to_lose_the_error(tmp_path: Path, monkeypatch):
    from upslope.runs.evidence import keep_evidence

    (tmp_path / "not-finite").write_text("in the way")
    agent = us.PPO("CartPole-v1", n_steps=8)
    assert "could not be kept: " in keep_evidence(tmp_path, agent)
