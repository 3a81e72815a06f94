"""Names: which block of a completion defines what the tests call, what code may use without importing it, and which tests cannot run.

Public harnesses put `from typing import *` and the like before the code. Here a name gets its module where the code mentions it, unless the
tests call a function of that name: what is tested must come from the code.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import re
import symtable
from collections.abc import Iterable, Iterator

MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools", "functools"),
    *("operator", "io", "sys", "json", "typing", "os", "time"),
)
STARS = ("typing", *(name for name in MODULES if name not in ("typing", "sys", "os", "time")))  # whose names are given, the first wins
PYTHON_NAMES = ("python", "py", "python3", "py3")
WORD = re.compile(r"[A-Za-z_]\w*")
OF_TESTS = {"solution", "__name__", "__file__", "__check__", "__check_both__", "__run_function__", "__run_class__", "exit", "quit"}
Given = list[tuple[str, str]]  # name, module


def find_code(completion: str, wanted: Iterable[str]) -> str:
    """The last block of a completion that defines one of the wanted names, else its last one, else the completion itself.

    Blocks that are fenced as Python come before those without a language; blocks of other languages are none.
    """
    found = list_blocks(completion.replace("\r\n", "\n"))
    python = [text for name, text in found if name.lower() in PYTHON_NAMES]
    blocks = [*(text for name, text in found if not name), *python]
    names = list(wanted)
    defining = next((text for text in reversed(blocks) if any(defines(text, name) for name in names)), None)
    if defining is not None:
        return defining
    return blocks[-1] if blocks else completion.rpartition("</think>")[2]


def list_blocks(text: str) -> list[tuple[str, str]]:
    """(language, contents) of the fenced blocks, the last of which may be open. Takes time in proportion to the text."""
    blocks: list[tuple[str, list[str]]] = []
    is_open = False
    for line in text.split("\n"):
        before, fence, after = line.partition("```")
        if is_open:
            blocks[-1][1].append(before)
            is_open = not fence
        elif fence and "`" not in before and "`" not in after:
            language = re.match(r"\w*", after.strip())
            blocks.append((language[0] if language else "", []))
            is_open = True
    return [(language, _dedent("\n".join(lines))) for language, lines in blocks]


def _dedent(text: str) -> str:
    """Without the indentation of the first line: of a block in a list."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join(line.removeprefix(indent) for line in text.split("\n")) + "\n"


def defines(code: str, name: str) -> bool:
    """Whether code defines or imports a name, by its words: nothing is parsed, for it may be any text."""
    word = re.escape(name)
    pattern = rf"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+{word}\b|^{word}[ \t]*(?::[^=\n]*)?=(?!=)"
    imports = (line.partition("import ")[2] for line in code.split("\n"))
    return re.search(pattern, code, re.MULTILINE) is not None or any(name in WORD.findall(names) for names in imports)


@functools.cache
def list_given() -> dict[str, str]:
    """{name: its module} of all that code may use without importing it."""
    given: dict[str, str] = {}
    for module in reversed(STARS):
        imported = importlib.import_module(module)
        names = getattr(imported, "__all__", None) or [name for name in vars(imported) if not name.startswith("_")]
        given |= {name: module for name in names if not hasattr(builtins, name)}
    return given | {module: module for module in MODULES}


def choose_given(text: str, without: set[str]) -> Given:
    """What of it a text mentions."""
    given = list_given()
    return sorted((name, given[name]) for name in set(WORD.findall(text)) & given.keys() - without)


def find_names(source: str) -> set[str]:
    """The names that a test reads and nothing in it defines. Empty where it defines names that cannot be known (`import *`)."""
    if re.search(r"\bimport\s*\*", source):
        return set()
    top = symtable.symtable(source, "test", "exec")
    own = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()}
    return {name for name in _walk_globals(top) if name not in own and not hasattr(builtins, name)} - OF_TESTS


def _walk_globals(table: symtable.SymbolTable) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _walk_globals(child)


def find_called(tree: ast.AST) -> set[str]:
    """The names that a test calls, or passes to what it calls."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {node.id for call in calls for node in (call.func, *call.args) if isinstance(node, ast.Name)}


def find_unknown(tree: ast.Module, source: str, entry_point: str | None, mentioned: str) -> set[str]:
    """Names in a test that no code can be expected to define: it does not call them (with an entry_point, they are another), they are not
    classes by their spelling, and neither Python's modules nor the text `mentioned` (prompt and code) have them."""
    if any(isinstance(node, ast.Try) for node in ast.walk(tree)):
        return set()
    expected = {get_root(entry_point)} if entry_point else find_called(tree)
    unknown = find_names(source) - expected - list_given().keys() - set(WORD.findall(mentioned))
    return {name for name in unknown if not name[0].isupper()}


def get_root(entry_point: str) -> str:
    """The name at the start of an entry point: `Solution` of `Solution().add`."""
    return (WORD.match(entry_point) or [""])[0]


def list_imports(tree: ast.Module) -> str:
    """The imports of a test outside of a `try`, as code; those of the solution itself left out."""
    inside = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in inside:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if not all(module.split(".")[0] in ("solution", "pytest", "__future__") for module in modules):
                lines.append(ast.unparse(node))
    return "\n".join(lines)
