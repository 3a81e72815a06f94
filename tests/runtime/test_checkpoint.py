from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from safetensors.torch import load_file

from rlkit.assembly.run_folder import explain_occupied
from rlkit.errors import RunFailed, UserError
from rlkit.runtime.checkpoint import Checkpoints, publish
from rlkit.runtime.manifest import CheckpointWriter
from rlkit.trainers.loop import TrainState, resume


def open_at(folder: Path, every: int = 2, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, every=every, keep=keep, main=True, gather=lambda item: [item])


def weights(text: str = "weights", name: str = "weights.bin") -> Callable[[CheckpointWriter], None]:
    def write(files: CheckpointWriter) -> None:
        with files.create(name) as file:
            file.write(text.encode())

    return write


def save(checkpoints: Checkpoints, step: int, protect: int | None = None) -> None:
    checkpoints.save(step, {"step": step}, weights(f"of {step}"), protect)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path / "checkpoints")
    assert checkpoints.list_steps() == []
    checkpoints.save(20, {"step": 20, "lr": 0.1, "stream": {"position": 3}}, weights())
    assert checkpoints.list_steps() == [20] and checkpoints.get_folder(20).name == "step-000020"
    assert checkpoints.read_state(20) == {"step": 20, "lr": 0.1, "stream": {"position": 3}}
    assert sorted(p.name for p in checkpoints.get_folder(20).iterdir()) == ["manifest.json", "state.json", "weights.bin"]


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
    checkpoints.save(2, {"step": 99}, weights("others"))
    assert checkpoints.read_state(2) == {"step": 2} and (checkpoints.get_folder(2) / "weights.bin").read_text() == "of 2"


def test_when_one_is_due(tmp_path: Path) -> None:
    assert [step for step in range(1, 9) if open_at(tmp_path, every=3).is_due(step)] == [3, 6]
    assert not any(open_at(tmp_path, every=0).is_due(step) for step in range(9))


def test_a_write_that_fails_leaves_the_old_ones(tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path, keep=1)
    save(checkpoints, 2)

    def fails(files: CheckpointWriter) -> None:
        weights("half")(files)
        raise OSError("no space left on device")

    told = rf"{tmp_path} cannot be written \(no space left on device\); free some space: .* output_dir={tmp_path.parent} continues"
    with pytest.raises(RunFailed, match=told):
        checkpoints.save(4, {}, fails)
    assert checkpoints.list_steps() == [2] and checkpoints.read_state(2) == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]  # half of one would stand in the way of what makes room
    save(checkpoints, 4)
    assert checkpoints.list_steps() == [4] and (checkpoints.get_folder(4) / "weights.bin").read_text() == "of 4"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000004"]  # nothing half-written is left behind


@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_run_folder_that_is_gone_is_not_made_anew(moment: str, tmp_path: Path) -> None:
    checkpoints = open_at(tmp_path / "run" / "checkpoints")
    (tmp_path / "run").mkdir()
    save(checkpoints, 2)

    def write(files: CheckpointWriter) -> None:
        shutil.rmtree(tmp_path / "run")
        weights()(files)

    if moment == "before":
        shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunFailed, match=rf"the folder of this run, {tmp_path / 'run'}, was removed or replaced while the run wrote to it"):
        checkpoints.save(4, {}, write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_system_cuts_short_is_told(tmp_path: Path) -> None:
    """As on a full disk, by a limit of the system."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    try:
        with pytest.raises(RunFailed, match=r"cannot be written \(.*File too large.*\); free some space"):
            open_at(tmp_path).save(2, {}, weights("w" * 2**18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["write", "publish", "rename", "rmtree"])
def test_a_kill_at_any_moment_leaves_a_complete_one(tmp_path: Path, moment: str) -> None:
    """A child saves step 2, then is killed within the saving of step 4: the last complete one is there, whole."""
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    change = {
        "write": f"checkpoint.json.dumps = lambda *a, **k: {kill}",
        "publish": f"checkpoint.publish = lambda *a: {kill}",
        "rename": f"checkpoint.Path.rename = lambda *a: {kill}",
        "rmtree": f"checkpoint.Checkpoints._prune = lambda *a: {kill}",
    }[moment]
    code = f"""
import os, signal, sys
from pathlib import Path
from rlkit.runtime import checkpoint
def weights(text):
    def write(files):
        with files.create("weights.bin") as file:
            file.write(text)
    return write
kept = checkpoint.Checkpoints(Path(sys.argv[1]), every=2, keep=1, main=True, gather=lambda item: [item])
kept.save(2, {{"step": 2}}, weights(b"of 2"))
{change}
kept.save(4, {{"step": 4}}, weights(b"of 4"))
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


def test_all_ranks_write_and_only_the_first_names(tmp_path: Path) -> None:
    """Rank 1 fills the folder that rank 0 made; it publishes nothing and deletes nothing. The manifest has the files of both."""
    first, second = (
        Checkpoints(tmp_path, every=1, keep=1, main=rank == 0, gather=lambda item, rank=rank: exchange(rank, item)) for rank in (0, 1)
    )
    together, items = Barrier(2), [None, None]

    def exchange(rank: int, item: Any) -> list[Any]:
        items[rank] = item
        together.wait(10)
        found = [*items]
        together.wait(10)
        return found

    with ThreadPoolExecutor(2) as threads:
        saving = [threads.submit(c.save, 3, {}, weights(name=name)) for c, name in ((first, "a.bin"), (second, "b.bin"))]
        assert [future.result() for future in saving] == [True, True]
    assert json.loads((first.get_folder(3) / "manifest.json").read_text())["files"].keys() == {"a.bin", "b.bin", "state.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_publishing_replaces_what_had_the_name(tmp_path: Path) -> None:
    old, new = tmp_path / "model", tmp_path / ".model.tmp"
    old.mkdir()
    (old / "stale").write_text("x")
    (new / "deep").mkdir(parents=True)
    (new / "deep" / "weights").write_text("y")
    publish(new, old)
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["model", "model/deep", "model/deep/weights"]


@pytest.mark.parametrize("state", [{"step": 2}, {"evaluations": {"best": None}, "count": {"a": 1}}, {"evaluations": 3, "count": {}}])
def test_a_checkpoint_of_another_form_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    (checkpoints := open_at(tmp_path)).save(2, state, weights())
    with pytest.raises(RunFailed, match=r"step-000002 cannot be read .* delete its folder to continue from the one before"):
        resume(SimpleNamespace(checkpoints=checkpoints))  # type: ignore[arg-type]


def test_weights_that_the_library_cannot_read_are_refused(tmp_path: Path) -> None:
    """They are as they were written, so that no digest helps."""

    def load(folder: Path) -> None:
        load_file(folder / "policy.safetensors")

    checkpoints = open_at(tmp_path)
    checkpoints.save(2, asdict(TrainState(step=2)), weights("\x10\0\0\0\0\0\0\0{", "policy.safetensors"))
    run = SimpleNamespace(checkpoints=checkpoints, training=nullcontext, learners=[SimpleNamespace(load=load)])
    with pytest.raises(RunFailed, match=r"step-000002 cannot be read \(SafetensorError: .* delete its folder"):
        resume(run)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    """It has a field of another name, a manifest of another format, or as before manifests a state with a format."""
    refused = r"step-00000\d was written by another version of rlkit, .* choose another output_dir"
    checkpoints = open_at(tmp_path, keep=9)
    known = asdict(TrainState(step=2))
    checkpoints.save(2, {"story" if name == "trainer" else name: value for name, value in known.items()}, weights())
    with pytest.raises(UserError, match=refused):
        resume(SimpleNamespace(checkpoints=checkpoints, training=nullcontext, learners=[]))  # type: ignore[arg-type]
    with patch("rlkit.runtime.manifest.FORMAT", 99):
        checkpoints.save(4, known, weights())
    with pytest.raises(UserError, match=refused):
        checkpoints.check(4)
    checkpoints.save(6, known | {"format": 2}, weights())
    (checkpoints.get_folder(6) / "manifest.json").unlink()
    with pytest.raises(UserError, match=refused):
        checkpoints.check(6)


@pytest.mark.parametrize("text", [None, "", "a: [1\n", "3\n"])
def test_a_recipe_that_cannot_be_read_back_is_told(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "summary.json").write_text("[1]")
    assert explain_occupied(tmp_path, "seed: 1\n", "auto") is None  # nothing was done in it
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert f"{tmp_path / 'recipe.yaml'} cannot be read" in str(explain_occupied(tmp_path, "seed: 1\n", "auto"))


def test_the_recipe_of_an_older_run_is_compared_by_the_names_of_now(tmp_path: Path) -> None:
    old = {"engine": {"checkpointing": 1, "memory": "slept"}, "rewards": {"a.b": {"deadline": 3}}, "algorithm": {"name": "dpo", "gap": 1.0}}
    now = {"engine": {"gradient_checkpointing": 0, "memory": "sleep"}, "rewards": {"a.b": {"timeout": 3}}}
    now |= {"algorithm": {"name": "dpo", "simpo_gamma": 1.0}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(old))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "attempt": 1}\n')
    assert explain_occupied(tmp_path, yaml.safe_dump(now), "auto") is None  # gradient_checkpointing may change
    now |= {"rewards": {"a.b": {"timeout": 4}}, "algorithm": {"name": "dpo", "simpo_gamma": 0.5}}
    refused = str(explain_occupied(tmp_path, yaml.safe_dump(now), "auto"))
    assert [line.strip() for line in refused.splitlines()[1:3]] == [
        "algorithm.simpo_gamma: 1.0 then, 0.5 now",
        "rewards.a.b.timeout: 3 then, 4 now",
    ]
