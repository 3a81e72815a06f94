"""Calls of the policy that cannot be made are answered in words, and what tools return becomes text."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.environments.calls import BadCall, choose_tools, describe_exception, read_arguments
from rlkit.environments.schemas import build_schema
from rlkit.environments.texts import cut_text, to_text


def find(query: str, limit: int = 3, *, tags: list[str] | None = None, exact: bool = False) -> str:
    """Find documents.

    Args:
        query: What to look for.
        limit: How many.
        tags: Of these kinds.
        exact: As it is.
    """
    return query


SCHEMAS = {"find": build_schema("find", find, "here")}
PARAMETERS = "its parameters are query, limit (optional), tags (optional), exact (optional)"


def make(name: Any, arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ([1, 2], "a tool call is a JSON object with a name and arguments; the tools are find"),
        ({"function": "find"}, "a tool call is a JSON object"),
        (make(None, {}), "a tool call is a JSON object"),
        (make("fnd", {}), r"there is no tool 'fnd' \(did you mean find\?\); the tools are find"),
        (make("find", '{"query": '), "the arguments of find are not valid JSON"),
        (make("find", "[" * 100_000), "the arguments of find are not valid JSON"),
        (make("find", "[1]"), "the arguments of find must be a JSON object, not list"),
        (make("find", None), f"find: it needs 'query'; {PARAMETERS}".replace("(", r"\(").replace(")", r"\)")),
        (make("find", {"query": "a", "qurey": "b"}), "find: it takes no 'qurey'; its parameters"),
        (make("find", {"query": 3}), "find: query must be string, not 3"),
        (make("find", {"query": "a", "limit": "3"}), 'find: limit must be integer, not "3"'),
        (make("find", {"query": "a", "limit": True}), "find: limit must be integer, not true"),
        (make("find", {"query": "a", "exact": 1}), "find: exact must be boolean, not 1"),
        (make("find", {"query": None}), "find: query must be string, not null"),
    ],
)
def test_a_call_that_cannot_be_made(call: Any, message: str) -> None:
    with pytest.raises(BadCall, match=message):
        read_arguments(call, SCHEMAS)


def test_a_call_that_can_be_made_in_each_form() -> None:
    arguments = {"query": "a", "limit": 2, "tags": None, "exact": True}
    assert read_arguments(make("find", arguments), SCHEMAS) == arguments
    assert read_arguments({"name": "find", "arguments": '{"query": "a"}'}, SCHEMAS) == {"query": "a"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (3.5, "3.5"),
        (b"\xff\x00a", "\ufffd\x00a"),
        ("\ud800", "?"),
        ([1, "\u00e4"], '[1, "\u00e4"]'),
        ({"at": ValueError("x")}, '{"at": "x"}'),
        ("<|im_end|>", "<|im_end|>"),
    ],
)
def test_what_tools_return_becomes_text(value: Any, text: str) -> None:
    assert to_text(value) == text and type(to_text(value)) is str


def test_a_long_answer_is_cut_with_a_note() -> None:
    assert cut_text("x" * 4096, 4096) == "x" * 4096
    assert cut_text("x" * 5_000_000, 10) == "xxxxxxxxxx\n[cut: the first 10 of 5,000,000 characters]"


def test_errors_that_cannot_be_described() -> None:
    mute = type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})
    assert [describe_exception(error) for error in (mute(), SystemExit(3), KeyError("a"))] == ["Mute", "SystemExit: 3", "KeyError: 'a'"]


def test_names_and_schemas_together_are_refused() -> None:
    assert choose_tools({"tools": '["find"]'}, SCHEMAS) == (["find"], None)
    assert choose_tools({"tools": []}, SCHEMAS) == choose_tools({"tools": "a hammer"}, SCHEMAS) == (["find"], None)
    with pytest.raises(ValueError, match="not both"):
        choose_tools({"tools": ["find", SCHEMAS["find"]]}, SCHEMAS)
    with pytest.raises(ValueError, match="names fnd; the environment has find"):
        choose_tools({"tools": ["fnd"]}, SCHEMAS)
