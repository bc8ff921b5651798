"""What is differentiated, one equation each: pure functions of tensors, to be minimised."""

from __future__ import annotations

from upslope.losses.divergence import kl_estimate
from upslope.losses.group import grpo_loss
from upslope.losses.mask import masked_mean
from upslope.losses.policy import clipped_surrogate, policy_gradient_loss
from upslope.losses.preference import dpo_loss
from upslope.losses.value import value_loss

__all__ = [
    "clipped_surrogate",
    "dpo_loss",
    "grpo_loss",
    "kl_estimate",
    "masked_mean",
    "policy_gradient_loss",
    "value_loss",
]
