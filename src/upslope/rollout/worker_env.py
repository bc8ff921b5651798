"""N environments in N worker processes, which never keep the training waiting for ever.

A worker that is killed is known at once, one that is blocked within seconds; what an environment
raises comes through as it was, with the worker's traceback as its cause. Each of these ends all
workers. They are spawned, not forked: a forked one shares locks and open files with its parent.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import CloudpickleWrapper, iterate

from upslope.errors import ArgumentError, EnvironmentFault
from upslope.rollout.worker_process import Raised, work

PATIENCE = 4.0
"""Seconds without an answer and, while making and resetting, without use of the processor."""
LONGEST = 60.0
"""Seconds that making or resetting an environment may take while it uses the processor."""
GRACE = 5.0
"""Seconds that all workers have together to close their environments before they are killed."""
VARIABLE = "UPSLOPE_WORKER_SECONDS"


class WorkerTraceback(Exception):
    """The traceback of what was raised in a worker, as text."""

    def __str__(self) -> str:
        return "\n\n" + str(self.args[0])


class Worker(gymnasium.Env):
    """One environment in a process of its own: `send` what to do, then `answer` gives the result.

    `step` and `reset` wait for the answer to what was sent before.
    """

    def __init__(self, index: int, make: Callable[[], gymnasium.Env]) -> None:
        self.index = index
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        with _signals_held():
            self.process.start()
        theirs.close()
        self.poller = select.poll()
        for readable in (self.pipe, self.process.sentinel):
            self.poller.register(readable, select.POLLIN)
        # A worker ignores SIGTERM, with which multiprocessing would end it when Python exits.
        Finalize(self, self.process.kill, exitpriority=1)
        self.asked, self.since = "make", time.monotonic()
        try:
            self.pipe.send(("make", CloudpickleWrapper(make)))
        except OSError:  # it has ended already, which `answer` says
            pass
        except Exception as error:
            self.kill()
            raise ArgumentError(f"env cannot be sent to a worker process: {error}") from error

    def begin(self) -> None:
        """Wait until the environment is made, and take over what it says of itself."""
        for name, value in self.answer().items():
            setattr(self, name, value)

    def send(self, command: str, *arguments: Any) -> None:
        """Have the worker begin with something."""
        self.asked, self.since = command, time.monotonic()
        with contextlib.suppress(OSError):  # it is dead, which `answer` says
            self.pipe.send((command, arguments))

    def answer(self) -> Any:
        """Wait for what was asked; raises what it raised, or EnvironmentFault if it is no more."""
        self._wait()
        try:
            good, result = self.pipe.recv()
        except (EOFError, OSError):
            raise self._fault(self._ended()) from None
        except Exception as error:
            raise self._fault(f"gave what cannot be read: {error}") from error
        if not good:
            raise self._raised(result)
        return result

    def _wait(self) -> None:
        """Return when there is something to be read; raises when that cannot be waited for."""
        patience = float(os.environ.get(VARIABLE, PATIENCE))
        used = None
        while not self.poller.poll(500 * patience):  # milliseconds: half of the patience
            before, used = used, _processor_time(self.process.pid)
            waited = time.monotonic() - self.since
            busy = self.asked in ("make", "reset") and used != before
            if waited >= patience and not (busy and waited < LONGEST):
                raise self._fault(
                    f"has not answered for {waited:.1f} s and was stopped; {VARIABLE} gives a slow "
                    "one more"
                )

    def _ended(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code}"

    def _fault(self, what: str) -> EnvironmentFault:
        doing = {"make": "while it was made", "call": "while it was called"}
        during = doing.get(self.asked, f"in {self.asked}")
        return EnvironmentFault(
            f"the worker of environment {self.index} (process {self.process.pid}) {what}, {during}"
        )

    def _raised(self, raised: Raised) -> BaseException:
        error = raised.rebuilt()
        if error is None:
            error = self._fault(f"raised {raised.name}: {raised.text}")
        elif self.asked == "make":
            error.add_note(f"raised by environment {self.index} while it was made")
        error.__cause__ = WorkerTraceback(raised.trace)
        return error

    def kill(self) -> None:
        """End the process; it is gone when this returns."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    # -- what SyncVectorEnv asks of an environment ----------------------------------------------

    def step(self, action: Any) -> Any:
        """Return the result of the step that was sent."""
        return self.answer()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Return the result of the reset that was sent."""
        return self.answer()

    def get_wrapper_attr(self, name: str) -> Callable[..., Any]:
        """Return a function that gives the attribute, or calls it if it is a method."""

        def call(*arguments: Any, **named: Any) -> Any:
            self.send("call", name, arguments, named)
            return self.answer()

        return call

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute of the environment."""
        self.send("set", name, value)
        return bool(self.answer())

    def render(self) -> Any:
        """Return the environment's picture."""
        return self.get_wrapper_attr("render")()


class WorkerVectorEnv(SyncVectorEnv):
    """The vector environment of workers: what `SyncVectorEnv` gives, computed side by side."""

    envs: list[Any]

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env]]) -> None:
        workers: list[Worker] = []
        try:
            for index, make in enumerate(makers):
                workers.append(Worker(index, make))
            for worker in workers:
                worker.begin()
            super().__init__(
                [partial(_same, worker) for worker in workers],
                copy=False,
                autoreset_mode=AutoresetMode.DISABLED,
            )
        except BaseException:
            end(workers, 0)
            raise

    @property
    def processes(self) -> list[Any]:
        """The worker processes, one for each environment."""
        return [worker.process for worker in self.envs]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Reset all environments, or those of `options["reset_mask"]`, side by side."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        rest = None if options is None else {k: v for k, v in options.items() if k != "reset_mask"}
        seeds = [seed + k for k in range(self.num_envs)] if isinstance(seed, int) else seed
        with self._all_or_none():
            for k in np.flatnonzero(mask):
                self.envs[k].send("reset", None if seeds is None else seeds[k], rest)
            return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        """Step all environments side by side."""
        with self._all_or_none():
            for worker, action in zip(self.envs, iterate(self.action_space, actions), strict=True):
                worker.send("step", action)
            return super().step(actions)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return what each environment gives for an attribute or a method."""
        with self._all_or_none():
            return super().call(name, *args, **kwargs)

    @contextlib.contextmanager
    def _all_or_none(self) -> Any:
        """End all workers when one fails: the others wait in another step than the one that did."""
        if self.closed:
            raise ArgumentError("these worker processes have ended: make the environments anew")
        try:
            yield
        except BaseException:
            self.close(patience=0)
            raise

    def close_extras(self, patience: float = GRACE, **kwargs: Any) -> None:
        """Close the environments; no worker is left when this returns."""
        end(self.__dict__.get("envs", ()), patience)


def _same(worker: Worker) -> Worker:
    return worker


def end(workers: Sequence[Worker], patience: float) -> None:
    """Ask workers to close their environments, and kill those that have not after `patience`."""
    for worker in workers:
        if patience:
            worker.send("close")
    deadline = time.monotonic() + patience
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
    for worker in workers:
        worker.kill()


@contextlib.contextmanager
def _signals_held() -> Any:
    """Keep Ctrl-C and SIGTERM from a process that is starting; it ignores them when it has."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _processor_time(process: int | None) -> int:
    """Return the ticks of processor time that a process has used; 0 where the system hides it."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])
