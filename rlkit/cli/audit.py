"""Checks a run against its audit: `rlkit audit RUN [--head HASH] [--key FILE] [--json]`, and adds what commands do to a run."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlkit.cli.output import print_document, print_text
from rlkit.errors import EXIT_DONE, EXIT_USER
from rlkit.report.audit import AUDIT, AuditResult, Sealed, append_event, check_audit
from rlkit.report.provenance import read_user
from rlkit.report.signing import Signer, load_public_key
from rlkit.run import handle_errors


def run_audit(run: str, head: str | None, key: str | None, as_json: bool) -> int:
    """Prints what differs. Returns 0 where nothing does, 2 elsewhere."""
    return handle_errors(lambda: print_audit(Path(run).expanduser(), head, key, as_json), [])


def print_audit(run: Path, head: str | None, key: str | None, as_json: bool) -> int:
    """As run_audit. Raises UserError."""
    result = check_audit(run, head, load_public_key(key) if key is not None else None)
    if as_json:
        print_document(asdict(result) | {"whole": not result.problems})
    else:
        print_text(describe_audit(result))
    return EXIT_USER if result.problems else EXIT_DONE


def describe_audit(result: AuditResult) -> str:
    """What happened, what differs, and the head, a line each."""
    count = len(result.problems)
    verdict = (
        f"{count} {'difference' if count == 1 else 'differences'}" if count else f"whole: {result.files} files are as they were written"
    )
    return "\n".join([*result.events, *result.problems, verdict, f"head {result.head}"])


def append_command(run: Path, event: str, facts: Mapping[str, Any], sealed: Sealed, sign: Signer | None) -> None:
    """Adds to the audit of a run what a command did with it, and who. A line that cannot be written is warned of: the work is done."""
    try:
        append_event(run, event, {"user": read_user(), "host": socket.gethostname(), **facts}, sealed, sign)
    except OSError as error:
        print(f"warning: {run / AUDIT} cannot be written ({error.strerror}), so that it lacks: {event}", file=sys.stderr)
