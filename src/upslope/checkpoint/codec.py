"""The bytes of a checkpoint: a state to three files and back, all in memory.

    encode(tensors, meta) -> {"state.safetensors": ..., "state.json": ..., "manifest.json": ...}
    decode(those bytes)   -> State(tensors, meta)

The manifest holds the size and the SHA-256 of the two other files and, in its field `sha256`, the
hash of its own text without that field. Its text is canonical (keys sorted, one layout), and a
reader accepts no other text, so one flipped bit anywhere in the three files is refused.

Every file is treated as hostile: sizes and depths are bounded, numbers are finite, and the only
parsers that see the bytes are `json` and `safetensors`, which cannot execute anything.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch

from upslope.errors import ArgumentError, CheckpointError

FORMAT_NAME = "upslope-checkpoint"
FORMAT_VERSION = 1

TENSOR_FILE = "state.safetensors"
META_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
FILES = (TENSOR_FILE, META_FILE, MANIFEST_FILE)

MAX_HEADER_BYTES = 16 * 2**20  # of a safetensors file: names, shapes and offsets
MAX_BYTES = {META_FILE: 16 * 2**20, MANIFEST_FILE: 2**16}
MAX_META_DEPTH = 64

_JSON_TYPES = "dict, list, tuple, str, bool, int, finite float, None"


class State(NamedTuple):
    """What a checkpoint holds: named tensors, and what JSON can hold."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def encode(
    tensors: Mapping[str, torch.Tensor | np.ndarray], meta: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the bytes of each file of a checkpoint, the manifest last.

    Tensors of any strides and device are stored contiguously; two that share memory are stored
    twice. A tuple in `meta` comes back as a list.
    """
    files = {TENSOR_FILE: _encode_tensors(tensors), META_FILE: _encode_meta(meta)}
    body = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "files": _describe(files)}
    return files | {MANIFEST_FILE: _manifest_text(body)}


def decode(files: Mapping[str, bytes]) -> State:
    """Return the state in the bytes of a checkpoint's files, or raise CheckpointError."""
    _verify(files)
    return State(_decode_tensors(files[TENSOR_FILE]), _decode_meta(files[META_FILE]))


def _verify(files: Mapping[str, bytes]) -> None:
    """Raise CheckpointError unless the files are those that the manifest among them describes."""
    manifest = _parse_json(MANIFEST_FILE, files[MANIFEST_FILE])
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_NAME:
        raise CheckpointError(f"{MANIFEST_FILE} does not describe a checkpoint of Upslope")
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if _manifest_text(body) != files[MANIFEST_FILE]:
        raise CheckpointError(f"{MANIFEST_FILE} is damaged: it does not match its own SHA-256")
    if body.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{MANIFEST_FILE} says format version {str(body.get('version'))[:20]}; this version of "
            f"Upslope reads format version {FORMAT_VERSION}"
        )
    described, actual = body.get("files"), _describe(files)
    for name, found in actual.items():
        expected = described.get(name) if isinstance(described, dict) else None
        if found != expected:
            raise CheckpointError(
                f"{name} is damaged: it has {found['bytes']} bytes with SHA-256 "
                f"{found['sha256'][:12]}..., the manifest says {str(expected)[:120]}"
            )
    if body != {"format": FORMAT_NAME, "version": FORMAT_VERSION, "files": actual}:
        raise CheckpointError(f"{MANIFEST_FILE} describes more than the files of a checkpoint")


def _describe(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        for name in (TENSOR_FILE, META_FILE)
    }


def _manifest_text(body: Mapping[str, Any]) -> bytes:
    """Return the one text that a manifest with this content has."""

    def text(value: Mapping[str, Any]) -> bytes:
        return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()

    return text({**body, "sha256": hashlib.sha256(text(body)).hexdigest()})


# ---- tensors -------------------------------------------------------------------------------------


def _encode_tensors(tensors: Mapping[str, torch.Tensor | np.ndarray]) -> bytes:
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()  # storages: safetensors refuses two names for one piece of memory
    for name, value in tensors.items():
        if not isinstance(name, str) or not name or name == "__metadata__":
            raise ArgumentError(f"tensors has the name {name!r}; it takes a non-empty string")
        tensor = _as_plain_tensor(name, value)
        storage = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        data = safetensors.torch.save(ready)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        kinds = {name: str(tensor.dtype) for name, tensor in ready.items()}
        raise ArgumentError(
            f"tensors cannot be stored as safetensors ({error}): {kinds}"
        ) from error
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ArgumentError(
            f"tensors has {len(ready)} names, too many for a header of {MAX_HEADER_BYTES} bytes"
        )
    return data


def _as_plain_tensor(name: str, value: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return the value as a contiguous tensor on the CPU that needs no gradient."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.device.type == "meta":
            raise ArgumentError(
                f"tensors[{name!r}] is sparse or has no data; it takes a dense tensor"
            )
        return value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if not isinstance(value, np.ndarray | np.generic):
        raise ArgumentError(
            f"tensors[{name!r}] is a {type(value).__name__}; it takes a torch.Tensor or numpy array"
        )
    # A copy, since torch warns of arrays that cannot be written; it keeps a shape of () as it is.
    array = np.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ArgumentError(
            f"tensors[{name!r}] has dtype {array.dtype}; it takes booleans and numbers"
        ) from error


def _decode_tensors(data: bytes) -> dict[str, torch.Tensor]:
    header = int.from_bytes(data[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{TENSOR_FILE} has a header of {header} bytes; at most {MAX_HEADER_BYTES} are read"
        )
    try:
        return safetensors.torch.load(data)
    except (
        safetensors.SafetensorError,
        ArithmeticError,
        AssertionError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what safetensors and torch raise at names, shapes and dtypes that make no sense
        raise CheckpointError(f"{TENSOR_FILE} is not a safetensors file ({error})") from error


# ---- meta ----------------------------------------------------------------------------------------


def _encode_meta(meta: Mapping[str, Any]) -> bytes:
    check_meta(dict(meta), "meta")
    try:
        data = json.dumps(dict(meta), allow_nan=False).encode()
    except ValueError as error:  # an integer of thousands of digits
        raise ArgumentError(f"meta cannot be written as JSON: {error}") from error
    if len(data) > MAX_BYTES[META_FILE]:
        raise ArgumentError(
            f"meta has {len(data)} bytes as JSON; it takes at most {MAX_BYTES[META_FILE]}: "
            "long lists of numbers belong in tensors"
        )
    return data


def check_meta(value: Any, place: str, depth: int = 1) -> None:
    """Raise ArgumentError for what JSON would not give back as it is; `place` is its name."""
    if depth > MAX_META_DEPTH:
        raise ArgumentError(f"{place} is nested deeper than {MAX_META_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ArgumentError(f"{place} has the key {key!r}; JSON takes only strings as keys")
            check_meta(item, f"{place[:80]}[{key[:40]!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_meta(item, f"{place[:80]}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ArgumentError(f"{place} is {value}; it takes finite numbers, JSON has no others")
    elif value is not None and not isinstance(value, str | int | float):
        raise ArgumentError(f"{place} is a {type(value).__name__}; it takes {_JSON_TYPES}")


def _decode_meta(data: bytes) -> dict[str, Any]:
    meta = _parse_json(META_FILE, data)
    if not isinstance(meta, dict):
        raise CheckpointError(f"{META_FILE} holds a {type(meta).__name__}; it takes an object")
    return meta


def _parse_json(name: str, data: bytes) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        value = json.loads(data.decode(), object_pairs_hook=no_duplicates)
        check_meta(value, "its content")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name} is damaged: it is not JSON that is read ({error})"
        ) from error
    return value
