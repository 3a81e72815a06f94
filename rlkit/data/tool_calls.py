"""Parses a turn of the policy into a message of a chat: its text and its tool calls.

A message has `content`, and `tool_calls` where the turn calls tools, in OpenAI's form; ids are made here. The arguments of a call are an
object, or, where what was written is none, its text: the environment then answers that it cannot be read. What stands in the policy's
thinking is no call. Left out: forms of calls of single models, which vLLM and the response_template of a tokenizer know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlkit.data.renderer import PromptRefused, Renderer, Tools
from rlkit.data.rows import show
from rlkit.data.turn_bridge import Message, name_call
from rlkit.engines.vllm_tools import Parser, build_vllm_parser
from rlkit.errors import UserError

THINK, END_OF_THINKING = "<think>", "</think>"
HERMES_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
PREFIX_TOKENS = 64  # before a turn, in which a chat template may have opened the policy's thinking
AUTO, HERMES, RESPONSE_TEMPLATE = "auto", "hermes", "response_template"


class RawCall(NamedTuple):
    """A call as it was read: the arguments as an object or as the text that was written."""

    name: str
    arguments: Any


Reading = tuple[str, list[RawCall]]  # the text beside the calls, and the calls in the order written


class TurnReader:
    """Reads turns of the policy. parser: as environment.parser. Raises UserError where `auto` does not find how the model writes calls."""

    def __init__(self, renderer: Renderer, parser: str) -> None:
        self._renderer = renderer
        self.parser = choose_parser(renderer) if parser == AUTO else parser
        if self.parser == RESPONSE_TEMPLATE and renderer.response_template is None:
            raise UserError(f"environment.parser={RESPONSE_TEMPLATE}: the tokenizer of {renderer.where} has no response_template")
        named = self.parser not in (HERMES, RESPONSE_TEMPLATE)
        self._vllm_parser = build_vllm_parser(self.parser, renderer.tokenizer) if named else None

    def read(self, ids: Sequence[int], before: Sequence[int], tools: Tools) -> Message:
        """The message of a turn that ends with an end token; before: the tokens before the turn, at least the last ones.

        Without tools nothing is a call.
        """
        content = self._renderer.decode(ids)
        calls: list[RawCall] = []
        if tools:
            content, calls = self._read_response(ids, before, tools) if self.parser == RESPONSE_TEMPLATE else self._read(ids, before, tools)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message["tool_calls"] = [build_call(number, call) for number, call in enumerate(calls)]
        return message

    def _read(self, ids: Sequence[int], before: Sequence[int], tools: Tools) -> Reading:
        text, prefix = self._renderer.decode(ids[:-1], special=True), self._renderer.decode(before[-PREFIX_TOKENS:], special=True)
        spoken = remove_thinking(text, prefix.rfind(THINK) > prefix.rfind(END_OF_THINKING))
        content, calls = read_hermes(spoken) if self._vllm_parser is None else self._read_by_vllm(self._vllm_parser, spoken, tools)
        return (content, calls) if calls else (self._renderer.decode(ids), [])

    def _read_by_vllm(self, parser: Parser, spoken: str, tools: Tools) -> Reading:
        try:
            content, written = parser(spoken, tools)
        except Exception:  # noqa: BLE001 - parsers raise what they like for what they cannot read
            return spoken, [RawCall("", spoken)]
        return content, [read_call({"name": name, "arguments": arguments}, arguments) for name, arguments in written]

    def _read_response(self, ids: Sequence[int], before: Sequence[int], tools: Tools) -> Reading:
        try:
            parsed = self._renderer.parse_response(ids, before, tools)
        except ValueError as error:  # of JSON that is cut off or broken
            return self._renderer.decode(ids), [RawCall("", f"{error}")]
        calls = [call.get("function", call) if isinstance(call, Mapping) else call for call in parsed.get("tool_calls") or []]
        return str(parsed.get("content") or ""), [read_call(call, str(call)) for call in calls]


def remove_thinking(text: str, opened: bool) -> str:
    """The text of a turn without its thinking. opened: the text begins within thinking, which ends with the text at the latest."""
    if END_OF_THINKING in text:
        return text[text.rindex(END_OF_THINKING) + len(END_OF_THINKING) :]
    return "" if opened else text.partition(THINK)[0]


def read_hermes(text: str) -> Reading:
    """Calls as Hermes and Qwen write them: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, the last one perhaps cut off."""
    calls = []
    for found in HERMES_CALL.finditer(text):
        try:
            calls.append(read_call(json.loads(found[1]), found[1].strip()))
        except (ValueError, RecursionError):
            calls.append(RawCall("", found[1].strip()))
    return HERMES_CALL.sub("", text).strip(), calls


def read_call(call: Any, text: str) -> RawCall:
    """A call from its object; `text`: what was written, for one that is none. Without arguments they are empty."""
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        return RawCall("", text)
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return RawCall(call["name"], arguments)
        arguments = parsed if isinstance(parsed, Mapping) else arguments
    return RawCall(call["name"], {} if arguments is None else arguments)


def build_call(number: int, call: RawCall) -> dict[str, Any]:
    """A call in OpenAI's form; arguments that are no object are their text."""
    arguments = call.arguments if isinstance(call.arguments, Mapping | str) else json.dumps(call.arguments)
    return {"id": name_call(number), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def choose_parser(renderer: Renderer) -> str:
    """How the calls of the model are read: by its tokenizer's response_template, or as Hermes writes them where its chat template does so,
    or writes none. Raises UserError for another form."""
    if renderer.response_template is not None:
        return RESPONSE_TEMPLATE
    call = RawCall("probe", {"value": "seen"})
    turn = {"role": "assistant", "content": "", "tool_calls": [build_call(0, call)]}
    schema = {"type": "function", "function": {"name": call.name, "description": "", "parameters": {"type": "object", "properties": {}}}}
    user = {"role": "user", "content": "u"}
    try:
        prompt = renderer.apply_chat_template([user], [schema], opened=True)
        text = renderer.apply_chat_template([user, turn], [schema], opened=False)
    except PromptRefused:
        return HERMES  # the template writes no calls, or refuses them: those of the policy stand in its text
    written = text[len(prompt) :] if text.startswith(prompt) else text[text.rfind("u") + 1 :]
    if call.arguments["value"] not in written or call in read_hermes(written)[1]:
        return HERMES
    raise UserError(
        f"environment.parser=auto does not know how {renderer.where} writes tool calls: its chat template writes {show(written, 200)}\n"
        "set environment.parser to the name of a tool parser of vLLM (llama3_json, mistral, qwen3_coder, ...), or put a response_template "
        "into its tokenizer_config.json"
    )
