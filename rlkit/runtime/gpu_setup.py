"""What a process needs to use its GPU, each fault in words: a driver that torch can use, a GPU of its own, and what Triton compiles with.

Left out: GPUs of other makers than NVIDIA.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from rlkit.errors import UserError
from rlkit.runtime import hardware

LEAST_DRIVER = {"12": 525, "13": 580}  # of NVIDIA, by the major version of CUDA (release notes of its toolkit)
ON_THE_CPU = "to run on the CPU, set CUDA_VISIBLE_DEVICES to nothing"


def choose_device(local_rank: int) -> torch.device:
    """The GPU of a process, or the CPU where no GPU is visible. Raises UserError where one is visible and torch cannot use it.

    Slurm may show each process its own GPU alone, which has the number 0 for it whatever its rank is. LOCAL_RANK is set to the number of
    the GPU, because DeepSpeed and vLLM choose their GPU by it.
    """
    if not torch.cuda.is_available():
        if hardware.count_visible_gpus():
            raise UserError(explain_unusable_gpu(torch.version.cuda, read_driver_version()))
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    os.environ["LOCAL_RANK"] = str(device.index)
    return device


def explain_unusable_gpu(built_for: str | None, driver: str | None) -> str:
    """Why torch sees no GPU where there is one. built_for: the version of CUDA, None for a build without."""
    if built_for is None:
        why = f"torch {torch.__version__} is built without CUDA: install rlkit with its extra gpu (pip install -e '.[gpu]')"
    elif driver and int(driver.partition(".")[0]) < (least := LEAST_DRIVER.get(built_for.partition(".")[0], 0)):
        why = f"torch {torch.__version__} is built for CUDA {built_for}, which needs NVIDIA's driver {least} or newer; this one is {driver}"
    else:
        why = f"torch {torch.__version__} (CUDA {built_for}, driver {driver or 'unknown'}) cannot start CUDA: see what `nvidia-smi` prints"
    return f"this machine has {hardware.count_visible_gpus()} GPU(s) that torch cannot use: {why}; or, {ON_THE_CPU}"


def read_driver_version() -> str | None:
    """Of NVIDIA's kernel module; None where it is not known."""
    try:
        text = hardware.DRIVER.with_name("version").read_text().partition("\n")[0]
    except OSError:
        text = hardware.ask_nvidia_smi("driver_version") or ""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found[0] if found else None


def check_own_gpus(gpus: Sequence[tuple[str, str]]) -> None:
    """Raises UserError where two processes have the same GPU. gpus: host and UUID of each rank's."""
    first: dict[tuple[str, str], int] = {}
    for rank, gpu in enumerate(gpus):
        if first.setdefault(gpu, rank) != rank:
            here = [host for host, _ in gpus].count(gpu[0])
            visible = len({uuid for host, uuid in gpus if host == gpu[0]})
            raise UserError(
                f"ranks {first[gpu]} and {rank} have the same GPU: {here} processes run on {gpu[0]}, which shows them {visible} GPU(s); "
                "start as many processes as GPUs (gpus_per_node, --ntasks-per-node), or let each see one of its own (--gpus-per-task=1)"
            )


def name_gpus_by_number() -> None:
    """Replaces UUIDs in CUDA_VISIBLE_DEVICES, which may be shortened and which vLLM reads as numbers, by the numbers of nvidia-smi.

    To be called before CUDA starts. Raises UserError where this machine has no such GPU.
    """
    names = hardware.list_visible_gpus() or []
    if not names or not all(name.startswith("GPU-") for name in names):
        return
    rows = [line.split(", ") for line in (hardware.ask_nvidia_smi("index,uuid") or "").splitlines()]
    numbers = []
    for name in names:
        found = [row[0] for row in rows if row[-1].startswith(name)]
        if rows and len(found) != 1:
            raise UserError(f"CUDA_VISIBLE_DEVICES names {name}, and this machine has {len(found)} such GPUs; `nvidia-smi -L` lists them")
        numbers += found
    if rows:
        os.environ |= {"CUDA_VISIBLE_DEVICES": ",".join(numbers), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def check_compiler() -> None:
    """Raises UserError where Triton, which compiles the kernels of vLLM and Liger at first use, lacks a C compiler or Python's headers."""
    named = os.environ.get("CC")
    missing = []
    if named and not shutil.which(named):
        missing.append(f"the C compiler that CC names, {named}: correct CC, or unset it")
    elif not named and not (shutil.which("gcc") or shutil.which("clang")):
        missing.append("a C compiler on PATH: apt-get install gcc")
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        missing.append(f"{header}: apt-get install {python}-dev, or use a Python that brings its headers (conda, uv)")
    if missing:
        raise UserError(f"Triton compiles kernels for the GPU at first use, and this machine lacks {'; and '.join(missing)}")
