"""Does a checkpoint fit what it is loaded into? All the differences, in one error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from upslope.errors import CheckpointError, suggest


class TensorSpec(NamedTuple):
    """The shape and dtype that a tensor of a checkpoint must have; None is any length."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype


def check_compatible(
    tensors: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any],
    expected_tensors: Mapping[str, torch.Tensor | np.ndarray | TensorSpec],
    *,
    algorithm: str,
    expected_meta: Mapping[str, Any] | None = None,
    required_meta: Iterable[str] = (),
    path: str | Path | None = None,
) -> None:
    """Raise CheckpointError listing every way in which a read state is not the expected one.

    `tensors` and `meta` are what `read` gave. The tensors' names must be those of
    `expected_tensors`, no fewer and no more, each with the same shape and dtype.
    `meta["algorithm"]` must be `algorithm`; each entry of `expected_meta` must be there with that
    value (settings that cannot differ, such as a version), each name in `required_meta` with any
    value (counters, schedules). Other entries of `meta` are not looked at.
    """
    differences: list[str] = []
    for name, value in {"algorithm": algorithm, **(expected_meta or {})}.items():
        if name not in meta:
            differences.append(f"{name}: missing, expected {value!r}")
        elif _as_json(meta[name]) != _as_json(value):
            differences.append(f"{name}: {meta[name]!r} in the checkpoint, expected {value!r}")
    differences += [f"{name}: missing" for name in required_meta if name not in meta]

    unexpected = [name for name in sorted(tensors) if name not in expected_tensors]
    for name in sorted(expected_tensors):
        expected = _spec(expected_tensors[name])
        if name not in tensors:
            hint = suggest(name, unexpected)
            differences.append(f"tensor {name}: missing, expected {_describe(expected)}{hint}")
            continue
        found = TensorSpec(tuple(tensors[name].shape), tensors[name].dtype)
        if not _fits(found, expected):
            differences.append(
                f"tensor {name}: {_describe(found)} in the checkpoint, "
                f"expected {_describe(expected)}"
            )
    differences += [
        f"tensor {name}: {_describe(_spec(tensors[name]))} in the checkpoint, not expected"
        for name in unexpected
    ]
    if differences:
        where = "the checkpoint" if path is None else f"the checkpoint {path}"
        listed = "".join(f"\n  - {difference}" for difference in differences)
        count = f"{len(differences)} difference" + ("s" if len(differences) > 1 else "")
        raise CheckpointError(f"{where} does not fit this {algorithm}, {count}:{listed}")


def _spec(value: torch.Tensor | np.ndarray | TensorSpec) -> TensorSpec:
    if isinstance(value, TensorSpec):
        return value
    if isinstance(value, torch.Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    return TensorSpec(value.shape, torch.from_numpy(np.empty(0, value.dtype)).dtype)


def _fits(found: TensorSpec, expected: TensorSpec) -> bool:
    return (
        found.dtype == expected.dtype
        and len(found.shape) == len(expected.shape)
        and all(
            want in (None, have) for have, want in zip(found.shape, expected.shape, strict=True)
        )
    )


def _describe(spec: TensorSpec) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in spec.shape)
    return f"{str(spec.dtype).removeprefix('torch.')} [{sizes}]"


def _as_json(value: Any) -> str:
    """Return the value's JSON, in which a tuple is a list and True is not 1."""
    return json.dumps(value, sort_keys=True)
