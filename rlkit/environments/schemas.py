"""The JSON schemas of tools, made from their type hints and Google docstrings by transformers, and the check of arguments against them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rlkit.errors import UserError

TYPES: dict[str, tuple[type, ...]] = {  # of JSON schema -> of what json.loads makes of it; bool, which is an int, is checked apart
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
SHOWN_CHARACTERS = 40  # of a wrong value in a message


def build_schema(name: str, function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The schema of a tool. Raises UserError where it has no docstring, no type hints or one of a kind that has no schema."""
    from transformers.utils import chat_template_utils

    names = vars(chat_template_utils)
    known = names["is_torch_available"]
    try:
        if "torch" not in sys.modules:  # which it imports, 200 MB in a worker, to see whether a parameter is a tensor
            names["is_torch_available"] = lambda: False
        schema: dict[str, Any] = chat_template_utils.get_json_schema(function)
    except Exception as error:  # noqa: BLE001 - two classes of its own, and whatever the annotations of the user raise
        raise UserError(
            f"{where}: the tool {name} has no schema ({' '.join(str(error).split())}); a tool needs a docstring with a line for each "
            "parameter under `Args:`, and type hints; a method that is no tool begins with an underscore"
        ) from None
    finally:
        names["is_torch_available"] = known
    schema["function"]["name"] = name
    return schema


def find_wrong_argument(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """What is wrong with the arguments of a call, in words; empty where they fit. Only plain types are checked, what is inside is not."""
    parameters = schema["function"].get("parameters", {})
    properties, required = parameters.get("properties", {}), parameters.get("required", ())
    if unknown := [name for name in arguments if name not in properties]:
        return f"it takes no {', '.join(map(repr, unknown))}; {_describe_parameters(properties, required)}"
    if missing := [name for name in required if name not in arguments]:
        return f"it needs {', '.join(map(repr, missing))}; {_describe_parameters(properties, required)}"
    for name, value in arguments.items():
        kinds = properties[name].get("type")
        kinds = [kinds] if isinstance(kinds, str) else kinds
        may_be_null = name not in required or properties[name].get("nullable")
        if not isinstance(kinds, list) or not all(kind in TYPES for kind in kinds) or (value is None and may_be_null):
            continue
        if not any(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds):
            return f"{name} must be {' or '.join(kinds)}, not {json.dumps(value, ensure_ascii=False)[:SHOWN_CHARACTERS]}"
    return ""


def _describe_parameters(properties: Mapping[str, Any], required: Any) -> str:
    named = [name if name in required else f"{name} (optional)" for name in properties]
    return f"its parameters are {', '.join(named)}" if named else "it has no parameters"
