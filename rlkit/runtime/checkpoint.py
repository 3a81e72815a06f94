"""Checkpoints: written under a temporary name, synced, renamed; only then old ones are deleted. A folder with a final name is complete."""

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
CHECKPOINTS = "checkpoints"  # the name of their folder in that of a run


class Checkpoints:
    """The checkpoint folder of a run. All ranks call `save`; only rank 0 creates, renames and deletes folders.

    every: steps between checkpoints, 0 for none. keep: how many remain.
    """

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
        """The folder of a step, whether it exists or not."""
        return self.folder / f"step-{step:06d}"

    def is_due(self, step: int) -> bool:
        """Whether `every` asks for a checkpoint after this step."""
        return self.every > 0 and step % self.every == 0

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[Path], None], protect: int | None = None) -> None:
        """Saves a checkpoint unless there is one. On all ranks `write` fills its folder; `state` is added as JSON.

        The `keep` newest remain, and the step `protect`. Raises RunFailed where the folder cannot be written.
        """
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
        for incomplete in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(incomplete)

    def read_state(self, step: int) -> dict[str, Any]:
        """The state that `save` got. Raises RunFailed where it cannot be read."""
        path = self.get_folder(step) / STATE_FILE
        try:
            state: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise build_read_error(path, error) from error
        return state


@contextmanager
def discard_on_error(unfinished: Path, run: Path) -> Iterator[None]:
    """Deletes a folder and raises RunFailed where writing it inside this context fails, as on a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        what = f"{unfinished.parent} cannot be written ({error})"
        raise RunFailed(f"{what}; free some space: the same command with output_dir={run} continues from its last checkpoint") from error


def build_read_error(path: Path, error: Exception) -> RunFailed:
    """The error for a checkpoint that cannot be read."""
    what = f"{type(error).__name__}: {error}"
    return RunFailed(f"the checkpoint {path} cannot be read ({what}); delete its folder to continue from the one before")


def publish(unfinished: Path, final: Path) -> None:
    """Syncs a folder and its content to the disk, then renames it to `final`; an older folder of that name is deleted."""
    for path in [*unfinished.rglob("*"), unfinished]:
        fsync_path(path)
    shutil.rmtree(final, ignore_errors=True)
    unfinished.rename(final)
    fsync_path(final.parent)


def fsync_path(path: Path) -> None:
    """Syncs one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
