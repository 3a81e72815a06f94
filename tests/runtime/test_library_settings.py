"""What the C library does with freed memory, in new processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rlkit.runtime import library_settings
from tests.conftest import ROOT, environment

FREES_160_MIB = """
import ctypes, sys
from rlkit.runtime.hardware import resident_memory
from rlkit.runtime.library_settings import map_large_blocks
if sys.argv[1] == "returns":
    map_large_blocks()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def allocate(size):
    block = c.malloc(size)
    c.memset(block, 1, size)
    return block
c.free(allocate(2**24))  # from now on glibc keeps blocks of up to 16 MiB
before = resident_memory()
blocks = [allocate(2**22) for _ in range(40)]
end = allocate(2**19)  # keeps what lies before it from being cut off
for block in blocks:
    c.free(block)
print(resident_memory() - before)
"""


@pytest.mark.parametrize(("way", "stays"), [("returns", False), ("keeps", True)])
def test_large_blocks_go_back_to_the_system(way: str, stays: bool) -> None:
    ended = subprocess.run([sys.executable, "-c", FREES_160_MIB, way], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert ended.returncode == 0, ended.stderr
    assert (float(ended.stdout) > 2**26) is stays, ended.stdout


def test_settings_of_a_users_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> None:
        raise AssertionError("set")

    monkeypatch.setattr(library_settings.ctypes, "CDLL", refuse)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    library_settings.map_large_blocks()
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    with pytest.raises(AssertionError, match="set"):
        library_settings.map_large_blocks()
