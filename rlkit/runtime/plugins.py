"""Importing a Python file that is no part of a package: a user's reward or algorithm."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from zlib import crc32


def import_file(file: Path) -> ModuleType:
    """The module that a file holds, imported once; its name is unique by its folder, so two files of one name do not shadow each other."""
    name = f"rlkit_file_{file.stem}_{crc32(str(file).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # so that the file can import its neighbours
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:  # whatever it raised, sys.exit too: half a module must not be found again
        del sys.modules[name]
        raise
    return module
