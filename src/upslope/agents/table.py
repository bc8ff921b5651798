"""The algorithms by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from upslope import checkpoint
from upslope.agents.agent import Agent, Environment
from upslope.agents.dqn import DQN
from upslope.agents.ppo import PPO
from upslope.agents.q_learning import QLearning
from upslope.errors import ArgumentError, suggest

ALGORITHMS: dict[str, type[Agent[Any]]] = {
    "q_learning": QLearning,
    "dqn": DQN,
    "ppo": PPO,
}


def algorithm_class(name: str) -> type[Agent[Any]]:
    """Return the class of an algorithm by its name, in capitals or not."""
    if name.lower() not in ALGORITHMS:
        raise ArgumentError(
            f"there is no algorithm {name!r}{suggest(name.lower(), ALGORITHMS)}; there is "
            + ", ".join(ALGORITHMS)
        )
    return ALGORITHMS[name.lower()]


def described(name: str) -> str:
    """Return what an algorithm is in one line: the first of its page."""
    return (sys.modules[algorithm_class(name).__module__].__doc__ or "").splitlines()[0]


def load(
    path: str | Path, env: Environment | None = None, *, policy: nn.Module | None = None
) -> Agent[Any]:
    """Load an agent that `save` saved, of whichever algorithm; see `Agent.load`."""
    tensors, meta = checkpoint.read(Path(path))
    kind = algorithm_class(str(meta.get("algorithm")))
    return kind.from_state(tensors, meta, env, policy=policy, path=path)
