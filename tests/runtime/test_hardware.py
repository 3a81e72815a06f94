"""GPUs as the kernel and nvidia-smi show them, and memory as the kernel shows it; all are stood in for, so that it runs on any machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.runtime import hardware


def test_a_machine_without_gpus(machine: Path) -> None:
    assert (hardware.count_gpus(), hardware.count_visible_gpus(), hardware.gpu_memory()) == (0, 0, None)


def test_gpus_are_counted_in_the_driver_else_in_dev(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl"):
        (machine / "dev" / name).touch()
    assert hardware.count_gpus() == 3
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (machine / "driver" / "gpus" / name).mkdir()
    assert hardware.count_gpus() == hardware.count_visible_gpus() == 2
    for visible, count in (("1", 1), ("0,1", 2), ("", 0), ("GPU-8932f937,GPU-1", 2), ("-1", 0), ("1,-1,0", 1), ("NoDevFiles", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert (hardware.count_visible_gpus(), hardware.count_gpus()) == (count, 2)


@pytest.mark.parametrize(
    ("program", "size"),
    [("echo 81559; echo 40960", 81559 * 2**20), ("exit 9", None), ("echo '[N/A]'", None), ("echo", None), (None, None)],
)
def test_the_memory_of_the_first_gpu(machine: Path, program: str | None, size: float | None) -> None:
    """In MiB from nvidia-smi; None where it fails, is missing, or does not know it."""
    (machine / "driver" / "gpus" / "0000:01:00.0").mkdir()
    if program is not None:
        (machine / "bin" / "nvidia-smi").write_text(f"#!/bin/bash\n{program}\n")
        (machine / "bin" / "nvidia-smi").chmod(0o755)
    assert hardware.gpu_memory() == size


@pytest.mark.parametrize(("visible", "size"), [("1,0", 40960.0 * 2**20), ("GPU-b", 24576.0 * 2**20), ("", None)])
def test_the_memory_is_that_of_a_visible_gpu(visible: str, size: float | None, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "dev" / "nvidia0").touch()
    (machine / "bin" / "nvidia-smi").write_text(
        '#!/bin/bash\ncase "$*" in *"-i 1") echo 40960;; *"-i GPU-b") echo 24576;; *) echo 1;; esac'
    )
    (machine / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.gpu_memory() == size


GIB = 2**30
VERSIONS = {1: ("4:memory:/job/step", "memory"), 2: ("0::/job/step", "")}


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_the_host_is_what_the_narrowest_control_group_leaves(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 GiB with 20 free; a group of 16 of which 10 are used, 4 of them reclaimable; inside it one without a limit."""
    line, controller = VERSIONS[version]
    files = hardware.CONTROL_GROUPS[version]
    proc, root = tmp_path / "proc", tmp_path / "cgroup" / controller
    (proc / "self").mkdir(parents=True)
    (root / "job" / "step").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: {24 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {20 * 2**20} kB\n")
    monkeypatch.setattr(hardware, "PROC", proc)
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path / "cgroup")
    assert hardware.host_memory() == (24 * GIB, 20 * GIB)  # without any control group
    (proc / "self" / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    assert hardware.host_memory() == (24 * GIB, 20 * GIB)

    def limit(group: Path, most: object, used: int, reclaimable: int) -> None:
        (group / files.limit).write_text(f"{most}\n")
        (group / files.usage).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\n{files.reclaimable} {reclaimable}\n")

    limit(root / "job" / "step", "max" if version == 2 else 2**63 - 4096, 10 * GIB, 4 * GIB)
    assert hardware.host_memory() == (24 * GIB, 20 * GIB)
    limit(root / "job", 16 * GIB, 10 * GIB, 4 * GIB)
    assert hardware.host_memory() == (16 * GIB, 10 * GIB)
    limit(root, 8 * GIB, 9 * GIB, 0)  # a container's own, which is at the root of what it sees
    assert hardware.host_memory() == (8 * GIB, 0)


def test_a_system_that_does_not_tell_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "PROC", tmp_path)
    assert hardware.host_memory() is None and hardware.resident_memory() == 0.0
