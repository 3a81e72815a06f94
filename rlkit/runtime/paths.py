"""The folders that come with rlkit, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def find_bundled_folder(name: str) -> Path:
    """The folder `recipes`, `rewards` or `launch` that came with this rlkit.

    A wheel has it inside the package, a checkout beside the package. Raises FileNotFoundError where it is in neither.
    """
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no folder {name!r} came with this rlkit (looked in {PACKAGE} and {PACKAGE.parent}); install rlkit again")
