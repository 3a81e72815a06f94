from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.assembly.run_folder import explain_occupied
from rlkit.errors import RunFailed, UserError
from rlkit.runtime.checkpoint import Checkpoints, publish
from rlkit.trainers.loop import TrainState, resume


def open_at(folder: Path, every: int = 2, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, every=every, keep=keep, main=True, barrier=lambda: None)


def weights(text: str = "weights") -> object:
    return lambda folder: (folder / "weights.bin").write_text(text)


def save(checkpoints: Checkpoints, step: int, protect: int | None = None) -> None:
    checkpoints.save(step, {"step": step}, weights(f"of {step}"), protect)  # type: ignore[arg-type]


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path / "checkpoints")
    assert checkpoints.list_steps() == []
    checkpoints.save(20, {"step": 20, "lr": 0.1, "stream": {"position": 3}}, weights())  # type: ignore[arg-type]
    assert checkpoints.list_steps() == [20] and checkpoints.get_folder(20).name == "step-000020"
    assert checkpoints.read_state(20) == {"step": 20, "lr": 0.1, "stream": {"position": 3}}
    assert sorted(p.name for p in checkpoints.get_folder(20).iterdir()) == ["state.json", "weights.bin"]


def test_the_newest_and_the_protected_stay(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path)
    for step in (2, 4, 6, 8):
        save(checkpoints, step, protect=2)
    assert checkpoints.list_steps() == [2, 6, 8]
    save(checkpoints, 10, protect=10)
    assert checkpoints.list_steps() == [8, 10]
    save(checkpoints, 1_000_000)
    assert checkpoints.list_steps() == [10, 1_000_000]  # in the order of numbers, not of names


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path)
    save(checkpoints, 2)
    checkpoints.save(2, {"step": 99}, weights("others"))  # type: ignore[arg-type]
    assert checkpoints.read_state(2) == {"step": 2} and (checkpoints.get_folder(2) / "weights.bin").read_text() == "of 2"


def test_when_one_is_due(tmp_path: Path) -> None:
    assert [step for step in range(1, 9) if open_at(tmp_path, every=3).is_due(step)] == [3, 6]
    assert not any(open_at(tmp_path, every=0).is_due(step) for step in range(9))


def test_a_write_that_fails_leaves_the_old_ones(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path, keep=1)
    save(checkpoints, 2)

    def fails(folder: Path) -> None:
        (folder / "weights.bin").write_text("half")
        raise OSError("no space left on device")

    told = rf"{tmp_path} cannot be written \(no space left on device\); free some space: .* output_dir={tmp_path.parent} continues"
    with pytest.raises(RunFailed, match=told):
        checkpoints.save(4, {}, fails)
    assert checkpoints.list_steps() == [2] and checkpoints.read_state(2) == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]  # half of one would stand in the way of what makes room
    save(checkpoints, 4)
    assert checkpoints.list_steps() == [4] and (checkpoints.get_folder(4) / "weights.bin").read_text() == "of 4"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000004"]  # nothing half-written is left behind


def test_a_file_that_the_system_cuts_short_is_told(tmp_path: Path) -> None:
    """As on a full disk, by a limit of the system; safetensors raises its own error for it."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    try:
        with pytest.raises(RunFailed, match=r"cannot be written \(.*File too large.*\); free some space"):
            open_at(tmp_path).save(2, {}, lambda folder: save_file({"w": torch.zeros(2**16)}, folder / "policy.safetensors"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["write", "publish", "rename", "rmtree"])
def test_a_kill_at_any_moment_leaves_a_complete_one(tmp_path: Path, moment: str) -> None:
    """A child saves step 2, then is killed within the saving of step 4: the last complete one is there, whole."""
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    patch = {
        "write": f"checkpoint.json.dumps = lambda *a, **k: {kill}",
        "publish": f"checkpoint.publish = lambda *a: {kill}",
        "rename": f"checkpoint.Path.rename = lambda *a: {kill}",
        "rmtree": f"checkpoint.Checkpoints._prune = lambda *a: {kill}",
    }[moment]
    code = f"""
import os, signal, sys
from pathlib import Path
from rlkit.runtime import checkpoint
kept = checkpoint.Checkpoints(Path(sys.argv[1]), every=2, keep=1, main=True, barrier=lambda: None)
kept.save(2, {{"step": 2}}, lambda folder: (folder / "weights.bin").write_text("of 2"))
{patch}
kept.save(4, {{"step": 4}}, lambda folder: (folder / "weights.bin").write_text("of 4"))
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert child.returncode == -signal.SIGKILL
    checkpoints = open_at(tmp_path, keep=1)
    last = checkpoints.list_steps()[-1]
    assert last == (4 if moment == "rmtree" else 2)
    assert checkpoints.read_state(last) == {"step": last} and (checkpoints.get_folder(last) / "weights.bin").read_text() == f"of {last}"
    save(checkpoints, 6)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000006"]


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    for name in (".step-000002.tmp", "step-abc", "step-2", "notes", "last-step-000004", "step-000006.bak"):
        (tmp_path / name).mkdir()
    assert open_at(tmp_path).list_steps() == []


def test_a_state_that_cannot_be_read_names_the_place_and_the_mend(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path)
    save(checkpoints, 2)
    (checkpoints.get_folder(2) / "state.json").write_text('{"step": ')
    with pytest.raises(RunFailed, match=r"step-000002/state.json cannot be read .* delete its folder to continue from the one before"):
        checkpoints.read_state(2)


def test_all_ranks_write_and_only_the_first_names(tmp_path: Path) -> None:
    """Rank 1 fills the folder that rank 0 made; it publishes nothing and deletes nothing."""
    moments: list[str] = []
    second = Checkpoints(tmp_path, every=1, keep=1, main=False, barrier=lambda: moments.append("barrier"))
    (tmp_path / ".step-000003.tmp").mkdir()
    second.save(3, {}, lambda folder: moments.append(folder.name))
    assert moments == ["barrier", ".step-000003.tmp", "barrier"] and second.list_steps() == []


def test_publishing_replaces_what_had_the_name(tmp_path: Path) -> None:
    old, new = tmp_path / "model", tmp_path / ".model.tmp"
    old.mkdir()
    (old / "stale").write_text("x")
    (new / "deep").mkdir(parents=True)
    (new / "deep" / "weights").write_text("y")
    publish(new, old)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["model", "model/deep", "model/deep/weights"]


@pytest.mark.parametrize(
    "state", ['{"format": 2}', '{"format": 2, "best": null, "count": {"a": 1}}', '{"format": 2, "best": null, "count": 3}']
)
def test_a_checkpoint_of_another_form_is_told_too(state: str, tmp_path: Path) -> None:
    save(checkpoints := open_at(tmp_path), 2)
    (checkpoints.get_folder(2) / "state.json").write_text(state)
    with pytest.raises(RunFailed, match=r"step-000002 cannot be read .* delete its folder to continue from the one before"):
        resume(SimpleNamespace(checkpoints=checkpoints, ranks=SimpleNamespace(gather=lambda value: [value])))  # type: ignore[arg-type]


def test_weights_that_cannot_be_read_are_told_too(tmp_path: Path) -> None:
    def load(folder: Path) -> None:
        load_file(folder / "policy.safetensors")

    checkpoints = open_at(tmp_path)
    known = asdict(TrainState(trainer={})) | {"step": 2}
    checkpoints.save(2, known, lambda folder: (folder / "policy.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"))
    run = SimpleNamespace(checkpoints=checkpoints, training=nullcontext, learners=[SimpleNamespace(load=load)])
    run.ranks = SimpleNamespace(gather=lambda value: [value])
    with pytest.raises(RunFailed, match=r"step-000002 cannot be read \(SafetensorError: .* delete its folder"):
        resume(run)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"trainer": "story"}, {"format": None}])
def test_a_checkpoint_of_another_version_is_refused(change: dict[str, str | None], tmp_path: Path) -> None:
    """It has a field of another name, or no format."""
    checkpoints = open_at(tmp_path)
    known = asdict(TrainState(trainer={})) | {"step": 2}
    renamed = {change.get(name, name): value for name, value in known.items()}
    checkpoints.save(2, {name: value for name, value in renamed.items() if name is not None}, lambda folder: None)
    run = SimpleNamespace(checkpoints=checkpoints, training=nullcontext, learners=[])
    run.ranks = SimpleNamespace(gather=lambda value: [value])
    with pytest.raises(UserError, match=r"step-000002 was written by another version of rlkit, .* choose another output_dir"):
        resume(run)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "a: [1\n", "3\n"])
def test_a_recipe_that_cannot_be_read_back_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "summary.json").write_text("[1]")
    assert explain_occupied(tmp_path, "seed: 1\n", "auto") is None  # nothing was done in it
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert f"{tmp_path / 'recipe.yaml'} cannot be read" in str(explain_occupied(tmp_path, "seed: 1\n", "auto"))
