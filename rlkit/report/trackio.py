"""Trackio. The only file that imports trackio.

Telemetry: it has none; HF_HUB_DISABLE_TELEMETRY, which every run sets, turns off that of the hub's client. It writes to TRACKIO_DIR, or
without it to RUN/trackio, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL name a server, which offline are left out.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import UserError
from rlkit.report.tracker import TrackerSettings

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")


def require_trackio(offline: bool) -> None:
    """Raises UserError where trackio is missing. It is imported later, since it reads TRACKIO_DIR then, and the folder is not there yet."""
    from importlib.util import find_spec

    if offline:
        for name in SERVERS:
            os.environ.pop(name, None)
    if find_spec("trackio") is None:
        raise UserError("report.trackio needs the package trackio: pip install trackio, or set report.trackio=null")


class Trackio:
    """One Trackio run; a resume continues it by its name, which holds that of the folder."""

    def __init__(self, settings: TrackerSettings, project: str) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((settings.folder / "trackio").absolute()))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to open its dashboard
            import trackio

            self._trackio = trackio
            self._run = trackio.init(
                project=project,
                name=f"{settings.name}-{settings.folder.name}",
                group=settings.group,
                config={**settings.config, "tags": list(settings.tags)},
                resume="allow",
                embed=False,
                auto_log_gpu=False,  # rlkit's own metrics have them
                auto_log_cpu=False,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""
        self._run.log(dict(metrics), step=step)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Take a table of samples."""
        columns = list(samples[0])
        table = self._trackio.Table(columns=columns, data=[[str(sample[column]) for column in columns] for sample in samples])
        self._run.log({f"samples/{samples[0]['split']}": table}, step=step)

    def close(self, state: str) -> None:
        """Finish the run. Trackio knows no states: one that was stopped or failed gets an alert."""
        with contextlib.redirect_stdout(io.StringIO()):
            if state != "done":
                self._run.alert(f"the run {state}")
            self._trackio.finish()
