"""vLLM's readers of tool calls, by their names, in this process; importing vLLM takes seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlkit.errors import UserError

OWN = "auto, hermes, response_template"  # what is read without vLLM
Calls = tuple[str, list[tuple[str, str]]]  # the text beside the calls; name and arguments as JSON of each
Parser = Callable[[str, Sequence[Mapping[str, Any]]], Calls]  # of a turn's text and the schemas of the tools


def build_vllm_parser(name: str, tokenizer: Any) -> Parser:
    """Raises UserError where vLLM has no parser of this name, or it does not fit the tokenizer."""
    key = f"environment.parser={name}"
    try:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
        from vllm.tool_parsers import ToolParserManager
    except ImportError as error:
        raise UserError(f"{key} is a name of vLLM, which cannot be imported: {error}; without it: {OWN}") from error
    try:
        kind = ToolParserManager.get_tool_parser(name)
        kind(tokenizer)
    except KeyError:
        known = ", ".join(sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers}))
        raise UserError(f"{key}: vLLM has no tool parser of this name; valid: {OWN}, {known}") from None
    except Exception as error:  # each parser looks for tokens of its own
        raise UserError(f"{key}: the tool parser of vLLM does not fit the tokenizer of this model: {error}") from error
    logging.getLogger(kind.__module__).setLevel(logging.CRITICAL)  # it logs a traceback for each call that cannot be read

    def read(text: str, tools: Sequence[Mapping[str, Any]]) -> Calls:
        schemas: list[Any] = [ChatCompletionToolsParam.model_validate(schema) for schema in tools]
        request = ChatCompletionRequest.model_validate({"messages": [], "model": "policy", "tools": schemas})
        found = kind(tokenizer, schemas).extract_tool_calls(text, request)
        return found.content or "", [(call.function.name, call.function.arguments) for call in found.tool_calls]

    return read
