"""What is differentiated, one equation each: pure functions of tensors, to be minimised."""

from __future__ import annotations

from upslope.losses.divergence import kl_estimate
from upslope.losses.mask import masked_mean
from upslope.losses.policy import clipped_surrogate, policy_gradient_loss
from upslope.losses.value import value_loss

__all__ = [
    "clipped_surrogate",
    "kl_estimate",
    "masked_mean",
    "policy_gradient_loss",
    "value_loss",
]
