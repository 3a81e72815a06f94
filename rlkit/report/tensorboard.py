"""TensorBoard event files. The only file that imports tensorboard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path


class TensorBoard:
    """TensorBoard events in `folder`, flushed at each step. `resumed`: events of earlier attempts from the first step on are replaced."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        # TensorBoard's own writer: torch.utils.tensorboard wraps it and takes three seconds more to import.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

        self._writer = EventFileWriter(str(folder))
        self._supersede = resumed

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar for each metric."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        if self._supersede:
            self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))
            self._supersede = False
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items() if value is not None]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
