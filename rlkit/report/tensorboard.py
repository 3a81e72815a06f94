"""TensorBoard event files in RUN/tensorboard. The only file that imports tensorboard. It has no telemetry."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class TensorBoard:
    """TensorBoard events of a run, flushed at each step; the recipe as text. `resumed`: events of earlier attempts from the first step on
    are replaced."""

    def __init__(self, folder: Path, config: Mapping[str, Any], resumed: bool) -> None:
        # TensorBoard's own writer: torch.utils.tensorboard wraps it and takes three seconds more to import.
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

        self._writer = EventFileWriter(str(folder / "tensorboard"))
        self._supersede = resumed
        if config and not resumed:
            self._write_text(0, "recipe", f"```json\n{json.dumps(config, indent=2, default=str)}\n```")

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

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: samples.jsonl, beside it, has them."""

    def close(self, state: str) -> None:
        """Close the event file."""
        self._writer.close()

    def _write_text(self, step: int, name: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
        from tensorboard.compat.proto.types_pb2 import DT_STRING  # type: ignore[import-untyped]

        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode("utf-8", "backslashreplace")])
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=f"{name}/text_summary", tensor=tensor, metadata=metadata)
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
        self._writer.flush()
