"""Which tools a turn calls: what is read, what is an answer in words, and what is no call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.renderer import Renderer
from rlkit.data.tool_calls import TurnReader
from rlkit.errors import UserError
from tests.data.chat_styles import STYLES, build_style

SCHEMA = {
    "type": "function",
    "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
GOOD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return build_style(STYLES["chatml_thinking"], tmp_path_factory.mktemp("chatml"))


def read(renderer: Renderer, text: str, before: str = "<|im_start|>assistant\n", parser: str = "auto") -> tuple[str, list[tuple[str, Any]]]:
    ids = renderer.tokenize(f"{text}<|im_end|>")
    message = TurnReader(renderer, parser).read(ids, renderer.tokenize(before), [SCHEMA])
    calls = message.get("tool_calls", [])
    assert [c["id"] for c in calls] == [f"call{n:05d}" for n in range(len(calls))] and message["role"] == "assistant"
    return message["content"], [(c["function"]["name"], c["function"]["arguments"]) for c in calls]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("3", "3", []),
        (GOOD, "", [("add", {"a": 1})]),
        (f"I add. {GOOD}\n{GOOD.replace('1', '2')} ", "I add.", [("add", {"a": 1}), ("add", {"a": 2})]),
        ('<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", {"a": 1})]),
        ('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', "", [("add", "[1, 2]")]),  # the environment says what is wrong
        ('<tool_call>{"name": "add", "arguments": "one"}</tool_call>', "", [("add", "one")]),
        ("<tool_call>add(1)</tool_call>", "", [("", "add(1)")]),
        ("<tool_call>[1, 2]</tool_call>", "", [("", "[1, 2]")]),
        ('<tool_call>{"name": "add", "argu', "", [("", '{"name": "add", "argu')]),
        (f"<think>\nperhaps {GOOD}\n</think>\n\n3", f"<think>\nperhaps {GOOD}\n</think>\n\n3", []),
        (f"<think>\nperhaps {GOOD}\n</think>\n\n{GOOD}", "", [("add", {"a": 1})]),
        (f"so <think>\nperhaps {GOOD}", f"so <think>\nperhaps {GOOD}", []),
    ],
)
def test_calls_as_hermes_writes_them(text: str, content: str, calls: list[Any], chatml: Renderer) -> None:
    assert read(chatml, text) == (content, calls)


def test_thinking_that_the_prompt_opened_holds_no_call(chatml: Renderer) -> None:
    opened = "<|im_start|>assistant\n<think>\n"
    assert read(chatml, f"perhaps {GOOD}", opened)[1] == []
    assert read(chatml, f"perhaps {GOOD}\n</think>\n{GOOD}", opened)[1] == [("add", {"a": 1})]
    assert read(chatml, GOOD, "<|im_start|>assistant\n<think>\n\n</think>\n\n")[1] == [("add", {"a": 1})]


def test_without_tools_nothing_is_a_call(chatml: Renderer) -> None:
    message = TurnReader(chatml, "auto").read(chatml.tokenize(f"{GOOD}<|im_end|>"), [], [])
    assert message == {"role": "assistant", "content": GOOD}


def test_auto_finds_how_the_template_writes_calls_or_is_refused(tmp_path: Path) -> None:
    found = {}
    for name in ("chatml", "chatml_thinking", "gemma", "phi"):  # the last two write none
        (tmp_path / name).mkdir()
        found[name] = TurnReader(build_style(STYLES[name], tmp_path / name), "auto").parser
    assert set(found.values()) == {"hermes"}
    for name in ("llama", "mistral", "glm"):
        (tmp_path / name).mkdir()
        renderer = build_style(STYLES[name], tmp_path / name)
        with pytest.raises(UserError, match=r"environment\.parser=auto does not know how .* writes tool calls: its chat template writes"):
            TurnReader(renderer, "auto")
        assert TurnReader(renderer, "hermes").parser == "hermes"
        with pytest.raises(UserError, match="has no response_template"):
            TurnReader(renderer, "response_template")


def test_a_response_template_of_the_tokenizer_is_used(tmp_path: Path) -> None:
    renderer = build_style(STYLES["chatml_thinking"], tmp_path)
    template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "reasoning_content": {"open": "<think>\n", "close": "</think>", "optional": True},
            "tool_calls": {"open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True, "optional": True},
            "content": {"close": "<|im_end|>", "optional": True},
        },
    }
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "response_template": template}))
    renderer = Renderer(tmp_path, offline=True)
    assert TurnReader(renderer, "auto").parser == "response_template"
    before = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert read(renderer, GOOD, before)[1] == [("add", {"a": 1})]
    assert read(renderer, "3", before) == ("3", [])
    assert read(renderer, f"<think>\n{GOOD}</think>3", before)[1] == []
    name, arguments = read(renderer, '<tool_call>{"name": </tool_call>', before)[1][0]
    assert name == "" and isinstance(arguments, str)
