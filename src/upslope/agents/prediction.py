"""Acting with a trained policy: one observation or a batch, with or without memory and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from upslope.errors import ArgumentError
from upslope.policies.legal import MaskLayout
from upslope.policies.spaces import unbatched

if TYPE_CHECKING:
    from upslope.agents.agent import Agent


def predict(
    agent: Agent[Any],
    observation: Any,
    state: Any,
    episode_start: Any,
    deterministic: bool,
    action_masks: Any,
) -> tuple[Any, Any]:
    """Return the actions for observations, and the state to go on with, as `Agent.predict` says."""
    policy, device = agent.policy, agent.device
    packed, single = agent.stream.layout.accept(observation)
    rows = torch.from_numpy(agent.collector.prepared(packed).copy()).to(device)
    memory = _memory(policy.memory_size, len(rows), state, episode_start)
    mask = _mask(agent, action_masks, len(rows), single)
    with torch.inference_mode():
        distribution, after = policy.step(
            rows, memory.to(device), None if mask is None else mask.to(device)
        )
        draws = agent.prediction_generator
        action = distribution.mode() if deterministic else distribution.sample(draws)
    sent = policy.head.to_environment(action.cpu().numpy())
    kept = after.cpu().numpy() if policy.memory_size else None
    return unbatched(sent) if single else sent, kept


def _memory(size: int, rows: int, state: Any, episode_start: Any) -> Tensor:
    """Return the memory [N, S] to act with: `state`, forgotten where an episode begins."""
    memory = torch.zeros(rows, size)
    if state is not None:
        if not size:
            raise ArgumentError(
                f"state={type(state).__name__}: this policy has no memory, leave state out"
            )
        given = np.asarray(state)
        if given.shape != (rows, size) or given.dtype.kind != "f":
            raise ArgumentError(
                f"state has shape {given.shape}; predict takes what it returned, {(rows, size)}"
            )
        memory = torch.tensor(given, dtype=torch.float32)
    if episode_start is None or not size:
        return memory
    starts = np.atleast_1d(np.asarray(episode_start))
    if starts.shape != (rows,) or starts.dtype.kind not in "biuf":
        raise ArgumentError(f"episode_start has shape {starts.shape}; predict takes {(rows,)}")
    return memory * torch.from_numpy(~starts.astype(bool)).unsqueeze(1)


def _mask(agent: Agent[Any], masks: Any, rows: int, single: bool) -> Tensor | None:
    if masks is None or not agent.config.use_action_masks:
        return None
    layout = MaskLayout(agent.stream.action_space)
    try:
        if not layout.columns:
            raise ValueError("action masks for an action space without choices")
        mask = layout.pack_each([masks]) if single else layout.pack(masks, rows)
    except ValueError as error:
        raise ArgumentError(f"action_masks: {error}") from None
    if (row := layout.without_option(mask)) is not None:
        raise ArgumentError(f"action_masks: no action is legal in row {row}")
    return torch.from_numpy(mask)
