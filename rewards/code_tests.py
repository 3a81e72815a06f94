"""Does the code do what its tests ask? It is run in a locked-down process: no network, no files but its own, bounded time and memory.

The code is the last fenced block of the completion (or all of it where there is none). tests: a list of {"input": ..., "output": ...} (what
goes in on stdin and what must come out on stdout), a list of assert lines, or one text of code that fails where the code is wrong.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewarding import sandbox

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def code_tests(
    completion: str,
    tests: Any,
    seconds: float = 2.0,
    memory_mib: int = 512,
    partial: bool = False,
    **columns: Any,
) -> dict[str, float]:
    """score 1.0 where all tests pass (partial: the share that do), else 0.0; `passed` is the share. seconds, memory_mib: for each test.

    Raises ValueError for tests of no known form, sandbox.Unavailable where this machine cannot lock the code in. The deadline of the reward
    must leave time for all tests.
    """
    checks = _checks(tests)
    fenced = FENCED.findall(completion)
    code = fenced[-1] if fenced else completion
    limits = sandbox.Limits(seconds=seconds, memory_mib=memory_mib)
    share = sum(_passes(code, check, limits) for check in checks) / len(checks)
    return {"score": share if partial else float(share == 1.0), "passed": share}


def _checks(tests: Any) -> list[str | Mapping[str, Any]]:
    if isinstance(tests, str) and tests.lstrip().startswith(("[", "{")):
        tests = json.loads(tests)
    if isinstance(tests, Mapping) and "inputs" in tests and "outputs" in tests:  # as APPS and TACO have it
        tests = [{"input": given, "output": wanted} for given, wanted in zip(tests["inputs"], tests["outputs"], strict=True)]
    checks = [tests] if isinstance(tests, (str, Mapping)) else list(tests) if isinstance(tests, Sequence) else []
    if not checks or not all(
        isinstance(check, str) or (isinstance(check, Mapping) and {"input", "output"} <= check.keys()) for check in checks
    ):
        raise ValueError(
            f'tests must be code, a list of assert lines, or a list of {{"input": ..., "output": ...}}; they are {str(tests)[:100]!r}'
        )
    return checks


def _passes(code: str, check: str | Mapping[str, Any], limits: sandbox.Limits) -> bool:
    if isinstance(check, Mapping):
        result = sandbox.run(code, str(check["input"]), limits)
        return result.exit_code == 0 and _lines(result.stdout) == _lines(str(check["output"]))
    # The word is printed only where the end is reached: code that leaves before the tests has not passed them.
    word = secrets.token_hex(16)
    result = sandbox.run(f"{code}\n\n{check}\n\nprint({word!r})\n", "", limits)
    return result.exit_code == 0 and result.stdout.rstrip().endswith(word)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
