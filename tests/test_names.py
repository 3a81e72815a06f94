"""The laws on names, read out of the source with ast."""

from __future__ import annotations

import ast

from tests.test_laws import CODE, module_name, tree, where

IRREGULAR = {  # participles without an ending of their own
    *("begun", "born", "built", "chosen", "drawn", "found", "given", "held", "kept", "known", "laid", "left", "lost", "made", "meant"),
    *("paid", "said", "seen", "sent", "shown", "spent", "sold", "taken", "thought", "told", "written"),
}
VERBS = {"bring", "embed", "feed", "need", "read", "seed", "shed", "speed"}  # that end like participles
FORMULAS = {"weighted_sum"}  # names of the formulas that they compute


def is_participle(word: str) -> bool:
    return word in IRREGULAR or (word.endswith(("ed", "ing")) and len(word) > 4 and word not in VERBS)


def test_no_public_name_is_defined_in_two_modules() -> None:
    """One word, one meaning: a class or a function that is imported by its name is the only one of that name."""
    modules: dict[str, set[str]] = {}
    for path in CODE:
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, set()).add(module_name(path))
    assert {name: sorted(found) for name, found in modules.items() if len(found) > 1} == {}


def test_no_function_is_named_by_a_participle() -> None:
    """A function is a verb. Properties, which are read like fields, are left out."""
    broken = []
    for path in CODE:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name in FORMULAS:
                continue
            decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if not decorators & {"property", "cached_property"} and is_participle(node.name.strip("_").split("_")[0]):
                broken.append(f"{where(path, node.lineno)} {node.name}")
    assert broken == []
