"""What rows may write in place of {role, content}, what reaches the chat template, and what is a bad row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.columns import Columns, PromptReader
from rlkit.data.completions import DemonstrationReader
from rlkit.data.offline_rows import DemonstrationSet
from rlkit.data.renderer import Renderer
from rlkit.data.rows import BadRow, ListRows, Rows
from rlkit.data.sources import open_rows
from rlkit.data.stream import PromptSet, SkipReason
from rlkit.errors import UserError

from .conftest import make_model

USER, SYSTEM, REPLY = {"role": "user", "content": "1+1"}, {"role": "system", "content": "be brief"}, {"role": "assistant", "content": "2"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}}
WITH_TOOLS = (
    "{% for t in tools or [] %}[{{ t.function.name }} {{ t.function.parameters.properties | length }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def read(row: dict[str, Any]) -> Any:
    return PromptReader(ListRows("data.train a.jsonl", [row]), Columns(), needs_answer=False).read(0).prompt


def prompts(rows: Rows | list[dict[str, Any]], model: Path, tokens: int = 99, **settings: Any) -> PromptSet:
    table = rows if isinstance(rows, Rows) else ListRows("data.train a.jsonl", rows)
    return PromptSet(PromptReader(table, Columns(), needs_answer=False), Renderer(model), max_prompt_tokens=tokens, **settings)


def test_content_in_parts_is_its_text() -> None:
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "+1", "image_url": None}]
    assert read({"messages": [{"role": "user", "content": parts}]}) == (USER,)
    [reply] = DemonstrationReader(ListRows("a", [{"messages": [USER, {**REPLY, "content": parts}]}]), Columns()).read(0).completions
    assert reply == {"role": "assistant", "content": "1+1"}


@pytest.mark.parametrize("name", ["gpt", "chatgpt", "bard", "bing", "model", "assistant", "Assistant"])
def test_every_name_of_the_assistant_is_the_assistant(name: str) -> None:
    """Else its answer would stand in the prompt."""
    assert read({"conversations": [{"from": "human", "value": "1+1"}, {"from": name, "value": "2"}]}) == (USER,)
    assert read({"messages": [USER, {"role": name, "content": "2"}]}) == (USER,)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([{"role": "wizard", "content": "x"}], "has a message of the unknown role 'wizard'; known are system, developer, user, human, "),
        ([{"role": "user", "content": 7}], "has a message whose content is neither text nor a list of parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "neither text nor a list of parts"),
        ([{"role": "user", "content": None}], "has messages without role and content"),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}, USER], "tool calls and no content"),
        ([{"role": "user", "content": " \n"}], "has a blank prompt"),
        ([], "neither text nor a list of messages"),
        ("", "has a blank prompt"),
        ("  \n", "has a blank prompt"),
        ("a\ud83d", "half a surrogate pair (U+D83D at character 2), which is no text"),
        (7, "neither text nor a list of messages: 7"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
def test_what_is_no_prompt_is_a_bad_row(content: Any, fault: str, on_bad_row: Any, model_folder: Path) -> None:
    """Named by file and row where it is read, or skipped."""
    found = prompts([{"prompt": "1+1"}, {"prompt": content}], model_folder, on_bad_row=on_bad_row)
    if on_bad_row == "skip":
        assert found.get(1) is SkipReason.BAD_ROW and found.first_bad is not None and fault in found.first_bad
        return
    with pytest.raises(BadRow) as caught:
        found.get(1)
    assert str(caught.value).startswith("data.train a.jsonl row 2 ") and fault in str(caught.value)


@pytest.mark.parametrize("write", [lambda rows: b"\n".join(rows), lambda rows: b"[" + b",".join(rows) + b"]"], ids=["lines", "list"])
@pytest.mark.parametrize(
    "value", [b"[" * 1000 + b"]" * 1000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 120 + b"]" * 120, b"1" + b"0" * 5000, b'"\\ud83d"']
)
def test_a_value_that_cannot_be_read_is_a_fault_of_its_row_alone(
    value: bytes, write: Callable[[list[bytes]], bytes], tmp_path: Path, model_folder: Path
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(write([b'{"prompt": "1"}', b'{"prompt": "2", "x": ' + value + b"}", b'{"prompt": "3"}']))
    found = prompts(open_rows(str(file), split_default="train", offline=True), model_folder, on_bad_row="skip")
    assert [item if isinstance(item, SkipReason) else item.prompt for item in map(found.get, range(3))] == ["1", SkipReason.BAD_ROW, "3"]


def test_a_template_that_raises_makes_a_bad_row(tmp_path: Path) -> None:
    """Whatever it raises: here a sum of a text and a number."""
    template = "{% for m in messages %}{{ m.content + (1 if m.content == 'odd' else '') }}{% endfor %}"
    found = prompts([{"question": "even"}, {"question": "odd"}], make_model(tmp_path / "model", chat_template=template))
    assert not isinstance(found.get(0), SkipReason)
    with pytest.raises(BadRow, match=r"data\.train a\.jsonl row 2: the chat template of model\.path .* refuses a prompt: can only concat"):
        found.get(1)


def test_a_prefilled_answer_is_continued(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", chat_template=WITH_TOOLS)
    begun = {"role": "assistant", "content": "It is"}
    for row in ({"prompt": [USER, begun]}, {"messages": [USER, {**begun, "prefix": True}]}):
        item = prompts([row], model).get(0)
        assert not isinstance(item, SkipReason) and item.prompt[-1]["content"] == "It is"
        assert Renderer(model).decode(item.tokens, special=True) == "<user>1+1<eos><assistant>It is"
    rows = ListRows("a", [{"prompt": [USER, begun], "completion": " 2"}])
    [item] = DemonstrationSet(
        DemonstrationReader(rows, Columns()), Renderer(model), max_prompt_tokens=99, max_completion_tokens=9
    ).read_all()[0]
    assert Renderer(model).decode(item.prompt + item.completion, special=True) == "<user>1+1<eos><assistant>It is 2<eos>"


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [{**TOOL, "function": {**TOOL["function"], "strict": None}}]])
def test_tool_schemas_reach_the_chat_template(tools: Any, tmp_path: Path) -> None:
    renderer = Renderer(make_model(tmp_path / "model", chat_template=WITH_TOOLS))
    item = prompts([{"messages": [USER], "tools": tools}], tmp_path / "model").get(0)
    assert not isinstance(item, SkipReason) and renderer.decode(item.tokens) == "[add 1]<user>1+1<assistant>"
    rows = ListRows("a", [{"messages": [USER, REPLY], "tools": tools}])
    found = DemonstrationSet(DemonstrationReader(rows, Columns()), renderer, max_prompt_tokens=99, max_completion_tokens=9).get(0)
    assert not isinstance(found, SkipReason) and renderer.decode(found.prompt) == "[add 1]<user>1+1<assistant>"


@pytest.mark.parametrize("tools", ["hammer", ["hammer"], [], None, 3, "[1"])
def test_another_column_called_tools_is_a_column(tools: Any, tmp_path: Path) -> None:
    item = prompts([{"messages": [USER], "tools": tools}], make_model(tmp_path / "model", chat_template=WITH_TOOLS)).get(0)
    assert not isinstance(item, SkipReason) and item.tools == () and item.columns["tools"] == tools


def test_a_prompt_of_ten_megabytes_is_never_tokenized(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    tokenize = Renderer.tokenize
    monkeypatch.setattr(Renderer, "tokenize", lambda self, text: asked.append(len(text)) or tokenize(self, text))
    huge = "x" * 10_000_000
    assert prompts([{"question": huge}], model_folder).get(0) is SkipReason.TOO_LONG and not asked
    cut = prompts([{"prompt": huge + "1+1"}], model_folder, on_long="cut").get(0)
    assert not isinstance(cut, SkipReason) and cut.cut and Renderer(model_folder).decode(cut.tokens) == "x" * 96 + "1+1"
    assert max(asked) < 10_000
    rows = ListRows("a", [{"question": "1+1", "completion": huge}])
    found = DemonstrationSet(DemonstrationReader(rows, Columns()), Renderer(model_folder), max_prompt_tokens=99, max_completion_tokens=9)
    assert found.get(0) is SkipReason.TOO_LONG and max(asked) < 10_000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_another_encoding_is_named(encoding: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("prompt,answer\n1,2\n".encode(encoding))
    with pytest.raises(UserError, match=r"is not UTF-8 but UTF-16, UTF-32 or binary: it begins with b'.*; save it as UTF-8"):
        open_rows(str(tmp_path / name), split_default="train", offline=True)


def test_an_empty_parquet_is_named_and_one_beside_others_does_no_harm(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["1", "2"]})
    (tmp_path / "rows").mkdir()
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "rows" / "0.parquet")
    with pytest.raises(UserError, match=r"0\.parquet is empty: it holds no row"):
        open_rows(str(tmp_path / "rows" / "0.parquet"), split_default="train", offline=True)
    pyarrow.parquet.write_table(table, tmp_path / "rows" / "1.parquet")
    assert len(open_rows(str(tmp_path / "rows"), split_default="train", offline=True)) == 2
