"""Acting on the rows of a rollout: by any form of a policy's `act`, or by an engine in place.

What an engine offers, `Rows`, saves the copies and the many small calls of a step, which take
longer than a small network: after environments that use the whole cache, most of all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Rollout

Act = Callable[..., tuple[Tensor, Tensor, Tensor]]
Acting = Callable[[int, "np.ndarray | None", Tensor], Tensor]
"""Fills row t, given which actions are legal and the policy's memory, and returns the memory."""


class Rows(Protocol):
    """Fills the rows of one rollout, from the first on, each from its observations."""

    def act(self, t: int, mask: np.ndarray | None, part: slice | None = None) -> None:
        """Draw actions into row t, with their log-probabilities; `mask` [N, columns] as known.

        Or only of one part of the environments: those of lower numbers first.
        """

    def begin_value(self, t: int) -> bool:
        """Begin to put v(s) into row t while the caller does something else; False: not done.

        Row T is that of the last observation. It is there once the engine's `finish` has returned.
        The policy must not change meanwhile.
        """


class RowEngine(Protocol):
    """An engine; where its `act` is what acts, its rows do the same."""

    def act(
        self, observation: Tensor, generator: torch.Generator, memory: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an action for each row of observations: see `ActorCritic.act`."""

    def rows(self, rollout: Rollout, generator: torch.Generator) -> Rows | None:
        """Return what fills this rollout with draws from `generator`; None where it cannot.

        The policy must not change before it is full.
        """

    def finish(self) -> None:
        """Wait for what was begun."""


def begin_acting(
    rollout: Rollout,
    policy: ActorCritic,
    act: Act,
    engine: RowEngine | None,
    draws: torch.Generator,
    *,
    valuing: bool,
) -> tuple[Acting, Rows | None]:
    """Begin a rollout under `act`; returns what acts, and the rows it acts on in place, if it does.

    `valuing` lets an engine find values meanwhile, if it can.
    """
    policy.head.explore(draws, rollout.n_envs)
    rows = None if engine is None or act != engine.act else engine.rows(rollout, draws)
    rollout.valued = valuing and rows is not None
    if rows is not None:
        return partial(_in_place, rollout, rows), rows
    return partial(_copying, rollout, next(policy.parameters()).device, act, draws), None


def act_ahead(
    policy: ActorCritic, rollout: Rollout, rows: Rows, t: int, half: slice, observation: np.ndarray
) -> np.ndarray:
    """Act on the observations of one half in row t; returns the actions for the environments."""
    rollout.observation[t, half] = observation
    rows.act(t, None, half)
    action: np.ndarray = policy.head.to_environment(rollout.action[t, half])
    return action


def _in_place(
    rollout: Rollout, rows: Rows, t: int, mask: np.ndarray | None, memory: Tensor
) -> Tensor:
    rows.act(t, mask)
    if rollout.valued:
        rollout.valued = rows.begin_value(t)
    return memory


def _copying(
    rollout: Rollout,
    device: torch.device,
    act: Act,
    draws: torch.Generator,
    t: int,
    mask: np.ndarray | None,
    memory: Tensor,
) -> Tensor:
    observation = torch.from_numpy(rollout.observation[t]).to(device)
    legal = None if mask is None else torch.from_numpy(mask).to(device)
    action, rollout.log_prob[t], memory = act(observation, draws, memory.to(device), legal)
    rollout.action[t] = action.cpu().numpy()
    return memory
