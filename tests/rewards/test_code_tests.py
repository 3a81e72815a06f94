"""Graded code: forms of tests, the block that counts, faults of the data, and the header of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rlkit import run
from rlkit.rewarding import code_cases, code_names, code_values, sandbox
from rlkit.rewarding.code_cases import CodeCase
from rlkit.rewarding.resolve import import_reward
from rlkit.rewarding.spec import RewardSpec
from tests.conftest import run as start
from tests.rewarding.conftest import explain_no_sandbox, score_all

code_tests = import_reward("code_tests")


TROUBLE = explain_no_sandbox()
pytestmark = pytest.mark.skipif(bool(TROUBLE), reason=f"NO SANDBOX: code-running rewards were not tried. {TROUBLE}")


SQUARE = "Here it is:\n```python\ndef square(n):\n    return n * n\n```"


def test_asserts() -> None:
    assert code_tests(SQUARE, ["assert square(3) == 9", "assert square(-2) == 4"]) == {"score": 1.0, "passed": 1.0}
    assert code_tests(SQUARE, ["assert square(3) == 9", "assert square(-2) == -4"]) == {"score": 0.0, "passed": 0.5}
    assert code_tests(SQUARE, "assert square(3) == 9")["score"] == 1.0
    assert code_tests(SQUARE, ["assert square(3) == 9", "assert square(-2) == -4"], partial=True)["score"] == 0.5


def test_inputs_and_outputs() -> None:
    doubling = "```python\nprint(int(input()) * 2)\n```"
    assert code_tests(doubling, [{"input": "4\n", "output": "8"}, {"input": "5\n", "output": "10\n"}])["score"] == 1.0
    assert code_tests(doubling, {"inputs": ["4\n", "5\n"], "outputs": ["8", "11"]}, partial=True)["score"] == 0.5


@pytest.mark.parametrize(
    "completion",
    [
        "Run it:\n```bash\npython x.py\n```\nCode:\n```python\n{}```",
        "For ```n``` and\n```json\n[1]\n```\nthis:\n```Python\n{}```\nOutput:\n```output\n9\n```\nor\n```\n9\n```",
        "```python3\r\n{}```\r\n",
        "1. first\n   ```py\n   {}   ```",
        "```text\n9\n```\n```\n{}```",
        "```python\nprint(1\n```\nbetter\n```python\n{}",
    ],
)
def test_the_last_python_block_is_the_code(completion: str) -> None:
    source = "def square(n): return n * n\n"
    assert code_tests(completion.replace("{}", source), ["assert square(3) == 9"])["score"] == 1.0


def test_functions_are_called_as_in_apps() -> None:
    adding = "```python\ndef add(a, b):\n    print('adding')\n    return a + b\n```"
    assert code_tests(adding, {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [[1, 2]]]})["score"] == 1.0
    assert code_tests(adding, {"fn_name": "add", "inputs": [[1, 2], [2, 2]], "outputs": [[3], 5]})["passed"] == 0.5
    method = "```python\nclass Solution:\n    def add(self, a, b):\n        return (a, b)\n```"
    assert code_tests(method, '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [[1, 2]]}')["score"] == 1.0
    with pytest.raises(ValueError, match="each of inputs is the list of its arguments"):
        code_tests(adding, {"fn_name": "add", "inputs": ["1 2"], "outputs": [3]})


def test_checks_that_only_define_are_called_or_refused() -> None:
    wrong = SQUARE.replace("n * n", "0")
    human_eval = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(3) == 9\n"
    pytest_style = "import math\n\ndef test_square():\n    assert square(3) == 9\n"
    assert [code_tests(code, human_eval, entry_point="square")["score"] for code in (SQUARE, wrong)] == [1.0, 0.0]
    assert [code_tests(code, pytest_style)["score"] for code in (SQUARE, wrong)] == [1.0, 0.0]
    assert [code_tests(code, "    assert square(3) == 9")["score"] for code in (SQUARE, wrong)] == [1.0, 0.0]
    for nothing in (human_eval, "x = 1", "def test_it(square):\n    assert square(3) == 9", "async def test_it():\n    assert False"):
        with pytest.raises(ValueError, match="calls nothing, so any program would pass"):
            code_tests(SQUARE, nothing)
    with pytest.raises(ValueError, match="line 1 is not valid Python"):
        code_tests(SQUARE, ["assert square(3) is 9 or"])


def test_a_main_guard_of_the_code_is_not_run_and_one_of_the_tests_is() -> None:
    guarded = "```python\ndef square(n):\n    return n * n\n\nif __name__ == '__main__':\n    print(square(int(input())))\n```"
    guard = "if __name__ == '__main__':\n    assert square(3) == "
    assert [code_tests(guarded, f"{guard}{wanted}")["score"] for wanted in (9, 8)] == [1.0, 0.0]


READERS = [
    "text = open(__file__ if '__file__' in globals() else '/work/program.py').read()",
    "text = os.read(0, 10**6).decode()",
    "os.lseek(0, 0, 0); text = os.read(0, 10**6).decode()",
    "text = ''.join(open(f'/work/{name}').read() for name in os.listdir('/work'))",
]


@pytest.mark.parametrize("reader", READERS)
def test_the_word_that_proves_a_pass_is_in_no_file(reader: str) -> None:
    words = "[word for word in re.findall('[0-9a-f]{32}', text)]"
    hack = f"```python\nimport os, re\ntry:\n    {reader}\nexcept OSError:\n    text = ''\nword = ''.join({words})\n"
    assert code_tests(f"{hack}print(word + 'null' + word, flush=True)\nos._exit(0)\n```", ["assert False"])["score"] == 0.0
    assert code_tests(f"{hack}```", ["assert word == ''"])["score"] == 1.0


def test_leaving_early_is_no_pass() -> None:
    assert code_tests("```python\nimport os\nos._exit(0)\n```", ["assert False"])["score"] == 0.0
    with pytest.raises(ValueError, match="tests must be code"):
        code_tests(SQUARE, [])


def test_in_a_worker() -> None:
    items = [{"prompt": "p", "completion": SQUARE, "tests": [f"assert square({n}) == 4"]} for n in (2, 3)]
    assert [result.reward for result in score_all({"code": RewardSpec(path="code_tests", timeout=40)}, items)] == [1.0, 0.0]


def test_a_program_that_uses_all_its_time_is_graded_before_the_worker_is_killed() -> None:
    """Twelve tests of two seconds each; a right one that is slow is a fault of the recipe, not a 0."""
    tests = [f"assert square({n}) == {n * n}" for n in range(12)]
    endless = SQUARE.replace("return", "while n == 2: pass\n    return")
    slow = SQUARE.replace("return", "import time; time.sleep(0.9)\n    return")
    items = [{"prompt": "p", "completion": code, "tests": tests} for code in ("```python\nwhile True: pass\n```", endless, slow)]
    results = score_all({"code": RewardSpec(path="code_tests", timeout=5)}, items, max_failure_rate=1.0)
    assert [result.reward for result in results] == [0.0, 0.0, None]
    assert "raise the timeout of this reward" in results[2].components["code"].detail


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("```python\n{}```\nUse it:\n```python\nprint(square(3))\n```", 1.0),
        ("```python\n{}```\nUse it:\n```python\nfrom solution import cube\nprint(cube(3))\n```", 1.0),
        ("```\n{}```\nUse it:\n```python\nprint(square(3))\n```", 1.0),
        ("```python\n{}```\nor, better,\n```python\ndef square(n): return 0\n```", 0.0),
        ("```python\ndef square(n): return 0\n```\nor, better,\n```python\n{}```", 1.0),
        ("<think>square is n + n</think>\n{}", 1.0),
    ],
)
def test_the_last_block_that_defines_what_is_tested_counts(completion: str, score: float) -> None:
    source = "def square(n):\n    return n * n\n"
    for tests, entry_point in ((["assert square(3) == 9"], None), ({"fn_name": "square", "inputs": [[3]], "outputs": [9]}, "square")):
        assert code_tests(completion.replace("{}", source), tests, entry_point=entry_point)["score"] == score


@pytest.mark.parametrize(
    "text",
    ["`" * 40_000, "```" + " " * 40_000 + "`", "```" + "a" * 40_000 + "`", "```\n" * 10_000, "\n" * 40_000, "```\n" + "import " * 9000],
)
def test_degenerate_text_is_read_in_time_in_proportion_to_it(text: str) -> None:
    started = time.process_time()
    assert isinstance(code_names.find_code(text, ["square"]), str)
    assert not code_values.compare_output(text, "1 2 3") and not code_values.compare_output("1" * 40_000 + "x", "1.0")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("tests", "columns", "message"),
    [
        (["import pandas\nassert square(3) == 9"], {}, "cannot run for any code .*No module named 'pandas'.*packages of the reward"),
        (["from math import hypott\nassert square(3) == 9"], {}, "cannot run for any code .*cannot import name 'hypott'"),
        (["from my_code import square\nassert square(3) == 9"], {}, "can be imported as `solution`"),
        (["assert square(3) == expected"], {}, "expected is defined nowhere: not in the tests"),
        (["assert np.allclose(square(3), 9)"], {}, "np is defined nowhere"),
        ("def check(candidate):\n    assert near(candidate(3), 9)", {"entry_point": "square"}, "near is defined nowhere"),
        ([{"input": "1", "output": "1", "testtype": "functional"}], {}, "needs the name of its function"),
        ({"inputs": ["1", "2"], "outputs": ["1"]}, {}, "there are 2 and 1"),
        ("def check(candidate):\n    assert candidate(3) == 9", {"entry_point": "square it"}, "entry_point must be a function"),
        ("assert (" * 500, {}, "tests: "),
    ],
)
def test_a_test_that_cannot_run_for_anyone_is_a_fault_of_the_data(tests: Any, columns: dict[str, Any], message: str) -> None:
    for completion in (SQUARE.replace("n * n", "0"), "nothing"):
        with pytest.raises(ValueError, match=message):
            code_tests(completion, tests, prompt="Square a number.", **columns)


def test_what_only_the_code_lacks_is_no_fault_of_the_data() -> None:
    helper = "def check(candidate):\n    assert candidate(encode('ab')) == 'ab'"
    assert (
        code_tests("```python\ndef decode(s): return s\n```", helper, "decode", prompt="def encode(s): ...\ndef decode(s):")["score"] == 0.0
    )
    for tests in (["assert Color.RED == 1"], ["assert square(3) == 9"], ["import math\nassert math.sqrt(square(3)) == 3"]):
        assert code_tests("```python\nx = 1\n```", tests, prompt="Write code.")["score"] == 0.0


def test_expected_values_of_asserts_stay_outside() -> None:
    tests = (["assert f(4) == 123456", "assert abs(f(1) - 0.987) < 1e-3", "assert f(2) is None and True"], None)
    test = "import unittest\nclass TestF(unittest.TestCase):\n    def test_it(self):\n        self.assertEqual(f(4), 123456)\n"
    sources = [
        case.test.source for checks in (*tests[:1], test) for case in code_cases.parse_tests(checks, None, {}) if isinstance(case, CodeCase)
    ]
    assert len(sources) == 4 and not [source for source in sources if "123456" in source or "0.987" in source]
    assert "assert f(2) is None and True" in sources[2]  # no comparison with one literal: it stays as it is


def test_the_header_names_the_sandbox_and_a_run_without_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=grpo_math", "~rewards.accuracy", "+rewards.code.path=code_tests", f"output_dir={tmp_path / 'run'}"]
    assert run.main([*words, "dry_run=true"]) == 0
    assert f"sandbox:       {sandbox.choose_sandbox().describe()}\n" in capsys.readouterr().out
    assert run.main([*words, "+rewards.code.args.packages=[numpie]", "dry_run=true"]) == 2
    assert "no package 'numpie' is installed here" in capsys.readouterr().err

    for more in ([], ["dry_run=true"]):
        ended = start(*words, *more, program="no_sandbox.py")
        assert ended.code == 2 and "Traceback" not in ended.err
        assert "rewards.code (code_tests): this kernel does not allow the sandbox (unshare: no" in ended.err
    assert not (tmp_path / "run").exists()
