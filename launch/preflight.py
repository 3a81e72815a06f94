"""Checks whether every node is fit for the run, before anything is loaded. Each problem is reported with its node and its fix."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.spec import LaunchSpec
from rlkit.runtime.model_path import parse_model_path

RANK_GIB = 1.5  # torch, DeepSpeed and vLLM in one process, before any weight
MAX_WIDTHS = (22, 52)  # of the first columns of a table


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a node, and the command or setting that fixes it."""

    node: str
    what: str
    fix: str


def list_required_paths(spec: LaunchSpec) -> list[str]:
    """The files and folders of the recipe that every node needs: those that exist here, and all absolute paths."""
    recipe = spec.recipe
    rewards = [reward.path.rpartition(":")[0] or reward.path for reward in (recipe.rewards or {}).values()]
    sources = [source.path for split in (recipe.data.train, recipe.data.test) for source in (split or {}).values()]
    files = [source.partition("@")[0].partition("#")[0] for source in sources]
    place = parse_model_path(recipe.model.path)
    named = [str(place.file or place.place), *files, *rewards]
    return sorted({str(Path(p).absolute()) for p in named if Path(p).exists() or p.startswith("/")})


def check_installation(node: str, found: Mapping[str, Any], here: Mapping[str, Any]) -> list[Problem]:
    """Where the Python, the packages or the code of a node differ from those of the launcher."""
    if found["python"] is None:
        return [Problem(node, f"its Python does not start: {' '.join(found.get('error', []))}", "install rlkit there")]
    problems = []
    if found["python"] != here["python"]:
        problems.append(Problem(node, f"Python {found['python']}, here {here['python']}", "start Ray there from the same Python"))
    for name, version in here["versions"].items():
        if found["versions"].get(name) != version:
            problems.append(Problem(node, f"{name} {found['versions'].get(name)}, here {version}", f"pip install {name}=={version}"))
    if found["code"] is None:
        problems.append(Problem(node, "no rlkit", "install rlkit there (pip install -e .), or set PYTHONPATH to its checkout"))
    elif found["code"] != here["code"]:
        what = f"another rlkit at {found['at']}: {found['code']}, here {here['code']}"
        problems.append(Problem(node, what, "git pull, or copy it there"))
    return problems


def check_resources(node: str, found: Mapping[str, Any], spec: LaunchSpec, ranks: int) -> list[Problem]:
    """The memory, folders and files that a node lacks."""
    problems = []
    if found["free_gib"] < ranks * RANK_GIB:
        what = f"{found['free_gib']} GiB of memory free, {ranks} ranks need {ranks * RANK_GIB:g}"
        problems.append(Problem(node, what, "fewer workers_per_node, or end other programs there"))
    if not found["folder"]:
        problems.append(Problem(node, f"no folder {os.getcwd()} to start ranks in", f"mkdir -p {os.getcwd()}, or a shared disk"))
    for path in found["missing"]:
        problems.append(Problem(node, f"no {path}", f"copy it there: rsync -a {path} {node}:{Path(path).parent}/"))
    if found["unwritable"]:
        problems.append(Problem(node, f"cannot write {spec.folder}: {found['unwritable']}", "output_dir= on a disk that all can write"))
    return problems


def check_shared_folder(seen: Mapping[str, Sequence[str]], markers: Mapping[str, str], folder: Path) -> list[Problem]:
    """Nodes whose output folder is not the folder of the others. By node: the marker files it sees, and the one it wrote."""
    nodes = sorted(markers)
    problems = []
    for node in nodes[1:]:
        if markers[node] not in seen[nodes[0]] or markers[nodes[0]] not in seen[node]:
            what = f"{folder} is not the folder that {nodes[0]} has under this name"
            problems.append(Problem(node, what, "output_dir= on a disk that all nodes share (NFS, Lustre)"))
    return problems


def format_problems(problems: Sequence[Problem]) -> str:
    """A table with one line for each problem."""
    rows = [("node", "what is wrong", "how to fix it"), *((p.node, p.what, p.fix) for p in problems)]
    widths = [min(limit, max(len(row[column]) for row in rows)) for column, limit in enumerate(MAX_WIDTHS)]
    return "\n".join(f"  {node:<{widths[0]}}  {what:<{widths[1]}}  {fix}".rstrip() for node, what, fix in rows)
