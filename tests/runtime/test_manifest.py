"""Digests: of what was written, and every damage of every file found, by its name, with the checkpoint to use instead."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from rlkit.engines.tensor_file import write_tensors
from rlkit.errors import UserError
from rlkit.runtime.checkpoint import Checkpoints
from rlkit.runtime.manifest import CheckpointWriter, find_damage, write_manifest

SIZES = {"large.bin": 40_000_000, "small.bin": 5, "empty.bin": 0}  # several blocks, less than one, nothing


def write(folder: Path, step: int) -> None:
    folder.mkdir()
    files = CheckpointWriter(folder)
    for name, size in SIZES.items():
        with files.create(name) as file:
            file.write(bytes([step]) * (size // 2))
            file.write(memoryview(os.urandom(size - size // 2)))
    write_manifest(folder, step, files.digests)


def test_the_digests_are_blake3_of_the_bytes_on_the_disk(tmp_path: Path) -> None:
    write(folder := tmp_path / "step", 2)
    found = json.loads((folder / "manifest.json").read_text())
    assert {name: digest["bytes"] for name, digest in found["files"].items()} == SIZES
    assert all(digest["blake3"] == blake3((folder / name).read_bytes()).hexdigest() for name, digest in found["files"].items())
    assert find_damage(folder, 2) == []


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "first bit": ("large.bin", lambda p: flip(p, 0), "large.bin is not as it was written"),
    "last bit": ("large.bin", flip, "large.bin is not as it was written"),
    "bit of a small file": ("small.bin", flip, "small.bin is not as it was written"),
    "zeroed": ("large.bin", lambda p: p.write_bytes(bytes(p.stat().st_size)), "large.bin is not as it was written"),
    "truncated": ("large.bin", lambda p: os.truncate(p, 39_999_999), "large.bin has 39,999,999 bytes, not 40,000,000"),
    "longer": ("empty.bin", lambda p: p.write_bytes(b"x"), "empty.bin has 1 bytes, not 0"),
    "emptied": ("small.bin", lambda p: p.write_bytes(b""), "small.bin has 0 bytes, not 5"),
    "removed": ("small.bin", Path.unlink, "small.bin is missing"),
    "a folder": ("small.bin", lambda p: (p.unlink(), p.mkdir()), "small.bin "),
    "of another step": ("large.bin", lambda p: shutil.copy(p.parents[1] / "other" / p.name, p), "large.bin is not as it was written"),
    "manifest of another step": (
        "manifest.json",
        lambda p: shutil.copy(p.parents[1] / "other" / p.name, p),
        "manifest.json is of step 1, the folder of step 2",
    ),
    "manifest removed": ("manifest.json", Path.unlink, "manifest.json is missing"),
    "manifest emptied": ("manifest.json", lambda p: p.write_bytes(b""), "manifest.json is not as it was written"),
    "manifest of numbers": ("manifest.json", lambda p: p.write_text("[1, 2]"), "manifest.json is not as it was written"),
    "a step changed": ("manifest.json", lambda p: rewrite(p, '"step": 2', '"step": 3'), "manifest.json is not as it was written"),
    "a name changed": ("manifest.json", lambda p: rewrite(p, "small.bin", "other.bin"), "manifest.json is not as it was written"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write(folder / "other", 1)
    write(folder / "step", 2)
    return folder


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_is_found_by_the_name_of_the_file(kind: str, written: Path) -> None:
    name, damage, words = DAMAGES[kind]
    path, backup = written / "step" / name, written / "backup"
    os.rename(path, backup)
    try:
        shutil.copy(backup, path)
        damage(path)
        (line,) = find_damage(written / "step", 2)
        assert line.startswith(words)
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        os.rename(backup, path)
    assert find_damage(written / "step", 2) == []


def test_every_bit_of_a_manifest_counts(written: Path, tmp_path: Path) -> None:
    """But for the white space between its values."""
    shutil.copytree(written / "step", folder := tmp_path / "step")
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for place, byte in enumerate(whole):
        if not bytes([byte]).isspace():
            path.write_bytes(whole[:place] + bytes([byte ^ 2]) + whole[place + 1 :])
            assert find_damage(folder, 2, only="small.bin") == ["manifest.json is not as it was written"], place


def test_a_file_without_a_digest_is_a_fault_of_the_writer(tmp_path: Path) -> None:
    (tmp_path / "stray.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"stray.bin: not written by CheckpointWriter"):
        write_manifest(tmp_path, 2, {})


def test_the_newest_whole_one_before_is_offered(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=1, keep=9, main=True, gather=lambda item: [item])
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step}, lambda files: None)
    flip(checkpoints.get_folder(3) / "state.json")
    with pytest.raises(UserError, match=r"step-000003 is damaged: state.json is not as it was written\n.* of step 2, is whole: delete"):
        checkpoints.check(3)
    with pytest.raises(UserError, match=r"step-000003 is damaged"):
        checkpoints.read_state(3)
    flip(checkpoints.get_folder(2) / "state.json")
    with pytest.raises(UserError, match=r"of step 1, is whole: delete the damaged folder to continue from there, or export step=1"):
        checkpoints.check(3)
    (checkpoints.get_folder(1) / "state.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint before it is whole: choose another output_dir to begin again"):
        checkpoints.check(3)
    os.rename(checkpoints.get_folder(3), tmp_path / "aside")
    checkpoints.save(3, {"step": 3}, lambda files: None)
    os.rename(checkpoints.get_folder(3), checkpoints.get_folder(7))
    with pytest.raises(UserError, match=r"step-000007 is damaged: manifest.json is of step 3, the folder of step 7"):
        checkpoints.check(7)


def test_all_ranks_hear_what_the_first_found(tmp_path: Path) -> None:
    """Only rank 0 reads the files."""
    second = Checkpoints(tmp_path, every=1, keep=1, main=False, gather=lambda item: ["policy.json is missing", item])
    with (
        patch("rlkit.runtime.checkpoint.find_damage", side_effect=AssertionError),
        pytest.raises(UserError, match=r"^policy.json is missing$"),
    ):
        second.check(3)


def test_a_tensor_file_is_a_safetensors_file(tmp_path: Path) -> None:
    """In the order and with the bytes of the library's, tensors of no and of one number too."""
    tensors = {"a": torch.randn(3, 5), "b/é": torch.tensor(2.5), "c": torch.zeros(0, 4), "d": torch.randn(4, 3).T}
    files = CheckpointWriter(tmp_path)
    with files.create("ours.safetensors") as file:
        write_tensors(file, {name: tensor.shape for name, tensor in tensors.items()}, iter(tensors.values()))
    read = load_file(tmp_path / "ours.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").stat().st_size <= (tmp_path / "theirs.safetensors").stat().st_size + 8
    with files.create("short.safetensors") as file, pytest.raises(ValueError, match=r"a is \[2\], not \[3\]"):
        write_tensors(file, {"a": (3,)}, [torch.zeros(2)])
