"""What the public calls of an agent may not be given is named, in one sentence."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import upslope as us
from upslope.errors import ArgumentError, UpslopeError

REFUSED = {
    "features": (
        lambda: us.QLearning("CartPole-v1", features=[1], bins=3),
        "features=[1]: it takes a list of lists of numbers",
    ),
    "edges": (
        lambda: us.QLearning("CartPole-v1", edges=[["a"]]),
        "edges=[['a']]: it takes a list of lists of numbers",
    ),
    "env_kwargs": (
        lambda: us.PPO("CartPole-v1", env_kwargs=3),
        "env_kwargs=3: it takes a dictionary",
    ),
    "evaluation's": (
        lambda: us.evaluate_policy(None, "CartPole-v1", env_kwargs="x"),
        "env_kwargs='x': it takes a dictionary",
    ),
    "device": (
        lambda: us.PPO("CartPole-v1", device=10**30),
        "device takes a device that torch has here",
    ),
    "eval_freq": (
        lambda: us.PPO("CartPole-v1").learn(8, eval_freq="x"),
        "eval_freq='x': it takes a whole number of at least 1",
    ),
    "no frequency": (
        lambda: us.PPO("CartPole-v1").learn(8, eval_freq=float("nan")),
        "eval_freq=nan: it takes a whole number of at least 1",
    ),
    "episodes": (
        lambda: us.PPO("CartPole-v1").learn(8, eval_freq=8, n_eval_episodes="x"),
        "n_eval_episodes='x': it takes a whole number of at least 1",
    ),
    "callback": (
        lambda: us.PPO("CartPole-v1").learn(8, callback=3),
        "callback=3: it takes a function of (agent, metrics)",
    ),
    "seed": (
        lambda: us.evaluate_policy(None, "CartPole-v1", seed=-1),
        "seed=-1: it takes a whole number of at least 0",
    ),
    "nowhere": (lambda: us.load(None), "path is None; it takes a path"),
    "a number": (lambda: us.PPO("CartPole-v1").save(3), "path is 3; it takes a path"),
    "no name": (lambda: us.PPO("CartPole-v1").save("a\0b"), r"path is 'a\x00b'; it takes a path"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    call, sentence = REFUSED[name]
    with pytest.raises(ArgumentError, match=re.escape(sentence)) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_path_that_is_too_long():
    with pytest.raises(UpslopeError):
        us.load("x" * 300)


def test_tensors_of_any_kind_are_observations():
    agent = us.PPO("CartPole-v1", n_envs=1)
    numbers = np.array([0.1, -0.2, 0.03, 0.4], np.float32)
    tensor = torch.tensor(numbers, requires_grad=True)
    assert agent.predict(tensor)[0] == agent.predict(numbers)[0]
