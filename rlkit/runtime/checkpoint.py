"""Checkpoints: written under a temporary name, synced, renamed; only then old ones are deleted. A folder with a final name is complete.

Each has a manifest with a digest of every file (manifest.py), which is compared before a run goes on from it and before it is exported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rlkit.errors import RunFailed, UserError
from rlkit.runtime.manifest import STATE_FILE, CheckpointWriter, find_damage, write_manifest
from rlkit.runtime.write_errors import build_write_error

NAME = re.compile(r"^step-(\d{6,})$")
CHECKPOINTS = "checkpoints"  # the name of their folder in that of a run


class Checkpoints:
    """The checkpoint folder of a run. All ranks call `save` and `check`; only rank 0 creates, renames, compares and deletes.

    every: steps between checkpoints, 0 for none. keep: how many remain. gather: the items of all ranks, on each of them. asked: steps that
    have a checkpoint, which remains.
    """

    def __init__(
        self, folder: Path, *, every: int, keep: int, main: bool, gather: Callable[[Any], list[Any]], asked: Collection[int] = ()
    ) -> None:
        self.folder, self.every, self.keep, self.asked = folder, every, keep, frozenset(asked)
        self._main, self._gather = main, gather

    def list_steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(
            int(match[1]) for path in self.folder.iterdir() if (match := NAME.search(path.name)) and not path.name.startswith(".")
        )

    def find_last(self) -> int | None:
        """The newest step that all ranks see; None where there is none."""
        steps = self.list_steps()
        last: int = min(self._gather(steps[-1] if steps else -1))
        return last if last >= 0 else None

    def get_folder(self, step: int) -> Path:
        """The folder of a step, whether it exists or not."""
        return self.folder / f"step-{step:06d}"

    def is_due(self, step: int) -> bool:
        """Whether there is to be a checkpoint after this step."""
        return step in self.asked or (self.every > 0 and step > 0 and step % self.every == 0)

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[CheckpointWriter], None], protect: int | None = None) -> bool:
        """Saves a checkpoint unless there is one; returns whether it did. On all ranks `write` creates its files; `state` is added as JSON.

        The `keep` newest remain, those asked for, and the step `protect`. Raises RunFailed where the folder cannot be written.
        """
        if step in self.list_steps():
            return False
        unfinished = self.folder / f".step-{step:06d}.tmp"
        with discard_on_error(unfinished, self.folder.parent):
            if self._main:
                shutil.rmtree(unfinished, ignore_errors=True)
                self.folder.mkdir(exist_ok=True)  # not its parent: a run whose folder was removed has ended
                unfinished.mkdir()
            self._gather(None)
            files = CheckpointWriter(unfinished)
            write(files)
            if self._main:
                with files.create(STATE_FILE) as file:
                    file.write(json.dumps(state, indent=1).encode())
            digests = {name: digest for of_rank in self._gather(files.digests) for name, digest in of_rank.items()}
            if self._main:
                write_manifest(unfinished, step, digests)
                publish(unfinished, self.get_folder(step))
                self._prune({step, protect, *self.asked})
        self._gather(None)
        return True

    def _prune(self, protected: set[int | None]) -> None:
        for old in self.list_steps()[: -self.keep]:
            if old not in protected:
                shutil.rmtree(self.get_folder(old))
        for incomplete in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(incomplete)

    def check(self, step: int, only: str | None = None) -> None:
        """Raises UserError, on all ranks, where a file is not as it was written, naming it and the checkpoint to use instead.

        only: the one file to look at, beside the manifest.
        """
        refusal = None
        if self._main:
            try:
                refusal = self._explain_damage(step, only)
            except UserError as error:
                refusal = str(error)
        if refusal := self._gather(refusal)[0]:
            raise UserError(refusal)

    def _explain_damage(self, step: int, only: str | None) -> str | None:
        damage = find_damage(self.get_folder(step), step, only)
        if not damage:
            return None
        before = next((other for other in reversed(self.list_steps()) if other < step and self._is_whole(other)), None)
        advice = (
            "no checkpoint before it is whole: choose another output_dir to begin again"
            if before is None
            else f"the one before, of step {before}, is whole: delete the damaged folder to continue from there, or export step={before}"
        )
        return f"the checkpoint {self.get_folder(step)} is damaged: {'; '.join(damage)}\n{advice}"

    def _is_whole(self, step: int) -> bool:
        try:
            return not find_damage(self.get_folder(step), step)
        except UserError:  # of another version
            return False

    def read_state(self, step: int) -> dict[str, Any]:
        """The state that `save` got. Raises as `check`."""
        self.check(step, STATE_FILE)
        state: dict[str, Any] = json.loads((self.get_folder(step) / STATE_FILE).read_bytes())
        return state


@contextmanager
def discard_on_error(unfinished: Path, run: Path) -> Iterator[None]:
    """Deletes a folder and raises RunFailed where writing it inside this context fails, as on a full disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise build_write_error(unfinished.parent, run, error) from error


def build_read_error(path: Path, error: Exception) -> RunFailed:
    """The error for a checkpoint that is as it was written, and yet cannot be read."""
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
