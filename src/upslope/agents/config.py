"""What every algorithm can be told, and how settings are checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import tyro

from upslope.agents.schedules import Schedule, check_schedule
from upslope.checkpoint import check_meta
from upslope.errors import ConfigError, suggest
from upslope.policies.actor_critic import POLICIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings that all agents share."""

    n_envs: int = 8
    """Environments stepped together, N; more make better use of the machine, with wider data."""
    n_steps: int = 128
    """Steps of each environment per update, T; more see further ahead and update less often."""
    learning_rate: Schedule = 3e-4
    """Adam's step size, or "linear(3e-4)" to take it to 0; larger learns faster, then breaks."""
    gamma: float = 0.99
    """Discount of a reward one step later; larger looks further ahead, with more variance."""
    max_grad_norm: float | None = 0.5
    """Longest gradient that is taken whole, as a 2-norm; None never clips; smaller is steadier."""
    seed: int = 0
    """The number that every random draw is derived from."""
    policy: str | None = None
    """The network: mlp, cnn, lstm or gru; None is cnn where observations are images, else mlp."""
    policy_kwargs: Annotated[Mapping[str, Any], tyro.conf.Suppress] = dataclasses.field(
        default_factory=dict
    )
    """What the policy is built with: net_arch (64, 64), activation ("tanh"), memory_size (64),
    tiles (tile coding: {"tilings": 8, "tiles": 8}), and for Box actions log_std_init (0), scale
    ("parameter", "network", "exploration"), squash."""
    use_action_masks: bool = True
    """Take only what the environment says is legal; False lets it find that out by reward."""
    normalize_observation: bool = False
    """Centre observations by their running mean, divide by their deviation, clip to +-10."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the discounted return, clip to +-10."""
    segment_length: int = 10_000
    """Steps of each environment after which the environments are made anew, which is what makes a
    run resumable exactly; longer cuts fewer episodes and takes longer to resume."""
    device: str = "cpu"
    """Where the networks are: cpu, or another device of torch such as cuda."""
    engine: str = "auto"
    """What takes the optimisation steps: torch, native (C++), bfloat16 (the same with products in
    bfloat16, on processors that have it), graph (torch's as CUDA graphs, for device="cuda"), or
    auto: native where it applies, else torch."""


POSITIVE_INTEGERS = (
    *("n_envs", "n_steps", "batch_size", "n_epochs", "segment_length"),
    *("buffer_size", "train_freq", "target_update_interval"),
)
COUNTS = ("seed", "learning_starts")
SHARES = (
    *("gamma", "gae_lambda", "tau", "actor_trace", "critic_trace"),
    *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
)
NOT_NEGATIVE = ("ent_coef", "vf_coef", "average_learning_rate")
POSITIVE_OR_NONE = ("max_grad_norm", "target_kl")
SCHEDULES = (*("learning_rate", "critic_learning_rate", "clip_range", "clip_range_vf", "epsilon"),)
SWITCHES = (
    "normalize_advantage",
    "normalize_observation",
    "use_action_masks",
    "normalize_reward",
    "recompute_advantage",
    "discount_state",
    "traces",
    *("double", "huber"),
)
CHOICES: dict[str, Iterable[str | None]] = {
    "engine": ("auto", "torch", "native", "bfloat16", "graph"),
    "policy": (None, *POLICIES),
    "weight": ("reward_to_go", "return"),
    "baseline": (None, "mean", "leave_one_out", "value"),
    "importance": (None, "ordinary", "self_normalized", "per_decision"),
    "update": ("sampled", "all_actions"),
    "setting": ("discounted", "average"),
    "target": ("q_learning", "sarsa", "expected_sarsa"),
}

Config = TypeVar("Config", bound=AgentConfig)


def make_config(config_class: type[Config], settings: Mapping[str, Any]) -> Config:
    """Return the frozen configuration of these settings.

    Raises ConfigError naming a setting that does not exist (and the one that was likely meant), has
    the wrong type, or is out of its range.
    """
    known = [field.name for field in dataclasses.fields(config_class)]
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"{config_class.__name__.removesuffix('Config')} has no setting {name!r}"
                f"{suggest(name, known)}; it has {', '.join(sorted(known))}"
            )
    config = config_class(**{name: plain(value) for name, value in settings.items()})
    for name in known:
        _check(name, getattr(config, name))
        check_meta(getattr(config, name), name)
    return config


def plain(value: Any) -> Any:
    """Return a setting as a file can hold it: NumPy's numbers and arrays as Python's and lists."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def _check(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool)
    finite = number and math.isfinite(value)
    takes = ""
    if name in POSITIVE_INTEGERS and not (whole and value >= 1):
        takes = "a whole number of at least 1"
    elif name in COUNTS and not (whole and value >= 0):
        takes = "a whole number of at least 0"
    elif name == "gradient_steps" and not (whole and (value >= 1 or value == -1)):
        takes = "a whole number of at least 1, or -1 for one for each transition"
    elif name in SHARES and not (finite and 0 <= value <= 1):
        takes = "a number from 0 to 1"
    elif name in NOT_NEGATIVE and not (finite and value >= 0):
        takes = "a finite number that is not negative"
    elif name in POSITIVE_OR_NONE and not (value is None or (finite and value > 0)):
        takes = "a finite number above 0, or None"
    elif name == "device" and not _usable(value):
        takes = "a device that torch has here, such as 'cpu'"
    elif name in SWITCHES and not isinstance(value, bool):
        takes = "True or False"
    elif name == "policy_kwargs" and not isinstance(value, Mapping):
        takes = "a dictionary"
    elif name in CHOICES and value not in CHOICES[name]:
        takes = "one of " + ", ".join(repr(choice) for choice in CHOICES[name])
    elif name in SCHEDULES and not (number or isinstance(value, str)):
        if value is not None or name != "clip_range_vf":
            takes = "a number or a schedule such as 'linear(3e-4)'"
    elif name in SCHEDULES and value is not None:
        check_schedule(name, value, 1.0 if name in ("clip_range", "epsilon") else math.inf)
    if takes:
        raise ConfigError(f"{name}={value!r}: {name} takes {takes}")


def _usable(device: Any) -> bool:
    try:
        torch.zeros(1, device=torch.device(device)).item()
    except (TypeError, ValueError, OverflowError, RuntimeError, AssertionError):
        return False
    return True
