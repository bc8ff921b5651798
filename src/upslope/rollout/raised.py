"""Which environment raised an exception, and on which action: what Gymnasium does not say."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import iterate

LONGEST = 200  # characters of an action


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


def _environment_of(error: BaseException) -> int | None:
    """Return the index of the environment that raised, as far as Gymnasium's own loops show it."""
    found, trace = None, error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if str(frame.f_globals.get("__name__", "")).startswith("gymnasium.vector."):
            indices = [frame.f_locals.get(name) for name in ("index", "env_idx", "i")]
            found = next((index for index in indices if isinstance(index, int)), found)
        trace = trace.tb_next
    return found
