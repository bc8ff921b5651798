"""The engine of a table: there is nothing to differentiate, so it only says what is to be saved."""

from __future__ import annotations

from torch import Tensor

from upslope.engine.torch_engine import TorchEngine
from upslope.policies.actor_critic import ActorCritic


class TableEngine(TorchEngine):
    """Acts with a policy whose parameters its agent moves itself, without gradients or moments."""

    def __init__(self, policy: ActorCritic) -> None:
        self.policy = policy
        self.steps = 0
        self.rounding = "torch"
        self.description = "a table, without gradients"

    def state(self) -> dict[str, Tensor]:
        """Return the parameters by name, live."""
        return {f"policy/{name}": p.data for name, p in self.policy.named_parameters()}
