"""From settings to what collects an agent's experience."""

from __future__ import annotations

import math

import numpy as np

from upslope.agents.config import AgentConfig
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.normalizers import ObservationNormalizer, RewardNormalizer
from upslope.rollout.stream import Stream


def make_collector(
    config: AgentConfig, stream: Stream, policy: ActorCritic, steps: int
) -> Collector:
    """Return a collector of `steps` steps of each environment at a time."""
    layout, scaled = stream.layout, config.normalize_observation
    kept = layout.dtype
    if scaled or np.issubdtype(kept, np.floating):
        kept = np.dtype(np.float32)
    head = policy.head
    kinds = (layout.shape, kept), (head.shape, head.dtype)
    return Collector(
        stream,
        Rollout(steps, stream.n_envs, *kinds, memory_size=policy.memory_size),
        seed=config.seed,
        segment_length=math.ceil(config.segment_length / steps) * steps,
        observation_normalizer=ObservationNormalizer.of(layout) if scaled else None,
        reward_normalizer=(
            RewardNormalizer(stream.n_envs, config.gamma) if config.normalize_reward else None
        ),
        use_action_masks=config.use_action_masks,
    )
