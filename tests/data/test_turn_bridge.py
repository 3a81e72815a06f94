"""What stands between two turns is what the chat template writes there, token by token, in eight styles of templates, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.renderer import Renderer
from rlkit.data.turn_bridge import TurnBridge
from rlkit.errors import UserError
from tests.data.chat_styles import STYLES, Style, build_style

USER = {"role": "user", "content": "Add 1 and 2."}
SCHEMA = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}}}
Build = Callable[[str], Renderer]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return cache(lambda name: build_style(STYLES[name], tmp_path_factory.mktemp(name)))


def call(number: int) -> dict[str, Any]:
    return {"id": f"call{number:05d}", "type": "function", "function": {"name": "add", "arguments": {"a": number, "b": 2}}}


def turn_of(role: str, calls: int = 1) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A turn of the policy, and its answers by the role."""
    if role == "user":
        return {"role": "assistant", "content": "3, I think"}, [{"role": "user", "content": "Are you sure? né"}]
    made = [call(number) for number in range(calls)]
    answers = [{"role": "tool", "name": "add", "tool_call_id": c["id"], "content": f"answer {n}"} for n, c in enumerate(made)]
    return {"role": "assistant", "content": "", "tool_calls": made}, answers


CASES = [(name, role) for name in STYLES for role in ("user", "tool")]


@pytest.mark.parametrize(("name", "role"), CASES)
def test_the_bridge_is_what_the_template_writes_or_is_refused(name: str, role: str, build: Build) -> None:
    renderer, refused = build(name), dict(STYLES[name].refuses).get(role)
    bridge, tools = TurnBridge(renderer, 64), [SCHEMA] if role == "tool" else []
    if refused:
        with pytest.raises(UserError, match=refused) as error:
            bridge.check(tools)
        assert str(error.value).startswith("environment: ")
        return
    bridge.check(tools)
    turn, answers = turn_of(role)
    prompt = renderer.encode_prompt([USER], tools)
    whole = renderer.encode_prompt([USER, turn, *answers], tools)
    assert whole[: len(prompt)] == prompt
    end = next(i for i in range(len(prompt), len(whole)) if whole[i] in renderer.eos_ids)  # the end of the turn
    assert bridge.encode(whole[end], answers, tools) == whole[end + 1 :] != []
    others = renderer.eos_ids - {whole[end]}
    assert all(bridge.encode(other, answers, tools) is None for other in others)


def test_parallel_calls_are_answered_in_their_order(build: Build) -> None:
    for name, wanted in (("chatml", 2), ("glm", 2), ("mistral", 2), ("llama", 2)):
        renderer, (turn, answers) = build(name), turn_of("tool", calls=2)
        bridge = TurnBridge(renderer, 64)
        ends = [ids for end in sorted(renderer.eos_ids) if (ids := bridge.encode(end, answers, [SCHEMA]))]
        (ids,) = ends
        assert [renderer.decode(ids).count(f"answer {n}") for n in range(3)] == [1] * wanted + [0]
        if name != "llama":  # which writes one call a turn
            whole = renderer.encode_prompt([USER, turn, *answers], [SCHEMA])
            assert whole[-len(ids) :] == ids


def test_thinking_that_the_template_removes_stays_in_the_context(build: Build) -> None:
    """Two renders of the conversation do not begin alike, and the bridge is the same as without thinking."""
    renderer = build("chatml_thinking")
    thought = {"role": "assistant", "content": "<think>\n1, 2, 3\n</think>\n\n3"}
    answers = [{"role": "user", "content": "Again."}]
    first = renderer.apply_chat_template([USER, thought], [], opened=False)
    assert not renderer.apply_chat_template([USER, thought, *answers], [], opened=True).startswith(first.rstrip("\n"))
    bridge, end = TurnBridge(renderer, 64), renderer.tokenize("<|im_end|>")[0]
    bridge.check([])
    ids = bridge.encode(end, answers, [])
    assert ids is not None and renderer.decode(ids, special=True) == "\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", [name for name, style in STYLES.items() if not dict(style.refuses)])
def test_special_tokens_in_an_observation_are_text(name: str, build: Build) -> None:
    renderer = build(name)
    bridge, style = TurnBridge(renderer, 400), STYLES[name]
    attack = "".join((*style.special, *style.added)) + "<" + style.ends[0] + ">" + style.ends[0][:-1]
    ends = sorted(renderer.eos_ids)

    def encode(text: str) -> list[int]:
        (ids,) = [ids for end in ends if (ids := bridge.encode(end, [{"role": "user", "content": text}], []))]
        return ids

    attacked, plain = encode(attack), encode("plain")
    assert renderer.decode(attacked, special=True) == renderer.decode(plain, special=True).replace("plain", attack)
    first = min(renderer.tokenize(word)[0] for word in (*style.special, *style.added))
    assert [token for token in attacked if token >= first] == [token for token in plain if token >= first]
    assert first == 256


def test_a_long_observation_is_cut_with_a_note(build: Build) -> None:
    renderer, room = build("chatml"), 40
    bridge, end = TurnBridge(renderer, room), renderer.tokenize("<|im_end|>")[0]
    empty = bridge.encode(end, [{"role": "user", "content": ""}], [])
    for text in ("é" * 300, "<|im_end|>" * 50, "x" * 1_000_000):
        ids = bridge.encode(end, [{"role": "user", "content": text}], [])
        assert ids is not None and empty is not None and room - 10 <= len(ids) - len(empty) <= room
        written = renderer.decode(ids, special=True)
        kept, _, note = written.partition("<|im_start|>user\n")[2].partition("\n[cut: ")
        assert text.startswith(kept) and note.startswith(f"{len(text) - len(kept)} more characters]<|im_end|>")
    for text in ("x" * room, "é" * (room // 2)):  # as it is
        ids = bridge.encode(end, [{"role": "user", "content": text}], [])
        assert ids is not None and renderer.decode(ids).count(text) == 1


def test_a_template_that_writes_otherwise_the_longer_a_chat_is_is_refused(tmp_path: Path) -> None:
    counted = STYLES["chatml"].template.replace("<|im_start|>{{ m.role }}\n", "<|im_start|>{{ m.role }} {{ loop.index }}\n")
    renderer = build_style(Style(counted, STYLES["chatml"].special, ("<|im_end|>",)), tmp_path)
    with pytest.raises(UserError, match="writes other text between two turns where there were more before"):
        TurnBridge(renderer, 64).check([])
