"""Rewards to weights: what each log-probability is multiplied by, one equation per function.

Tensors are time-major, [T, N]: T steps of N environments. Row t holds what the step from s_t to
s_{t+1} gave. `terminated` is where the episode truly ended, and nothing follows; `truncated` where
it was cut off, and the value of what would have followed still counts. Every sum is cut at both,
and at the last row, where the rollout stops. Rewards are never edited. Values are in units of
reward. `mean_baseline` compares episodes, and `group_advantage` completions, which have no time.

All functions keep the dtype of what they are given and can be differentiated.
"""

from upslope.returns.groups import GROUP_EPSILON, group_advantage, mean_baseline
from upslope.returns.steps import (
    VTrace,
    discounted_return,
    eligibility,
    gae,
    lambda_return,
    n_step,
    reward_to_go,
    vtrace,
)

__all__ = [
    "GROUP_EPSILON",
    "VTrace",
    "discounted_return",
    "eligibility",
    "gae",
    "group_advantage",
    "lambda_return",
    "mean_baseline",
    "n_step",
    "reward_to_go",
    "vtrace",
]
