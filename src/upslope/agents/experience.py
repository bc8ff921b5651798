"""From settings to what collects an agent's experience."""

from __future__ import annotations

import math

import numpy as np

from upslope.agents.config import AgentConfig
from upslope.errors import ArgumentError
from upslope.policies.actor_critic import ActorCritic
from upslope.policies.layout import Part
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.normalizers import ObservationNormalizer, RewardNormalizer
from upslope.rollout.resident import ResidentCollector, ResidentStream
from upslope.rollout.stream import Stream


def check_whole(part: Part) -> None:
    """Raise ArgumentError where float32, which parts side by side are kept in, rounds a choice."""
    if part.limits is not None and max(int(np.abs(each).max()) for each in part.limits) > 2**24:
        raise ArgumentError(
            f"observation{part.named()} {part.space} is kept as float32, as the numbers beside it "
            "are, which holds whole numbers up to 2**24: let it start at 0"
        )


def make_collector(
    config: AgentConfig,
    stream: Stream,
    policy: ActorCritic,
    steps: int,
    kind: type[Collector] = Collector,
    *,
    tensors: bool = False,
) -> Collector:
    """Return a collector of `steps` steps of each environment at a time.

    `tensors`: also from an environment that returns tensors. Raises ArgumentError for one without,
    and where they are on another device than the networks.
    """
    if isinstance(stream, ResidentStream):
        if not tensors:
            raise ArgumentError(
                f"env returns tensors on {stream.device}: PPO and ActorCritic without traces learn "
                "from them, other agents from arrays"
            )
        if next(policy.parameters()).device != stream.device:
            raise ArgumentError(
                f"device={config.device!r}, but the tensors that env returns are on {stream.device}"
            )
        kind = ResidentCollector
    layout, scaled = stream.layout, config.normalize_observation
    kept = layout.dtype
    if scaled or np.issubdtype(kept, np.floating):
        kept = np.dtype(np.float32)
        for part in layout.parts:
            check_whole(part)
    head = policy.head
    kinds = (layout.shape, kept), (head.shape, head.dtype)
    return kind(
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
