"""Modules of one's own that act otherwise than they learn: dropout, batch normalisation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import upslope as us

SETTINGS = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "seed": 0}


class Own(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.body, self.between = nn.Linear(4, 32), between
        self.policy, self.value = nn.Linear(32, 2), nn.Linear(32, 1)
        self.modes: set[tuple[bool, bool]] = set()

    def forward(self, observation):
        self.modes.add((self.training, torch.is_grad_enabled()))
        features = torch.tanh(self.between(self.body(observation)))
        return self.policy(features), self.value(features)[:, 0]


def agent_with(between: nn.Module, agent=us.PPO, **settings):
    torch.manual_seed(0)
    return agent("CartPole-v1", policy=Own(between), **SETTINGS | settings)


def weights(agent) -> torch.Tensor:
    return agent.engine.flat.value.clone()


@pytest.mark.parametrize("between", [partial(nn.Dropout, 0.5), partial(nn.BatchNorm1d, 32)])
def test_it_learns_in_train_mode_and_does_all_else_in_eval_mode(between):
    agent = agent_with(between()).learn(128)
    us.evaluate_policy(agent, "CartPole-v1", 2)
    assert agent.policy.network.modes == {(True, True), (False, False)}
    observation = np.ones(4, np.float32)
    before = {name: part.clone() for name, part in agent.policy.state_dict().items()}
    assert len({int(agent.predict(observation)[0]) for _ in range(20)}) == 1
    assert all(torch.equal(before[k], part) for k, part in agent.policy.state_dict().items())


def test_dropout_is_the_seeds_own():
    def learned(elsewhere: int, seed: int = 0):
        agent = agent_with(nn.Dropout(0.5), seed=seed)
        torch.manual_seed(elsewhere)
        before = torch.random.get_rng_state()
        agent.learn(128)
        assert torch.equal(torch.random.get_rng_state(), before)
        return weights(agent)

    assert torch.equal(learned(1), learned(2))
    assert not torch.equal(learned(1), learned(1, seed=1))


def test_masks_of_dropout_are_of_their_step():
    agent = agent_with(nn.Dropout(0.5))
    masks = []
    agent.policy.network.between.register_forward_hook(
        lambda module, _, output: masks.append(output == 0) if module.training else None
    )
    agent.learn(64)
    assert len(masks) >= 2
    assert not torch.equal(masks[0][:4], masks[-1][:4])


@pytest.mark.parametrize("between", [partial(nn.Dropout, 0.5), partial(nn.BatchNorm1d, 32)])
def test_it_resumes_exactly(between, tmp_path):
    whole = agent_with(between()).learn(256)
    half = agent_with(between()).learn(256, lambda agent, _: agent.iteration < 2)
    half.save(tmp_path / "half")
    loaded = us.load(tmp_path / "half", policy=Own(between())).go_on()
    assert half.num_timesteps < loaded.num_timesteps == whole.num_timesteps
    assert torch.equal(weights(loaded), weights(whole))
