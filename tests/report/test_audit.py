"""audit.jsonl: every sealed file that changes is named, and a chain holds over kills and resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.errors import Stopped, UserError
from rlkit.report import Report
from rlkit.report.audit import check_audit
from rlkit.report.summary import RunSummary
from rlkit.runtime.checkpoint import Checkpoints
from rlkit.runtime.manifest import CheckpointWriter
from tests.cli.conftest import call


def write_weights(files: CheckpointWriter) -> None:
    with files.create("policy.safetensors") as file:
        file.write(b"weights")


def open_report(folder: Path) -> Report:
    report = Report(folder, plan=[], title="t", steps=2, main=True)
    report.write_text("recipe.yaml", "seed: 0\n")
    report.write_json("models.json", {})
    report.print_header()
    return report


def log_step(report: Report, folder: Path, step: int) -> None:
    report.log_samples(step, [{"prompt": "p", "completion": "c", "reward": 1.0, "rewards": {}, "advantage": 0.5}])
    report.log_step(step, {"reward": 0.5})
    checkpoints = Checkpoints(folder / "checkpoints", every=1, keep=1, main=True, gather=lambda item: [item])
    checkpoints.save(step, {}, write_weights)
    report.record_checkpoint(step)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, stopped after the first, whose checkpoint the second one replaced."""
    tmp_path = tmp_path_factory.mktemp("made")
    with pytest.raises(Stopped), open_report(tmp_path) as report:
        log_step(report, tmp_path, 1)
        raise Stopped
    with open_report(tmp_path) as report:
        log_step(report, tmp_path, 2)
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        report.finish(RunSummary("done", 2, 1.0, 0.25, 0.5))
    return tmp_path


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_whole_run_says_what_happened(finished: Path) -> None:
    code, out, _ = call("audit", str(finished), "--json")
    found = json.loads(out)
    assert code == 0 and found["whole"] and found["problems"] == []
    assert [line.partition(" ")[0] for line in found["events"]] == ["started", "saved", "stopped", "resumed", "saved", "finished"]
    with (finished / "metrics.jsonl").open("a") as log:
        log.write("a later line\n")  # a run that goes on appends
    assert call("audit", str(finished), "--head", found["head"])[0] == 0


def test_the_end_of_a_run_prints_the_head(finished: Path) -> None:
    assert f"audit {check_audit(finished).head}" in (finished / "run.log").read_text()


SEALED = [
    *("recipe.yaml", "models.json", "environment.json", "summary.json", "report.png", "model/config.json"),
    *("metrics.jsonl", "samples.jsonl", "samples.index.jsonl"),
    *("checkpoints/step-000002/manifest.json", "checkpoints/step-000002/policy.safetensors", "checkpoints/step-000002/state.json"),
]


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [flip_bit, Path.unlink])
@pytest.mark.parametrize("name", SEALED)
def test_a_changed_or_missing_file_is_named(finished: Path, name: str, change: Callable[[Path], None]) -> None:
    change(finished / name)
    code, out, _ = call("audit", str(finished))
    assert code == 2 and any(line.startswith(name) for line in out.splitlines()), out


def test_added_files_are_named(finished: Path) -> None:
    (finished / "model" / "extra.bin").write_bytes(b"")
    assert check_audit(finished).problems == ["model/extra.bin was added after"]


def test_each_line_of_the_chain_is_guarded(finished: Path) -> None:
    written = (finished / "audit.jsonl").read_bytes()
    lines = written.splitlines(keepends=True)
    for number in range(len(lines) - 1):
        changed = [*lines[:number], lines[number].replace(b'"time"', b'"Time"'), *lines[number + 1 :]]
        for damaged in (changed, lines[:number] + lines[number + 1 :]):
            (finished / "audit.jsonl").write_bytes(b"".join(damaged))
            assert any(problem.startswith("audit.jsonl line") for problem in check_audit(finished).problems)


def test_only_a_head_notices_a_tail_that_was_cut(finished: Path) -> None:
    head = check_audit(finished).head
    file = finished / "audit.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    assert check_audit(finished).problems == []
    code, out, _ = call("audit", str(finished), "--head", head)
    assert code == 2 and f"audit.jsonl has no line with the digest {head}" in out


def test_a_line_that_a_kill_cut_is_left_out_and_the_run_was_lost(tmp_path: Path) -> None:
    killed = open_report(tmp_path)
    log_step(killed, tmp_path, 1)
    killed._folder.close()  # as the system does after a kill: the run says nothing
    killed._ticker.stop()
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"event": "sto')
    with open_report(tmp_path) as report:
        log_step(report, tmp_path, 2)
    result = check_audit(tmp_path)
    assert result.problems == []
    words = [line.split()[0].strip(":") for line in result.events]
    assert words == ["started", "saved", "lost", "resumed", "saved", "stopped"]


def test_a_folder_without_an_audit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no audit\.jsonl"):
        check_audit(tmp_path)
