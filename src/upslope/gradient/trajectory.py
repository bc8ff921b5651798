"""The policy gradient of whole trajectories, on-policy and off-policy, with right derivatives.

    L_n = Σ_t γᵗ [ ρ_{0:t} r_t - (ρ_{0:t} - ρ_{0:t-1}) V_t ]        ρ_{0:t} = Π_{k <= t} π_k / b_k

Without `reference` b is π itself, held still, and every ρ is exactly 1: the value is the return
G_0 = Σ γᵗ r_t, the gradient Σ_t γᵗ ∇ ln π_t (G_t - V_t), REINFORCE with baseline, and the second
derivative is right too. With `reference` it is importance sampling per decision: reward r_t gets
the product of ratios up to t, neither the ratio of step t alone (which is biased beyond one step)
nor that of the steps that came after.

Foerster et al. 2018, arXiv:1802.05098, section 3; Precup et al. 2000, "Eligibility traces for
off-policy policy evaluation", section 3 (per decision); Sutton and Barto 2018, section 13.4.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from upslope.errors import ArgumentError, check_range
from upslope.gradient.surrogate import likelihood_ratio
from upslope.losses.mask import counted
from upslope.returns import reward_to_go
from upslope.shapes import shaped


@shaped
def trajectory_surrogate(
    log_prob: Float[Tensor, "T N"],
    reward: Float[Tensor, "T N"],
    gamma: float,
    values: Float[Tensor, "T N"] | None = None,
    *,
    discount_state: bool = True,
    reference: Float[Tensor, "T N"] | None = None,
    mask: Bool[Tensor, "T N"] | None = None,
) -> Float[Tensor, " N"]:
    """Return one surrogate for each column, one trajectory; their mean estimates J and ∇ J.

    `log_prob` is ln π(a_t|s_t) in nats. `reward` may depend on the parameters (an entropy bonus):
    its gradient is added. `values` is the baseline V(s_t), detached: it may depend on what came
    before a_t only. `reference` is ln b(a_t|s_t) of the behaviour that drew the actions. `mask` is
    True where a step belongs to its trajectory; what follows the end may hold anything.

    `discount_state=False` drops γᵗ before each ∇ ln π_t, as deep agents do: for gamma < 1 this is
    not the gradient of the discounted J (Thomas 2014, "Bias in natural actor-critic algorithms"),
    of nothing in fact, so its second derivative means nothing; the value stays the same.

    Raises ShapeError unless all shapes are equal, ArgumentError for no steps or trajectories or a
    gamma outside [0, 1], NotFiniteError for a drawn action that its own policy cannot draw.
    """
    check_range("gamma", gamma, 0, 1)
    if log_prob.numel() == 0:
        raise ArgumentError(f"log_prob takes at least one step, got {list(log_prob.shape)}")
    log_prob, reward = counted(log_prob, mask), counted(reward, mask)
    held = None if reference is None else counted(reference, mask)
    value = torch.zeros_like(reward) if values is None else counted(values.detach(), mask)

    _ = likelihood_ratio(log_prob, held)  # its checks, step by step
    log_ratio = log_prob - (log_prob.detach() if held is None else held.detach())
    ratio = log_ratio.cumsum(0).exp()  # ρ_{0:t}
    steps = torch.arange(len(reward), dtype=torch.float64)
    discount = (gamma**steps).to(reward)[:, None]
    if discount_state:
        before = torch.cat([torch.ones_like(ratio[:1]), ratio[:-1]])
        return (discount * (ratio * reward - (ratio - before) * value)).sum(0)

    weighted = ratio.detach() * reward
    nothing_ended = torch.zeros_like(reward, dtype=torch.bool)
    to_go = reward_to_go(weighted.detach(), nothing_ended, gamma) - ratio.detach() * value
    possible = log_prob.isfinite()  # elsewhere the ratio, and so the weight, is 0
    score = torch.where(possible, log_prob - log_prob.detach(), torch.zeros_like(log_prob))
    return (score * to_go + discount * weighted.detach() + weighted - weighted.detach()).sum(0)
