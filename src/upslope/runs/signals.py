"""A stop asked for by Ctrl-C or SIGTERM: finish the step, save, and leave.

first SIGINT    exit 130 after saving;   second SIGINT: at once, as without us
SIGTERM         exit 143 after saving
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopSignals:
    """While entered, turns SIGINT and SIGTERM into `received`, which the run reads."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals, where this thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    @property
    def exit_code(self) -> int:
        """The shell's code for having been stopped by the signal: 128 + its number; 0 for none."""
        return 0 if self.received is None else 128 + self.received
