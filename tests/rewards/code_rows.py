"""Rows of the public formats of graded code: the tests, a right program, wrong ones; and programs that attack the grader.

Right and wrong programs stand without their fence.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Row(NamedTuple):
    """columns: of the row beside the tests, and settings of the reward."""

    tests: Any
    right: str
    wrong: tuple[str, ...]
    columns: dict[str, Any] = {}  # noqa: RUF012 - read alone


def stdin(cases: dict[str, str], right: str, *wrong: str, **columns: Any) -> Row:
    return Row([{"input": given, "output": expected} for given, expected in cases.items()], right, wrong, columns)


def apps(inputs: list[Any], outputs: list[Any], right: str, *wrong: str, name: str | None = None) -> Row:
    return Row({"inputs": inputs, "outputs": outputs, **({"fn_name": name} if name else {})}, right, wrong)


def live(cases: dict[str, str], right: str, *wrong: str) -> Row:
    tests = [{"input": given, "output": expected, "testtype": "functional"} for given, expected in cases.items()]
    return Row(json.dumps(tests), right, wrong, {"metadata": json.dumps({"func_name": "solve"})})


def asserts(lines: str, right: str, *wrong: str, **columns: Any) -> Row:
    return Row([line for line in lines.split("\n") if line], right, wrong, columns)


BIG = 10**18 + 9
SUM = "print(sum(map(int, input().split())))"
LIMIT = "import sys\nsys.setrecursionlimit(10**6)\ndef depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\nprint(depth(int(input())))"
STDIN = {
    "one number": stdin({"4\n": "8", "5\n": "10\n"}, "print(int(input()) * 2)", "print(int(input()) + 4)"),
    "a large number": stdin({f"{BIG} 1": str(BIG + 1)}, SUM, "print(sum(map(float, input().split())))", SUM[:-1] + " - 1)"),
    "a large number in floats": stdin({f"{2**53} 1": str(2**53 + 1)}, SUM, "print(int(sum(map(float, input().split()))))"),
    "one digit of forty": stdin({f"{10**39} 7": str(10**39 + 7)}, SUM, SUM[:-1] + " + 1)", SUM[:-1] + " - 10**20)"),
    "an integer with a point": stdin({"7": "7"}, "print(input())", "print(float(input()))"),
    "an integer as a float": stdin({"": f"{10**18}"}, "print(10**18)", "print(1e18)"),
    "leading zeros": stdin({"": "0011"}, "print('0011')", "print('11')"),
    "a fraction": stdin({"3": "0.333333333"}, "print(1 / int(input()))", "print(0.3334)", "print('1/3')", "print('nan')"),
    "a fraction as an exponent": stdin({"": "0.00001"}, "print(1e-5)", "print(1e-4)"),
    "a large fraction": stdin({"": "1234567.5"}, "print(1234567.6)", "print(1234570.0)"),
    "a tolerance": stdin({"": "3.14159"}, "print(3.14)", "print(3.2)", tolerance=1e-2),
    "no tolerance": stdin({"": "0.5"}, "print(0.5)", "print(0.5000001)", tolerance=0.0),
    "infinity": stdin({"": "1e999"}, "print('1e999')", "print(5)", "print('1e998x')"),
    "blank lines before": stdin({"": "\n\n5"}, "print(5)", "print(6)"),
    "blank lines after": stdin({"": "5"}, "print('\\n\\n5\\n\\n')", "print('5\\n5')"),
    "blanks at the ends of lines": stdin({"": "1 2\n3"}, "print('1 2  \\n3 ')", "print('1 2 3')"),
    "blanks between numbers": stdin({"": "1 2 3"}, "print('1  2 3')", "print('12 3')"),
    "blanks between words": stdin({"": "a b"}, "print('a b')", "print('a  b')", "print('ab')"),
    "a drawing": stdin({"": "  1\n 1 1\n1 1 1"}, "print('  1\\n 1 1\\n1 1 1')", "print('1\\n1 1\\n1 1 1')"),
    "case": stdin({"": "YES"}, "print('YES')", "print('Yes')"),
    "a number in a sentence": stdin({"": "Case #1: 2.5"}, "print('Case #1: 2.50')", "print('Case #2: 2.5')", "print('Case #1: 2.6')"),
    "many lines": stdin({"3\n1\n2\n3": "1\n4\n9"}, "for _ in range(int(input())): print(int(input()) ** 2)", "print(1)\nprint(4)"),
    "a main guard": stdin({"3": "9"}, "if __name__ == '__main__':\n    print(int(input()) ** 2)", "if __name__ == 'x':\n    print(9)"),
    "sys.stdin": stdin(
        {"1 2\n3": "6"}, "import sys\nprint(sum(map(int, sys.stdin.read().split())))", "print(sum(map(int, input().split())))"
    ),
    "exit and quit": stdin({"": "5"}, "print(5)\nexit()\nprint(6)", "print(5)\nquit(1)"),
    "names that harnesses give": stdin(
        {"": "2 [1, 2] inf"},
        "def f(a: List[int], b: Optional[int] = None) -> Dict[str, int]:\n    return sorted(a)\n"
        "print(Counter('aab')['a'], f([2, 1]), math.inf)",
        "print(Counter('ab')['a'], [1, 2], inf)",
    ),
    "deep recursion": stdin({"9000": "9000"}, LIMIT, LIMIT.replace("1 + d", "d")),
    "an error after the answer": stdin({"": "5"}, "print(5)", "print(5)\n1 / 0"),
    "lists of lines": apps([["1 2", "3"]], [["6"]], "print(sum(map(int, open(0).read().split())))", "print(3)"),
    "a line for each test": apps(["4\n", "5\n"], ["8\n", "10\n"], "print(int(input()) * 2)", "print(8)"),
}
ADD = "def add(a, b):\n    return a + b"
ADDED = ADD.replace("a + b", "a - b")
CALLS = {
    "a function": apps([[1, 2], [5, 5]], [3, 10], ADD, ADDED, ADD.replace("a + b", "float(a + b) + 1e-9"), name="add"),
    "a function of large numbers": apps(
        [[BIG, 1]], [BIG + 1], ADD, "def add(a, b): return float(a + b)", "def add(a, b): return a", name="add"
    ),
    "wrapped results": apps([[1, 2]], [[3]], ADD, ADDED, name="add"),
    "lists that are not wrapped": apps(
        [[1], [2]], [[1, 2], [5]], "def f(n): return [1, 2] if n == 1 else [5]", "def f(n): return [1, 2] if n == 1 else 5", name="f"
    ),
    "class Solution": apps(
        [[1, 2]],
        [3],
        "class Solution:\n    def add(self, a, b): return a + b",
        "class Solution:\n    def add(self, a, b): return 4",
        name="add",
    ),
    "a name that harnesses give": apps(
        [[12, 18]], [6], "def gcd(a, b): return math.gcd(a, b)", "gcd", "from math import lcm as gcd", name="gcd"
    ),
    "bool is not int": apps([[1]], [True], "def f(n): return n == 1", "def f(n): return 1", name="f"),
    "int is not bool": apps([[1]], [1], "def f(n): return 1", "def f(n): return True", name="f"),
    "int equals float": apps([[4]], [2], "def f(n): return n / 2", "def f(n): return n / 2 + 1e-9", name="f"),
    "a float": apps(
        [[3]], [0.3333333333], "def f(n): return 1 / n", "def f(n): return 0.3334", "def f(n): return '0.3333333333'", name="f"
    ),
    "tuple equals list": apps([[1]], [[1, 2]], "def f(n): return (1, 2)", "def f(n): return {1, 2}", "def f(n): return (2, 1)", name="f"),
    "str is exact": apps([[1]], ["5"], "def f(n): return '5'", "def f(n): return 5", "def f(n): return '5 '", name="f"),
    "None": apps([[1]], [None], "def f(n): pass", "def f(n): return 0", "def f(n): return False", name="f"),
    "a dict": apps(
        [[1]], [{"1": [2]}], "def f(n): return {1: (2,)}", "def f(n): return {1: [2], 2: []}", "def f(n): return [('1', [2])]", name="f"
    ),
    "nested": apps(
        [[1]], [[[1, "a"], [2.5, None]]], "def f(n): return [[1, 'a'], (2.5, None)]", "def f(n): return [[1, 'a'], (2.5, 0)]", name="f"
    ),
    "LiveCodeBench": live(
        {"[1, 2]\n3": "6"},
        "class Solution:\n    def solve(self, a: List[int], b: int) -> int: return sum(a) + b",
        "class Solution:\n    def solve(self, a, b): return sum(a)",
    ),
    "LiveCodeBench's text": live(
        {'"ab"': '"ba"'}, "def solve(s): return s[::-1]", "def solve(s): return s", "def solve(s): return repr(s[::-1])"
    ),
    "PrimeIntellect": Row({"test_cases": [{"type": "function_call", "fn_name": "add", "input": [1, 2], "output": [3]}]}, ADD, (ADDED,)),
    "DeepCoder": Row([{"input": "1\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "add"}}], ADD, (ADDED,)),
}
SQUARE = "def square(n):\n    return n * n"
WRONG = SQUARE.replace("n * n", "n + n")
CHECK = """
METADATA = {}

def check(candidate):
    assert candidate(3) == 9
    assert abs(candidate(0.5) - 0.25) < 1e-6
    assert not candidate(0)
"""
UNIT = """
import unittest
from solution import square

class TestSquare(unittest.TestCase):
    def test_three(self):
        self.assertEqual(square(3), 9)
    def test_zero(self):
        self.assertFalse(square(0))
    def test_text(self):
        with self.assertRaises(TypeError):
            square("a")

if __name__ == "__main__":
    unittest.main()
"""
PYTEST = """
import pytest

@pytest.mark.parametrize("n, expected", [(3, 9), (-2, 4)])
def test_square(n, expected):
    assert square(n) == expected

class TestMore:
    def test_text(self):
        with pytest.raises(TypeError):
            square("a")
    def test_half(self):
        assert square(0.1) == pytest.approx(0.01)
"""
LEETCODE = """
def check(candidate):
    assert candidate(nums = [2, 7], target = 9) == [0, 1]
    assert candidate(nums = [3, 3], target = 6) == [0, 1]
"""
TWO = "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n        return [0, 1]"
ASSERTS = {
    "assert lines": asserts("assert square(3) == 9\nassert square(-2) == 4", SQUARE, WRONG),
    "large numbers": asserts(
        f"assert square({BIG}) == {BIG**2}", SQUARE, "def square(n): return n * n + 1", "def square(n): return int(float(n) ** 2)"
    ),
    "Python's own equality": asserts("assert f() == (1, 2)", "def f(): return (1, 2)", "def f(): return [1, 2]"),
    "True and 1": asserts("assert f() == 1\nassert f() is True", "def f(): return True", "def f(): return 1"),
    "sets and dicts": asserts(
        "assert f() == {1, 2}\nassert dict(a=f()) == {'a': {2, 1}}", "def f(): return {2, 1}", "def f(): return [1, 2]"
    ),
    "both sides called": asserts("assert square(5) == sum([25])\nassert sorted(square(n) for n in (2, 1)) == [1, 4]", SQUARE, WRONG),
    "isclose": asserts("assert math.isclose(f(), 0.3, rel_tol=1e-3)", "def f(): return 0.3001", "def f(): return 0.31"),
    "an object": asserts(
        "s = Stack(); s.push(3); assert s.pop() == 3",
        "class Stack(list):\n    push = list.append",
        "class Stack(list):\n    def push(self, x): self.append(4)",
    ),
    "MBPP": asserts(
        "assert area(1) == math.pi", "def area(r): return math.pi * r * r", "def area(r): return 3.14 * r", test_imports=["import math"]
    ),
    "HumanEval": Row(CHECK, SQUARE, (WRONG, "def square(n): return 9"), {"entry_point": "square"}),
    "unittest": Row(UNIT, SQUARE, (WRONG, "def square(n): return 9 if n == 3 else 0", "square = 3")),
    "pytest": Row(PYTEST, SQUARE, (WRONG, "def square(n): return abs(n) ** 2 if n > -2 else 5")),
    "LeetCode": Row(LEETCODE, TWO, (TWO.replace("[0, 1]", "[1, 0]"),), {"entry_point": "Solution().twoSum"}),
    "a test in a loop": Row("for n in range(5):\n    assert square(n) == n ** 2", SQUARE, (WRONG,)),
    "numpy": asserts(
        "assert f([1, 2]) == 3\nassert f([0.5]) == 0.5",
        "import numpy as np\ndef f(x): return np.sum(np.array(x))",
        "import numpy as np\ndef f(x): return np.max(x)",
        packages=["numpy"],
    ),
}
ROWS = {**STDIN, **CALLS, **ASSERTS}
