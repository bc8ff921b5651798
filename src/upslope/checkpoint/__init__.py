"""State to disk and back: flat named tensors, one JSON, a manifest of hashes, one atomic rename.

A state is two dictionaries: `tensors` (name to tensor) and `meta` (what JSON can hold). On disk it
is a folder of three files, which is read whole or refused whole:

    state.safetensors    the tensors
    state.json           the rest
    manifest.json        size and SHA-256 of both, the format's version, and its own SHA-256

`write` and `newest_valid` keep the last few states of a run, named by `step_name`; `save_at` and
`read` keep one state at a path that the user names. Nothing read here is ever executed.
"""

from __future__ import annotations

from upslope.checkpoint.codec import FORMAT_VERSION, State, check_meta
from upslope.checkpoint.compatible import TensorSpec, check_compatible
from upslope.checkpoint.store import (
    Newest,
    list_checkpoints,
    newest_valid,
    put_aside,
    read,
    save_at,
    step_name,
    write,
)

__all__ = [
    "FORMAT_VERSION",
    "Newest",
    "State",
    "TensorSpec",
    "check_compatible",
    "check_meta",
    "list_checkpoints",
    "newest_valid",
    "put_aside",
    "read",
    "save_at",
    "step_name",
    "write",
]
