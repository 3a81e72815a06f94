"""What namespaces, Landlock and limits do not isolate, tried from inside: keys, memory beyond the limits, sockets to the host. And which
sandbox a machine chooses."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlkit.rewarding import kernel, namespaces, sandbox, syscalls
from rlkit.rewarding.sandbox import ProgramResult, Sandbox, SandboxUnavailable
from tests.conftest import environment
from tests.rewarding.conftest import find_sandbox

MACHINE = os.uname().machine
SESSION, JOIN, SEARCH, READ = -3, 1, 10, 11  # linux/keyctl.h

PLACE = list(syscalls.ARCHITECTURE).index(MACHINE)  # of its number in a pair

KEYS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
said = ctypes.create_string_buffer(50)
key = libc.syscall(KEYCTL, 10, -3, b"user", b"rlkit:outside", 0)
libc.syscall(KEYCTL, 11, key, said, 50)
left = libc.syscall(KEYCTL, 10, -3, b"user", b"rlkit:left", 0) > 0
added = libc.syscall(ADD_KEY, b"user", b"rlkit:left", b"data", 4, -3) > 0
print(said.value, left, added, libc.syscall(KEYCTL, 10, -3, b"user", b"rlkit:left", 0) > 0)
"""


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "keyring alone"])
def test_no_key_comes_in_and_none_is_left_for_the_next_program(box: Sandbox, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    keyctl, add_key = (syscalls.REFUSED[name][PLACE] for name in ("keyctl", "add_key"))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(keyctl, JOIN, None)
    if libc.syscall(add_key, b"user", b"rlkit:outside", b"the secret", 10, SESSION) < 0:
        pytest.skip(f"no keys on this machine: {os.strerror(ctypes.get_errno())}")
    said = ctypes.create_string_buffer(50)
    libc.syscall(keyctl, READ, libc.syscall(keyctl, SEARCH, SESSION, b"user", b"rlkit:outside", 0), said, 50)
    assert said.value == b"the secret"  # outside it can be read
    if not refused:
        monkeypatch.setattr(syscalls, "build_filter", lambda *_: struct.pack("=HBBI", syscalls.RETURN, 0, 0, syscalls.ALLOW))
    program = KEYS.replace("KEYCTL", str(keyctl)).replace("ADD_KEY", str(add_key))
    seen = "b'' False False False\n" if refused else "b'' False True True\n"  # its own keyring is a program's own
    assert [sandbox.run_python(program), sandbox.run_python(program)] == [ProgramResult(0, seen, "")] * 2


REFUSALS = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)

def describe(answer):
    return errno_name(ctypes.get_errno()) if answer == -1 else "done"

def errno_name(number):
    import errno
    return errno.errorcode[number]

def opened(family):
    try:
        socket.socket(family, socket.SOCK_STREAM if family != 16 else socket.SOCK_RAW).close()
    except OSError as error:
        return errno_name(error.errno)
    return "done"

print(describe(libc.memfd_create(b"x", 0)), describe(libc.shmget(0, 1 << 20, 0o1600)), describe(libc.msgget(0, 0o1600)))
print(*(describe(libc.syscall(number, 0, 0, 0, 0, 0)) for number in NUMBERS))
print(*(opened(family) for family in (1, 2, 10, 16)))  # unix, inet, inet6, netlink
print(*(opened(family) for family in (38, 40, 17, 31)))  # alg, vsock, packet, bluetooth
"""


def test_memory_that_no_size_counts_and_sockets_out_of_the_machine_are_refused(box: Sandbox) -> None:
    tables = [syscalls.REFUSED, *([syscalls.REFUSED_WITH_LANDLOCK] if box.landlock_abi else [])]
    tables += [syscalls.REFUSED_WITHOUT_SCOPES] if 0 < box.landlock_abi < syscalls.SCOPES_SINCE else []
    numbers = [numbers[PLACE] for table in tables for numbers in table.values() if numbers[PLACE] is not None]
    result = sandbox.run_python(REFUSALS.replace("NUMBERS", str(numbers)))
    ordinary = "EPERM " if box.landlock_abi else "done "  # by libc's names, by number, and by family
    lines = ["EPERM " * 3, "EPERM " * len(numbers), ordinary * 4, "EPERM " * 4]
    assert result == ProgramResult(0, "".join(f"{line.strip()}\n" for line in lines), "")


OTHER_NUMBERS = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(0x40000000 + 39), ctypes.get_errno(), flush=True)  # x32: getpid
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid in the numbers of 32 bit
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""


@pytest.mark.skipif(MACHINE != "x86_64", reason="the other numbers of x86_64")
def test_no_call_in_another_machines_numbers(box: Sandbox) -> None:
    result = sandbox.run_python(OTHER_NUMBERS)
    assert result in (
        ProgramResult(0, "-1 1\n-1\n", ""),
        ProgramResult(-11, "-1 1\n", ""),
    )  # the second: a kernel that knows no 32 bit at all


ORDINARY = """
import asyncio, hashlib, mmap, subprocess, sys, tempfile, threading

said = []
threads = [threading.Thread(target=said.append, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()

async def slept():
    return await asyncio.wait_for(asyncio.to_thread(sum, [1, 2]), 5)

with tempfile.TemporaryFile() as file:
    file.write(b"x" * 4096); file.flush()
    mapped = mmap.mmap(file.fileno(), 4096)[:2]
try:
    child = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout.strip()
except PermissionError:
    child = "no child"
print(sorted(said), asyncio.run(slept()), mapped, child, hashlib.sha256(b"").hexdigest()[:4])
"""


def test_ordinary_programs_run(box: Sandbox) -> None:
    child = "no child" if 0 < box.landlock_abi < syscalls.SCOPES_SINCE else "42"
    assert sandbox.run_python(ORDINARY) == ProgramResult(0, f"[0, 1, 2, 3, 4, 5, 6, 7] 3 b'xx' {child} e3b0\n", "")


HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    header = Path("/usr/include", HEADERS[machine])
    if not header.is_file():
        pytest.skip(f"no {header}")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    place = list(syscalls.ARCHITECTURE).index(machine)
    tables = [syscalls.REFUSED, syscalls.REFUSED_WITH_LANDLOCK, syscalls.REFUSED_WITHOUT_SCOPES, syscalls.ABSENT, syscalls.INSPECTED]
    ours = {name: numbers[place] for table in tables for name, numbers in table.items() if numbers[place] is not None}
    ours |= {"pivot_root": namespaces.PIVOT_ROOT[machine], "capset": kernel.CAPSET[machine], "keyctl": kernel.KEYCTL[machine]}
    assert ours == {name: int(known.get(name, number)) for name, number in ours.items()}  # older headers lack the newest
    assert syscalls.REFUSED["keyctl"][place] == kernel.KEYCTL[machine] and {"keyctl", "socket", "pivot_root"} <= known.keys()


# Each leaves the process without new namespaces in a way of the kernel's own: as in a container that Docker or Kubernetes starts, whose
# filter refuses the call, and as where the administrator allows no user namespaces. The last has no Landlock either.
REFUSE = """
steps = [(syscalls.LOAD, 0, 0, syscalls.NUMBER_AT)]
for number in NUMBERS:
    steps += syscalls._return_if(syscalls.EQUAL, number, syscalls.REFUSE)
refusals = b"".join(struct.pack("=HBBI", *step) for step in [*steps, (syscalls.RETURN, 0, 0, syscalls.ALLOW)])
kernel.forbid_privileges()
kernel.install_filter(refusals)
"""
FORBID = """
kernel.check_call(kernel.libc.unshare(namespaces.CLONE_NEWUSER), "unshare")
kernel.write_file("/proc/sys/user/max_user_namespaces", "0")
"""
UNSHARE = {"x86_64": 272, "aarch64": 97}[MACHINE]
REFUSED_NAMESPACES = {
    "Operation not permitted": REFUSE.replace("NUMBERS", str([UNSHARE])),
    "No space left on device": FORBID,
}
ASKED = """
import ctypes, struct, sys
from rlkit.rewarding import kernel, namespaces, sandbox, syscalls
exec(sys.argv[1])
try:
    print(sandbox.choose_sandbox().describe())
    print(sandbox.run_python("print(1)"))
except sandbox.SandboxUnavailable as error:
    print(error)
"""


def ask(refusal: str) -> str:
    """What a process says that is refused in this way; within seconds, for it must not wait."""
    command = [sys.executable, "-c", ASKED, refusal]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    try:
        return child.communicate(timeout=20)[0]
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise


@pytest.mark.parametrize("reason", REFUSED_NAMESPACES)
def test_where_namespaces_are_refused_landlock_is_chosen(reason: str) -> None:
    for needed in ("landlock", *(["namespaces"] if REFUSED_NAMESPACES[reason] == FORBID else [])):
        if isinstance(found := find_sandbox(needed), str):
            pytest.skip(found)
    out = ask(REFUSED_NAMESPACES[reason])
    assert f"and seccomp, memory limited for each process and summed every 50 ms; no user namespaces here (unshare: {reason})" in out
    assert "ProgramResult(exit_code=0, stdout='1\\n', stderr='')" in out


def test_where_both_are_refused_nothing_runs_and_the_reasons_are_named() -> None:
    out = ask(REFUSE.replace("NUMBERS", str([UNSHARE, kernel.CREATE_RULESET])))
    assert "(unshare: Operation not permitted; Landlock: Operation not permitted); allow unprivileged user namespaces" in out
    assert "kernel from 5.13 with Landlock" in out and "ProgramResult" not in out


def test_other_machines_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    with pytest.raises(SandboxUnavailable, match="runs only on x86_64 and aarch64, this machine is riscv64; leave this reward out"):
        sandbox.choose_sandbox.__wrapped__()
