"""The native engine for action-values: DQN's steps, and q(s, a), in C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.engine.arrays import plain
from upslope.engine.flat import FlatParameters
from upslope.engine.native_engine import NativeEngine
from upslope.engine.native_rows import NativeRows
from upslope.engine.twins import Coefficients
from upslope.errors import ArgumentError
from upslope.policies.action_values import ActionValues
from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.buffer import Chunks, Rollout

COLUMNS = ("reward", "discount")
FIELDS = {"observation", "action", *COLUMNS, "next_observation", "next_legal", "next_q"}


class GreedyRows(NativeRows):
    """Acts on the rows of one rollout, greedily but for the share `epsilon` [], as it is then."""

    def __init__(self, *given: Any) -> None:
        *rest, self.epsilon = given
        super().__init__(*rest)
        self.noise = torch.empty(len(self.noise), 2, self.rollout.n_envs)
        self.drawn = list(self.noise.numpy())

    def act(self, t: int, mask: np.ndarray | None, part: slice | None = None) -> None:
        """Draw actions into row t, or a part of it, with the numbers that torch would draw."""
        noise, rows = self._noise(t, part), part or slice(None)
        self.network.explore(
            self.parameters,
            self.observation[t][rows],
            noise if part is None else np.ascontiguousarray(noise[:, part]),
            None if mask is None else mask[rows],
            epsilon=float(self.epsilon),
            choice=self.action[t][rows],
            log_prob=self.log_prob[t][rows],
            threads=1,
            same=self.same,
        )
        self.same = True

    def begin_value(self, t: int) -> bool:
        """Begin nothing: an update does not need the values of a rollout."""
        return False


class NativeValues(NativeEngine):
    """A `NativeEngine` for a policy of action-values, whose batches are `Transitions`."""

    policy: ActionValues
    surrogates = ("temporal",)

    def __init__(self, policy: ActorCritic, **settings: Any) -> None:
        if settings.get("bfloat16"):
            raise ArgumentError(
                "engine='bfloat16' is for actors and critics, not for action-values: take 'native'"
            )
        super().__init__(policy, **settings)

    def q(self, observation: Tensor, flat: FlatParameters | None = None) -> Tensor:
        """Return q(s, a), [B, A]; or those of parameters of the same shape."""
        rows = self._rows(observation)
        if rows is None:
            return super().q(observation, flat)
        found = torch.empty(len(rows), self.structure.size)
        parameters = self._value if flat is None else flat.value.numpy()
        self.network.action_values(parameters, rows, found.numpy(), self.threads)
        return found

    def act(
        self,
        observation: Tensor,
        generator: torch.Generator,
        memory: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an action for each row, with the numbers that `EpsilonGreedy.sample` would draw."""
        rows = self._rows(observation)
        if rows is None:
            return self.policy.act(observation, generator, memory, mask)
        draws = torch.rand(2, len(rows), generator=generator)
        action, log_prob = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows))
        self.network.explore(
            *(self._value, rows, draws.numpy(), None if mask is None else mask.numpy()),
            epsilon=self.policy.epsilon.item(),
            choice=action.numpy(),
            log_prob=log_prob.numpy(),
            threads=self.threads,
        )
        return action, log_prob, memory

    def value(self, observation: Tensor) -> Tensor:
        """Return max_a q(s, a), [B]."""
        return self.q(observation).amax(-1)

    def _rows_of(self, rollout: Rollout) -> GreedyRows:
        epsilon = self.policy.epsilon.numpy()
        return GreedyRows(self.network, self._value, self.structure, rollout, epsilon)

    def _train(
        self, *buffers: np.ndarray, how: Coefficients, chunks: Chunks | None, **given: Any
    ) -> None:
        assert chunks is None, "what learns from transitions does not measure its gradient"
        given.pop("bfloat16")
        if not how.double:
            given["next_observation"] = None
        self.network.train_action_values(*buffers, **given, huber=how.huber)

    def _read(self, batch: dict[str, Any]) -> dict[str, Any] | str:
        unknown = {name for name, value in batch.items() if value is not None} - FIELDS
        if unknown:
            return f"its batch has {', '.join(sorted(unknown))}"
        seen, following = self._rows(batch["observation"]), self._rows(batch["next_observation"])
        if seen is None or following is None:
            return "observations are not float32 numbers in memory, one row after the other"
        kinds = {"action": torch.int64, "next_legal": torch.bool, "next_q": torch.float32}
        kinds |= dict.fromkeys(COLUMNS, torch.float32)
        for name, kind in kinds.items():
            if not plain(batch[name], kind):
                return f"{name} is not of {kind}, one row after the other"
        found = {name: batch[name].numpy() for name in kinds}
        return found | {
            "choice": found.pop("action"),
            "observation": seen,
            "next_observation": following,
        }
