"""An agent as named tensors and a dictionary for JSON, and back.

    policy/NAME, adam_m/NAME, adam_v/NAME    parameters, and Adam's moments of them
    best/NAME, best_scale/NAME               the policy of the best evaluation, if there was one
    own/NAME                                 what the algorithm has beside them, such as traces
    experience/...                           normalisers, open episodes, what the environments need

A state is taken up whole, or refused with every difference named and nothing changed.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from upslope import checkpoint
from upslope.agents.evaluation import Best
from upslope.engine.torch_engine import TorchEngine
from upslope.errors import ArgumentError, CheckpointError
from upslope.rollout.named import under

if TYPE_CHECKING:
    from upslope.agents.agent import Agent

COUNTERS = ("iteration", "num_timesteps", "target_timesteps")
REQUIRED = (
    *COUNTERS,
    *("engine_steps", "config", "env", "env_kwargs", "backend", "custom_policy", "best"),
)
KINDS: dict[str, type[Any] | UnionType] = {
    **dict.fromkeys((*COUNTERS, "engine_steps", "best.timesteps"), int),
    **{"config": dict, "env_kwargs": dict, "experience": dict, "made_with": dict},
    **{"best": dict | None, "best.mean": int | float, "env": str | None},
    **{"backend": str, "custom_policy": bool},
}
"""What each part of the dictionary has to be; all of the experience's numbers are whole."""
LARGEST = 2**48  # of a whole number: it counts steps, or rows that memory has to hold
EXPERIENCE = ("experience.segment", "experience.segment_steps", "experience.episodes")
BEST = ("best.timesteps", "best.mean")


def state_of(agent: Agent[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return everything about an agent that evolves, and what it was made with."""
    arrays, numbers = agent.collector.state()
    tensors = fixed_tensors(agent)
    tensors |= {f"experience/{name}": array for name, array in arrays.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (agent.best.tensors or {}).items()}
    tensors |= {f"best_scale/{name}": array for name, array in (agent.best.scale or {}).items()}
    best = {"timesteps": agent.best.timesteps, "mean": agent.best.mean}
    meta = {
        "algorithm": type(agent).__name__,
        "config": asdict(agent.config),
        "env": agent.env if isinstance(agent.env, str) else None,
        "env_kwargs": agent.env_kwargs,
        "backend": agent.stream.backend,
        "custom_policy": agent.custom_policy,
        **spaces(agent),
        **{name: getattr(agent, name) for name in COUNTERS},
        "engine_steps": agent.engine.steps,
        "best": best if math.isfinite(agent.best.mean) else None,
        "experience": numbers,
        "made_with": made_with(agent.engine),
    }
    return tensors, meta


def take_up(
    agent: Agent[Any],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    path: str | Path | None,
) -> None:
    """Make an agent what was saved; raises CheckpointError naming every difference."""
    inner = inner_of(meta)
    check_kinds({**meta, **inner}, path)
    fixed = fixed_tensors(agent)
    numbers, best = meta.get("experience") or {}, meta.get("best")
    expected = agent.collector.expected(numbers)
    checkpoint.check_compatible(
        tensors,
        {**meta, **inner},
        fixed
        | {f"experience/{name}": spec for name, spec in expected.items()}
        | ({} if best is None else best_tensors(agent)),
        algorithm=type(agent).__name__,
        expected_meta=spaces(agent),
        required_meta=(*REQUIRED, *EXPERIENCE, "made_with", *(() if best is None else BEST)),
        path=path,
    )
    for name, tensor in fixed.items():
        tensor.data.copy_(tensors[name])
    for name in COUNTERS:
        setattr(agent, name, meta[name])
    agent.engine.steps = meta["engine_steps"]
    agent.best = Best()
    if best is not None:
        scale = {name: tensor.numpy() for name, tensor in under("best_scale/", tensors).items()}
        kept = under("best/", tensors)
        agent.best = Best(best["timesteps"], best["mean"], kept, scale or None)
    arrays = {name: tensor.numpy() for name, tensor in under("experience/", tensors).items()}
    agent.collector.load_state(arrays, meta["experience"])


def check_complete(meta: Mapping[str, Any], path: str | Path | None) -> None:
    """Raise CheckpointError unless the saved state says what an agent is made from."""
    missing = [name for name in REQUIRED if name not in meta]
    if missing:
        raise CheckpointError(f"checkpoint {path} is not an agent's: it lacks {', '.join(missing)}")
    check_kinds({**meta, **inner_of(meta)}, path)


def inner_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the dictionaries in a saved one, by names with a dot."""
    found = {outer: meta.get(outer) for outer in ("experience", "best")}
    return {
        f"{outer}.{name}": value
        for outer, inner in found.items()
        if isinstance(inner, dict)
        for name, value in inner.items()
    }


def check_kinds(meta: Mapping[str, Any], path: str | Path | None) -> None:
    """Raise CheckpointError for an entry that is not what the code takes it for."""
    for name, value in meta.items():
        kind = int if name.startswith("experience.") else KINDS.get(name)
        if kind is None:
            continue
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits or (kind is int and not -1 <= value <= LARGEST):
            takes = getattr(kind, "__name__", kind)
            raise CheckpointError(
                f"checkpoint {path} has {name} = {str(value)[:60]!r}, which takes {takes}"
            )


def check_given(meta: Mapping[str, Any], env: Any, policy: Any, path: str | Path | None) -> None:
    """Raise ArgumentError unless what a saved agent needs, and no file holds, is given."""
    if env is None and meta["env"] is None:
        raise ArgumentError(f"{path} was trained on environments without an id: give env=")
    if env is None and str(meta["env"]).rpartition(":")[0] not in ("", *sys.modules):
        raise ArgumentError(
            f"{path} has a module imported for its environment: env={meta['env']!r} allows it"
        )
    if meta["custom_policy"] and policy is None:
        raise ArgumentError(f"{path} was trained with a module of your own: give policy=")


def making(meta: Mapping[str, Any], env: Any) -> dict[str, Any]:
    """Return with which env_kwargs and backend a saved agent's environments are made again."""
    if not trained_on(meta, env):
        exists = isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv)
        return {"n_envs": getattr(env, "num_envs", 1)} if exists else {}
    return {"env_kwargs": meta["env_kwargs"], "backend": meta["backend"]}


def trained_on(meta: Mapping[str, Any], env: Any) -> bool:
    """Say whether `env` makes the environments again that a saved agent was trained on."""
    if meta["env"] is not None:
        return bool(env == meta["env"])
    return callable(env) and meta["backend"] != "given"


def elsewhere(
    agent: Agent[Any], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a saved state for an agent on other environments: its experience begins anew.

    Weights, moments, counters and the statistics of the normalisers stay.
    """
    arrays, numbers = agent.collector.state()
    fresh = {f"experience/{name}": torch.as_tensor(array) for name, array in arrays.items()}
    own = {f"own/{name}": tensor for name, tensor in agent.own_tensors().items()}
    fresh |= {name: own[name] for name in own if name.split("/")[1] in agent.of_environments}
    begun = [name for name in fresh if not name.endswith(("/count", "/mean", "/var"))]
    kept = {name: tensor for name, tensor in tensors.items() if not is_open(name)}
    return {**fresh, **kept, **{name: fresh[name] for name in begun}}, {
        **meta,
        "experience": numbers,
    }


def is_open(name: str) -> bool:
    """Say whether a tensor belongs to the environments that experience came from."""
    return name.startswith("experience/") and "_normalizer/" not in name


def fixed_tensors(agent: Agent[Any]) -> dict[str, Any]:
    """Return the tensors whose names and shapes the agent's settings decide, live."""
    buffers = {f"buffer/{name}": buffer for name, buffer in agent.policy.named_buffers()}
    own = {f"own/{name}": tensor for name, tensor in agent.own_tensors().items()}
    return agent.engine.state() | buffers | own


def best_tensors(agent: Agent[Any]) -> dict[str, Any]:
    """Return tensors like those that are kept of the best policy."""
    tensors = {f"best/{name}": tensor for name, tensor in agent.policy.state_dict().items()}
    normalizer = agent.collector.observation_normalizer
    scale = {} if normalizer is None else normalizer.state_dict()
    return tensors | {f"best_scale/{name}": array for name, array in scale.items()}


def spaces(agent: Agent[Any]) -> dict[str, str]:
    """Return the agent's spaces as text."""
    stream = agent.stream
    found = {"observation_space": stream.observation_space, "action_space": stream.action_space}
    return {name: str(space) for name, space in found.items()}


def made_with(engine: TorchEngine) -> dict[str, str | int]:
    """Return the versions and the machine's features that decide how sums come out."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "threads": engine.threads,
        "engine": engine.rounding,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
