"""Finds the installed packages that code in the sandbox may import."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rlkit.errors import UserError
from rlkit.rewarding.sandbox import Packages


def find_packages(names: Sequence[str]) -> Packages:
    """The packages of these names (of distributions, or as they are imported) and all that they need. Raises UserError."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"packages must be a list of names, such as [numpy]; it is {names!r}")
    waiting, seen, links = list(names), set[str](), dict[str, str]()
    asked = set(waiting)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = _find_distribution(name)
        if found is None and name in asked:
            raise UserError(f"packages: no package {name!r} is installed here; install it with pip, or take it out of packages")
        if found is None:
            continue  # needed elsewhere, or by an older Python
        if not found.files:
            raise UserError(f"packages: the package {name!r} does not list its files (an editable install?); install it with pip")
        tops = {file.parts[0] for file in found.files} - {"..", "__pycache__"}
        links |= {top: str(Path(str(found.locate_file(top))).resolve()) for top in tops if Path(str(found.locate_file(top))).exists()}
        needs = [re.match(r"[\w.-]+", need) for need in found.requires or () if "extra ==" not in need]
        waiting += [need[0] for need in needs if need]
    return Packages(links)


def _find_distribution(name: str) -> metadata.Distribution | None:
    for known in (name, *metadata.packages_distributions().get(name, [])[:1]):
        try:
            return metadata.distribution(known)
        except metadata.PackageNotFoundError:
            continue
    return None
