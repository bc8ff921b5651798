"""Probe environments: each can be solved in seconds, and each asks one thing of an algorithm.

    ConstantReward       v(s) = 1                          does the value learn at all
    RewardIsObservation  v(s) = s                          does it see the observation
    TwoSteps             v(s_1) = 1, v(s_0) = gamma        is it discounted and bootstrapped
    ActionDecides        pi(1) -> 1, v -> 1                does the policy learn
    Both                 pi(right | s) -> 1                do both see the same observation
    CutShort             v(s) = 1 / (1 - gamma)            is a time limit no end
    ReachHalf            mean of pi -> .5                  does a continuous policy learn

The first five after Andy Jones 2021, "Debugging RL, without the agonizing pain".
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Probe(gymnasium.Env):
    """One number is observed; an episode is `length` steps, then it terminates."""

    length = 1
    action_space: spaces.Space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def observe(self) -> float:
        return 1.0

    def reward(self, action: Any) -> float:
        return 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.taken = 0
        self.seen = self.observe()
        return np.array([self.seen], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = self.reward(action)
        self.taken += 1
        self.seen = self.observe()
        ended = self.taken == self.length
        return np.array([self.seen], np.float32), reward, ended, False, {}


class ConstantReward(Probe):
    """One step, reward 1."""


class RewardIsObservation(Probe):
    """One step from -1 or 1, which is the reward."""

    def observe(self) -> float:
        return float(self.np_random.choice([-1, 1]))

    def reward(self, action: Any) -> float:
        return self.seen


class TwoSteps(Probe):
    """From -1 to 1, then the end; only the second step pays."""

    length = 2

    def observe(self) -> float:
        return -1.0 if self.taken == 0 else 1.0

    def reward(self, action: Any) -> float:
        return float(self.taken)


class ActionDecides(Probe):
    """One step: action 1 pays 1, action 0 costs 1."""

    def reward(self, action: Any) -> float:
        return 1.0 if action == 1 else -1.0


class Both(RewardIsObservation):
    """One step from -1 or 1: the action of the same sign (1 is plus) pays 1, the other costs 1."""

    def reward(self, action: Any) -> float:
        return 1.0 if (action == 1) == (self.seen > 0) else -1.0


class CutShort(Probe):
    """Reward 1 for ever, cut every third step."""

    length = 3

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, ended, _, info = super().step(action)
        return observation, reward, False, ended, info


class ReachHalf(Probe):
    """One step: minus the squared distance of the action from a half."""

    action_space = spaces.Box(-2, 2, (1,), np.float32)

    def reward(self, action: Any) -> float:
        return -float((action[0] - 0.5) ** 2)
