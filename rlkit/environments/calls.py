"""Validates the tool calls in a turn of the policy. A call that is wrong is answered with the reason; the run continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlkit.environments.schemas import find_wrong_argument
from rlkit.environments.texts import to_text
from rlkit.rewarding.resolve import suggest_names

MAX_CALLS = 16  # of one turn that are run
ERROR_CHARACTERS = 1000  # of what a tool raised


class BadCall(Exception):
    """A call that cannot be made; the message is its answer."""


def read_name(call: Any) -> str:
    """The name of the tool that is called; empty where there is none."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def read_arguments(call: Any, schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of a call, in OpenAI's form or {"name", "arguments"}. schemas: of the tools that may be called.

    Raises BadCall where it calls no tool, or with what it does not take."""
    name, known = read_name(call), f"the tools are {', '.join(schemas)}" if schemas else "there are no tools"
    if not name:
        raise BadCall(f"a tool call is a JSON object with a name and arguments; {known}")
    if name not in schemas:
        raise BadCall(f"there is no tool {name!r}{suggest_names(name, schemas)}; {known}")
    arguments = call.get("function", call).get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise BadCall(f"the arguments of {name} are not valid JSON: {error}") from None
    if arguments is None or arguments == "":  # templates leave them out where a tool has no parameters
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise BadCall(f"the arguments of {name} must be a JSON object, not {type(arguments).__name__}")
    if wrong := find_wrong_argument(schemas[name], arguments):
        raise BadCall(f"{name}: {wrong}")
    return dict(arguments)


def describe_exception(error: BaseException) -> str:
    """What the policy reads of an exception that a tool raised."""
    try:
        text = to_text(str(error))[:ERROR_CHARACTERS]
    except BaseException:  # noqa: BLE001 - methods of the error may raise anything
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def choose_tools(row: Mapping[str, Any], names: Mapping[str, Any] | None) -> tuple[list[str], tuple[Mapping[str, Any], ...] | None]:
    """The tools of a row: the names that may be called, and the schemas of the prompt where the row brings its own.

    names: the tools of the environment. Strings in the column `tools` choose among them, mappings are schemas. Raises ValueError for both
    together, and for names that it does not have."""
    listed, known = row.get("tools"), list(names or ())
    if isinstance(listed, str) and listed.lstrip().startswith("["):
        try:
            listed = json.loads(listed)
        except ValueError:
            listed = None
    if not isinstance(listed, (list, tuple)) or not listed:
        return known, None
    if all(isinstance(entry, str) for entry in listed):
        if unknown := [name for name in listed if name not in known]:
            raise ValueError(f"the column `tools` names {', '.join(unknown)}; the environment has {', '.join(known) or 'no tools'}")
        return list(listed), None
    if not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError(
            "the column `tools` holds names and schemas; names choose among the environment's tools, schemas replace them: not both"
        )
    shown = [read_name(entry) for entry in listed]
    return [name for name in known if name in shown], tuple(listed)
