"""The episodes that N environments are in: return and length so far, and those that ended last."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

Array = np.ndarray
RECENT = 100


class Episodes:
    """Counts episodes, and keeps return, length in steps and score of the last 100."""

    def __init__(self, n_envs: int) -> None:
        self.ended = 0
        self.total = np.zeros(n_envs)  # rewards of the open episodes
        self.length = np.zeros(n_envs, np.int64)
        # (return, length in steps, score or NaN) of the episodes that ended last
        self.recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT)

    def begin(self) -> None:
        """Forget the open episodes: all environments begin anew."""
        self.total[:] = 0
        self.length[:] = 0

    def add(self, reward: Array, valid: Array) -> None:
        """Add a step of each environment, [N], where `valid` says that it was one."""
        self.total += reward
        self.length += valid

    def end(self, rows: Array, score: Array | None = None) -> None:
        """Count the episodes of the given environments, with their scores [N] if they have one."""
        scores = np.full(len(rows), np.nan) if score is None else score[rows]
        ended = self.total[rows].tolist(), self.length[rows].tolist(), scores.tolist()
        self.recent.extend(zip(*ended, strict=True))
        self.ended += len(rows)
        self.total[rows] = 0
        self.length[rows] = 0

    def summary(self) -> dict[str, float]:
        """Return the means over the last 100 episodes: return, length in steps, score if any."""
        found = {"episodes": float(self.ended)}
        if self.recent:
            count, columns = len(self.recent), zip(*self.recent, strict=True)
            mean_return, length, score = (math.fsum(column) / count for column in columns)
            found |= {"episode_return": mean_return, "episode_length": length}
            if not math.isnan(score):
                found["episode_score"] = score
        return found

    def arrays(self) -> dict[str, Array]:
        """Return what is open, by name."""
        return {"episode_return": self.total, "episode_length": self.length}

    def last(self) -> Array:
        """Return those that ended last, [n, 3]."""
        return np.array(self.recent, np.float64).reshape(-1, 3)

    def load(self, ended: int, arrays: dict[str, Any]) -> None:
        """Take up what `arrays` and `last`, under "recent", have given."""
        self.ended = ended
        self.total = arrays["episode_return"].copy()
        self.length = arrays["episode_length"].copy()
        self.recent.clear()
        self.recent.extend(tuple(row) for row in arrays["recent"].tolist())
