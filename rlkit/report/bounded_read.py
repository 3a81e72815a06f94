"""Reading of files that may be huge: so many bytes for one answer, and no more."""

from __future__ import annotations

import os
import stat
from pathlib import Path

ANSWER_BYTES = 1_900_000  # that one answer of the page's server may read, of 2 MB; the rest is for status.json and its kind


class ReadBudget:
    """How many bytes may still be read; None: all."""

    def __init__(self, limit: int | None = ANSWER_BYTES) -> None:
        self._left = limit

    def has(self, size: int) -> bool:
        """Whether so many bytes may still be read."""
        return self._left is None or self._left >= size

    def read(self, path: Path, start: int = 0, limit: int = 1 << 30) -> bytes:
        """At most `limit` bytes from `start`, fewer where the budget or the file ends. Raises OSError, for what is no plain file too."""
        size = limit if self._left is None else min(limit, self._left)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer must not hold the server up
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is not a plain file")
            found = os.pread(descriptor, size, start)
        finally:
            os.close(descriptor)
        if self._left is not None:
            self._left -= len(found)
        return found

    def read_lines(self, path: Path, start: int, limit: int = 1 << 24) -> tuple[list[bytes], int]:
        """The complete lines from `start`, and where the next one begins. A line that is longer than what may be read comes in pieces."""
        allowed = limit if self._left is None else min(limit, self._left)
        block = self.read(path, start, allowed)
        complete, newline, rest = block.rpartition(b"\n")
        if newline:
            return complete.split(b"\n"), start + len(complete) + 1
        return ([rest], start + len(rest)) if rest and len(rest) == allowed == limit else ([], start)
