"""The values of a rollout: v(s_t), and v(s_{t+1}) of the true next observation.

v(s_{t+1}) = 0 where the episode terminated, and v of the observation it was cut in where it was
truncated; elsewhere it is the value of the following row
"""

from __future__ import annotations

from collections.abc import Callable

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
    n_steps, n_envs = rollout.n_steps, rollout.n_envs
    flat = rollout.observation.reshape(n_steps * n_envs, *rollout.observation.shape[2:])
    cut = [observation for _, _, observation in rollout.cut]
    after = torch.cat([torch.as_tensor(each) for each in (rollout.last_observation, *cut)])
    now = torch.as_tensor(flat)
    if rollout.recurrent:  # what a rollout or an episode was cut in is one more step of it
        found = _recurrent_values(policy, rollout, torch.cat([now, after]))
        value, rest = found[: len(flat)], found[len(flat) :]
        rollout.value.copy_(value.view(n_steps, n_envs))
    else:
        evaluate = evaluate or policy.value
        if not rollout.valued:
            rollout.value.copy_(_values(policy, evaluate, now).view(n_steps, n_envs))
        rest = _values(policy, evaluate, after)
    rollout.valued = False
    of_rows, next_value, last = (
        tensor.numpy() for tensor in (rollout.value, rollout.next_value, rest)
    )
    next_value[:-1], next_value[-1], done = of_rows[1:], last[:n_envs], n_envs
    for t, environments, _ in rollout.cut:
        next_value[t, environments] = last[done:][: len(environments)]
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
