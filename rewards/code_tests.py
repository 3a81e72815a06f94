"""Whether code passes its tests. It runs in a sandbox: no network, no files but its own, limited time and memory.

The code is the last block of the completion that is fenced as Python, else the last one without a language, else the whole completion.
tests: a list of {"input": ..., "output": ...} (stdin and the expected stdout), {"inputs": ..., "outputs": ...} as in APPS and TACO, with
"fn_name" where a function is called, a list of assert lines, or one text of code that fails where the code is wrong.

The code and its asserts share a process: code that inspects the frames of that process can find the word that proves a pass, and an object
that claims to equal everything passes. The expected results of stdin and fn_name tests never enter the process.
"""

from __future__ import annotations

import ast
import json
import re
import secrets
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewarding import sandbox

FENCED = re.compile(r"^[^\n`]*```[ \t]*(\w*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)  # the language, the contents
PYTHON_NAMES = ("python", "py", "python3", "py3")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)

# Reads code, test and word from stdin, which is closed before the code runs; no file holds them. The word is printed only at the end, so
# code that exits earlier does not pass.
HARNESS = """
import json, os, sys

def main():
    write = os.write
    with open(0, closefd=False) as file:
        task = json.load(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    solution = sys.modules["solution"] = type(sys)("solution")
    exec(compile(task["code"], "solution.py", "exec"), vars(solution))
    solution.__name__ = "__main__"
    exec(compile(task["test"], "test.py", "exec"), vars(solution))
    write(1, (task["word"] + json.dumps(vars(solution).get("__returned__")) + task["word"]).encode())

main()
"""


def code_tests(
    completion: str,
    tests: Any,
    entry_point: str | None = None,
    *,
    seconds: float = 2.0,
    memory_mib: int = 512,
    partial: bool = False,
    **columns: Any,
) -> dict[str, float]:
    """score: 1.0 where all tests pass, else 0.0 (with partial, the share that pass). passed: the share. seconds, memory_mib: for each test.

    entry_point: the function that check(candidate) of HumanEval is called with. The timeout of the reward must be long enough for all
    tests. Raises ValueError for tests of no known form, or that would test nothing, SandboxUnavailable where there is no sandbox.
    """
    checks = [check if isinstance(check, Mapping) else _add_calls(check, entry_point) for check in _parse_tests(tests)]
    fenced = FENCED.findall(completion.replace("\r\n", "\n"))
    blocks = [text for name, text in fenced if name.lower() in PYTHON_NAMES] or [text for name, text in fenced if not name]
    code = textwrap.dedent(blocks[-1]) if blocks else completion
    limits = sandbox.SandboxLimits(seconds=seconds, memory_mib=memory_mib)
    share = sum(_passes(code, check, limits) for check in checks) / len(checks)
    return {"score": share if partial else float(share == 1.0), "passed": share}


def _parse_tests(tests: Any) -> list[str | Mapping[str, Any]]:
    if isinstance(tests, str) and tests.lstrip().startswith(("[", "{")):
        tests = json.loads(tests)
    if isinstance(tests, Mapping) and "inputs" in tests and "outputs" in tests:
        named = {"fn_name": tests["fn_name"]} if tests.get("fn_name") else {}
        tests = [{"input": stdin, "output": expected, **named} for stdin, expected in zip(tests["inputs"], tests["outputs"], strict=True)]
    checks = [tests] if isinstance(tests, (str, Mapping)) else list(tests) if isinstance(tests, Sequence) else []
    if not checks or not all(
        isinstance(check, str) or (isinstance(check, Mapping) and {"input", "output"} <= check.keys()) for check in checks
    ):
        raise ValueError(
            f'tests must be code, a list of assert lines, or a list of {{"input": ..., "output": ...}}; they are {str(tests)[:100]!r}'
        )
    return checks


def _add_calls(check: str, entry_point: str | None) -> str:
    """The check with calls of the functions that it only defines: check(entry_point) as in HumanEval, or each test_... as in pytest."""
    check = textwrap.dedent(check)
    try:
        body = ast.parse(check).body
    except SyntaxError as error:
        raise ValueError(f"tests: line {error.lineno} is not valid Python ({error.msg}): {check[:100]!r}") from error
    if not all(isinstance(line, DEFINITIONS) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)) for line in body):
        return check
    functions = {line.name: line for line in body if isinstance(line, FUNCTIONS)}
    if "check" in functions and entry_point:
        return f"{check}\n\ncheck({entry_point})\n"
    tests = [name for name in functions if name.startswith("test")]
    plain = all(isinstance(functions[name], ast.FunctionDef) and not ast.unparse(functions[name].args) for name in tests)
    if not tests or not plain:
        raise ValueError(
            "tests: this code defines and calls nothing, so any program would pass it; it needs assert lines, test_... functions without "
            f"parameters, or check(candidate) and a column entry_point: {check[:100]!r}"
        )
    return "\n".join([check, "", *(f"{name}()" for name in tests)])


def _passes(code: str, check: str | Mapping[str, Any], limits: sandbox.SandboxLimits) -> bool:
    if isinstance(check, str):
        return _run_harness(code, check, limits) is not None
    if "fn_name" not in check:
        result = sandbox.run_python(code, _to_text(check["input"]), limits)
        return result.exit_code == 0 and _split_lines(result.stdout) == _split_lines(_to_text(check["output"]))
    name, arguments, expected = check["fn_name"], check["input"], check["output"]
    if not str(name).isidentifier() or not isinstance(arguments, Sequence) or isinstance(arguments, str):
        raise ValueError(
            f"tests: fn_name must be a function and each of inputs the list of its arguments; they are {name!r}, {arguments!r}"
        )
    call = f"__returned__ = [({name} if {name!r} in globals() else Solution().{name})(*{list(arguments)!r})]"
    returned = _run_harness(code, call, limits)
    return returned is not None and (json.loads(returned)[0] == expected or json.loads(returned) == expected)


def _run_harness(code: str, test: str, limits: sandbox.SandboxLimits) -> str | None:
    """The value of __returned__ after the test, as JSON; None where the test did not run to its end."""
    word = secrets.token_hex(16)
    result = sandbox.run_python(HARNESS, json.dumps({"code": code, "test": test, "word": word}), limits)
    parts = result.stdout.split(word)
    return parts[1] if result.exit_code == 0 and len(parts) == 3 else None


def _to_text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)  # APPS has both


def _split_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
