"""Q-learning and DQN stopped after any iteration and gone on with from disk: the same final state.

The table, the two networks, the replay buffer, and steps of SARSA that wait for an action.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import upslope as us
from upslope import checkpoint
from upslope.errors import CheckpointError

NETWORK: dict[str, Any] = {
    **{"batch_size": 8, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]}},
    **{"target_update_interval": 30, "exploration_final_eps": 0.3, "learning_rate": "linear(1e-2)"},
}
TASKS: dict[str, tuple[type, dict[str, Any]]] = {
    # rows that only reset (NEXT_STEP), a ring that is filled twice, segments of four iterations
    "dqn": (
        us.DQN,
        {"env": "CartPole-v1", "n_envs": 3, "train_freq": 8, "buffer_size": 90, "n_steps": 3}
        | NETWORK
        | {"segment_length": 32, "double": True},
    ),
    # its own state is saved; rows of the next episode (SAME_STEP); a normaliser
    "dqn, birds": (
        us.DQN,
        {"env": "upslope/FlappyBird-v0", "n_envs": 3, "train_freq": 8, "tau": 0.5}
        | NETWORK
        | {"normalize_observation": True},
    ),
    # in this process (DISABLED); an action mask; waiting steps
    "sarsa": (
        us.QLearning,
        {"env": "Taxi-v4", "n_envs": 3, "n_steps": 5, "target": "sarsa", "segment_length": 15},
    ),
    "double": (
        us.QLearning,
        {"env": "upslope/FlappyBird-v0", "n_envs": 3, "n_steps": 8, "double": True}
        | {"bins": [3] * 2 + [1] * 7 + [4, 4, 1], "learning_rate": "linear(0.5)"},
    ),
}
ITERATIONS = 9
EVALUATED: dict[str, Any] = {"eval_freq": 50, "n_eval_episodes": 1}


def make(task: str) -> tuple[Any, int]:
    """Return an agent, and the steps of ITERATIONS iterations without a row that only resets."""
    kind, settings = TASKS[task]
    steps = settings.get("train_freq", settings["n_steps"] if kind is us.QLearning else 1)
    env_kwargs = {"max_episode_steps": 12} if "Taxi" in settings["env"] else {}
    return kind(**settings, env_kwargs=env_kwargs, seed=3), ITERATIONS * 3 * steps


def final_state(agent: Any) -> dict[str, Any]:
    tensors, meta = agent.state()
    found = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} | {"meta": meta}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_stop_after_every_iteration(task: str, tmp_path: Path) -> None:
    agent, steps = make(task)
    agent.learn(steps, **EVALUATED)
    whole = final_state(agent)
    for k in range(1, agent.iteration):
        stopped, _ = make(task)
        stopped.learn(steps, lambda a, _, k=k: a.iteration < k, **EVALUATED)
        again = type(agent).load(stopped.save(tmp_path / "a"))
        again.go_on(**EVALUATED)
        found = final_state(again)
        differing = [name for name in whole if whole[name] != found.get(name)]
        assert differing == [], f"stopped after iteration {k}"
        assert found.keys() == whole.keys()
    assert agent.iteration >= ITERATIONS


def test_a_checkpoint_without_its_replay_buffer_is_refused(tmp_path: Path) -> None:
    agent, steps = make("dqn")
    tensors, meta = agent.learn(steps).state()
    for name in ("own/target/network.layers.0.weight", "experience/transitions/reward"):
        rest = {n: t for n, t in tensors.items() if n != name}
        path = checkpoint.save_at(tmp_path / "a", rest, meta)
        with pytest.raises(CheckpointError, match=name):
            us.DQN.load(path)
    shorter = {**meta, "experience": {**meta["experience"], "transitions_added": 7}}
    with pytest.raises(CheckpointError, match="transitions"):
        us.DQN.load(checkpoint.save_at(tmp_path / "a", tensors, shorter))


def test_elsewhere_the_experience_begins_anew(tmp_path: Path) -> None:
    agent, steps = make("dqn")
    path = agent.learn(steps).save(tmp_path / "a")
    other = us.DQN.load(path, env=lambda: gymnasium.make("CartPole-v1"))
    assert len(other.replay) == 0
    assert other.num_timesteps == agent.num_timesteps
    other.learn(50, reset_num_timesteps=False)
