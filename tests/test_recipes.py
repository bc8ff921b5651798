"""Recipes: each file can be used as it is."""

from __future__ import annotations

import dataclasses

import gymnasium
import pytest

import upslope.envs
from upslope import recipes
from upslope.agents.config import make_config
from upslope.agents.table import ALGORITHMS
from upslope.errors import ConfigError
from upslope.rollout import envpool

EVERY = [(algorithm, env) for algorithm in ALGORITHMS for env in recipes.names(algorithm)]


def test_the_promised_ones_are_there():
    promised = {"Acrobot-v1", "CartPole-v1", "Pendulum-v1", "upslope/FlappyBird-v0"}
    assert promised <= set(recipes.names("ppo"))
    assert recipes.names("PPO") == recipes.names("ppo") == sorted(recipes.names("ppo"))
    assert recipes.names("QLearning") == recipes.names("q_learning") != []


@pytest.mark.parametrize(("algorithm", "env"), EVERY)
def test_each_fits_its_algorithm_and_environment(algorithm, env):
    recipe = recipes.find(algorithm, env)
    assert (recipe.algorithm, recipe.env) == (algorithm, env)
    assert recipe.total_timesteps >= 1
    make_config(ALGORITHMS[algorithm].config_class, recipe.settings)
    if env not in gymnasium.registry:
        pytest.importorskip("envpool")
        assert env in envpool.ids()
    known = {"freq", "episodes", "env_kwargs", "final_episodes", "final_env_kwargs"}
    assert recipe.evaluation.keys() <= known


@pytest.mark.parametrize(("algorithm", "env"), [pair for pair in EVERY if pair[0] == "ppo"])
def test_a_rollout_is_whole_minibatches(algorithm, env):
    """Otherwise the minibatches would not be of the size that the file says."""
    config = make_config(ALGORITHMS[algorithm].config_class, recipes.find(algorithm, env).settings)
    rows = config.n_envs * config.n_steps
    assert rows % config.batch_size == 0


def test_an_unknown_environment_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"no PPO recipe for 'CartPole-v2' .*mean 'CartPole-v1'"):
        recipes.find("PPO", "CartPole-v2")
    with pytest.raises(ConfigError, match="there is no SAC recipe for 'CartPole-v1'"):
        recipes.find("SAC", "CartPole-v1")
    assert recipes.names("sac") == []


def test_from_recipe_takes_the_recipe_and_changes():
    agent = upslope.PPO.from_recipe("CartPole-v1", seed=3, n_epochs=1)
    expected = recipes.find("PPO", "CartPole-v1").settings | {"seed": 3, "n_epochs": 1}
    found = dataclasses.asdict(agent.config)
    assert {name: found[name] for name in expected} == expected
    plain = dataclasses.asdict(upslope.PPO("CartPole-v1").config)
    assert plain["n_epochs"] != recipes.find("PPO", "CartPole-v1").settings["n_epochs"]
