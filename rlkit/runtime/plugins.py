"""Imports a Python file that is not in a package: a reward or an algorithm of the user."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from zlib import crc32

from rlkit.errors import contain_exit


def import_file(file: Path) -> ModuleType:
    """Imports the file once and returns its module. Raises whatever the file raises, and RuntimeError where it ends the process.

    The module name contains a hash of the path: files of the same name do not collide."""
    name = f"rlkit_file_{file.stem}_{crc32(str(file).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # so that the file can import its neighbours
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look up the module
    try:
        with contain_exit():
            spec.loader.exec_module(module)
    except BaseException:  # an incomplete module must not be found again
        del sys.modules[name]
        raise
    return module
