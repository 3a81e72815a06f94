"""The cache folder of rlkit, and folders in it that one process builds whole while the others wait."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlkit.errors import UserError
from rlkit.runtime.checkpoint import publish


def name_cache_folder() -> Path:
    """The cache folder of rlkit, which may not be there: $RLKIT_CACHE or ~/.cache/rlkit. Raises UserError where it has no name."""
    try:
        return Path(os.environ.get("RLKIT_CACHE") or "~/.cache/rlkit").expanduser().absolute()
    except RuntimeError as error:
        raise UserError("this user has no home folder to cache in; set RLKIT_CACHE to a folder you can write") from error


def find_cache_folder() -> Path:
    """The same, made where it was missing. Raises UserError where it cannot be written."""
    folder = name_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be created ({error.strerror}); set RLKIT_CACHE to a folder you can write"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"the cache folder {folder} cannot be written; set RLKIT_CACHE to a folder you can write")
    return folder


def ensure_folder(folder: Path, build: Callable[[Path], None]) -> Path:
    """Returns `folder`, which `build` fills under another name where it is not there yet; it appears whole or not at all.

    Of several processes one builds it and the others wait.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _acquire_lock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed; this process has the lock
            build(part)
            publish(part, folder)
    return folder


@contextmanager
def _acquire_lock(path: Path) -> Iterator[None]:
    """Waits for an exclusive lock on `path` and holds it; the system releases it when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
