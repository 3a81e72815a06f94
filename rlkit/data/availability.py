"""What exists near a path that does not, and whether the Hugging Face hub can be reached."""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

PROBE_SECONDS = 3.0


def suggest_paths(path: Path, fits: Callable[[Path], bool], what: str) -> str:
    """The end of an error about a path that does not exist: `; in /data there is train.jsonl`."""
    folder = path.parent
    if not folder.is_dir():
        return f"; there is no folder {folder} in {Path.cwd()}" if not folder.is_absolute() else f"; there is no folder {folder}"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and fits(entry))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    return f"; in {folder.resolve()} there is " + (", ".join(near) if near else f"no {what}")


@cache
def is_hub_reachable() -> bool:
    """Whether the hub answers, so that without a network the cache is read at once instead of after a minute of retries."""
    if getproxies():
        return True  # then only the proxy knows
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True
