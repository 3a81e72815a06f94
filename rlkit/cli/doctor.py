"""`rlkit doctor`: what this machine has of what rlkit needs, a line each, with what to do."""

from __future__ import annotations

import textwrap

from rlkit import run
from rlkit.assembly.machine_report import Finding, inspect_machine
from rlkit.cli.output import get_text_width, print_document, print_text
from rlkit.errors import EXIT_DONE, EXIT_FAILED
from rlkit.runtime.library_settings import configure_libraries


def run_doctor(as_json: bool) -> int:
    """Prints the findings. Returns the exit code: 1 where one of them is a problem."""
    configure_libraries(offline=False)
    return run.handle_errors(lambda: print_findings(as_json), [])


def print_findings(as_json: bool) -> int:
    """As run_doctor."""
    findings = []
    for finding in inspect_machine():
        findings.append(finding)
        if not as_json:
            print_text(format_finding(finding))
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        print_document({"problems": problems, "findings": [vars(finding) for finding in findings]})
    return EXIT_FAILED if problems else EXIT_DONE


def format_finding(finding: Finding) -> str:
    line = f"{finding.state:<7}  {finding.what:<17}  {finding.found}"
    indent = " " * 28
    advice = textwrap.fill(finding.advice, get_text_width(), initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return f"{line}\n{advice}" if advice else line
