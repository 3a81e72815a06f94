"""Checks a run against its audit: `rlkit audit RUN [--head HASH] [--json]`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rlkit.cli.output import print_document, print_text
from rlkit.errors import EXIT_DONE, EXIT_USER
from rlkit.report.audit import AuditResult, check_audit
from rlkit.run import handle_errors


def run_audit(run: str, head: str | None, as_json: bool) -> int:
    """Prints what differs. Returns 0 where nothing does, 2 elsewhere."""
    return handle_errors(lambda: print_audit(Path(run).expanduser(), head, as_json), [])


def print_audit(run: Path, head: str | None, as_json: bool) -> int:
    """As run_audit. Raises UserError."""
    result = check_audit(run, head)
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
