"""When an environment counts as solved, and a clock of training alone; the same for any library.

    trial = Trial(TASKS["CartPole-v1"], evaluate, total=200_000)
    trial.start()
    while trial.after(steps):  # steps learnt from so far
        ...                    # learn from more

`evaluate(steps)` returns the figure of the deterministic policy as it is now. The clock stands
meanwhile, and what comes before `start` (imports, set-up, compilation) is not on it either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be reached in an environment, and how often it is looked whether it is."""

    target: float | None
    """The figure from which on it is solved; None: when all steps are done, whatever the figure."""
    aim: float
    """The seconds of training that it should take at most, on two cores."""
    every: int
    """Steps of training between evaluations."""
    episodes: int = 100
    """Whole episodes of an evaluation."""
    score: bool = False
    """The figure is the median of the game's own scores, not the mean return."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the environment is evaluated with."""
    says: str
    """What is to be reached in a few words, for the table and the picture."""

    def figure(self, numbers: np.ndarray) -> float:
        """Return the figure of returns [n], or of scores [n]."""
        return float(np.median(numbers) if self.score else np.mean(numbers))


TASKS = {
    "CartPole-v1": Task(target=475, aim=3, every=5_000, says="mean return of 100 episodes >= 475"),
    "LunarLander-v3": Task(
        target=240, aim=60, every=20_000, says="mean return of 100 episodes >= 240"
    ),
    "upslope/FlappyBird-v0": Task(
        target=1_000,
        aim=60,
        every=1_000_000,
        episodes=20,
        score=True,
        env_kwargs={"score_limit": 1_000},
        says="median of 20 lives >= 1,000 pipes",
    ),
    "HalfCheetah-v5": Task(target=None, aim=120, every=10**9, says="1,000,000 steps"),
}

# What Stable-Baselines3 is tuned to: rl-baselines3-zoo, hyperparams/ppo.yml at commit 22e3ff2 of
# April 2026; "linear(x)" falls from x to 0.
ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_timesteps": 100_000,
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": "linear(1e-3)",
        "clip_range": "linear(0.2)",
    },
    "LunarLander-v3": {
        "n_timesteps": 1_000_000,
        "n_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
}

# rejax, configs/gymnax/cartpole.yaml at commit d751095 of June 2026
REJAX: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 100_000,
        "agent_kwargs": {"activation": "tanh"},
        "num_envs": 5,
        "num_steps": 100,
        "num_epochs": 5,
        "num_minibatches": 5,
        "learning_rate": 0.00075,
        "max_grad_norm": 0.5,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_eps": 0.2,
        "ent_coef": 0.01,
        "vf_coef": 0.5,
    }
}

TUNED = {"Stable-Baselines3": ZOO, "sbx": ZOO, "rejax": REJAX}  # what others are tuned to


class Trial:
    """The training of one seed: a clock, and the evaluations with what it showed at each."""

    def __init__(
        self, task: Task, evaluate: Callable[[int], float], *, total: int, limit: float | None
    ) -> None:
        self.task, self.evaluate, self.total, self.limit = task, evaluate, total, limit
        self.seconds = self.cpu = 0.0
        self.steps = 0
        self.solved = False
        self.history: list[dict[str, float]] = []

    def start(self) -> None:
        """Let the clock run."""
        self.began, self.began_cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Let the clock stand."""
        self.seconds += time.perf_counter() - self.began
        self.cpu += time.process_time() - self.began_cpu

    def after(self, steps: int) -> bool:
        """Evaluate if it is time, now that `steps` were learnt from; return whether to go on."""
        self.stop()
        over = steps >= self.total or (self.limit is not None and self.seconds >= self.limit)
        if over or steps // self.task.every > self.steps // self.task.every:
            figure = self.evaluate(steps)
            self.history.append({"steps": steps, "seconds": self.seconds, "figure": figure})
            target = self.task.target
            self.solved = steps >= self.total if target is None else figure >= target
        self.steps = steps
        self.start()
        return not (over or self.solved)

    def result(self) -> dict[str, Any]:
        """Return how it ended; `seconds` and `cpu` of training, of the clock and the processor."""
        ended = {"solved": self.solved, "seconds": self.seconds, "cpu": self.cpu}
        return ended | {"steps": self.steps, "evaluations": self.history}
