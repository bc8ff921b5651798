"""Which environment raised an exception, and on which action: what Gymnasium does not say.

Nor does it say whose observation does not fit its space, where it puts all of them into one array.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

LONGEST = 200  # characters of an action
FORMS = {
    "reset": "(observation, info)",
    "step": "(observation, one number as reward, terminated, truncated, info)",
}


def note_of(error: BaseException, env: VectorEnv, when: str, actions: Any = None) -> str:
    """Return who raised `error` and `when`; with the action it took, where it was stepped."""
    index = _environment_of(error)
    if index is None:
        return f"raised by an environment {when}"
    note = f"raised by environment {index} {when}"
    if actions is None:
        return note
    taken = " ".join(str(list(iterate(env.action_space, actions))[index]).split())
    return f"{note}, action {taken if len(taken) <= LONGEST else taken[:LONGEST] + '...'}"


def misfit_of(error: BaseException) -> tuple[int, str] | None:
    """Return who returned what Gymnasium cannot take apart or put into an array, and what it was.

    None where `error` is another one.
    """
    frames = list(_frames(error))
    vectors = [frame for frame in frames if isinstance(frame.f_locals.get("self"), VectorEnv)]
    if not vectors:
        return None
    inner, vector = vectors[-1], vectors[-1].f_locals["self"]
    if inner is not frames[-1]:  # in a function of Gymnasium's that this called
        for index, seen in enumerate(getattr(vector, "_env_obs", ())):
            if not _fits(seen, vector.single_observation_space):
                space = vector.single_observation_space
                return index, f"{_described(seen)} as observation, where its space is {space}"
    elif _raised_in(inner, error) and inner.f_code.co_name in FORMS:
        who = _environment_of(error)
        if who is not None:
            return who, f"from {inner.f_code.co_name} what is not {FORMS[inner.f_code.co_name]}"
    return None


def _raised_in(frame: FrameType, error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame is frame


def _fits(seen: Any, space: gymnasium.Space[Any]) -> bool:
    try:
        concatenate(space, [seen], create_empty_array(space, 1))  # type: ignore[arg-type]
    except Exception:
        return False
    return True


def _described(seen: Any) -> str:
    if isinstance(seen, np.ndarray):
        return f"an array of shape {seen.shape} and type {seen.dtype}"
    text = repr(seen)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def _environment_of(error: BaseException) -> int | None:
    """Return the index of the environment that raised, as far as Gymnasium's own loops show it."""
    found: int | None = None
    for frame in _frames(error):
        indices = [frame.f_locals.get(name) for name in ("index", "env_idx", "i")]
        found = next((index for index in indices if isinstance(index, int)), found)
    return found


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames in Gymnasium's vector environments that `error` came through."""
    trace = error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith("gymnasium.vector."):
            yield trace.tb_frame
        trace = trace.tb_next
