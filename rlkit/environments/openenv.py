"""What an OpenEnv client sends and receives, as text: its actions and observations are classes of its environment.

Left out: rewards and metrics that only the server's state holds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

METHODS = ("reset", "step", "_step_payload", "_parse_result")  # by which a client is recognised
OF_RESULT = {"reward", "done", "metadata"}  # fields of an observation that are no part of what is observed


def find_action_type(kind: type) -> type:
    """The class of actions: the first parameter of the generic base, EnvClient[Action, Observation, State]; dict where it is not named."""
    for base in (base for own in kind.__mro__ for base in vars(own).get("__orig_bases__", ())):
        arguments = get_args(base)
        if len(arguments) == 3 and isinstance(arguments[0], type):
            return arguments[0]
    return dict


def build_action(kind: type, text: str) -> Any:
    """An action from a turn of the policy: its fields where the turn is a JSON object, else the text as its first field of text.

    Raises ValueError where the action takes no text, and whatever the class raises for fields that do not fit."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        return kind(**fields)
    if issubclass(kind, dict):
        return kind(message=text)
    names = [name for name, annotation in _list_fields(kind).items() if annotation in (str, "str") and name not in OF_RESULT]
    if not names:
        raise ValueError(f"a turn must be a JSON object with the fields of {kind.__name__}: {', '.join(_list_fields(kind))}")
    return kind(**{names[0]: text})


def read_observation(observation: Any) -> str:
    """The text of an observation: its only field of text, else all its fields as JSON."""
    if observation is None or isinstance(observation, str):
        return observation or ""
    if dataclasses.is_dataclass(observation) and not isinstance(observation, type):
        fields: Any = dataclasses.asdict(observation)
    else:
        fields = observation.model_dump() if hasattr(observation, "model_dump") else observation
    if not isinstance(fields, Mapping):
        return json.dumps(fields, ensure_ascii=False, default=str)
    shown = {name: value for name, value in fields.items() if name not in OF_RESULT and value is not None}
    texts = [value for value in shown.values() if isinstance(value, str) and value]
    return texts[0] if len(texts) == 1 else json.dumps(shown, ensure_ascii=False, default=str)


def _list_fields(kind: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return {name: field.annotation for name, field in getattr(kind, "model_fields", {}).items()}
