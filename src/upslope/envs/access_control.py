"""The access-control queue, a task without ends: which customers to serve while servers are free.

    observation   f K + k: f servers are free, the first customer's priority is the k-th of K
    action        0 rejects, 1 accepts; reward the priority of whom is accepted, if a server is free

The problem is `upslope.exact.access_control_queue`, solved exactly with setting="average"; the best
gain with the defaults is 2.7476 a step. Sutton and Barto 2018, example 10.2.
"""

from __future__ import annotations

from typing import Any

from upslope.envs.finite import FiniteEnv, FiniteVectorEnv
from upslope.exact.problems import access_control_queue


class AccessControlEnv(FiniteEnv):
    """One queue; keyword arguments are those of `upslope.exact.access_control_queue`.

    `max_episode_steps` cuts it into episodes, which evaluating needs; None never does.
    """

    def __init__(self, max_episode_steps: int | None = None, **problem: Any) -> None:
        super().__init__(access_control_queue(**problem), None, max_episode_steps)


class AccessControlVectorEnv(FiniteVectorEnv):
    """`num_envs` queues that advance together; otherwise as `AccessControlEnv`."""

    def __init__(
        self, num_envs: int = 1, max_episode_steps: int | None = None, **problem: Any
    ) -> None:
        super().__init__(access_control_queue(**problem), num_envs, None, max_episode_steps)
