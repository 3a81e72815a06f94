"""Code that comes with a model (auto_map in its config.json), which transformers copies, imports and runs: which file of it failed."""

from __future__ import annotations

import traceback
from pathlib import Path

COPIES = "transformers_modules"  # the package in which transformers keeps its copies


def find_failed_file(error: BaseException | None) -> str | None:
    """The name of the innermost file of a model's own code in which an error, or one of its causes, was raised; None where in none."""
    found = None
    while error is not None:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            frames.append(error.filename)
        found = next((Path(name).name for name in reversed(frames) if COPIES in name), found)
        error = error.__cause__ or error.__context__
    return found
