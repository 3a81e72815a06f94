"""The program that runs code and its tests inside the sandbox. It is read as text, and imports nothing of rlkit and little else.

What the code returned is written as text that the process outside reads and compares (code_values.py): records, each between two copies of
a word that the code does not know. The last one is written only when the tests came to their end.
"""

from __future__ import annotations

import sys
from os import O_RDONLY, _exit, devnull, dup2, write
from os import open as open_descriptor

TYPE_CHECKING = False  # as in typing, whose import takes longer than most programs
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Names = list[tuple[str, str]]  # name, module

MAX_DEPTH = 400  # of lists in lists; the process outside reads no deeper ones
RECURSION_LIMIT = 50_000  # as public harnesses set it
APART = 1e-6, 1e-12  # pytest.approx: relative, absolute


def run_script(code: str, names: Names) -> None:
    """Run the code as a program of its own: it reads stdin and prints."""
    main = _make_module("__main__", names)
    exec(compile(code, "program.py", "exec"), vars(main))


def run_tests() -> None:
    """Run code and test of the task on stdin, which is closed before the code runs; no file holds them."""
    task = eval(sys.stdin.buffer.read(), {"inf": float("inf"), "nan": float("nan")})
    dup2(open_descriptor(devnull, O_RDONLY), 0)
    import builtins

    word, known = task["word"].encode(), dict(vars(builtins))

    def record(*fields: str) -> None:
        text = b"%b[%b]%b\n" % (word, ",".join(fields).encode(), word)
        while text:
            text = text[write(1, text) :]
        vars(builtins).update(known)  # the test calls Python's own len, whatever the code made of it

    def check(number: int, value: Any) -> None:
        record(str(number), encode(value))

    def check_both(number: int, value: Any, other: Any) -> None:
        texts = encode(value), encode(other)
        ours = '["o"' in texts[1] and ('["o"' not in texts[0] or type(value) is type(other))  # not an object that equals everything
        inside = ours and bool(value == other)
        record(str(number), *texts, str(int(inside)))

    recorder = {"__check__": check, "__check_both__": check_both, "__run_function__": run_function, "__run_class__": run_class}
    solution = sys.modules["__main__"] = _make_module("solution", task["names"])  # this module is not to be found by its name
    exec(compile(task["code"], "solution.py", "exec"), vars(solution))
    solution.__name__ = "__main__"
    if "pytest" in task["test"]:
        _give_pytest()
    _give(vars(solution), [name for name in task["test_names"] if name[0] not in vars(solution)])
    vars(solution).update(recorder)
    vars(builtins).update(known)
    exec(compile(task["test"], "test.py", "exec"), vars(solution))
    record('"end"')
    _exit(0)


def _make_module(name: str, names: Names) -> Any:
    import builtins

    sys.setrecursionlimit(RECURSION_LIMIT)
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as an interactive Python has them
    module = sys.modules[name] = type(sys)(name)
    _give(vars(module), names)
    return module


def _give(namespace: dict[str, Any], names: Names) -> None:
    for name, module in names:
        found = __import__(module)
        namespace[name] = found if name == module else getattr(found, name)


def encode(value: Any, depth: int = 0) -> str:
    """The value as JSON: a list of its kind and its content. An object of another class than those of Python is only known to be one."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    kind = type(value)
    if value is None or kind is bool:
        return {None: '["n"]', True: '["b",1]', False: '["b",0]'}[value]
    for base, write_content in _WRITERS:
        if base in type.mro(kind):
            return str(write_content(value, depth + 1))
    module, name = kind.__module__.split(".")[0], kind.__name__
    if module == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), depth + 1)
    if (module, name) == ("decimal", "Decimal"):
        return f'["D","{value}"]'
    if (module, name) == ("fractions", "Fraction"):
        return f'["F","{value.numerator:x}","{value.denominator:x}"]'
    return f'["o",{int(bool(value))}]'


def _write_items(kind: str, items: Iterable[Any], depth: int) -> str:
    content = ",".join([encode(item, depth) for item in items])
    return f'["{kind}",[{content}]]'


def _write_dict(value: Any, depth: int) -> str:
    content = ",".join([f"[{encode(key, depth)},{encode(item, depth)}]" for key, item in dict.items(value)])
    return f'["d",[{content}]]'


_WRITERS: list[tuple[type, Any]] = [  # by the methods of the base class, whatever a class of the code's own made of them
    (int, lambda value, depth: f'["i","{int.__add__(value, 0):x}"]'),
    (float, lambda value, depth: f'["f","{float.hex(float.__add__(value, 0.0))}"]'),
    (str, lambda value, depth: '["s","' + str.encode(value, "utf-8", "surrogatepass").hex() + '"]'),
    (list, lambda value, depth: _write_items("l", list.__iter__(value), depth)),
    (tuple, lambda value, depth: _write_items("t", tuple.__iter__(value), depth)),
    (dict, _write_dict),
    (set, lambda value, depth: _write_items("S", set.__iter__(value), depth)),
    (frozenset, lambda value, depth: _write_items("S", frozenset.__iter__(value), depth)),
    (type({}.keys()), lambda value, depth: _write_items("S", value, depth)),
    (type({}.items()), lambda value, depth: _write_items("S", value, depth)),
    (bytes, lambda value, depth: f'["y","{bytes.hex(value)}"]'),
    (bytearray, lambda value, depth: f'["y","{bytearray.hex(value)}"]'),
    (complex, lambda value, depth: f'["c","{value.real.hex()}","{value.imag.hex()}"]'),
]


def run_function(function: Any) -> None:
    """A test function of pytest's style, once for each of its parameters."""
    for arguments in getattr(function, "__cases__", [{}]):
        function(**arguments)


def run_class(cls: Any) -> None:
    """A unittest.TestCase, or a class with test methods."""
    if hasattr(cls, "assertEqual"):
        import unittest

        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(cls).run(result)
        if not result.wasSuccessful() or result.testsRun == 0 or len(result.skipped) == result.testsRun:
            raise AssertionError("".join(text for _, text in [*result.failures, *result.errors]) or "no test ran")
        return
    for name in [name for name in vars(cls) if name.startswith("test")]:
        instance = cls()
        getattr(instance, "setup_method", lambda: None)()
        run_function(getattr(instance, name))


class _Raises:
    def __init__(self, kinds: Any, match: str | None = None) -> None:
        self.kinds, self.match, self.value = kinds, match, None

    def __enter__(self) -> _Raises:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError("did not raise")
        if not issubclass(kind, self.kinds):
            return False
        self.value = error
        if self.match is not None:
            import re

            assert re.search(self.match, str(error))
        return True


class _Approx:
    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        self.expected = expected
        self.relative = APART[0] if rel is None and abs is None else rel or 0.0
        self.absolute = APART[1] if abs is None else abs

    def __eq__(self, value: Any) -> bool:
        return self._is_near(value, self.expected)

    def _is_near(self, value: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            return value.keys() == expected.keys() and all(self._is_near(value[key], expected[key]) for key in expected)
        if isinstance(expected, (list, tuple)):
            pairs = zip(value, expected)  # noqa: B905 - of equal lengths, as is checked first
            return len(value) == len(expected) and all(self._is_near(*pair) for pair in pairs)
        return value == expected or bool(abs(value - expected) <= max(self.absolute, self.relative * abs(expected)))


class _Mark:
    def __getattr__(self, name: str) -> Any:
        """pytest.mark.NAME and pytest.mark.NAME(...) change nothing."""

        def mark(*arguments: Any, **settings: Any) -> Any:
            return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else lambda function: function

        return mark

    def parametrize(self, names: Any, rows: Any, **settings: Any) -> Any:
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        cases = [dict(zip(names, row if len(names) > 1 or isinstance(row, tuple) else [row])) for row in rows]  # noqa: B905 - as pytest tells

        def mark(function: Any) -> Any:
            function.__cases__ = [{**one, **two} for one in getattr(function, "__cases__", [{}]) for two in cases]
            return function

        return mark


def _give_pytest() -> None:
    """The part of pytest that test functions need, where pytest itself is not among the packages."""
    name = "pytest"
    try:
        __import__(name)
    except ImportError:
        module = sys.modules[name] = type(sys)(name)
        vars(module).update(raises=_Raises, approx=_Approx, mark=_Mark(), param=lambda *values, **settings: values)
