"""audit.jsonl: what happened to a run, and the digests of what it read and wrote, as a chain of lines.

Each line holds in `before` the BLAKE3 digest of the line before it ("" in the first), so that no line can be changed or left out but the
last ones. The digest of the last line is the head; whoever keeps it elsewhere can tell that none is gone. `sealed` holds digests by group:
run (the files of the folder itself), checkpoints (their manifests, which hold the digests of their files), and each folder that was
written as a whole, as model. A later line with a group replaces the group. Of logs, which grow, the first `bytes` are sealed.

With report.audit_key each line is signed (signing.py). Left out: protection against somebody who can write the folder where no head was
kept elsewhere and no key was used; rlkit/docs/audit.md.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from rlkit.errors import UserError
from rlkit.report.folder import METRICS, SAMPLES, SAMPLES_INDEX, SUMMARY
from rlkit.report.signing import Signer, is_signed, sign_row
from rlkit.runtime.checkpoint import CHECKPOINTS
from rlkit.runtime.manifest import MANIFEST, find_damage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

AUDIT = "audit.jsonl"
MODEL_FOLDER = "model"
GROWING = (METRICS, SAMPLES, SAMPLES_INDEX)
RUN_FILES = ("recipe.yaml", "models.json", "environment.json", SUMMARY, "report.png", *GROWING)
BEGINNINGS, ENDS = ("started", "resumed"), ("stopped", "failed", "finished")
_BLOCK = 1 << 24  # bytes read at a time

Seal = dict[str, Any]  # {"bytes": how many are sealed, "blake3": their digest}
Sealed = dict[str, dict[str, Seal]]  # by group, by path in the folder of the run


@dataclass(frozen=True)
class AuditResult:
    """What a check found. `head`: the digest of the last line; `problems`: one line for each difference, empty where all is as sealed."""

    head: str
    events: Sequence[str]
    files: int
    problems: Sequence[str]


def append_event(folder: Path, event: str, facts: Mapping[str, Any], sealed: Sealed, sign: Signer | None = None) -> str:
    """Appends a line, and waits until the disk has it. Returns its digest, the new head. Raises OSError."""
    with (folder / AUDIT).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: an export may come while a run writes
        file.seek(0)
        lines = file.read()
        whole = lines.rpartition(b"\n")[0]
        if lines and not lines.endswith(b"\n"):
            file.truncate(len(whole) + bool(whole))  # a kill cut the last line
        before = hash_line(whole.rpartition(b"\n")[2]) if whole else ""
        row = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts, "sealed": sealed, "before": before}
        line = json.dumps(sign_row(row, sign)).encode()
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return hash_line(line)


def hash_line(line: bytes) -> str:
    return str(blake3(line).hexdigest())


def seal_run(folder: Path, *, checkpoints: bool = False, model: bool = False) -> Sealed:
    """Digests of what is there. Reads the logs, and with `model` the exported model, once; of checkpoints the manifests alone."""
    sealed = {"run": seal_files(folder, [folder / name for name in RUN_FILES if (folder / name).is_file()])}
    if checkpoints:
        sealed |= seal_checkpoints(folder)
    if model:
        sealed |= seal_folder(folder, folder / MODEL_FOLDER)
    return sealed


def seal_checkpoints(folder: Path) -> Sealed:
    return {CHECKPOINTS: seal_files(folder, sorted((folder / CHECKPOINTS).glob(f"step-*/{MANIFEST}")))}


def seal_folder(run: Path, folder: Path) -> Sealed:
    """Of a folder inside that of a run, written as a whole."""
    return {folder.relative_to(run).as_posix(): seal_files(run, list_files(folder))}


def seal_files(run: Path, files: Iterable[Path]) -> dict[str, Seal]:
    return {file.relative_to(run).as_posix(): seal_file(file) for file in files}


def seal_file(file: Path) -> Seal:
    size = file.stat().st_size
    return {"bytes": size, "blake3": hash_prefix(file, size)}


def hash_prefix(file: Path, size: int) -> str:
    """BLAKE3 of the first bytes of a file. Raises OSError."""
    hasher = blake3(max_threads=blake3.AUTO)
    with file.open("rb", buffering=0) as opened:
        while size > 0 and (block := opened.read(min(_BLOCK, size))):
            hasher.update(block)
            size -= len(block)
    return str(hasher.hexdigest())


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_audit(folder: Path, head: str | None = None, key: Ed25519PublicKey | None = None) -> AuditResult:
    """Compares a run with its audit. head: the digest of a line, kept elsewhere; key: that each line must be signed by.

    Raises UserError where there is no audit.
    """
    try:
        written = (folder / AUDIT).read_bytes()
    except OSError as error:
        raise UserError(f"{folder} has no {AUDIT} that can be read ({error.strerror}); name the folder of a run") from error
    rows, digests, problems = read_chain(written, key)
    if head is not None and head not in digests:
        problems.append(f"{AUDIT} has no line with the digest {head}: its end was cut off, or it was written anew")
    sealed: Sealed = {}
    for row in rows:
        sealed |= row["sealed"]
    problems += [problem for group, files in sealed.items() for problem in compare_group(folder, group, files)]
    files = sum(map(len, sealed.values()))
    return AuditResult(digests[-1] if digests else "", describe_events(rows), files, problems)


def read_chain(written: bytes, key: Ed25519PublicKey | None = None) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """The lines, their digests, and what is wrong with the chain. A last line without its end is one that a kill cut."""
    rows: list[dict[str, Any]] = []
    digests: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(written.split(b"\n")[:-1], start=1):
        before = digests[-1] if digests else ""
        digests.append(hash_line(line))
        try:
            row = json.loads(line)
            chained = row["before"] == before
            rows.append({"event": str(row["event"]), "time": str(row["time"]), "sealed": {k: dict(v) for k, v in row["sealed"].items()}})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            problems.append(f"{AUDIT} line {number} is not as it was written")
            continue
        if key is not None and not is_signed(row, key):
            problems.append(f"{AUDIT} line {number} is not signed by this key")
        if not chained:
            problems.append(f"{AUDIT} line {number} does not follow the line before it: one of them was changed, or lines are gone")
    return rows, digests, problems


def compare_group(folder: Path, group: str, files: Mapping[str, Seal]) -> list[str]:
    """What differs from the digests of a group."""
    problems = [problem for name, seal in files.items() if (problem := compare_sealed(folder, name, seal))]
    if group == CHECKPOINTS:
        found = {path.relative_to(folder).as_posix() for path in (folder / CHECKPOINTS).glob(f"step-*/{MANIFEST}")}
        problems += [problem for name in files if (folder / name).is_file() for problem in compare_checkpoint(folder / name)]
    elif group == "run":
        found = {name for name in RUN_FILES if name in files}
    else:
        found = {path.relative_to(folder).as_posix() for path in list_files(folder / group)}
    return problems + [f"{name} was added after" for name in sorted(found - files.keys())]


def compare_sealed(folder: Path, name: str, seal: Seal) -> str | None:
    """What is wrong with a file; None where nothing is."""
    try:
        size = (folder / name).stat().st_size
        if size < seal["bytes"] or (size > seal["bytes"] and name not in GROWING):
            return f"{name} has {size:,} bytes, not {seal['bytes']:,}"
        changed = hash_prefix(folder / name, seal["bytes"]) != seal["blake3"]
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    what = f" (its first {seal['bytes']:,} bytes)" if name in GROWING else ""
    return f"{name}{what} is not as it was written" if changed else None


def compare_checkpoint(manifest: Path) -> list[str]:
    """What is wrong with the files that the manifest of a checkpoint names."""
    step = manifest.parent.name
    try:
        damage = find_damage(manifest.parent, int(step.removeprefix("step-")))
    except UserError as error:
        return [str(error)]
    return [f"{CHECKPOINTS}/{step}/{line}" for line in damage if not line.startswith(MANIFEST)]


def describe_events(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each event; a run that began again without having ended was lost."""
    lines: list[str] = []
    running = False
    for row in rows:
        if row["event"] in BEGINNINGS and running:
            lines.append("lost: the process ended without a word, as one that is killed does")
        if row["event"] in (*BEGINNINGS, *ENDS):
            running = row["event"] in BEGINNINGS
        lines.append(f"{row['event']} {row['time']}")
    return lines
