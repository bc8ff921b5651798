"""A task in which 98 % of the actions are illegal: solved with the mask, and not without it.

Of 200 doors four are unlocked, and the observation says which key one holds. The unlocked door that
fits the key pays 1; the others pay nothing.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import upslope as us

DOORS, UNLOCKED, ROOMS = 200, 4, 10


class Doors(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(DOORS)
    action_space = gymnasium.spaces.Discrete(DOORS)

    def _room(self) -> tuple[int, dict]:
        self.key = int(self.np_random.integers(DOORS))
        others = self.np_random.choice(DOORS, UNLOCKED, replace=False)
        mask = np.zeros(DOORS, np.int8)
        mask[others[: UNLOCKED - 1]] = 1
        mask[self.fitting()] = 1
        self.rooms += 1
        return self.key, {"action_mask": mask}

    def fitting(self) -> int:
        return (self.key * 7 + 3) % DOORS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rooms = 0
        return self._room()

    def step(self, action):
        reward = float(action == self.fitting())
        over = self.rooms >= ROOMS
        observation, info = self._room()
        return observation, reward, over, False, info


def learned(seed: int, use_action_masks: bool) -> float:
    settings = {"n_envs": 16, "n_steps": 64, "batch_size": 128, "learning_rate": 2e-3}
    agent = us.PPO(Doors, seed=seed, use_action_masks=use_action_masks, gamma=0.0, **settings)
    agent.learn(20_000)
    return us.evaluate_policy(agent, Doors, 50, seed=100 + seed)[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_solved_with_the_mask_and_not_without(seed):
    assert learned(seed, True) > 9.5  # of 10
    assert learned(seed, False) < 5


def test_chance_is_what_the_mask_leaves():
    agent = us.PPO(Doors, n_envs=8, n_steps=200, seed=0)
    agent.iterate()
    rewards = agent.collector.rollout.reward[agent.collector.rollout.valid]
    assert abs(rewards.mean() - 1 / UNLOCKED) < 0.05
    assert agent.collector.rollout.action_mask.mean() == pytest.approx(UNLOCKED / DOORS, rel=0.05)
