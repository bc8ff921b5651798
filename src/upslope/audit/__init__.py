"""The audit: every estimator of the library on problems whose gradient is known exactly.

    rows = audit()          # one Row for each estimator on each problem: bias, variance, noise
    passed(rows)            # False if one that declares itself unbiased is not

Which estimators there are, and what each declares, stands in `estimators.py` (one distribution),
`groups.py` (groups of completions, preferences), `episodes.py` and `continuing.py` (finite decision
problems).
"""

from __future__ import annotations

from upslope.audit.estimators import Estimator
from upslope.audit.measure import Row
from upslope.audit.run import PROBLEMS, audit, passed

__all__ = ["PROBLEMS", "Estimator", "Row", "audit", "passed"]
