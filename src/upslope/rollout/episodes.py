"""Collecting whole episodes: one of each environment, begun and ended under the same policy.

    column n of [T, N] = tau_n = s_0, a_0, r_0, ..., s_L-1, a_L-1, r_L-1, s_L        n = 1 ... N

Why this has no length bias. A mean over trajectories needs trajectories drawn from p(tau), each
with the same chance whatever its length. Here it is decided before anything is played which
episodes count: the N that begin now, one in each environment, each followed to its own end. So they
are N independent draws from p(tau). What is often done instead draws from something else:

    the first n episodes to end       short ones end first, so there are too many of them
    the episodes within T steps       the same, and one that is longer than T is never among them
    the steps of T x N, cut anywhere  an episode counts once for each of its steps

and an episode that was open while the policy was updated belongs to two policies, to neither's
p(tau). The price is that an environment whose episode has ended idles until the longest one ends;
what it does meanwhile is in no statistic (`valid` is False) and is counted as no step.

An episode of `n_steps` steps is cut there, which is a truncation like any other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from upslope.policies.actor_critic import ActorCritic
from upslope.rollout.acting import Act
from upslope.rollout.buffer import Rollout
from upslope.rollout.collect import Collector
from upslope.rollout.stream import Step


class EpisodeCollector(Collector):
    """Fills a rollout with one episode of each environment, which are made anew each time."""

    takes_halves = False

    def _go_on(self, policy: ActorCritic) -> None:
        self._saved = None
        self._begin_segment(self.segment + 1)

    def _fill(self, policy: ActorCritic, generator: torch.Generator, act: Act | None) -> Rollout:
        """Play N episodes; returns the rows [T, N] up to the end of the longest."""
        rollout, last = self.rollout, self.rollout.n_steps - 1
        playing, t = self.stream.acting, -1
        with torch.inference_mode():
            acts, rows = self._begin_acting(policy, act, generator)
            while playing.any():
                t += 1
                step, memory = self._step(t, policy, acts)
                step = counted(step, playing, at_last=t == last)
                playing = playing & ~(step.terminated | step.truncated)
                self._record(t, step, playing)
                if rollout.recurrent:
                    self._remember(t, memory)
        self._end_acting(rows)
        return rollout.first(t + 1)

    def _environments(self) -> dict[str, Any]:
        """Nothing brings the environments back: the next rollout makes them anew."""
        return {}

    def expected(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Return what `state` must hold with these numbers, nothing of environments."""
        return super().expected(numbers | {"segment": -1})


def counted(step: Step, playing: np.ndarray, *, at_last: bool) -> Step:
    """Return the step where `playing` [N], and nothing elsewhere; cut what is open `at_last`."""
    terminated = step.terminated & playing
    return step._replace(
        reward=np.where(playing, step.reward, 0),
        terminated=terminated,
        truncated=(step.truncated | at_last) & playing & ~terminated,
        valid=step.valid & playing,
    )
