"""Epsilon-greedy policies, and networks of action-values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from upslope.errors import ArgumentError
from upslope.policies.action_values import EpsilonGreedy, make_action_values
from upslope.seeding import generator

Q = torch.tensor([[1.0, 3, 2, 0], [5, 1, 9, 9]])
LEGAL = torch.tensor([[True, False, True, True], [True, True, False, False]])
BOX = spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("legal", [None, LEGAL], ids=["all", "masked"])
def test_samples_have_the_probabilities(epsilon, legal):
    found = EpsilonGreedy(Q, epsilon, legal)
    best, n = ([1, 2], [4, 4]) if legal is None else ([2, 0], [3, 2])
    allowed = torch.ones_like(Q) if legal is None else legal.float()
    expected = epsilon * allowed / torch.tensor(n)[:, None]
    expected[[0, 1], best] += 1 - epsilon
    torch.testing.assert_close(found.probabilities, expected)
    assert found.mode().tolist() == best
    draws, many = generator(0, "test"), 4000
    repeated = None if legal is None else legal.repeat(many, 1)
    action = EpsilonGreedy(Q.repeat(many, 1), epsilon, repeated).sample(draws).view(many, 2)
    for row in range(2):
        share = torch.bincount(action[:, row], minlength=4) / many
        error = (expected[row] * (1 - expected[row]) / many).sqrt()
        assert ((share - expected[row]).abs() <= 4.5 * error + 1e-9).all()


def test_log_prob_entropy_and_kl():
    found, other = EpsilonGreedy(Q, 0.2, LEGAL), EpsilonGreedy(-Q, 0.5, LEGAL)
    p, q = found.probabilities, other.probabilities
    for action in (0, 2, 3):
        log_prob = found.log_prob(torch.tensor([action, 0]))
        torch.testing.assert_close(log_prob, p[[0, 1], [action, 0]].log())
    entropy = [-sum(x * math.log(x) for x in row if x) for row in p.tolist()]
    torch.testing.assert_close(found.entropy(), torch.tensor(entropy, dtype=torch.float32))
    pairs = zip(p.tolist(), q.tolist(), strict=True)
    kl = [sum(a * math.log(a / b) for a, b in zip(*two, strict=True) if a) for two in pairs]
    torch.testing.assert_close(found.kl(other), torch.tensor(kl, dtype=torch.float32))


def make(policy=None, observation=BOX, action=None, **kwargs):
    action = spaces.Discrete(4, start=2) if action is None else action
    return make_action_values(
        "DQN", policy, observation, action, generator=generator(0, "test"), **kwargs
    )


def test_a_network_values_every_action():
    policy = make(net_arch=[8])
    q = policy.q(torch.randn(5, 3))
    assert q.shape == (5, 4)
    assert policy.value(torch.zeros(1, 3)) == policy.q(torch.zeros(1, 3)).max()
    assert policy.head.to_environment(np.array([0, 3])).tolist() == [2, 5]
    image = make(observation=spaces.Box(0, 255, (36, 36, 2), np.uint8))
    assert len(image.network.features.networks) == 1
    assert image.q(torch.zeros(2, 36, 36, 2, dtype=torch.uint8)).shape == (2, 4)


def test_a_module_of_ones_own():
    policy = make(torch.nn.Linear(3, 4))
    assert policy.q(torch.zeros(2, 3)).shape == (2, 4)
    with pytest.raises(ArgumentError, match=r"returned shape \[2, 5\].*\[2, 4\]"):
        make(torch.nn.Linear(3, 5)).q(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"action": BOX}, "DQN takes a Discrete action space"),
        ({"action": spaces.MultiDiscrete([2, 2])}, "DQN takes a Discrete action space"),
        ({"policy": "lstm"}, "no memory"),
        ({"policy": "cnn"}, "with an image"),
        ({"net_arch": [8], "wings": 2}, "policy_kwargs"),
        ({"activation": "sine"}, "activation='sine'"),
    ],
)
def test_what_it_does_not_take_is_refused(chosen, words):
    with pytest.raises(ArgumentError, match=words):
        make(**chosen)
