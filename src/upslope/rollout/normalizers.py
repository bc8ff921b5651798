"""Running means and variances of what the environments give, and scaling by them.

    o' = clip((o - mean[o]) / sqrt(var[o] + eps))
    r' = clip(r / sqrt(var[R] + eps)),   R_t = gamma R_{t-1} + r_t

Batches a and b are joined exactly, with delta = mean_b - mean_a and n = n_a + n_b:

    mean  = mean_a + delta n_b / n
    n var = n_a var_a + n_b var_b + delta^2 n_a n_b / n

Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
variances", equation 2.1. Statistics are float64. Rows that only reset an environment are left out:
they are no step, and a reward of 0 counted there would make the scale depend on the autoreset mode.
A number that has not varied yet has no scale, and is divided by 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from upslope.errors import ArgumentError, CheckpointError
from upslope.policies.layout import Layout

Array = np.ndarray


class RunningMoments:
    """Count, mean and variance (of the population) of all rows seen so far, each of `shape`."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.var = np.zeros(shape)

    def update(self, rows: Array) -> None:
        """Take in rows [n, *shape]."""
        n = len(rows)
        if n == 0:
            return
        centred = np.asarray(rows, np.float64)
        mean = centred.mean(axis=0)
        centred = centred - mean
        var = np.einsum("n...,n...->...", centred, centred) / n
        total = self.count + n
        delta = mean - self.mean
        share = n / total
        self.var = (1 - share) * self.var + share * var + delta**2 * (share * (1 - share))
        self.mean = self.mean + delta * share
        self.count = total

    def deviation(self, epsilon: float) -> Array:
        """Return sqrt(var + epsilon), and 1 where nothing has varied yet."""
        return np.where(self.var > 0, np.sqrt(self.var + epsilon), 1.0)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of count, mean and var."""
        count = np.array(self.count, np.int64)
        return {"count": count, "mean": self.mean.copy(), "var": self.var.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; raises CheckpointError if it is of another kind."""
        arrays = _checked(state, self.state_dict())
        self.count, self.mean, self.var = int(arrays["count"]), arrays["mean"], arrays["var"]


class ObservationNormalizer:
    """Centres and scales each number of an observation by its running mean and deviation.

    `update` takes observations in; calling returns them scaled, float32, within [-clip, clip].
    Where `measured` (of `shape`, all by default) is False a number stays as it is: a choice or a
    pixel has no scale of its own.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        clip: float = 10.0,
        epsilon: float = 1e-8,
        measured: Array | None = None,
    ) -> None:
        self.measured = measured
        self.clip, self.epsilon = _positive("clip", clip), _positive("epsilon", epsilon)
        self.moments = RunningMoments(tuple(shape))
        self._prepare()

    @classmethod
    def of(cls, layout: Layout) -> ObservationNormalizer:
        """Return one for observations of a space: of its parts the Boxes of floats are measured.

        Raises ArgumentError where there is none.
        """
        floats = [np.issubdtype(part.space.dtype, np.floating) for part in layout.parts]
        if not any(floats):
            raise ArgumentError(
                f"normalize_observation=True takes observations with a Box of floats, got "
                f"{layout.space}"
            )
        if all(floats):
            return cls(layout.shape)
        sizes = [part.size for part in layout.parts]
        return cls(layout.shape, measured=np.repeat(floats, sizes).reshape(layout.shape))

    def update(self, observation: Array, valid: Array | None = None) -> None:
        """Take in the rows of `observation` [N, ...] where `valid` [N] is True."""
        self.moments.update(_counted(observation, valid))
        self._prepare()

    def __call__(self, observation: Array) -> Array:
        """Return observations [N, ...], or one, scaled; changes no statistics."""
        given = np.asarray(observation)
        # of doubles the difference is rounded: the numbers may be large, and close together
        mean = self.moments.mean if given.dtype == np.float64 else self._mean
        scaled = np.asarray(given - mean, np.float32)
        scaled *= self._scale
        np.clip(scaled, -self.clip, self.clip, out=scaled)
        if self.measured is None:
            return scaled
        return np.where(self.measured, scaled, given.astype(np.float32))

    def _prepare(self) -> None:
        self._mean = self.moments.mean.astype(np.float32)
        self._scale = (1 / self.moments.deviation(self.epsilon)).astype(np.float32)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of count, mean and var."""
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; raises CheckpointError if it is of another kind."""
        self.moments.load_state_dict(state)
        self._prepare()


class RewardNormalizer:
    """Divides rewards by the running deviation of the discounted return, and centres nothing.

    Calling it takes one step's rewards in and returns them scaled, float32, within [-clip, clip].
    """

    def __init__(
        self, n_envs: int, gamma: float, *, clip: float = 10.0, epsilon: float = 1e-8
    ) -> None:
        self.gamma, self.clip, self.epsilon = (
            gamma,
            _positive("clip", clip),
            _positive("epsilon", epsilon),
        )
        self.moments = RunningMoments()
        self.running_return = np.zeros(n_envs)

    def start(self) -> None:
        """Forget the open episodes: the environments begin anew. The statistics stay."""
        self.running_return[:] = 0

    def __call__(self, reward: Array, ended: Array, valid: Array | None = None) -> Array:
        """Return reward [N] scaled; `ended` [N] where an episode ended, `valid` [N] what counts."""
        running = self.gamma * self.running_return + reward
        if valid is not None:
            running = np.where(valid, running, self.running_return)
        self.moments.update(_counted(running, valid))
        running[ended] = 0
        self.running_return = running
        scaled = (reward / self.moments.deviation(self.epsilon)).astype(np.float32)
        return np.clip(scaled, -self.clip, self.clip, out=scaled)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of count, mean, var and the running return of each environment."""
        return self.moments.state_dict() | {"running_return": self.running_return.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; raises CheckpointError if it is of another kind."""
        arrays = _checked(state, self.state_dict())
        self.running_return = arrays.pop("running_return")
        self.moments.load_state_dict(arrays)


def _counted(rows: Array, valid: Array | None) -> Array:
    return rows if valid is None or valid.all() else rows[valid]


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ArgumentError(f"{name} takes a number above 0, got {value!r}")
    return float(value)


def _checked(state: Mapping[str, Any], own: dict[str, Array]) -> dict[str, Array]:
    """Return copies of the arrays in `state`, which must be like `own` in name, shape and type."""
    if state.keys() != own.keys():
        raise CheckpointError(f"a normaliser's state takes {sorted(own)}, got {sorted(state)}")
    arrays = {name: np.array(value) for name, value in state.items()}
    for name, array in arrays.items():
        if array.shape != own[name].shape or array.dtype != own[name].dtype:
            raise CheckpointError(
                f"{name!r} of a normaliser's state takes {own[name].dtype} of shape "
                f"{own[name].shape}, got {array.dtype} of shape {array.shape}"
            )
    return arrays
