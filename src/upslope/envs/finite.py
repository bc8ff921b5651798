"""A finite problem as an environment: what `upslope.exact` solves, an agent can play.

    s_0 ~ h,   s' ~ p(.|s,a),   reward r(s,a) or r(s,a,s'),   the end with what is missing of p

    env = FiniteVectorEnv(us.exact.short_corridor(), num_envs=64, seen=[[1.0]] * 3)
    agent = us.REINFORCE(env, gamma=1.0)

An agent sees the number of the state, Discrete(S), or a row of `seen` [S, F]: states with equal
rows look alike. Episodes are never truncated.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from upslope.errors import ArgumentError, ShapeError
from upslope.exact import FiniteMDP


class FiniteVectorEnv(VectorEnv):
    """N copies of a finite problem, stepped together.

    `seen` [S, F] is what is observed of each state, its number by default. Raises ShapeError for
    another shape, and ArgumentError for a problem that is held sparse.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium has it so)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, mdp: FiniteMDP, num_envs: int = 1, seen: Any = None) -> None:
        if mdp.is_sparse:
            raise ArgumentError("mdp takes a problem that is held dense")
        self.mdp, self.num_envs = mdp, num_envs
        self.seen = None if seen is None else np.asarray(seen, np.float32)
        if self.seen is not None and (self.seen.ndim != 2 or len(self.seen) != mdp.n_states):
            raise ShapeError(f"seen takes shape [{mdp.n_states}, F], got {list(self.seen.shape)}")
        states: gymnasium.Space[Any] = gymnasium.spaces.Discrete(mdp.n_states)
        if self.seen is not None:
            low, high = self.seen.min(0), self.seen.max(0)
            states = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.single_observation_space = states
        self.single_action_space = gymnasium.spaces.Discrete(mdp.n_actions)
        self.observation_space = batch_space(states, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        following = np.concatenate([mdp.transition, mdp.ending[:, :, None]], 2).cumsum(2)
        following[:, :, -1] = 1
        self._following = following  # [S, A, S + 1]: every next state, and the end
        self._start = mdp.start.numpy().cumsum()
        self._start[-1] = 1

    def _begin(self, count: int) -> np.ndarray:
        return (self.np_random.random((count, 1)) >= self._start).sum(1)

    def _observation(self, state: np.ndarray) -> np.ndarray:
        return state.copy() if self.seen is None else self.seen[state]

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in each copy."""
        super().reset(seed=seed, options=options)
        self.state = self._begin(self.num_envs)
        return self._observation(self.state), {}

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one action in each copy; those that end begin anew."""
        state, action, n_states = self.state, np.asarray(actions), self.mdp.n_states
        draw = self.np_random.random((self.num_envs, 1))
        following = (draw >= self._following[state, action]).sum(1)
        ended = following == n_states
        arrived = np.where(ended, state, following)
        reward = self.mdp.reward.numpy()[state, action]
        if self.mdp.arrival_reward is not None:
            paid = self.mdp.arrival_reward.numpy()[state, action, arrived]
            reward = np.where(ended, 0.0, paid)
        self.state = arrived.copy()
        info: dict[str, Any] = {}
        if ended.any():
            self.state[ended] = self._begin(int(ended.sum()))
            info = {"final_obs": self._observation(arrived), "_final_obs": ended}
        none = np.zeros(self.num_envs, bool)
        return self._observation(self.state), reward, ended, none, info
