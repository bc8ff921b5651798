"""Finite Markov decision processes, solved exactly: the referee of every estimator."""

from __future__ import annotations

from upslope.exact.ascent import Ascent, gradient_ascent
from upslope.exact.from_env import from_gymnasium
from upslope.exact.gradient import (
    hessian,
    policy_gradient,
    policy_gradient_by_autograd,
    policy_gradient_by_enumeration,
)
from upslope.exact.information import fisher, natural_gradient
from upslope.exact.mdp import FiniteMDP
from upslope.exact.moments import Moments, reinforce_moments
from upslope.exact.planning import policy_evaluation, policy_iteration, value_iteration
from upslope.exact.problems import (
    access_control_queue,
    bandit,
    gridworld,
    jumping_gridworld,
    kakade_two_states,
    random_walk,
    short_corridor,
)
from upslope.exact.solve import Solution, solve
from upslope.exact.trajectories import Trajectory, enumerate_trajectories

__all__ = [
    "Ascent",
    "FiniteMDP",
    "Moments",
    "Solution",
    "Trajectory",
    "access_control_queue",
    "bandit",
    "enumerate_trajectories",
    "fisher",
    "from_gymnasium",
    "gradient_ascent",
    "gridworld",
    "hessian",
    "jumping_gridworld",
    "kakade_two_states",
    "natural_gradient",
    "policy_evaluation",
    "policy_gradient",
    "policy_gradient_by_autograd",
    "policy_gradient_by_enumeration",
    "policy_iteration",
    "random_walk",
    "reinforce_moments",
    "short_corridor",
    "solve",
    "value_iteration",
]
