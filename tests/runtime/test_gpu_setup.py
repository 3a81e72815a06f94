"""A GPU that cannot be used is named with what to do before anything is loaded; which GPU a process takes. All on files and a stand-in for
torch.cuda, so that it runs on any machine."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
import torch

from rlkit.assembly import machine as machine_file
from rlkit.assembly import plan
from rlkit.config.compose import compose_config
from rlkit.config.recipe import Recipe, read_recipe
from rlkit.errors import UserError
from rlkit.run import main
from rlkit.runtime import gpu_setup

OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\nGCC version: 12.3.0\n"
OLD_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: 12.3.0\n"


def add_gpu(machine: Path) -> None:
    (machine / "driver" / "gpus" / "0000:01:00.0").mkdir()


def add_program(machine: Path, name: str, lines: str = "") -> None:
    (machine / "bin" / name).write_text(f"#!/bin/bash\n{lines}\n")
    (machine / "bin" / name).chmod(0o755)


def recipe_of(*words: str) -> Recipe:
    return read_recipe(compose_config(list(words), None))


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(0, 1, 0), (3, 8, 3), (3, 1, 0), (3, 2, 1)])
def test_a_process_takes_the_gpu_of_its_local_rank_among_those_it_sees(
    local_rank: int, visible: int, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(3, 1): Slurm with one GPU for each task; DeepSpeed and vLLM read LOCAL_RANK as a number of a GPU."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    assert gpu_setup.choose_device(local_rank) == torch.device("cuda", index) == chosen[0]
    assert os.environ["LOCAL_RANK"] == str(index)


def test_processes_with_one_gpu_are_refused() -> None:
    gpu_setup.check_own_gpus([("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")])
    with pytest.raises(
        UserError, match=r"ranks 1 and 3 have the same GPU: 4 processes run on a, which shows them 2 GPU\(s\); start as many"
    ):
        gpu_setup.check_own_gpus([("b", "9"), ("a", "2"), ("a", "1"), ("a", "2"), ("a", "1")])


@pytest.mark.parametrize(
    ("built_for", "module", "why"),
    [
        (
            "13.0",
            OLD_MODULE,
            r"is built for CUDA 13\.0, which needs NVIDIA's driver 580 or newer; this one is 550\.54\.15; or, to run on the",
        ),
        ("12.8", OLD_MODULE, r"\(CUDA 12\.8, driver 550\.54\.15\) cannot start CUDA: see what `nvidia-smi` prints"),
        ("13.0", OPEN_MODULE, r"\(CUDA 13\.0, driver 580\.65\.06\) cannot start CUDA"),
        ("13.0", None, r"\(CUDA 13\.0, driver unknown\) cannot start CUDA"),
        (None, OPEN_MODULE, r"is built without CUDA: install rlkit with its extra gpu"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_run_on_the_cpu(
    built_for: str | None, module: str | None, why: str, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    assert gpu_setup.choose_device(0) == torch.device("cpu")
    add_gpu(machine)
    if module:
        (machine / "driver" / "version").write_text(module)
    with pytest.raises(UserError, match=rf"this machine has 1 GPU\(s\) that torch cannot use: torch \S+ .*{why}"):
        gpu_setup.choose_device(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_setup.choose_device(0) == torch.device("cpu")


def test_uuids_become_the_numbers_that_vllm_reads(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    add_program(machine, "nvidia-smi", "echo '0, GPU-aa11'; echo '1, GPU-aa22'; echo '2, GPU-bb33'")
    for named, numbers in (("GPU-bb33,GPU-aa11", "2,0"), ("GPU-b", "2"), ("1,0", "1,0"), ("MIG-aa11", "MIG-aa11"), ("", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        gpu_setup.name_gpus_by_number()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == numbers
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # the order of these numbers
    for named, count in (("GPU-cc", 0), ("GPU-aa", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        with pytest.raises(UserError, match=f"names {named}, and this machine has {count} such GPUs; `nvidia-smi -L` lists them"):
            gpu_setup.name_gpus_by_number()


def test_what_triton_needs_is_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = machine / "include"
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(headers)})
    with pytest.raises(
        UserError, match=r"lacks a C compiler on PATH: apt-get install gcc; and \S+/include/Python\.h: apt-get install python3"
    ):
        gpu_setup.check_compiler()
    headers.mkdir()
    (headers / "Python.h").touch()
    with pytest.raises(UserError, match=r"lacks a C compiler on PATH: apt-get install gcc$"):
        gpu_setup.check_compiler()
    add_program(machine, "clang")
    gpu_setup.check_compiler()
    monkeypatch.setenv("CC", "icx")
    with pytest.raises(UserError, match="lacks the C compiler that CC names, icx: correct CC, or unset it"):
        gpu_setup.check_compiler()


def test_a_run_ends_with_2_before_it_begins(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run and a real one alike; and nothing is said on a machine without GPUs."""
    words = ["recipe=grpo_math", "dry_run=true"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert not said.err and not any(word in said.out for word in ("Triton", "driver", "nvidia"))
    add_gpu(machine)
    assert main(words) == main(["recipe=grpo_math", f"output_dir={machine}/run"]) == 2
    assert capsys.readouterr().err.count("nvidia-smi does not answer with their memory, by which a run is planned: install it") == 2
    add_program(machine, "nvidia-smi", "echo 81559")
    plan.gpu_memory.cache_clear()
    assert main(words) == 2
    assert "Triton compiles kernels for the GPU at first use, and this machine lacks a C compiler" in capsys.readouterr().err
    assert main([*words, "engine.rollout=hf"]) == 0  # nothing is compiled
    assert " GiB a GPU; host " in capsys.readouterr().out


def test_memory_that_nvidia_smi_does_not_know_can_be_given(machine: Path) -> None:
    add_gpu(machine)
    recipe = recipe_of("recipe=grpo_math", "hardware.gpu_gib=40", "engine.rollout=hf")
    assert plan.find_gpu_memory(recipe) == 40 * 2**30 and plan.name_dtype(recipe) == "bfloat16"
    machine_file.check_gpu(recipe)


NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.mark.parametrize(
    ("words", "expands"),
    [(["recipe=grpo_math"], False), (["recipe=grpo_math", "engine.rollout=hf"], True), (["recipe=dpo_math"], True)],
)
def test_segments_expand_where_no_vllm_lives(words: list[str], expands: bool, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(*words)
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    machine_file.prepare_gpu(recipe)
    assert {name: os.environ.get(name) for name in NAMES} == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True" if expands else None,
        "PYTORCH_CUDA_ALLOC_CONF": None,
    }
    for name in NAMES:  # a user's own value stays
        monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
        monkeypatch.setenv(name, "max_split_size_mb:512")
        machine_file.prepare_gpu(recipe)
        assert os.environ[name] == "max_split_size_mb:512" and len(set(NAMES) & os.environ.keys()) == 1
        monkeypatch.delenv(name)
