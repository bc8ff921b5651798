"""Which engine takes the steps of a policy."""

from __future__ import annotations

from upslope.engine.graph_engine import GraphEngine
from upslope.engine.native_engine import NativeEngine
from upslope.engine.native_values import NativeValues
from upslope.engine.structure import Unfit, refused
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError
from upslope.policies.action_values import ActionValues
from upslope.policies.actor_critic import ActorCritic


def make_engine(engine: str, policy: ActorCritic, *, max_grad_norm: float | None) -> TorchEngine:
    """Return the engine of that name; "auto" is the native one where it knows the policy.

    Raises ArgumentError when "native", "bfloat16" or "graph" does not apply, and says why.
    """
    if engine == "torch":
        return TorchEngine(policy, max_grad_norm=max_grad_norm)
    if engine == "graph":
        device = next(policy.parameters()).device
        if device.type != "cuda":
            raise ArgumentError(f"engine='graph' takes device='cuda', got device='{device}'")
        if policy.memory_size > 0:
            raise ArgumentError("engine='graph' takes a policy without memory: engine='torch'")
        return GraphEngine(policy, max_grad_norm=max_grad_norm)
    kind = NativeValues if isinstance(policy, ActionValues) else NativeEngine
    try:
        return kind(
            policy,
            max_grad_norm=max_grad_norm,
            demanded=engine != "auto",
            bfloat16=engine == "bfloat16",
        )
    except Unfit as reason:
        if engine != "auto":
            raise refused(str(reason), engine) from None
        plain = TorchEngine(policy, max_grad_norm=max_grad_norm)
        plain.description = f"torch, not native: {reason}"
        return plain
