"""The errors of a run that cannot write into its folder any more."""

from __future__ import annotations

from pathlib import Path

from rlkit.errors import RunFailed


def build_write_error(place: Path, run: Path, error: Exception) -> RunFailed:
    """`place`: what could not be written, in the folder `run`, as on a full disk."""
    if not run.is_dir():
        return build_removed_error(run)
    advice = f"free some space: the same command with output_dir={run} continues from its last checkpoint"
    return RunFailed(f"{place} cannot be written ({error}); {advice}")


def build_removed_error(run: Path) -> RunFailed:
    return RunFailed(
        f"the folder of this run, {run}, was removed or replaced while the run wrote to it; "
        "put it back to continue from its last checkpoint, or run again with another output_dir"
    )
