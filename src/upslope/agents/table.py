"""The algorithms by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from upslope import checkpoint, recipes
from upslope.agents.actor_critic import ActorCritic
from upslope.agents.agent import Agent, Environment
from upslope.agents.dqn import DQN
from upslope.agents.ppo import PPO
from upslope.agents.q_learning import QLearning
from upslope.agents.reinforce import REINFORCE
from upslope.errors import ArgumentError, suggest

ALGORITHMS: dict[str, type[Agent[Any]]] = {
    "q_learning": QLearning,
    "dqn": DQN,
    "reinforce": REINFORCE,
    "actor_critic": ActorCritic,
    "ppo": PPO,
}
ALIASES = {"a2c": "actor_critic"}


def algorithm_name(name: str) -> str:
    """Return the name of an algorithm as it is in `ALGORITHMS`, or raise ArgumentError.

    Capitals, hyphens and underscores are of no account: QLearning and q-learning are q_learning.
    A2C, which is a form of it, is actor_critic.
    """
    wanted = recipes.folded(ALIASES.get(name.lower(), name))
    for known in ALGORITHMS:
        if recipes.folded(known) == wanted:
            return known
    raise ArgumentError(
        f"there is no algorithm {name!r}{suggest(name.lower(), ALGORITHMS)}; there is "
        + ", ".join(ALGORITHMS)
    )


def algorithm_class(name: str) -> type[Agent[Any]]:
    """Return the class of an algorithm by its name, or raise ArgumentError."""
    return ALGORITHMS[algorithm_name(name)]


def described(name: str) -> str:
    """Return what an algorithm is in one line: the first of its page."""
    return (sys.modules[algorithm_class(name).__module__].__doc__ or "").splitlines()[0]


def load(
    path: str | Path, env: Environment | None = None, *, policy: nn.Module | None = None
) -> Agent[Any]:
    """Load an agent that `save` saved, of whichever algorithm; see `Agent.load`."""
    tensors, meta = checkpoint.read(path)
    kind = algorithm_class(str(meta.get("algorithm")))
    return kind.from_state(tensors, meta, env, policy=policy, path=path)
