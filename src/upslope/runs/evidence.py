"""What is kept of an update that failed: the experience it was made from, and the agent before it.

runs/NAME/not-finite    a checkpoint's three files: `rollout/NAME` beside what an agent's state has
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from upslope import checkpoint
from upslope.agents.agent import Agent
from upslope.rollout.buffer import ROWS


def keep_evidence(folder: Path, agent: Agent[Any]) -> str:
    """Write the rollout and the agent as they are now; returns a sentence that says where."""
    tensors, meta = agent.state()
    found = {name: getattr(agent.collector.rollout, name) for name in ROWS}
    rows = {n: a for n, a in found.items() if isinstance(a, np.ndarray | Tensor)}
    tensors |= {f"rollout/{name}": array for name, array in rows.items()}
    return checkpoint.put_aside(folder / "not-finite", tensors, meta)
