"""Preference losses: a chosen and a rejected completion of the same prompt, and no reward model.

    D_w = ln π(y_w|x) - ln π_ref(y_w|x)        D_l = ln π(y_l|x) - ln π_ref(y_l|x)
    L   = -ln σ(β (D_w - D_l))                 direct preference optimisation

If preferences follow a reward, P(w > l) = σ(r_w - r_l) (Bradley and Terry), the minimum of E[L] is
π* ∝ π_ref exp(r / β), which also maximises E[r] - β KL(π || π_ref): β D is the reward, up to a
constant for each prompt. The other losses have another shape, or no reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.nn.functional import logsigmoid

from upslope.errors import ArgumentError, check_range, suggest
from upslope.shapes import shaped

GAMMA = 0.5  # the default of simpo's margin


class Pair(NamedTuple):
    """What a loss is made of: D of n pairs, in nats, and its settings."""

    chosen: Tensor
    """D_w [n]; of one token on average where the loss averages; ln π where it has no reference."""
    rejected: Tensor
    """D_l [n], likewise."""
    beta: float
    smoothing: float
    gamma: float

    @property
    def margin(self) -> Tensor:
        """β (D_w - D_l)."""
        return self.beta * (self.chosen - self.rejected)


def sigmoid(pair: Pair) -> Tensor:
    """DPO: Rafailov et al. 2023, arXiv:2305.18290, equation 7.

    Smoothed: Mitchell 2023, "A note on DPO with noisy preferences", equation 3.
    """
    e = pair.smoothing
    return -(1 - e) * logsigmoid(pair.margin) - e * logsigmoid(-pair.margin)


def robust(pair: Pair) -> Tensor:
    """DPO unbiased where e of the labels are flipped: Chowdhury et al. 2024, arXiv:2403.00409."""
    e = pair.smoothing
    return (e * logsigmoid(-pair.margin) - (1 - e) * logsigmoid(pair.margin)) / (1 - 2 * e)


def hinge(pair: Pair) -> Tensor:
    """SLiC: Zhao et al. 2023, arXiv:2305.10425; with D: Liu et al. 2024, arXiv:2309.06657."""
    return torch.relu(1 - pair.margin)


def ipo(pair: Pair) -> Tensor:
    """IPO: Azar et al. 2024, arXiv:2310.12036, equation 17 with τ = β; there D is not averaged."""
    return (pair.chosen - pair.rejected - 1 / (2 * pair.beta)).square()


def sigmoid_norm(pair: Pair) -> Tensor:
    """DPO with D averaged over tokens: Lambert et al. 2024 (Tülu 3), arXiv:2411.15124."""
    return -logsigmoid(pair.margin)


def apo_zero(pair: Pair) -> Tensor:
    """APO, for chosen answers better than π's own: D'Oosterlinck et al. 2024, arXiv:2408.06266."""
    return 1 - torch.sigmoid(pair.beta * pair.chosen) + torch.sigmoid(pair.beta * pair.rejected)


def sppo_hard(pair: Pair) -> Tensor:
    """SPPO with winning probabilities 1 and 0: Wu et al. 2024, arXiv:2405.00675, equation 4.7."""
    target = 1 / (2 * pair.beta)
    return (pair.chosen - target).square() + (pair.rejected + target).square()


def bco_pair(pair: Pair) -> Tensor:
    """BCO without its shift of rewards: Jung et al. 2024, arXiv:2404.04656."""
    return -logsigmoid(pair.beta * pair.chosen) - logsigmoid(-pair.beta * pair.rejected)


def simpo(pair: Pair) -> Tensor:
    """SimPO: Meng et al. 2024, arXiv:2405.14734, equation 6."""
    return -logsigmoid(pair.margin - pair.gamma)


LOSSES: dict[str, Callable[[Pair], Tensor]] = {
    "sigmoid": sigmoid,
    "robust": robust,
    "hinge": hinge,
    "ipo": ipo,
    "sigmoid_norm": sigmoid_norm,
    "apo_zero": apo_zero,
    "sppo_hard": sppo_hard,
    "bco_pair": bco_pair,
    "simpo": simpo,
}
SMOOTHED = ("sigmoid", "robust")
AVERAGED = ("ipo", "sigmoid_norm", "simpo")
WITHOUT_REFERENCE = ("simpo",)


@shaped
def dpo_loss(
    policy_chosen: Float[Tensor, " n"],
    policy_rejected: Float[Tensor, " n"],
    reference_chosen: Float[Tensor, " n"] | None,
    reference_rejected: Float[Tensor, " n"] | None,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    gamma: float = GAMMA,
    chosen_length: Real[Tensor, " n"] | None = None,
    rejected_length: Real[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the loss of each of n pairs, to be averaged; by default -ln σ(β (D_w - D_l)).

    The four tensors are ln π and ln π_ref of whole completions in nats, summed over their tokens;
    D = ln π - ln π_ref. The reference is detached. With e the label smoothing, |y| the tokens of a
    completion, l = ln π:

        sigmoid        -(1 - e) ln σ(β (D_w - D_l)) - e ln σ(-β (D_w - D_l))
        robust         [-(1 - e) ln σ(β (D_w - D_l)) + e ln σ(-β (D_w - D_l))] / (1 - 2e)
        hinge          max(0, 1 - β (D_w - D_l))
        ipo            (D_w / |y_w| - D_l / |y_l| - 1 / 2β)²
        sigmoid_norm   -ln σ(β (D_w / |y_w| - D_l / |y_l|))
        apo_zero       1 - σ(β D_w) + σ(β D_l)
        sppo_hard      (D_w - 1 / 2β)² + (D_l + 1 / 2β)²
        bco_pair       -ln σ(β D_w) - ln σ(-β D_l)
        simpo          -ln σ(β (l_w / |y_w| - l_l / |y_l|) - gamma), references None

    The papers stand at the functions above. Where π is the reference, sigmoid is ln 2. e is the
    share of labels thought to be flipped, from 0 to below 1/2. Lengths are read where the loss
    averages.

    Raises ShapeError unless all are [n]; ArgumentError for another loss_type, numbers out of range,
    lengths that are missing or below 1, and a reference, smoothing or gamma that this loss_type
    needs and does not get, or gets and does not have.
    """
    _check_settings(loss_type, beta, label_smoothing, gamma)
    chosen = _over_reference("chosen", policy_chosen, reference_chosen, loss_type)
    rejected = _over_reference("rejected", policy_rejected, reference_rejected, loss_type)
    if loss_type in AVERAGED:
        chosen = chosen / _checked_length("chosen_length", chosen_length, loss_type)
        rejected = rejected / _checked_length("rejected_length", rejected_length, loss_type)
    return LOSSES[loss_type](Pair(chosen, rejected, beta, label_smoothing, gamma))


@shaped
def implicit_reward(
    policy: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"], beta: float
) -> Float[Tensor, "*shape"]:
    """Return β (ln π - ln π_ref), detached: the reward for which π is optimal, up to a constant.

    The constant is the same for all completions of a prompt. Rafailov et al. 2023,
    arXiv:2305.18290, equation 5. Raises ShapeError unless the shapes are equal.
    """
    return beta * (policy - reference).detach()


# ---------------------------------------------------------------- what each takes
def _over_reference(name: str, policy: Tensor, reference: Tensor | None, loss_type: str) -> Tensor:
    """Return D, or ln π where the loss has no reference."""
    if loss_type in WITHOUT_REFERENCE:
        if reference is not None:
            raise ArgumentError(
                f"reference_{name} takes None for loss_type {loss_type!r}, which has no reference, "
                "got a tensor"
            )
        return policy
    if reference is None:
        raise ArgumentError(
            f"reference_{name} takes log-probabilities for loss_type {loss_type!r}, got None"
        )
    return policy - reference.detach()


def _checked_length(name: str, length: Tensor | None, loss_type: str) -> Tensor:
    if length is None:
        raise ArgumentError(
            f"{name} takes tokens of each completion for loss_type {loss_type!r}, which averages "
            "over them, got None"
        )
    if (length < 1).any():
        index = int((length < 1).nonzero()[0])
        raise ArgumentError(f"{name} takes at least 1, got {length[index].item()} at [{index}]")
    return length


def _check_settings(loss_type: str, beta: float, smoothing: float, gamma: float) -> None:
    if loss_type not in LOSSES:
        raise ArgumentError(
            f"loss_type takes {', '.join(map(repr, LOSSES))}, got {loss_type!r}"
            f"{suggest(loss_type, LOSSES)}"
        )
    check_range("beta", beta, 0)
    if beta == 0:
        raise ArgumentError("beta takes a number above 0, got 0")
    check_range("label_smoothing", smoothing, 0, 0.5)
    if smoothing == 0.5:
        raise ArgumentError("label_smoothing takes a number below 0.5, which says nothing, got 0.5")
    if smoothing and loss_type not in SMOOTHED:
        raise ArgumentError(
            f"label_smoothing takes 0 for loss_type {loss_type!r}, which has none, got {smoothing}"
        )
    check_range("gamma", gamma, 0)
    if gamma != GAMMA and loss_type != "simpo":
        raise ArgumentError(
            f"gamma is taken by loss_type 'simpo' only, got gamma {gamma} for {loss_type!r}"
        )
