"""Whether code passes its tests. It runs in a sandbox: no network, no files but its own, limited time and memory.

The code is the last block of the completion that defines what the tests call, else its last block, else the whole completion. The forms of
tests are listed in rlkit/rewarding/code_cases.py. Whatever the code does, to its output or to Python, is at worst not a pass; what raises
is a fault of the data: tests of no known form, tests that would test nothing, or tests that cannot run for anyone.

What is expected of stdin tests, of calls, and of asserts that compare with a literal never enters the process of the code.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlkit.rewarding import code_cases, code_names, code_program, code_values, sandbox
from rlkit.rewarding.code_cases import CallCase, Case, CodeCase, OutputCase
from rlkit.rewarding.code_packages import find_packages
from rlkit.rewarding.worker import CALL_DEADLINE

PROGRAM = Path(code_program.__file__).read_text()
Run = Callable[[str, Sequence[str]], list[sandbox.ProgramResult]]
OUTPUT_MIB = 128  # of all tests of a sample that are read
SHARE_OF_TIME = 0.85  # of the reward's timeout for the tests; the rest to end them and to compare
IMPORT_MARGIN = 3.0  # seconds that must be left to look whether the tests' own imports work
IMPORT_SECONDS = 20.0  # to import what a test imports, without any code


def code_tests(
    completion: str,
    tests: Any,
    entry_point: str | None = None,
    tolerance: float | None = None,
    *,
    seconds: float = 2.0,
    memory_mib: int = 512,
    partial: bool = False,
    packages: Sequence[str] = (),
    **columns: Any,
) -> dict[str, float]:
    """score: 1.0 where all tests pass, else 0.0 (with partial, the share that pass). passed: the share. seconds, memory_mib: for each test.

    entry_point: the function under test, or `Solution().method`. tolerance: of numbers with a point or an exponent, in place of 1e-6. The
    timeout of the reward must be long enough for all tests of a right program. packages: installed ones that the code may import. Raises
    ValueError for tests that cannot be used, TimeoutError where tests passed until the time was over, SandboxUnavailable.
    """
    entry_point = entry_point or None
    tolerance = None if tolerance is None or tolerance != tolerance else float(tolerance)  # NaN: an empty field of a table
    cases = code_cases.parse_tests(tests, entry_point, columns)
    known = find_packages(tuple(packages))
    output_mib = max(
        OUTPUT_MIB // len(cases), 1 + max((len(case.expected) >> 19 for case in cases if isinstance(case, OutputCase)), default=0)
    )
    limits = sandbox.SandboxLimits(seconds=seconds, memory_mib=memory_mib, output_mib=min(output_mib, 16))
    until = _choose_end()
    wanted = _list_wanted(cases, entry_point)
    code = code_names.find_code(completion, wanted)
    mentioned = f"{columns.get('prompt', '')} {code}"
    for case in cases:
        _check_names(case, entry_point, mentioned)
    outputs = [case for case in cases if isinstance(case, OutputCase)]
    calls = [case for case in cases if not isinstance(case, OutputCase)]
    run = functools.partial(sandbox.run_each, limits=limits, packages=known, until=until)
    passed = [*_run_scripts(code, outputs, run, tolerance), *_run_calls(code, wanted, calls, run, tolerance)]
    if all(passed) and len(passed) < len(cases):
        raise TimeoutError(f"{len(passed)} of {len(cases)} tests passed, then the time was over: raise the timeout of this reward")
    if not all(passed) and CALL_DEADLINE.get() - time.monotonic() > IMPORT_MARGIN:
        for case in cases:
            _check_imports(case, known)
    share = sum(passed) / len(cases)
    return {"score": share if partial else float(share == 1.0), "passed": share}


def _choose_end() -> float:
    """When to stop, so that a wrong program which uses all its time is graded before the worker's time is over."""
    now = time.monotonic()
    return now + SHARE_OF_TIME * (CALL_DEADLINE.get() - now)


def _list_wanted(cases: Sequence[Case], entry_point: str | None) -> set[str]:
    """The names that the tests call and the code must define."""
    called = {case.name for case in cases if isinstance(case, CallCase)}
    if entry_point:
        return called | {code_names.get_root(entry_point)}
    for case in cases:
        if isinstance(case, CodeCase):
            called |= code_names.find_called(case.tree) & code_names.find_names(case.source)
    return called


def _run_scripts(code: str, cases: Sequence[OutputCase], run: Run, tolerance: float | None) -> list[bool]:
    if not cases:
        return []
    source = f"{PROGRAM}\n\nrun_script({code!a}, {code_names.choose_given(code, set())!r})\n"
    results = run(source, [case.stdin for case in cases])
    return [
        result.exit_code == 0 and code_values.compare_output(result.stdout, case.expected, tolerance)
        for result, case in zip(results, cases, strict=False)  # fewer results where the time was over
    ]


def _run_calls(
    code: str,
    wanted: set[str],
    cases: Sequence[CallCase | CodeCase],
    run: Run,
    tolerance: float | None,
) -> list[bool]:
    if not cases:
        return []
    words, tests = [secrets.token_hex(16) for _ in cases], [case.test for case in cases]
    given = code_names.choose_given(code, wanted)
    tasks = [
        {"code": code, "test": test.source, "word": word, "names": given, "test_names": _give_test(test.source, wanted)}
        for test, word in zip(tests, words, strict=True)
    ]
    results = run(f"{PROGRAM}\n\nrun_tests()\n", list(map(ascii, tasks)))
    passed = []
    for case, test, word, result in zip(cases, tests, words, results, strict=False):
        if isinstance(case, CallCase):
            passed.append(result.exit_code == 0 and _accepts_call(case, result.stdout, word, tolerance))
        else:
            passed.append(result.exit_code == 0 and test.accepts(result.stdout, word))
    return passed


def _give_test(source: str, wanted: set[str]) -> code_names.Given:
    """Modules, and what is written like a class: other names in a test may be functions that the code must define."""
    given = code_names.choose_given(source, wanted)
    return [(name, module) for name, module in given if name == module or name[0].isupper()]


def _accepts_call(case: CallCase, stdout: str, word: str, tolerance: float | None) -> bool:
    try:
        records = code_values.read_records(stdout, word, [case.expected])
        if records is None or len(records) != 1:
            return False
        expected = [case.expected, *(case.expected if case.wrapped and isinstance(case.expected, list) else ())]
        return any(code_values.equals_by_table(records[0][1], value, tolerance) for value in expected)
    except Exception:  # noqa: BLE001 - the code may have written anything; whatever it is, it is not a pass
        return False


def _check_names(case: Case, entry_point: str | None, mentioned: str) -> None:
    if not isinstance(case, CodeCase):
        return
    if unknown := code_names.find_unknown(case.tree, case.source, entry_point, mentioned):
        raise ValueError(
            f"tests: {', '.join(sorted(unknown))} is defined nowhere: not in the tests, not in Python, and the prompt does not mention it; "
            f"define or import it in the tests: {case.source[:100]!r}"
        )


def _check_imports(case: Case, known: sandbox.Packages) -> None:
    """Raises ValueError where the test's own imports fail without any code."""
    imports = code_names.list_imports(case.tree) if isinstance(case, CodeCase) else ""
    if imports and (error := _try_imports(imports, tuple(sorted(known.links.items())))):
        raise ValueError(
            f"tests: they cannot run for any code ({error}); list what they import in packages of the reward; the code under test can be "
            f"imported as `solution`: {imports[:100]!r}"
        )


@functools.lru_cache(maxsize=256)
def _try_imports(imports: str, links: tuple[tuple[str, str], ...]) -> str:
    limits = sandbox.SandboxLimits(seconds=IMPORT_SECONDS, memory_mib=2048)
    result = sandbox.run_python(imports, limits=limits, packages=sandbox.Packages(dict(links)))
    lines = result.stderr.strip().splitlines()
    return lines[-1] if result.exit_code == 1 and lines and "Error" in lines[-1] else ""
