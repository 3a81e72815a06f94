"""Trackers: where curves go besides metrics.jsonl. TensorBoard here, always; Weights & Biases in wandb.py, if asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Something that takes the metrics of each step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Write what is left and end."""


class TensorBoard:
    """TensorBoard events in `folder`, flushed at each step. `resumed`: events of earlier attempts from our first step on are superseded."""

    def __init__(self, folder: Path, *, resumed: bool) -> None:
        # TensorBoard's own writer: torch.utils.tensorboard wraps the same one and takes three seconds more to import.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        self._supersede = resumed

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one scalar a metric."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._supersede:
            self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))
            self._supersede = False
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items() if value is not None]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()
