"""From the tests of a data row to cases: what a program reads and must print, what a function gets and must return, and asserts.

Known are stdin and stdout ({"input", "output"}), the inputs and outputs of APPS and TACO, with or without fn_name, the functional form of
LiveCodeBench (one JSON argument a line), assert lines, check(candidate) of HumanEval and LeetCode, unittest.TestCase, and test functions of
pytest. What would test nothing, or is no Python, is refused with ValueError.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.rewarding.code_asserts import FUNCTIONS, AssertTest, extract_expectations

DEFINITIONS = (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(?:\(\))?(?:\.[A-Za-z_]\w*)*")
RUNNERS = ("unittest.main", "pytest.main")  # the tests are run without them; they would end the process


@dataclass(frozen=True)
class OutputCase:
    """A program that reads stdin and prints."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class CallCase:
    """A call of a function, or of a method of class Solution. wrapped: a list of one may stand for the value in it, as in APPS."""

    name: str
    arguments: Sequence[Any]
    expected: Any
    wrapped: bool = False

    @property
    def test(self) -> AssertTest:
        """The call as a test; what it returns is compared by the table of values."""
        target = f"(globals().get({self.name!r}) or Solution().{self.name})"
        call = f"{target}(*{list(self.arguments)!r})"
        return AssertTest(f"__check__(0, (lambda inf, nan: {call})(float('inf'), float('nan')))")


@dataclass(frozen=True)
class CodeCase:
    """Code that fails where the solution is wrong. tree: as it was given, with calls of the tests that it defines."""

    source: str
    tree: ast.Module

    @property
    def test(self) -> AssertTest:
        return extract_expectations(ast.parse(ast.unparse(self.tree)))


Case = OutputCase | CallCase | CodeCase


def parse_tests(tests: Any, entry_point: str | None, columns: Mapping[str, Any]) -> list[Case]:
    """The cases of a row. columns: its others, of which test_imports, test_setup_code (MBPP) and metadata (LiveCodeBench) are read."""
    if entry_point is not None and not (isinstance(entry_point, str) and ENTRY_POINT.fullmatch(entry_point)):
        raise ValueError(f"entry_point must be a function, or `Solution().method`; it is {str(entry_point)[:100]!r}")
    tests = _read_json(tests)
    tests = tests.tolist() if hasattr(tests, "tolist") else tests  # an array of numpy, as rows of Parquet have
    if isinstance(tests, Mapping):
        tests = tests.get("test_cases", tests)
    if isinstance(tests, Mapping) and {"inputs", "outputs"} <= tests.keys():
        return _parse_columns(tests, entry_point)
    checks = [tests] if isinstance(tests, (str, Mapping)) else list(tests) if isinstance(tests, Sequence) else []
    checks = [_read_json(check) for check in checks]
    if not checks or not all(
        isinstance(check, str) or (isinstance(check, Mapping) and {"input", "output"} <= check.keys()) for check in checks
    ):
        raise ValueError(
            f'tests must be code, a list of assert lines, or a list of {{"input": ..., "output": ...}}; they are {str(tests)[:100]!r}'
        )
    setup = _join_setup(columns)
    wrapped = _may_be_wrapped([check["output"] for check in checks if isinstance(check, Mapping)])
    return [
        _parse_code(check, setup, entry_point) if isinstance(check, str) else _parse_case(check, wrapped, entry_point, columns)
        for check in checks
    ]


def _parse_columns(tests: Mapping[str, Any], entry_point: str | None) -> list[Case]:
    """APPS and TACO: {"inputs": [...], "outputs": [...], "fn_name": ...}."""
    inputs, outputs = list(tests["inputs"]), list(tests["outputs"])
    if len(inputs) != len(outputs) or not inputs:
        raise ValueError(f"tests: as many outputs as inputs are needed, and at least one; there are {len(inputs)} and {len(outputs)}")
    if not tests.get("fn_name"):
        return [OutputCase(_to_text(stdin), _to_text(expected)) for stdin, expected in zip(inputs, outputs, strict=True)]
    wrapped = _may_be_wrapped(outputs)
    pairs = zip(inputs, outputs, strict=True)
    name = _check_name(tests["fn_name"])
    return [_build_call(name, given, wanted, wrapped) for given, wanted in pairs]


def _parse_case(check: Mapping[str, Any], wrapped: bool, entry_point: str | None, columns: Mapping[str, Any]) -> Case:
    metadata = [_read_json(holder.get("metadata")) for holder in (check, columns)]
    names = [check.get("fn_name"), *(data.get("func_name") for data in metadata if isinstance(data, Mapping))]
    kind = check.get("testtype") or check.get("type")
    if kind in ("functional", "function_call"):
        names.append(entry_point)
    name = next(filter(None, names), None)
    if name is None and kind in ("functional", "function_call"):
        raise ValueError("tests: a functional test needs the name of its function: fn_name in the test, or a column entry_point")
    if name is None or kind in ("stdin", "stdin_stdout"):
        return OutputCase(_to_text(check["input"]), _to_text(check["output"]))
    return _build_call(_check_name(name), check["input"], check["output"], wrapped)


def _build_call(name: str, given: Any, expected: Any, wrapped: bool) -> CallCase:
    """Where the arguments are JSON in a text, so is the result; else both are the values themselves."""
    if isinstance(given, str):
        return CallCase(name, _read_arguments(given), _read_json(expected))
    return CallCase(name, _read_arguments(given), expected, wrapped)


def _may_be_wrapped(outputs: Sequence[Any]) -> bool:
    """Not where a list of another length shows that the function returns lists."""
    return all(len(expected) == 1 for expected in outputs if isinstance(expected, list))


def _check_name(name: Any) -> str:
    if not str(name).isidentifier():
        raise ValueError(f"tests: fn_name must be the name of a function; it is {str(name)[:100]!r}")
    return str(name)


def _read_arguments(given: Any) -> Sequence[Any]:
    """A list of arguments, or a text with one JSON value on each line."""
    if isinstance(given, str):
        try:
            return [json.loads(line) for line in given.strip().split("\n")] if given.strip() else []
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, Sequence):
        raise ValueError("tests: with fn_name each of inputs is the list of its arguments, or a text with one JSON value on each line")
    return given


def _read_json(value: Any) -> Any:
    """What a text that is JSON holds, where it is a list, an object, or a value of LiveCodeBench; else the value itself."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _to_text(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)  # APPS has both


def _join_setup(columns: Mapping[str, Any]) -> str:
    imports, setup = columns.get("test_imports"), columns.get("test_setup_code")
    return "\n".join([*(imports if isinstance(imports, (list, tuple)) else []), setup if isinstance(setup, str) else ""]).strip()


def _parse_code(check: str, setup: str, entry_point: str | None) -> CodeCase:
    source = f"{setup}\n{textwrap.dedent(check)}" if setup else textwrap.dedent(check)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"tests: line {error.lineno} is not valid Python ({error.msg}): {check[:100]!r}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"tests: Python cannot read this code ({error}): {check[:100]!r}") from error
    tree.body = [line for line in tree.body if not _is_runner(line)]
    calls = list(_list_calls(tree, entry_point))
    if not calls and all(isinstance(line, DEFINITIONS) or _is_docstring(line) for line in tree.body):
        raise ValueError(
            "tests: this code defines and calls nothing, so any program would pass it; it needs assert lines, test_... functions without "
            f"fixtures, a unittest.TestCase, or check(candidate) and a column entry_point: {check[:100]!r}"
        )
    tree.body += ast.parse("\n".join(calls)).body
    return CodeCase(source, tree)


def _list_calls(tree: ast.Module, entry_point: str | None) -> list[str]:
    """Calls of what the code only defines: check(entry_point), each test_... of pytest, each class of tests."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    calls = []
    for line in tree.body:
        if isinstance(line, ast.FunctionDef) and line.name == "check" and entry_point and "check" not in used:
            calls.append(f"check({entry_point})")
        elif isinstance(line, ast.FunctionDef) and line.name.startswith("test") and line.name not in used:
            parametrized = any("parametrize" in ast.unparse(decorator) for decorator in line.decorator_list)
            if parametrized or not ast.unparse(line.args):
                calls.append(f"__run_function__({line.name})")
        elif isinstance(line, ast.ClassDef) and line.name not in used and _holds_tests(line):
            calls.append(f"__run_class__({line.name})")
    return calls


def _holds_tests(line: ast.ClassDef) -> bool:
    return any(isinstance(method, ast.FunctionDef) and method.name.startswith("test") for method in line.body)


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _is_runner(line: ast.stmt) -> bool:
    """unittest.main() and the like, also behind the guard of __main__."""
    if isinstance(line, ast.If) and "__name__" in ast.unparse(line.test):
        return all(map(_is_runner, line.body))
    value = line.value if isinstance(line, ast.Expr) else None
    value = value.args[0] if isinstance(value, ast.Call) and ast.unparse(value.func) == "sys.exit" and value.args else value
    return isinstance(value, ast.Call) and ast.unparse(value.func) in RUNNERS
