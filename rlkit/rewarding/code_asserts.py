"""Takes the expected values out of a test before it goes to the process of the code.

`assert f(3) == 9` becomes `__check__(0, f(3))`: the process reports what f returned, and is compared with 9 outside. So it becomes of every
assert that compares with a literal, or asks for a truth; in `assert f(x) == g(x)` both sides are reported. What has another form, or stands
in a `try`, stays as it is, and runs beside the code.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlkit.rewarding import code_values

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.For, ast.While, ast.If, ast.With)
NO_LITERAL = object()
ISCLOSE = {"rel_tol": 1e-9, "abs_tol": 0.0}
COMPARISONS = (ast.Compare, ast.BoolOp, ast.Constant, ast.Lambda, ast.NamedExpr)  # as a whole these are left as they are


@dataclass(frozen=True)
class Expectation:
    """What the value of one check must be. always: the check runs in every right program."""

    kind: Literal["equal", "same", "true", "false", "is", "near"]
    value: Any = None
    relative: float = 0.0
    absolute: float = 0.0
    always: bool = False

    def accepts(self, fields: Sequence[Any]) -> bool:
        """fields: what the process reported. Raises what it likes where that is nonsense."""
        value = fields[0]
        if self.kind == "same":
            return code_values.equals_each_other(*fields[:2]) or fields[2] == 1
        if self.kind in ("true", "false"):
            return code_values.get_truth(value) is (self.kind == "true")
        if self.kind == "is":
            return code_values.decode_value(value) is self.value
        if self.kind == "near":
            return math.isclose(code_values.decode_value(value), self.value, rel_tol=self.relative, abs_tol=self.absolute)
        return code_values.equals_in_python(value, self.value)


@dataclass
class AssertTest:
    """A test without its expected values, and these. called: the functions and classes of the test that run."""

    source: str = ""
    expectations: list[Expectation] = field(default_factory=list)
    called: frozenset[str] = frozenset()

    def accepts(self, stdout: str, word: str) -> bool:
        """Whether the program came to its end and all that it reported is as expected."""
        try:
            records = code_values.read_records(stdout, word, [expectation.value for expectation in self.expectations])
            if records is None:
                return False
            required = {number for number, expectation in enumerate(self.expectations) if expectation.always}
            return required <= {record[0] for record in records} and all(
                self.expectations[record[0]].accepts(record[1:]) for record in records
            )
        except Exception:  # noqa: BLE001 - the code may have written anything; whatever it is, it is not a pass
            return False


def extract_expectations(tree: ast.Module) -> AssertTest:
    """Rewrites the tree."""
    names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    test = AssertTest(called=frozenset(names))
    _rewrite(tree.body, test, always=True)
    test.source = ast.unparse(ast.fix_missing_locations(tree))
    return test


def _rewrite(body: list[ast.stmt], test: AssertTest, always: bool) -> None:
    for place, line in enumerate(body):
        if isinstance(line, ast.Assert):
            body[place] = _convert(line, line.test, test, always)
        elif isinstance(line, ast.Expr) and isinstance(line.value, ast.Call):
            body[place] = _convert_method(line, line.value, test, always)
        elif isinstance(line, FUNCTIONS):
            straight = not line.decorator_list and not any(isinstance(node, (ast.Return, ast.Yield)) for node in ast.walk(line))
            _rewrite(line.body, test, always and straight and (line.name in test.called or line.name.startswith("test")))
        elif isinstance(line, ast.ClassDef):
            _rewrite(line.body, test, always and not line.decorator_list and line.name in test.called)
        elif isinstance(line, BLOCKS):
            _rewrite(line.body, test, always=False)
            _rewrite(getattr(line, "orelse", []), test, always=False)


def _convert(line: ast.stmt, condition: ast.expr, test: AssertTest, always: bool) -> ast.stmt:
    """An assert as a call of __check__; the line itself where its form is another."""
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return line if isinstance(condition.operand, COMPARISONS) else _check(test, Expectation("false", always=always), condition.operand)
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1:
        return _convert_comparison(line, condition.left, condition.ops[0], condition.comparators[0], test, always)
    if isinstance(condition, ast.Call) and ast.unparse(condition.func) in ("isclose", "math.isclose") and len(condition.args) == 2:
        settings = {keyword.arg: read_literal(keyword.value) for keyword in condition.keywords}
        expected = read_literal(condition.args[1])
        if isinstance(expected, (int, float)) and settings.keys() <= ISCLOSE.keys() and NO_LITERAL not in settings.values():
            bounds = ISCLOSE | settings
            near = Expectation("near", expected, bounds["rel_tol"], bounds["abs_tol"], always)
            return _check(test, near, condition.args[0])
    return line if isinstance(condition, COMPARISONS) else _check(test, Expectation("true", always=always), condition)


def _convert_comparison(line: ast.stmt, left: ast.expr, operator: ast.cmpop, right: ast.expr, test: AssertTest, always: bool) -> ast.stmt:
    expected, other = read_literal(right), read_literal(left)
    if isinstance(operator, ast.Is) and any(expected is one for one in (None, True, False)):
        return _check(test, Expectation("is", expected, always=always), left)
    if isinstance(operator, (ast.Lt, ast.LtE)) and isinstance(expected, float):
        match left:  # abs(f(3) - 0.5) < 1e-6
            case ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=value, op=ast.Sub(), right=wanted)]):
                number = read_literal(wanted)
                if isinstance(number, (int, float)):
                    return _check(test, Expectation("near", number, absolute=expected, always=always), value)
    if not isinstance(operator, ast.Eq) or (expected is not NO_LITERAL and other is not NO_LITERAL):
        return line
    if expected is not NO_LITERAL:
        return _check(test, Expectation("equal", expected, always=always), left)
    if other is not NO_LITERAL:
        return _check(test, Expectation("equal", other, always=always), right)
    return _check(test, Expectation("same", always=always), left, right)


def _convert_method(line: ast.stmt, call: ast.Call, test: AssertTest, always: bool) -> ast.stmt:
    """self.assertEqual, assertTrue and assertFalse of unittest."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="self"), attr="assertEqual" | "assertEquals") if len(call.args) >= 2:
            return _convert_comparison(line, call.args[0], ast.Eq(), call.args[1], test, always)
        case ast.Attribute(value=ast.Name(id="self"), attr="assertTrue") if call.args:
            return _convert(line, call.args[0], test, always)
        case ast.Attribute(value=ast.Name(id="self"), attr="assertFalse") if call.args:
            return _convert(line, ast.UnaryOp(ast.Not(), call.args[0]), test, always)
    return line


def _check(test: AssertTest, expectation: Expectation, *values: ast.expr) -> ast.stmt:
    test.expectations.append(expectation)
    name = "__check_both__" if expectation.kind == "same" else "__check__"
    number = ast.Constant(len(test.expectations) - 1)
    return ast.Expr(ast.Call(ast.Name(name, ast.Load()), [number, *values], []))


def read_literal(node: ast.expr) -> Any:
    """The value of a literal; NO_LITERAL for anything else."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return NO_LITERAL
    return NO_LITERAL if value is Ellipsis else value
