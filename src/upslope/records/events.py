"""TensorBoard's events: one file for each time a run is taken up, which cuts off earlier ones."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from upslope.records.files import explained


class EventFile:
    """A file of events in `folder`, of what comes after `step`."""

    def __init__(self, folder: Path, step: int) -> None:
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        with explained(self.path):
            folder.mkdir(exist_ok=True)
            self.file = self.path.open("ab")
        self.records = RecordWriter(self.file)
        self._add(file_version="brain.Event:2")
        # START has TensorBoard forget what an earlier file says of this step and later ones
        self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Append numbers under their tags, nan left out; raises RunError when it cannot."""
        values = [
            Summary.Value(tag=tag, simple_value=float(number))
            for tag, number in numbers.items()
            if not math.isnan(number)
        ]
        self._add(step=step, summary=Summary(value=values))

    def _add(self, **content: Any) -> None:
        with explained(self.path):
            self.records.write(Event(wall_time=time.time(), **content).SerializeToString())
            self.file.flush()
