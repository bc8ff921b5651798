"""The values of a rollout: v(s_t), and v(s_{t+1}) of the true next observation.

v(s_{t+1}) = 0 where the episode terminated, and v of the observation it was cut in where it was
truncated; elsewhere it is the value of the following row
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from upslope.policies.actor_critic import ActorCritic
from upslope.policies.memory import Sequences
from upslope.rollout.buffer import Rollout

ROWS_AT_ONCE = 16_384


@torch.inference_mode()
def evaluate_values(
    policy: ActorCritic, rollout: Rollout, evaluate: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Fill `value` and `next_value` of a rollout: v(s_t), and v of the true next observation.

    next_value is 0 where the episode terminated and v(s_T), of the observation it was cut in, where
    it was truncated. `evaluate` is another form of `policy.value` without memory, such as an
    engine's. What was evaluated while it was collected (`rollout.valued`) is taken as it is, once.
    """
    n_steps, n_envs, observation = rollout.n_steps, rollout.n_envs, rollout.observation
    now = torch.as_tensor(observation.reshape(n_steps * n_envs, *observation.shape[2:]))
    last = torch.as_tensor(rollout.last_observation)
    cut = [torch.as_tensor(seen) for _, _, seen in rollout.cut]
    if rollout.recurrent:  # what a rollout or an episode was cut in is one more step of it
        found = _recurrent_values(policy, rollout, torch.cat([now, last, *cut]))
        value, last_value, of_cut = found.split([len(now), n_envs, len(found) - len(now) - n_envs])
    else:
        evaluate = partial(_values, policy, evaluate or policy.value)
        if not rollout.valued:
            value, last_value = evaluate(now), evaluate(last)
        of_cut = evaluate(torch.cat(cut)) if cut else last[:0]
    if not rollout.valued:
        rollout.value.copy_(value.view(n_steps, n_envs))
        rollout.last_value.copy_(last_value)
    rollout.valued = False
    next_value, known, done = rollout.next_value.numpy(), of_cut.numpy(), 0
    next_value[:-1], next_value[-1] = rollout.value.numpy()[1:], rollout.last_value.numpy()
    for t, environments, _ in rollout.cut:
        next_value[t, environments] = known[done:][: len(environments)]
        done += len(environments)
    np.copyto(next_value, 0, where=rollout.terminated)


def _values(
    policy: ActorCritic, evaluate: Callable[[Tensor], Tensor], observation: Tensor
) -> Tensor:
    device = next(policy.parameters()).device
    return torch.cat([evaluate(p.to(device)).cpu() for p in observation.split(ROWS_AT_ONCE)])


def _recurrent_values(policy: ActorCritic, rollout: Rollout, observation: Tensor) -> Tensor:
    """Return the values of all rows, of the last observations and of those that were cut in."""
    segments, device = rollout.segments(), next(policy.parameters()).device
    ended = rollout.terminated[-1] | rollout.truncated[-1] | ~rollout.valid[-1]
    last = segments[-1] + rollout.n_envs * ended
    cut = [segments[t, environments] for t, environments, _ in rollout.cut]
    segment = torch.from_numpy(np.concatenate([segments.ravel(), last, *cut])).to(device)
    sequences = Sequences(segment, rollout.memory.to(device))
    return policy.value(observation.to(device), sequences).cpu()
