"""What happens to the files of a run: damage to each file of a real checkpoint, and a folder that is removed under a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.cli import export
from rlkit.report.folder import read_metrics
from tests.conftest import run
from tests.repeatable import select_repeatable

FILES = ["policy.safetensors", "policy.json", "state.json", "manifest.json"]


def flip_bit(file: Path, before: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "flip a bit": flip_bit,
    "truncate": lambda file, before: os.truncate(file, file.stat().st_size - 1),
    "empty": lambda file, before: os.truncate(file, 0),
    "remove": lambda file, before: file.unlink(),
    "of the step before": lambda file, before: shutil.copy(before, file),
}


@pytest.fixture(scope="module")
def words(small: list[str]) -> list[str]:
    return [*small, "steps=3", "eval.every=0", "checkpoint.every=1", "checkpoint.keep=9"]


@pytest.fixture(scope="module")
def ended(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run as if it was killed before its end, with checkpoints of the steps 1 to 3."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    done = run(*words, f"output_dir={folder}")
    assert done.code == 0, done.out + done.err
    (folder / "summary.json").unlink()
    assert sorted(os.listdir(folder / "checkpoints" / "step-000003")) == sorted(FILES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_by_its_name_and_the_step_before_offered(
    name: str, words: list[str], ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a resume, before anything is loaded or written, and by an export."""
    checkpoints = ended / "checkpoints"
    last, file = checkpoints / "step-000003", checkpoints / "step-000003" / name
    whole, before = file.read_bytes(), {path: path.stat().st_mtime_ns for path in ended.rglob("*")}
    for kind, damage in DAMAGES.items():
        damage(file, checkpoints / "step-000002" / name)
        refused = run(*words, f"output_dir={ended}")
        assert (refused.code, refused.out) == (2, ""), kind
        first, second = refused.err.splitlines()
        assert first.startswith(f"rlkit: the checkpoint {last} is damaged: {name} ") and ";" not in first, kind
        assert second == "the one before, of step 2, is whole: delete the damaged folder to continue from there, or export step=2"
        assert export.run_export([str(ended), f"to={tmp_path / 'model'}"]) == 2
        assert capsys.readouterr().err == refused.err and not list(tmp_path.iterdir()), kind
        file.write_bytes(whole)
    now = {path: path.stat().st_mtime_ns for path in ended.rglob("*")}
    assert {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)} <= {file, last}


@pytest.mark.slow
def test_what_is_offered_holds(words: list[str], ended: Path, tmp_path: Path) -> None:
    """The step before is exported; with the damaged one deleted the run continues from it, with the rows of an undisturbed run."""
    shutil.copytree(ended, folder := tmp_path / "run")
    flip_bit(folder / "checkpoints" / "step-000003" / "policy.safetensors", folder)
    assert export.run_export([str(folder), "step=2", f"to={tmp_path / 'model'}"]) == 0
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    again = run(*words, f"output_dir={folder}")
    assert again.code == 0 and "goes on after step 2" in again.out, again.out + again.err
    rows, undisturbed = (read_metrics(place / "metrics.jsonl") for place in (folder, ended))
    assert [row["attempt"] for row in rows][-1] == 2
    assert [*map(select_repeatable, rows)] == [*map(select_repeatable, undisturbed)]
    assert (folder / "model" / "model.safetensors").read_bytes() == (ended / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_folder_removed_under_a_run_is_reported_as_that(words: list[str], tmp_path: Path) -> None:
    """Here by a reward of its first step."""
    folder, reward = tmp_path / "run", tmp_path / "reward.py"
    reward.write_text(f"import shutil\ndef score(completion):\n    shutil.rmtree({str(folder)!r}, ignore_errors=True)\n    return 0.5\n")
    ended = run(*words, "data.test=null", f"rewards.accuracy.path={reward}:score", f"output_dir={folder}")
    assert ended.code == 1, ended.out + ended.err
    assert ended.err.startswith(f"rlkit: the folder of this run, {folder}, was removed or replaced while the run wrote to it; put it back")
    assert "Traceback" not in ended.err and not folder.exists()
