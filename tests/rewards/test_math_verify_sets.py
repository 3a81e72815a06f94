"""The test sets of math-verify beside `accuracy`: each disagreement is known, with who is right. Its sdist is fetched, not copied."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from rlkit.rewarding.resolve import import_reward

KNOWN = Path(__file__).with_name("math_verify_disagreements.json")  # by file and number of the case: who is right, and why
PROSE = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{3,} [a-z]{2,}|Answer|Final")


def list_cases(folder: Path) -> Iterator[tuple[str, str, str, float]]:
    """Name, reference, answer and score of each case that is a pair of texts."""
    for file in sorted(folder.glob("**/tests/test_*.py")):
        number = 0
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            if not ast.unparse(call.func).endswith("parametrize"):
                continue
            try:
                names, rows = [name.strip() for name in ast.literal_eval(call.args[0]).split(",")], ast.literal_eval(call.args[1])
            except ValueError:
                continue
            for row in rows if "gold" in names else ():
                case = dict(zip(names, row, strict=True))
                want = case.get("expected", case.get("result"))
                if isinstance(case["gold"], str) and isinstance(want, (bool, int)):
                    yield f"{file.stem}:{number}", case["gold"], case["pred"], float(want)
                number += 1


@pytest.mark.nightly(part="faults")
def test_every_disagreement_with_math_verify_is_known(tmp_path: Path) -> None:
    version = metadata.version("math-verify")
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--no-build-isolation",
        f"math-verify=={version}",
    ]
    subprocess.run(fetch, cwd=tmp_path, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    found = {}
    cases = list(list_cases(tmp_path))
    for name, reference, given, want in cases:
        completion = given if "boxed" in given or PROSE.search(given) else rf"\boxed{{{given}}}"
        try:
            score = import_reward("accuracy")(completion=completion, answer=reference)
        except ValueError as refused:
            score = str(refused)
        if score != want:
            found[name] = score
    assert len(cases) > 250
    assert sorted(found) == sorted(json.loads(KNOWN.read_text()))
