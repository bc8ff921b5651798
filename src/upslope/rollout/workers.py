"""Ending the worker processes of a given `AsyncVectorEnv` without waiting for ever.

Gymnasium's own `close` waits for an answer from each worker, so that one which is dead, blocked or
in the middle of a step makes it hang or raise.
"""

from __future__ import annotations

import contextlib
import time

from gymnasium.vector import AsyncVectorEnv, VectorEnv

PATIENCE = 5.0
"""Seconds that the workers have together to close their environments before they are stopped."""


def close_environments(env: VectorEnv, patience: float = PATIENCE) -> None:
    """Close a vector environment; its worker processes are gone when this returns."""
    base = env.unwrapped
    if not isinstance(base, AsyncVectorEnv):
        env.close()
        return
    if base.closed:
        return
    pipes = [pipe for pipe in base.parent_pipes if pipe is not None and not pipe.closed]
    for pipe in pipes:
        with contextlib.suppress(OSError):  # the worker is dead already
            pipe.send(("close", None))
    deadline = time.monotonic() + patience
    for process in base.processes:
        process.join(max(0.0, deadline - time.monotonic()))
    left = [process for process in base.processes if process.is_alive()]
    for process in left:
        process.terminate()
    for process in left:
        process.join(1.0)
        if process.is_alive():
            process.kill()
            process.join()
    for pipe in pipes:
        pipe.close()
    base.closed = True
