"""audit.jsonl: every sealed file that changes is named, and a chain holds over kills and resumes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from rlkit.errors import Stopped, UserError
from rlkit.report import Report
from rlkit.report.audit import append_event, check_audit, seal_run
from rlkit.report.summary import RunSummary
from rlkit.runtime.checkpoint import Checkpoints
from rlkit.runtime.manifest import CheckpointWriter
from tests.cli.conftest import call


def write_weights(files: CheckpointWriter) -> None:
    with files.create("policy.safetensors") as file:
        file.write(b"weights")


def open_report(folder: Path, key: Path | None = None) -> Report:
    report = Report(folder, plan=[], title="t", steps=2, main=True, audit_key=str(key) if key else None)
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


def write_key(folder: Path, name: str, key: Ed25519PrivateKey | X25519PrivateKey, password: bytes | None = None) -> tuple[Path, Path]:
    """Its private and its public part, in PEM."""
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_who_has_not_the_key_can_write_no_line_that_passes(tmp_path: Path) -> None:
    (private, public), (_, other) = (write_key(tmp_path, name, Ed25519PrivateKey.generate()) for name in ("own", "other"))
    folder = tmp_path / "run"
    with open_report(folder, private) as report:
        log_step(report, folder, 1)
    assert call("audit", str(folder), "--key", str(public))[0] == 0
    code, out, _ = call("audit", str(folder), "--key", str(other))
    assert code == 2 and out.count("is not signed by this key") == 3
    (folder / "metrics.jsonl").write_text('{"step": 1, "attempt": 1, "reward": 1.0}\n')
    append_event(folder, "resumed", {}, seal_run(folder))  # as somebody who can write the folder would
    assert call("audit", str(folder))[0] == 0
    code, out, _ = call("audit", str(folder), "--key", str(public))
    assert code == 2 and "audit.jsonl line 4 is not signed by this key" in out
    lines = (folder / "audit.jsonl").read_bytes().splitlines(keepends=True)
    signature = json.loads(lines[2])["signature"]
    stolen = json.dumps({**json.loads(lines[3]), "signature": signature}).encode() + b"\n"
    (folder / "audit.jsonl").write_bytes(b"".join([*lines[:3], stolen]))
    assert "audit.jsonl line 4 is not signed by this key" in call("audit", str(folder), "--key", str(public))[1]


def test_keys_that_cannot_sign_are_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (tmp_path / "text.pem").write_text("no key")
    locked, _ = write_key(tmp_path, "locked", Ed25519PrivateKey.generate(), b"password")
    exchange, _ = write_key(tmp_path, "exchange", X25519PrivateKey.generate())
    _, public = write_key(tmp_path, "own", Ed25519PrivateKey.generate())
    for key, words in (
        (tmp_path / "none.pem", "cannot be read (No such file or directory)"),
        (tmp_path / "text.pem", "is not a private key in PEM without a password"),
        (locked, "is not a private key in PEM without a password"),
        (public, "is not a private key in PEM without a password"),
        (exchange, "is not an Ed25519 key"),
        (folder / "own.pem", "lies in the folder of the run"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            open_report(folder, key)
    assert not folder.exists()


def test_a_line_that_cannot_be_written_is_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_report(tmp_path) as report:
        (tmp_path / "audit.jsonl").unlink()
        (tmp_path / "audit.jsonl").mkdir()
        log_step(report, tmp_path, 1)
        report.log_step(2, {"reward": 0.5})
        assert "audit.jsonl cannot be written (Is a directory), so that it lacks: saved" in capfd.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
