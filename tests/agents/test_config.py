"""Settings: misspelt, of another type, out of range: refused by name; schedules."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

import upslope as us
from upslope.agents.config import make_config
from upslope.agents.ppo import PPOConfig
from upslope.agents.schedules import check_schedule, value_at
from upslope.agents.table import algorithm_class
from upslope.errors import ArgumentError, ConfigError

WRONG = {
    "n_envs": [0, -1, 2.0, True, None, "8"],
    "n_steps": [0, 1.5],
    "batch_size": [0, 64.0],
    "n_epochs": [0, "4"],
    "segment_length": [0, None],
    "seed": [-1, 0.5, None, True],
    "gamma": [-0.1, 1.1, float("nan"), "0.9", None],
    "gae_lambda": [-0.1, 1.01, float("inf")],
    "ent_coef": [-1e-9, float("inf"), float("nan"), None],
    "vf_coef": [-1, "x"],
    "max_grad_norm": [0, -1, float("inf"), float("nan")],
    "target_kl": [0, -0.1, float("nan")],
    "learning_rate": [-1e-3, float("nan"), float("inf"), None, True, "linear", "cosine(1)", [1]],
    "clip_range": [-0.1, 1.5, "linear(2)", "linear(0.1, 1.1)", None],
    "clip_range_vf": [-0.1, "linear(-1)", True],
    "normalize_advantage": [1, "yes", None],
    "normalize_observation": [0],
    "use_action_masks": [1],
    "policy": ["lstn", 3],
    "normalize_reward": [1.0],
    "recompute_advantage": ["no"],
    "policy_kwargs": [[("net_arch", 3)], 3],
    "device": ["cpuu", 3.5, "xpu:77"],
    "engine": ["jax", None, "Torch"],
}
RIGHT = {
    "n_envs": [1],
    "gamma": [0, 1, 0.5],
    "gae_lambda": [0, 1.0],
    "max_grad_norm": [None, 1],
    "target_kl": [None, 0.01],
    "learning_rate": [0, 1, 3e-4, "linear(3e-4)", "3e-4", " linear( 1e-3 , 1e-5 ) "],
    "clip_range": [0, 1, "linear(1)"],
    "clip_range_vf": [None, 100.0, "linear(10)"],
    "engine": ["auto", "torch"],
    "device": ["cpu"],
}
PAIRS = [(name, value) for name, values in WRONG.items() for value in values]


def test_every_setting_is_checked():
    assert {field.name for field in dataclasses.fields(PPOConfig)} == WRONG.keys()


@pytest.mark.parametrize(("name", "value"), PAIRS, ids=str)
def test_what_a_setting_does_not_take_is_refused_by_name(name, value):
    with pytest.raises(ConfigError) as error:
        make_config(PPOConfig, {name: value})
    assert str(error.value).startswith(f"{name}={value!r}")
    assert "takes" in str(error.value) or "is not a schedule: give" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, vs in RIGHT.items() for v in vs], ids=str
)
def test_what_a_setting_takes(name, value):
    assert getattr(make_config(PPOConfig, {name: value}), name) == value


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("learning_rte", "learning_rate"), ("gae_lamda", "gae_lambda"), ("nsteps", "n_steps")],
)
def test_a_misspelt_setting_is_answered_with_the_right_one(wrong, right):
    with pytest.raises(ConfigError, match=f"PPO has no setting '{wrong}' .*mean '{right}'.*n_envs"):
        make_config(PPOConfig, {wrong: 1})


def test_a_configuration_is_frozen():
    config = make_config(PPOConfig, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 0.5


@pytest.mark.parametrize(
    ("setting", "start", "middle", "end"),
    [
        (0.25, 0.25, 0.25, 0.25),
        (1, 1, 1, 1),
        ("3e-4", 3e-4, 3e-4, 3e-4),
        ("linear(0.5)", 0.5, 0.25, 0),
        ("linear(1e-3, 1E-4)", 1e-3, 5.5e-4, 1e-4),
        ("linear(0, 2)", 0, 1, 2),
    ],
)
def test_schedules(setting, start, middle, end):
    found = [value_at(setting, remaining) for remaining in (1, 0.5, 0)]
    assert found == pytest.approx([start, middle, end])


@pytest.mark.parametrize("text", ["linear()", "linear(1,2,3)", "linear(1", "", "linear(a)"])
def test_what_is_no_schedule_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"is not a schedule: give a number, 'linear\(3e-4\)'"):
        value_at(text, 1)
    with pytest.raises(ConfigError, match="lr="):
        check_schedule("lr", text)


def test_algorithms_by_name():
    assert algorithm_class("PPO") is algorithm_class("ppo")
    with pytest.raises(ArgumentError, match=r"no algorithm 'pp' .*mean 'ppo'.*there is .*ppo"):
        algorithm_class("pp")


def test_settings_are_what_a_file_can_hold(tmp_path):
    edges = [np.linspace(-1, 1, 5)] * 4
    agent = us.QLearning("CartPole-v1", edges=edges, learning_rate=np.float32(0.5)).learn(8)
    assert agent.config.edges == [edge.tolist() for edge in edges]
    agent.save(tmp_path / "table")
    kwargs = {"log_std_init": np.float32(-1), "net_arch": (np.int64(8),)}
    agent = us.PPO("Pendulum-v1", n_envs=np.int64(2), policy_kwargs=kwargs)
    assert agent.config.policy_kwargs == {"log_std_init": -1.0, "net_arch": (8,)}
    assert us.PPO("CartPole-v1", n_envs=1, device=torch.device("cpu")).config.device == "cpu"
    agent.save(tmp_path / "pendulum")
    us.load(tmp_path / "pendulum")


def test_what_no_file_can_hold_is_refused_before_anything_is_learned():
    def make(table):
        return gymnasium.make("CartPole-v1")

    with pytest.raises(ArgumentError, match=r"env_kwargs\['table'\] is a ndarray; it takes"):
        us.PPO(make, env_kwargs={"table": np.zeros(3)})
    with pytest.raises(ArgumentError, match=r"policy_kwargs\['x'\] is a object; it takes"):
        us.PPO("CartPole-v1", policy_kwargs={"x": object()})
