"""Is every node fit for the run? Asked before anything is loaded; what is missing is told a node, with what mends it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.order import Order

RANK_GIB = 1.5  # torch, DeepSpeed and vLLM in one process, before any weight
WIDTHS = (22, 52)  # of a table's first columns, at most


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong with a node, and the command or word that mends it."""

    node: str
    what: str
    mend: str


def paths(order: Order) -> list[str]:
    """The files and folders of the recipe that every node needs: those that are here, and those that are named in full."""
    recipe = order.recipe
    rewards = [reward.path.rpartition(":")[0] or reward.path for reward in (recipe.rewards or {}).values()]
    sources = [source.path for split in (recipe.data.train, recipe.data.test) for source in (split or {}).values()]
    bare = [source.partition("@")[0].partition("#")[0] for source in sources]
    named = [recipe.model.path, *bare, *rewards]
    return sorted({str(Path(p).absolute()) for p in named if Path(p).exists() or p.startswith("/")})


def unlike(node: str, found: Mapping[str, Any], here: Mapping[str, Any]) -> list[Trouble]:
    """Where a node's Python, packages or code differ from those of the launcher."""
    if found["python"] is None:
        return [Trouble(node, f"its Python does not start: {' '.join(found.get('error', []))}", "install rlkit there")]
    troubles = []
    if found["python"] != here["python"]:
        troubles.append(Trouble(node, f"Python {found['python']}, here {here['python']}", "start Ray there from the same Python"))
    for name, version in here["versions"].items():
        if found["versions"].get(name) != version:
            troubles.append(Trouble(node, f"{name} {found['versions'].get(name)}, here {version}", f"pip install {name}=={version}"))
    if found["code"] is None:
        troubles.append(Trouble(node, "no rlkit", "install rlkit there (pip install -e .), or set PYTHONPATH to its checkout"))
    elif found["code"] != here["code"]:
        troubles.append(
            Trouble(node, f"another rlkit at {found['at']}: {found['code']}, here {here['code']}", "git pull, or copy it there")
        )
    return troubles


def wanting(node: str, found: Mapping[str, Any], order: Order, ranks: int) -> list[Trouble]:
    """What a node lacks in memory, folders and files."""
    troubles = []
    if found["free_gib"] < ranks * RANK_GIB:
        needs = f"{found['free_gib']} GiB of memory free, {ranks} ranks need {ranks * RANK_GIB:g}"
        troubles.append(Trouble(node, needs, "fewer workers_per_node, or end what else runs there"))
    if not found["folder"]:
        troubles.append(Trouble(node, f"no folder {os.getcwd()}, in which ranks are to start", f"mkdir -p {os.getcwd()}, or a shared disk"))
    for path in found["missing"]:
        troubles.append(Trouble(node, f"no {path}", f"copy it there: rsync -a {path} {node}:{Path(path).parent}/"))
    if found["unwritable"]:
        troubles.append(Trouble(node, f"cannot write {order.folder}: {found['unwritable']}", "output_dir= on a disk that all can write"))
    return troubles


def apart(seen: Mapping[str, Sequence[str]], marks: Mapping[str, str], folder: Path) -> list[Trouble]:
    """Nodes whose output folder is not that of the others: by node, the marks it sees, and the mark it left."""
    nodes = sorted(marks)
    troubles = []
    for node in nodes[1:]:
        if marks[node] not in seen[nodes[0]] or marks[nodes[0]] not in seen[node]:
            what = f"{folder} is not the folder that {nodes[0]} has under this name"
            troubles.append(Trouble(node, what, "output_dir= on a disk that all nodes share (NFS, Lustre)"))
    return troubles


def table(troubles: Sequence[Trouble]) -> str:
    """One line a trouble."""
    rows = [("node", "what is wrong", "what mends it"), *((t.node, t.what, t.mend) for t in troubles)]
    widths = [min(most, max(len(row[column]) for row in rows)) for column, most in enumerate(WIDTHS)]
    return "\n".join(f"  {node:<{widths[0]}}  {what:<{widths[1]}}  {mend}".rstrip() for node, what, mend in rows)
