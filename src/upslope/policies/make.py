"""From a name, or a module of the user's own, to a policy."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
import torch
from torch import nn

from upslope.errors import ArgumentError, UpslopeError, suggest
from upslope.policies.actor_critic import POLICIES, ActorCritic, NetworkActorCritic
from upslope.policies.custom import CustomActorCritic
from upslope.policies.features import has_images
from upslope.policies.memory import MEMORIES


def make_policy(
    policy: str | nn.Module | None,
    observation_space: gymnasium.Space[Any],
    action_space: gymnasium.Space[Any],
    *,
    generator: torch.Generator,
    **policy_kwargs: Any,
) -> ActorCritic:
    """Return the actor-critic that `policy` names: "mlp", "cnn", "lstm", "gru", or a module.

    None is "cnn" where observations have an image and "mlp" elsewhere; "lstm" and "gru" also have
    convolutions where there is an image.

    Raises ArgumentError for another name, or for `policy_kwargs` that the policy does not take.
    """
    if not (policy is None or isinstance(policy, nn.Module) or policy in POLICIES):
        options = ", ".join(map(repr, POLICIES))
        meant = suggest(str(policy), POLICIES)
        raise ArgumentError(
            f"policy={policy!r} is not supported{meant}: give one of {options}, or a "
            "torch.nn.Module"
        )
    spaces = (observation_space, action_space)
    kind = CustomActorCritic if isinstance(policy, nn.Module) else NetworkActorCritic
    taken = inspect.signature(kind).parameters
    for name in policy_kwargs:
        if name not in taken or name in ("network", "generator", "images", "memory"):
            raise ArgumentError(f"policy_kwargs={policy_kwargs} does not fit: no {name!r} here")
    try:
        if isinstance(policy, nn.Module):
            return CustomActorCritic(policy, *spaces, generator=generator, **policy_kwargs).eval()
        memory = policy if policy in MEMORIES else None
        images = policy == "cnn" or (policy != "mlp" and has_images(observation_space))
        return NetworkActorCritic(
            *spaces, generator=generator, images=images, memory=memory, **policy_kwargs
        )
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UpslopeError):
            raise
        raise ArgumentError(f"policy_kwargs={policy_kwargs} does not fit: {error}") from error
