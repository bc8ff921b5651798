"""The gradient of any expectation, an audit of estimators, and how good a sampled gradient is.

value = us.gradient.expectation(f, distribution, n)          # f of any kind, a scalar to ascend
loss = -us.gradient.surrogate(log_prob, reward).mean()       # the same with samples of one's own
report = us.gradient.check_unbiased(my_surrogate, distribution, f)
"""

from __future__ import annotations

from upslope.gradient.baselines import (
    Baseline,
    Constant,
    Learned,
    LeaveOneOut,
    MovingAverage,
    Optimal,
)
from upslope.gradient.estimate import Estimate
from upslope.gradient.expectation import expectation
from upslope.gradient.importance import (
    ImportanceReport,
    importance_report,
    self_normalized_surrogate,
)
from upslope.gradient.quality import GradientQuality, quality
from upslope.gradient.score import fisher_information, score
from upslope.gradient.surrogate import graph_surrogate, surrogate
from upslope.gradient.trajectory import trajectory_surrogate
from upslope.gradient.unbiased import BiasReport, check_unbiased

__all__ = [
    "Baseline",
    "BiasReport",
    "Constant",
    "Estimate",
    "GradientQuality",
    "ImportanceReport",
    "Learned",
    "LeaveOneOut",
    "MovingAverage",
    "Optimal",
    "check_unbiased",
    "expectation",
    "fisher_information",
    "graph_surrogate",
    "importance_report",
    "quality",
    "score",
    "self_normalized_surrogate",
    "surrogate",
    "trajectory_surrogate",
]
