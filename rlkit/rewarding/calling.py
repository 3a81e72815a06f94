"""Calls a reward function with the parameters that it has, so that functions written for other toolkits run unchanged.

rlkit    f(prompt, completion, answer, **columns) -> float | dict | None              one sample
verl     f(data_source, solution_str, ground_truth, extra_info) -> float | dict       one sample
EasyR1   f(reward_input) -> dict, f(reward_inputs) -> list of dicts                   one sample, a group
TRL      f(prompts, completions, **columns) -> list of float | None                   a group

A parameter after a `*`, or with a default other than None, is a setting: its value comes from the recipe's args, else from its default,
never from a column.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.resolve import import_reward, locate_reward

Item = Mapping[str, Any]
Score = tuple[float | None, dict[str, float]]  # None: not applicable; the dict: entries to log

SCORE_KEYS = ("score", "reward", "overall")  # of rlkit and verl, of rlkit, of EasyR1
DATA_NAMES = {  # parameters of these names are data, wherever they stand and whatever their default
    *("prompt", "completion", "answer", "completion_length", "stop", "prompts", "completions"),
    *("data_source", "solution_str", "ground_truth", "extra_info", "reward_input", "reward_inputs"),
}
FORM_PARAMETERS = {  # the parameters by which a form is recognised, in this order
    "verl": {"solution_str", "ground_truth"},
    "easyr1_batch": {"reward_inputs"},
    "easyr1": {"reward_input"},
    "trl": {"completions"},
    "rlkit": {"completion"},
}
FORM_ANSWERS = {"verl": ("ground_truth",), "easyr1": ("reward_input",), "easyr1_batch": ("reward_inputs",)}  # in addition to `answer`
FORMS_WITHOUT_COLUMNS = ("easyr1", "easyr1_batch")  # here columns are entries of the one argument
FORMS_HELP = (
    "completion (one sample), completions (a group, TRL), solution_str and ground_truth (verl), reward_input or reward_inputs (EasyR1)"
)
SHOWN_CHARACTERS = 80  # of a returned value in a message


class InvalidScore(Exception):
    """A reward function returned something that is not a score."""


@dataclass(frozen=True)
class RewardFunction:
    """An imported reward function.

    names: its parameters. required: those without a default. settings: those that no column fills. takes_all: it has **columns.
    """

    reward: WorkerReward
    function: Callable[..., Any]
    form: str
    names: frozenset[str]
    required: frozenset[str]
    settings: frozenset[str]
    takes_all: bool

    @property
    def batch(self) -> bool:
        """Whether it takes whole groups."""
        return self.form in ("trl", "easyr1_batch")

    @property
    def is_async(self) -> bool:
        """Whether several samples may run at the same time."""
        # the second: an object whose class has an async __call__
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(type(self.function).__call__)

    def call(self, items: Sequence[Item]) -> Any:
        """What the function returns for this sample (a list of one) or group; an awaitable where it is async."""
        return self.function(**self._select_arguments(_BUILD_ARGUMENTS[self.form](items)))

    def _select_arguments(self, offered: dict[str, Any]) -> dict[str, Any]:
        offered = {name: value for name, value in offered.items() if name not in self.settings} | dict(self.reward.args)
        missing = sorted(self.required - offered.keys())
        if missing:
            columns = ", ".join(sorted(offered))
            answer = ", set the column of answers with data.columns.answer" if {"answer", "ground_truth"} & set(missing) else ""
            raise UserError(
                f"rewards.{self.reward.name} ({self.reward.path}) needs {', '.join(map(repr, missing))}, which the data row does not have "
                f"(it has: {columns}); add a column of that name to the data{answer}, or set rewards.{self.reward.name}.args"
            )
        return offered if self.takes_all else {name: value for name, value in offered.items() if name in self.names}


def load_function(reward: WorkerReward) -> RewardFunction:
    """Import a reward and recognise its form. Raises UserError where its parameters match no form, or a required setting is not set."""
    function = import_reward(reward.path)
    parameters = inspect.signature(function).parameters.values()
    names = frozenset(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    required = frozenset(p.name for p in parameters if p.name in names and p.default is p.empty)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    form = _detect_form(names)
    if form is None:
        raise UserError(
            f"rewards.{reward.name}: {reward.path} has the parameters ({', '.join(sorted(names))}); one form is needed: {FORMS_HELP}"
        )
    has_settings = form not in FORMS_WITHOUT_COLUMNS
    settings = frozenset(p.name for p in parameters if p.name in names and _is_setting(p)) if has_settings else frozenset()
    unset = sorted(settings & required - reward.args.keys())
    if unset:
        raise UserError(
            f"rewards.{reward.name} ({reward.path}) needs {', '.join(map(repr, unset))} in rewards.{reward.name}.args: "
            "a parameter after a `*` is a setting, which no column fills"
        )
    return RewardFunction(reward, function, form, names, required, settings, takes_all)


def needs_answer(path: str, args: Mapping[str, Any]) -> bool:
    """Whether the reward cannot run without an answer. Read from the source of its file; nothing is imported.

    False too where the source does not show it (a module, an object, a decorated function): such a reward fails when it is called without
    an answer. Raises UserError like locate_reward.
    """
    location = locate_reward(path)
    try:
        body = ast.parse(location.file.read_bytes()).body if location.file else []
    except (OSError, SyntaxError):
        return False  # the workers report it when they import the file
    functions = [node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == location.function]
    if not functions or functions[-1].decorator_list:
        return False
    signature = functions[-1].args
    positional = [argument.arg for argument in (*signature.posonlyargs, *signature.args)]
    required = {*positional[: len(positional) - len(signature.defaults)]}
    required |= {argument.arg for argument, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if default is None}
    form = _detect_form(frozenset({*positional, *(argument.arg for argument in signature.kwonlyargs)}))
    return form is not None and bool(required & {"answer", *FORM_ANSWERS.get(form, ())} - args.keys())


def parse_scores(function: RewardFunction, returned: Any, count: int) -> list[Score]:
    """The scores in what a function returned, one per item. Raises InvalidScore where it is not a score, or where the number is wrong."""
    if not function.batch:
        return [_parse_score(returned)]
    if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__") or not hasattr(returned, "__iter__"):
        raise InvalidScore(f"a group of {count} needs a list of {count} scores, it returned {_format_value(returned)}")
    if len(returned) != count:
        raise InvalidScore(f"a group of {count} needs {count} scores, it returned {len(returned)}")
    return [_parse_score(value) for value in returned]


def _detect_form(names: frozenset[str]) -> str | None:
    return next((form for form, parameters in FORM_PARAMETERS.items() if parameters <= names), None)


def _is_setting(parameter: inspect.Parameter) -> bool:
    has_value = parameter.default is not None and parameter.default is not parameter.empty
    return parameter.name not in DATA_NAMES and (has_value or parameter.kind is parameter.KEYWORD_ONLY)


def _build_rlkit_arguments(items: Sequence[Item]) -> dict[str, Any]:
    return dict(items[0])


def _build_verl_arguments(items: Sequence[Item]) -> dict[str, Any]:
    columns = {name: value for name, value in items[0].items() if name != "completion"}
    extra = columns.get("extra_info", columns)
    own = {"data_source": columns.get("data_source", ""), "solution_str": items[0]["completion"], "extra_info": extra}
    return columns | _select_ground_truth(columns) | own


def _build_easyr1_input(item: Item) -> dict[str, Any]:
    own = {"response": item["completion"], "response_length": item.get("completion_length", len(item["completion"]))}
    return dict(item) | _select_ground_truth(item) | own


def _select_ground_truth(item: Item) -> dict[str, Any]:
    name = "ground_truth" if "ground_truth" in item else "answer"
    return {"ground_truth": item[name]} if name in item else {}


def _build_trl_arguments(items: Sequence[Item]) -> dict[str, Any]:
    columns = sorted({name for item in items for name in item} - {"prompt", "completion"})
    rows: dict[str, Any] = {name: [item.get(name) for item in items] for name in columns}
    rows["prompts"] = [item.get("prompt") for item in items]
    rows["completions"] = [_to_trl_completion(item) for item in items]
    return rows


def _to_trl_completion(item: Item) -> Any:
    """A list of messages where the prompt is one, else the text."""
    conversational = isinstance(item.get("prompt"), list)
    return [{"role": "assistant", "content": item["completion"]}] if conversational else item["completion"]


_BUILD_ARGUMENTS: dict[str, Callable[[Sequence[Item]], dict[str, Any]]] = {
    "rlkit": _build_rlkit_arguments,
    "verl": _build_verl_arguments,
    "easyr1": lambda items: {"reward_input": _build_easyr1_input(items[0])},
    "easyr1_batch": lambda items: {"reward_inputs": [_build_easyr1_input(item) for item in items]},
    "trl": _build_trl_arguments,
}


def _parse_score(returned: Any) -> Score:
    if not isinstance(returned, Mapping):
        return _parse_number(returned), {}
    key = next((key for key in SCORE_KEYS if key in returned), None)
    if key is None:
        raise InvalidScore(f"a dict needs one of the entries {', '.join(SCORE_KEYS)}, it has {', '.join(map(str, returned)) or 'none'}")
    others = {str(name): float(value) for name, value in returned.items() if name != key and _is_number(value) and math.isfinite(value)}
    return _parse_number(returned[key]), others


def _parse_number(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise InvalidScore(f"a score is a number or None, it returned {_format_value(value)}")
    score = float(value)
    if not math.isfinite(score):
        raise InvalidScore(f"a score must be finite, it returned {score}")
    return score


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return True
    # numpy and torch scalars, without importing either: they convert to a float and have no dimensions
    return hasattr(value, "__float__") and not isinstance(value, (str, bytes)) and getattr(value, "shape", ()) == ()


def _format_value(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:SHOWN_CHARACTERS]}{'...' if len(text) > SHOWN_CHARACTERS else ''}"
