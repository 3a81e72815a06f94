"""run.log: every line of the console with its time (UTC) and level, and the traceback of an error; for all attempts of a run."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.report.console import Console, escape_control
from rlkit.runtime.redaction import redact_message

RUN_LOG = "run.log"


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: what keeps a run from writing (a full disk, a removed folder) ends it at its next row, in words."""


class RunLog(Console):
    """The console that writes to a file: the logger rlkit.run of the standard library. Raises UserError where it cannot be written."""

    def __init__(self, steps: int, folder: Path) -> None:
        super().__init__(steps)
        try:
            self._handler = _Handler(folder / RUN_LOG, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(
                f"{folder / RUN_LOG} cannot be written ({error}); move it away, or set output_dir= to another folder"
            ) from error
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self._handler.setFormatter(formatter)
        self._logger = logging.getLogger("rlkit.run")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False  # the console shows the same
        self._logger.addHandler(self._handler)

    def print_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: samples.jsonl has them."""

    def warn(self, text: str) -> None:
        self._logger.warning(escape_control(text))

    def log_error(self, error: BaseException, *, trace: bool) -> None:
        """The error that ends the run, with its traceback where it is none that rlkit explains."""
        shown = "".join(traceback.format_exception(error)).rstrip() if trace else f"{type(error).__name__}: {error}"
        self._logger.error(escape_control(redact_message(shown)))

    def close(self) -> None:
        self._logger.removeHandler(self._handler)
        self._handler.close()

    def _write_line(self, text: str) -> None:
        self._logger.info(escape_control(text))
