"""What runs in a worker process: one environment, which does what it is told through a pipe.

It answers everything, also what its environment raises; it leaves Ctrl-C and SIGTERM, which reach
a whole group of processes, to its parent; and it ends when its parent does, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium

OWN = ("observation_space", "action_space", "metadata", "render_mode", "spec")


class Raised(NamedTuple):
    """What an environment raised, in parts that a pipe can take."""

    module: str
    name: str
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]
    text: str
    trace: str

    def rebuilt(self) -> Exception | None:
        """Return the exception again, its `__init__` not called; None where that cannot be.

        Its class is looked for among what this process has imported, and nothing is imported.
        """
        kind: Any = sys.modules.get(self.module)
        for name in self.name.split("."):
            kind = getattr(kind, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            return None
        try:
            error = kind.__new__(kind, *self.arguments)
            error.args = self.arguments
            error.__dict__.update(self.attributes)
        except Exception:
            return None
        return error


def work(pipe: Connection) -> None:
    """Make the environment that comes first through the pipe, then do what is asked."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    env: gymnasium.Env | None = None
    while True:
        try:
            command, arguments = pipe.recv()
            if command == "close":
                break
            if command == "make":
                env = arguments()
                answer: Any = {name: getattr(env, name, None) for name in OWN}
                _drop_what_no_pipe_takes(answer)
            else:
                answer = DO[command](env, *arguments)
            pipe.send((True, answer))
        except (EOFError, ConnectionError):  # the parent has gone, or wants no answer
            break
        except BaseException as error:
            if not _send_raised(pipe, error):
                break
    if env is not None:
        env.close()


def _call(env: gymnasium.Env, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    function = env.get_wrapper_attr(name)
    return function(*arguments, **named) if callable(function) else function


DO: dict[str, Callable[..., Any]] = {
    "step": lambda env, action: env.step(action),
    "reset": lambda env, seed, options: env.reset(seed=seed, options=options),
    "call": _call,
    "set": lambda env, name, value: env.set_wrapper_attr(name, value),
}


def _send_raised(pipe: Connection, error: BaseException) -> bool:
    """Say what was raised, with as much of it as can be sent; False when nobody listens."""
    kind, text = (type(error).__module__, type(error).__qualname__), str(error)
    trace = "".join(traceback.format_exception(error))
    for arguments, attributes in (
        (error.args, dict(error.__dict__)),
        (error.args, {}),
        ((text,), {}),
    ):
        candidate = Raised(*kind, arguments, attributes, text, trace)
        try:
            pipe.send((False, candidate))
            return True
        except OSError:
            return False
        except Exception:  # part of it cannot be pickled: less of it is sent
            continue
    return False


def _drop_what_no_pipe_takes(answer: dict[str, Any]) -> None:
    try:
        ForkingPickler.dumps(answer["spec"])
    except Exception:  # keyword arguments that cannot be pickled
        answer["spec"] = None


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        with contextlib.suppress(OSError):
            wait([parent.sentinel])
    os._exit(1)
