"""Programs that are wrong and try to be paid: each stands without its fence, and earns 0 for the tests it is given."""

from __future__ import annotations

from typing import Any

READ_WORD = """
import sys
def find(frame):
    while frame is not None:
        for holder in (frame.f_locals, frame.f_globals):
            if "task" in holder:
                return holder["task"]
        frame = frame.f_back
"""
EQUAL = """
class Any(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0
    __hash__ = int.__hash__
"""
FORGED = """
import os
w = find(sys._getframe())["word"]
os.write(1, (w + '[0,["i","8"]]' + w + '\\n' + w + '["end"]' + w).encode())
os._exit(0)
"""
SEARCH = """
import gc
def f(n):
    dicts = [found for found in gc.get_objects() if type(found) is dict]
    texts = [v for found in dicts for v in found.values() if type(v) is str and 'assert' in v and 'f(4)' in v]
    return eval(texts[0].split('==')[1]) if texts else 5
"""
UNIT = """
import unittest
class TestF(unittest.TestCase):
    def test_it(self):
        self.assertEqual(f(4), 16)
"""
PATCH = """
import unittest
unittest.TestCase.assertEqual = lambda *a: None
unittest.TestResult.wasSuccessful = lambda self: True
def f(n): return 5
"""

STDIN: list[dict[str, str]] = [{"input": "4\n", "output": "16"}]
CALL: dict[str, Any] = {"fn_name": "f", "inputs": [[4]], "outputs": [16]}
LINES = ["assert f(4) == 16"]
CHECK = "def check(candidate):\n    assert candidate(4) == 16\n    assert candidate(0) == 0\n"
ATTACKS: dict[str, tuple[Any, str]] = {
    "leave before the test": (LINES, "import os\nos._exit(0)"),
    "leave with SystemExit": (LINES, "raise SystemExit(0)"),
    "leave in the function": (LINES, "def f(n):\n    import os\n    os._exit(0)"),
    "kill the process": (LINES, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    "end by a fault": (LINES, "import ctypes\nctypes.string_at(0)"),
    "an object that equals all": (LINES, f"{EQUAL}def f(n): return Any(5)"),
    "an object that equals all, from a call": (CALL, f"{EQUAL}def f(n): return Any(5)"),
    "a list of them": (["assert f(4) == [1, 2]"], f"{EQUAL}def f(n): return [Any(5), Any(5)]"),
    "a truth of its own": (["assert f(4) is True"], "class T:\n    def __bool__(self): return True\ndef f(n): return T()"),
    "replace int": (LINES, "import builtins\nbuiltins.int = str\ndef f(n): return 5"),
    "replace type": (LINES, "import builtins\nbuiltins.type = lambda x: int\ndef f(n): return 5"),
    "replace isinstance and all": (
        CHECK,
        "import builtins\nbuiltins.isinstance = builtins.any = builtins.all = lambda *a: True\ndef f(n): return 5",
    ),
    "replace exec and compile": (LINES, "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None\ndef f(n): return 5"),
    "replace json.dumps": (CALL, "import json\njson.dumps = lambda *a, **k: '16'\ndef f(n): return 5"),
    "replace the record": (LINES, "def f(n):\n    globals()['__check__'] = lambda *a: None\n    return 5"),
    "call the record": (LINES, "def f(n):\n    __check__(0, 8)\n    __check__(1, 16)\n    return 5"),
    "define the record": (LINES, "def __check__(*a): pass\ndef f(n): return 5"),
    "raise AssertionError away": (
        LINES,
        "import sys\nsys.excepthook = lambda *a: None\nclass AssertionError(Exception): pass\ndef f(n): raise AssertionError",
    ),
    "read the word in the frames": (LINES, READ_WORD + FORGED),
    "read the expected value in the code of the test": (
        LINES,
        "import sys\ndef f(n):\n    found = [c for c in sys._getframe(1).f_code.co_consts if type(c) is int]\n    return max(found)",
    ),
    "search memory for the test": (LINES, SEARCH),
    "write the records twice by a fork": (LINES, "import os\nos.fork()\ndef f(n): return 5"),
    "write garbage": (LINES, "import os\nos.write(1, bytes(range(256)) * 100)\ndef f(n): return 5"),
    "write without end": (STDIN, "while True: print('16' * 1000)"),
    "write 16 MiB": (LINES, "import os\nfor _ in range(17): os.write(1, b'[' * 2**20)\ndef f(n): return 5"),
    "close the output": (LINES, "import os\nos.close(1)\ndef f(n): return 5"),
    "output elsewhere": (STDIN, "import os\nos.dup2(2, 1)\nprint(16)"),
    "the recursion limit": (LINES, "import sys\nsys.setrecursionlimit(5)\ndef f(n): return 5"),
    "a deep list": (LINES, "def f(n):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x"),
    "a list in itself": (LINES, "def f(n):\n    x = []\n    x.append(x)\n    return x"),
    "a huge integer": (LINES, "def f(n): return 1 << 10**7"),
    "a surrogate": (LINES, "def f(n): return '\\udc80'"),
    "keys that collide": (["assert f(4) == {1: 2}"], "def f(n): return {k * (2**61 - 1): 0 for k in range(1, 3000)}"),
    "an endless generator": (LINES, "def f(n):\n    while True: yield 16"),
    "no end": (LINES, "while True: pass"),
    "all memory": (LINES, "x = [bytearray(2**24) for _ in range(10**4)]\ndef f(n): return 5"),
    "a null byte": (LINES, "def f(n): return 5\0"),
    "no Python": (STDIN, "I would print the square of the number."),
    "a lone surrogate in the code": (STDIN, "print('\udc80')"),
    "brackets": (STDIN, "(" * 20_000),
    "a tracer": (LINES, "import sys\nsys.settrace(lambda *a: 1 / 0)\nsys.setprofile(lambda *a: 1 / 0)\ndef f(n): return 5"),
    "an import hook": (LINES, "import sys\nsys.meta_path.clear()\nsys.modules.clear()\ndef f(n): return 5"),
    "no names left": (LINES, "import builtins\nfor name in list(vars(builtins)): delattr(builtins, name)"),
    "a name that the test uses": (["assert len(f(4)) == 16"], "import builtins\ndel builtins.len\ndef f(n): return 5"),
    "replace what the test calls": (["assert len(f(4)) == 16"], "import builtins\nbuiltins.len = lambda x: 16\ndef f(n): return [5]"),
    "replace it later": (
        ["assert len(f(1)) == 1\nassert len(f(4)) == 16"],
        "import builtins\ndef f(n):\n    builtins.len = lambda x: 16\n    return [5]",
    ),
    "replace the writer of values": (
        ["assert f(4) == sorted([4])"],
        "import sys\nsys.modules['__main__'].encode = lambda value, depth=0: '[\"n\"]'\ndef f(n): return 5",
    ),
    "an atexit": (STDIN, "import atexit, os\natexit.register(os._exit, 0)\nprint(5)"),
    "files of the trainer": (STDIN, "import glob\nprint(''.join(open(p).read() for p in glob.glob('/proc/[0-9]*/environ')) or 5)"),
    "answers for every test": ([*STDIN, {"input": "5\n", "output": "25"}], "print(16)\nprint(25)"),
    "an answer in a comment": (STDIN, "# 16\nprint()"),
    "a word that looks like a number": (STDIN, "print('16.0')\n"),
    "a test that names nothing": (LINES, "f"),
    "unittest without asserts": (UNIT, PATCH),
}
