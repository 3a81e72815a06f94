"""SwanLab. The only file that imports swanlab.

Telemetry: it has none beside the run itself. Its probe settings turn off what it collects about the machine (command line, git, packages,
hardware), its terminal settings the copy of the console. Offline, SWANLAB_WEBHOOK is not called.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import UserError
from rlkit.report.tracker import TrackerSettings

STATES = {"done": "success", "stopped": "aborted", "failed": "crashed"}


def require_swanlab(offline: bool) -> Any:
    """Imports swanlab. Raises UserError where it is missing, or where nobody is logged in."""
    if offline:
        os.environ.pop("SWANLAB_WEBHOOK", None)
    try:
        import swanlab
    except ImportError as error:
        raise UserError("report.swanlab needs the package swanlab: pip install swanlab, or set report.swanlab=null") from error
    return swanlab


class SwanLab:
    """One SwanLab run, in RUN/swanlab; its id is kept in RUN/swanlab-id, so that a resume continues it. Offline each attempt has a folder
    for `swanlab sync`."""

    def __init__(self, settings: TrackerSettings, project: str) -> None:
        self._swanlab = swanlab = require_swanlab(settings.offline)
        id_file = settings.folder / "swanlab-id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        online = {} if settings.offline else {"id": id_file.read_text(), "resume": "allow"}
        (settings.folder / "swanlab").mkdir(exist_ok=True)
        handler = signal.getsignal(signal.SIGINT)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where the run is, and how to send it
            self._run = swanlab.init(
                mode="offline" if settings.offline else "online",
                project=project,
                name=settings.name,
                group=settings.group,
                tags=list(settings.tags),
                config=dict(settings.config),
                log_dir=str(settings.folder / "swanlab"),
                settings=swanlab.Settings(
                    interactive=False,  # else it asks for a login at the terminal
                    terminal=swanlab.Settings.Terminal(proxy_type="none"),
                    probe=swanlab.Settings.Probe(
                        hardware=False, runtime=False, requirements=False, git=False, monitor=not settings.offline
                    ),
                ),
                **online,
            )
        signal.signal(signal.SIGINT, handler)  # SwanLab sets its own, which would end the run where rlkit saves it first

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        self._run.log({name: value for name, value in metrics.items() if value is not None}, step=step)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Send a table of samples."""
        columns = list(samples[0])
        table = self._swanlab.echarts.Table()
        table.add(columns, [[str(sample[column]) for column in columns] for sample in samples])
        self._run.log({f"samples/{samples[0]['split']}": table}, step=step)

    def close(self, state: str) -> None:
        """Finish the SwanLab run: success, aborted or crashed."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish(state=STATES[state], error="see run.log" if state == "failed" else None)
