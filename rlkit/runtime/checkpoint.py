"""Checkpoints: written to a temporary name, synced, renamed; only then are old ones deleted. A folder of the final name is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlkit.errors import RunFailed

NAME = re.compile(r"^step-(\d{6,})$")
STATE_FILE = "state.json"
CHECKPOINTS = "checkpoints"  # their folder in that of a run


class Checkpoints:
    """The folder of a run's checkpoints. With several ranks all call `save`; rank 0 alone touches names."""

    def __init__(self, folder: Path, *, every: int, keep: int, main: bool, barrier: Callable[[], None]) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self._main, self._barrier = main, barrier

    def list_steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            int(match[1]) for path in self.folder.iterdir() if (match := NAME.search(path.name)) and not path.name.startswith(".")
        )

    def get_folder(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def is_due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None], protect: int | None = None) -> None:
        """`write` fills a folder, on all ranks; `state` goes beside it. The `keep` newest stay, and the protected one."""
        if step in self.list_steps():
            return
        unfinished = self.folder / f".step-{step:06d}.tmp"
        if self._main:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self._barrier()
        with discard_on_error(unfinished, self.folder.parent):
            write(unfinished)
            if self._main:
                (unfinished / STATE_FILE).write_text(json.dumps(state, indent=1))
                publish(unfinished, self.get_folder(step))
        if self._main:
            self._prune({step, protect})
        self._barrier()

    def _prune(self, protected: set[int | None]) -> None:
        for old in self.list_steps()[: -self.keep]:
            if old not in protected:
                shutil.rmtree(self.get_folder(old))
        for torn in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(torn)

    def read_state(self, step: int) -> dict[str, Any]:
        """What was written beside the weights. Raises RunFailed where it cannot be read."""
        place = self.get_folder(step) / STATE_FILE
        try:
            state: dict[str, Any] = json.loads(place.read_text())
        except (OSError, ValueError) as error:
            raise build_read_error(place, error) from error
        return state


@contextmanager
def discard_on_error(unfinished: Path, run: Path) -> Iterator[None]:
    """Inside it a folder is written: where that fails, on a full disk, what there is of it goes. Raises RunFailed then."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        what = f"{unfinished.parent} cannot be written ({error})"
        raise RunFailed(f"{what}; make room there: the same command with output_dir={run} goes on from its last checkpoint") from error


def build_read_error(place: Path, error: Exception) -> RunFailed:
    what = f"{type(error).__name__}: {error}"
    return RunFailed(f"the checkpoint {place} cannot be read ({what}); delete its folder to go on from the one before")


def publish(unfinished: Path, final: Path) -> None:
    """Syncs a folder with all that is in it to the disk, then gives it its name; what had the name before goes."""
    for path in [*unfinished.rglob("*"), unfinished]:
        fsync_path(path)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    fsync_path(final.parent)


def fsync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
