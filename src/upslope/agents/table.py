"""The algorithms by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from upslope import checkpoint
from upslope.agents.actor_critic import ActorCritic
from upslope.agents.agent import Agent, Environment
from upslope.agents.ppo import PPO
from upslope.errors import ArgumentError, suggest

ALGORITHMS: dict[str, type[Agent[Any]]] = {"actor_critic": ActorCritic, "ppo": PPO}
ALIASES = {"actorcritic": "actor_critic", "a2c": "actor_critic"}


def algorithm_class(name: str) -> type[Agent[Any]]:
    """Return the class of an algorithm by its name."""
    return ALGORITHMS[algorithm_name(name)]


def algorithm_name(name: str) -> str:
    """Return the name of an algorithm in the table: from its class's, "a2c", in capitals or not."""
    found = ALIASES.get(name.lower(), name.lower())
    if found not in ALGORITHMS:
        raise ArgumentError(
            f"there is no algorithm {name!r}{suggest(name.lower(), ALGORITHMS)}; there is "
            + ", ".join(ALGORITHMS)
        )
    return found


def load(
    path: str | Path, env: Environment | None = None, *, policy: nn.Module | None = None
) -> Agent[Any]:
    """Load an agent that `save` saved, of whichever algorithm; see `Agent.load`."""
    tensors, meta = checkpoint.read(Path(path))
    kind = algorithm_class(str(meta.get("algorithm")))
    return kind.from_state(tensors, meta, env, policy=policy, path=path)
