"""The program of a Python session inside the sandbox: runs one piece of code after the other in the same names, and answers with what it
printed. It is read as text, and imports nothing of rlkit and little else.

Code that breaks this program ends its own session, and an answer that it forges is read by the policy that wrote the code, nobody else.
"""

from __future__ import annotations

import ast
import linecache
import sys
import traceback
from os import O_APPEND, O_CREAT, O_RDONLY, O_RDWR, _exit, devnull, dup, dup2, fdopen, fstat, ftruncate, getpid, pread, unlink
from os import open as open_descriptor

TYPE_CHECKING = False  # as in typing, whose import takes longer than most programs
if TYPE_CHECKING:
    from typing import Any

OUTPUT = "output"  # a file, so that what other processes print is in it too, in its order


def serve_requests(limit: int) -> None:
    """Answer requests until there are no more. limit: bytes of an answer."""
    requests, answers = fdopen(dup(0), "rb"), fdopen(dup(1), "wb")
    output = open_descriptor(OUTPUT, O_RDWR | O_CREAT | O_APPEND)
    unlink(OUTPUT)
    dup2(open_descriptor(devnull, O_RDONLY), 0)
    dup2(output, 1)
    dup2(output, 2)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)  # type: ignore[union-attr]  # a file, here
    main = sys.modules["__main__"] = type(sys)("__main__")
    count, pid = 0, getpid()
    while line := requests.readline():
        count += 1
        run_cell(requests.read(int(line)).decode(), f"cell {count}", vars(main))
        if getpid() != pid:
            _exit(0)  # a fork of the code returned through it; one process answers
        size = fstat(output).st_size
        text = pread(output, limit, 0)
        ftruncate(output, 0)
        if size > limit:
            text += b"\n[cut: %d bytes were printed]" % size
        answers.write(b"%d\n%b" % (len(text), text))
        answers.flush()


def run_cell(code: str, name: str, names: dict[str, Any]) -> None:
    """Run the code, and print the value of its last line where that is an expression, or what it raised."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)
            if value is not None:
                print(repr(value))
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it is reported, and the session continues
        trace = error.__traceback__.tb_next if error.__traceback__ else None  # without this function
        print("".join(traceback.format_exception(type(error), error, trace)), flush=True)
