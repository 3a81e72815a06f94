"""Versions, driver, compiler: whether a kernel of torch runs, and Triton can compile one."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import torch

from tests.gpu.table import Measured, describe_device


def check_machine(small: bool, folder: Path) -> Measured:
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), "none")
    header = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    figures: dict[str, float | str] = {"driver": describe_device(), "CUDA": str(torch.version.cuda), "compiler": compiler}
    figures["Python.h"] = "found" if header else "missing"
    square = torch.ones(64, 64, device="cpu" if small else "cuda", dtype=torch.bfloat16)
    works = float((square @ square).float().mean()) == 64.0
    if not small:
        figures["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        figures["gib"] = torch.cuda.mem_get_info()[1] / 2**30
        works = works and compile_kernel()
    return Measured(figures, "a kernel runs; a compiler and Python.h are there", works and compiler != "none" and header)


def compile_kernel() -> bool:
    """Whether torch.compile, and with it Triton, gives the right sum."""
    double = torch.compile(lambda x: (x * 2 + 1).sum())
    return float(double(torch.ones(1000, device="cuda"))) == 3000.0
