"""Acting on the rows of a rollout with the native engine, in the rollout's own memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.rollout.buffer import Rollout

WORTH_TELLING = 256  # rows; other threads take as long to hear of fewer as to evaluate them
AHEAD = 16  # rows of which the noise is drawn at once, while the code that draws it is in cache


def draw(noise: Tensor, choices: Sequence[int], generator: torch.Generator) -> Tensor:
    """Fill noise [N, size] with what torch would draw for N actions, and return it.

    For choices it is uniform, of double precision: torch's draws from Exp(1) are -ln(1 - u) of
    these u, and that logarithm is slow there.
    """
    if not choices:
        return noise.normal_(generator=generator)
    if len(choices) == 1:
        return noise.uniform_(generator=generator)
    for part in noise.split(list(choices), 1):
        part.copy_(torch.empty(part.shape, dtype=noise.dtype).uniform_(generator=generator))
    return noise


class NativeRows:
    """Acts on the rows of one rollout: see `rollout.acting.Rows`."""

    def __init__(self, network: Any, parameters: np.ndarray, structure: Any, rollout: Rollout):
        self.network, self.parameters, self.rollout = network, parameters, rollout
        self.choices: list[int] = structure.choices
        steps, n_envs = rollout.n_steps, rollout.n_envs
        self.observation = list(rollout.observation.reshape(steps, n_envs, -1))
        self.observation.append(rollout.last_observation.reshape(n_envs, -1))
        self.action, self.log_prob = list(rollout.action), list(rollout.log_prob.numpy())
        self.value = [*rollout.value.numpy(), rollout.last_value.numpy()]
        kind = torch.float64 if self.choices else torch.float32
        self.noise = torch.empty(min(AHEAD, steps), n_envs, structure.size, dtype=kind)
        self.drawn = list(self.noise.numpy())

    def begin(self, generator: torch.Generator, threads: int) -> NativeRows:
        """Begin the rollout anew, with draws from `generator`."""
        self.generator, self.threads = generator, threads
        worth = self.rollout.n_envs // WORTH_TELLING
        self.values, self.acting = threads > 1 and worth > 0, min(threads, max(worth, 1))
        self.same = False  # whether the parameters are those of the last call
        return self

    def act(self, t: int, mask: np.ndarray | None, part: slice | None = None) -> None:
        """Draw actions into row t, or a part of it, with the numbers that torch would draw."""
        row = self._noise(t, part), self.action[t], self.observation[t], self.log_prob[t]
        noise, action, observation, log_prob = row if part is None else (x[part] for x in row)
        self.network.act(
            self.parameters,
            observation,
            uniform=noise if self.choices else None,
            normal=None if self.choices else noise,
            mask=mask,
            choice=action if self.choices else None,
            action=None if self.choices else action,
            log_prob=log_prob,
            threads=self.acting if part is None else 1,  # the other half is on the others
            same=self.same,
        )
        self.same = True

    def _noise(self, t: int, part: slice | None) -> np.ndarray:
        """Return the noise of row t, drawn for some rows at once."""
        ahead = t % AHEAD
        if ahead == 0 and (part is None or part.start == 0):
            for noise in self.noise:
                draw(noise, self.choices, self.generator)
        return self.drawn[ahead]

    def begin_value(self, t: int) -> bool:
        """Let the other threads begin with v(s) of row t, if there are any and rows enough."""
        if self.values:
            self.network.begin_values(
                self.parameters, self.observation[t], self.value[t], self.threads, self.same
            )
            self.same = True
        return self.values
