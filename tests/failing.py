"""Environments that fail in a worker process; what a worker imports for them is little."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from tests import tiny


class TwoArguments(Exception):
    """An exception that pickle cannot make again."""

    def __init__(self, what: str, share: int) -> None:
        super().__init__(f"{what} at {share} %")
        self.share = share


class Local(tiny.Walk):
    """It fails in a way of its own, in its constructor, its reset, or at its third step."""

    def __init__(self, fault: str, where: str) -> None:
        super().__init__()
        self.fault, self.where = fault, where
        self.fail("constructor")

    def reset(self, **kwargs):
        self.fail("reset")
        return super().reset(**kwargs)

    def step(self, action):
        if self.t == 2:
            self.fail("step")
        return super().step(action)

    def fail(self, where: str) -> None:
        if where == self.where:
            FAULTS[self.fault]()


def raises(error: Exception) -> None:
    raise error


def local_class() -> None:
    class Unknown(Exception):
        pass

    raise Unknown("nobody else knows this class")


FAULTS = {
    "percent": lambda: raises(ValueError("50% of %s and %d")),
    "two arguments": lambda: raises(TwoArguments("cart", 9)),
    "unpicklable": lambda: raises(KeyError("locked", threading.Lock())),
    "local": local_class,
    "exits": lambda: sys.exit(3),
    "ends": lambda: os._exit(4),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "blocked": lambda: time.sleep(600),
}


def busy_for_two_seconds() -> tiny.Walk:
    ends = time.process_time() + 2
    while time.process_time() < ends:
        pass
    return tiny.Walk()
