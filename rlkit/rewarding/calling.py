"""Calling a reward function by the parameters it has, so that functions written for other toolkits run unchanged.

ours     f(prompt, completion, answer, **columns) -> float | dict | None              one sample
verl     f(data_source, solution_str, ground_truth, extra_info) -> float | dict       one sample
EasyR1   f(reward_input) -> dict, f(reward_inputs) -> list of dicts                   one sample, a group
TRL      f(prompts, completions, **columns) -> list of float | None                   a group

A parameter after a `*`, or with a default other than None, is a setting: the recipe's args fill it, else its default, never a column.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.spec import RewardSpec, locate, resolve

Item = Mapping[str, Any]
Score = tuple[float | None, dict[str, float]]  # None: does not apply; the dict: entries to log

SCORE_KEYS = ("score", "reward", "overall")  # ours and verl's, ours, EasyR1's
DATA_NAMES = {  # what is data wherever a parameter of that name stands and whatever its default
    *("prompt", "completion", "answer", "completion_length", "stop", "prompts", "completions"),
    *("data_source", "solution_str", "ground_truth", "extra_info", "reward_input", "reward_inputs"),
}
ANSWERS_OF_FORM = {"verl": ("ground_truth",), "easyr1": ("reward_input",), "easyr1_batch": ("reward_inputs",)}  # beside `answer`
WITHOUT_COLUMNS = ("easyr1", "easyr1_batch")  # forms in which columns are entries of the one argument
FORMS = "completion (one sample), completions (a group, TRL), solution_str and ground_truth (verl), reward_input or reward_inputs (EasyR1)"


class BadScore(Exception):
    """A reward function returned something that is no score."""


@dataclass(frozen=True)
class Reward:
    """A resolved reward function. batch: it takes whole groups. is_async: several samples may be under way at once."""

    spec: RewardSpec
    function: Callable[..., Any]
    form: str
    names: frozenset[str]
    required: frozenset[str]
    settings: frozenset[str]  # parameters that no column fills
    takes_all: bool

    @property
    def batch(self) -> bool:
        return self.form in ("trl", "easyr1_batch")

    @property
    def is_async(self) -> bool:
        # the second: an object whose class has an async __call__
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(type(self.function).__call__)

    def call(self, items: Sequence[Item]) -> Any:
        """What the function returns for this sample (a list of one) or group; an awaitable where it is async."""
        return self.function(**self._chosen(_FORM_ARGUMENTS[self.form](items)))

    def _chosen(self, offered: dict[str, Any]) -> dict[str, Any]:
        offered = {name: value for name, value in offered.items() if name not in self.settings} | dict(self.spec.args)
        missing = sorted(self.required - offered.keys())
        if missing:
            columns = ", ".join(sorted(offered))
            answer = ", name the column of answers with data.columns.answer" if {"answer", "ground_truth"} & set(missing) else ""
            raise UserError(
                f"rewards.{self.spec.name} ({self.spec.path}) needs {', '.join(map(repr, missing))}, which the data row does not have "
                f"(it has: {columns}); give the data a column of that name{answer}, or set rewards.{self.spec.name}.args"
            )
        return offered if self.takes_all else {name: value for name, value in offered.items() if name in self.names}


def load(spec: RewardSpec) -> Reward:
    """Import a reward and recognise its form. Raises UserError where the parameters fit none, or a setting is not set."""
    function = resolve(spec.path)
    parameters = inspect.signature(function).parameters.values()
    names = frozenset(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    required = frozenset(p.name for p in parameters if p.name in names and p.default is p.empty)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    form = _form(names)
    if form is None:
        raise UserError(f"rewards.{spec.name}: {spec.path} has the parameters ({', '.join(sorted(names))}); one form asks for: {FORMS}")
    settings = frozenset(p.name for p in parameters if p.name in names and _is_setting(p)) if form not in WITHOUT_COLUMNS else frozenset()
    unset = sorted(settings & required - spec.args.keys())
    if unset:
        raise UserError(
            f"rewards.{spec.name} ({spec.path}) needs {', '.join(map(repr, unset))} in rewards.{spec.name}.args: "
            "a parameter after a `*` is a setting, which no column fills"
        )
    return Reward(spec, function, form, names, required, settings, takes_all)


def asks_answer(path: str, args: Mapping[str, Any]) -> bool:
    """Whether the reward cannot do without an answer, read from its file: nothing is imported here. False too where the file does not say
    (a module, an object, a decorated function): such a reward is refused when it is called and the answer is missing.

    Raises UserError as locate does.
    """
    target = locate(path)
    try:
        body = ast.parse(target.file.read_bytes()).body if target.file else []
    except (OSError, SyntaxError):
        return False  # told when the workers import it
    functions = [node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == target.function]
    if not functions or functions[-1].decorator_list:
        return False
    given = functions[-1].args
    by_place = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    required = {*by_place[: len(by_place) - len(given.defaults)]}
    required |= {argument.arg for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None}
    form = _form(frozenset({*by_place, *(argument.arg for argument in given.kwonlyargs)}))
    return form is not None and bool(required & {"answer", *ANSWERS_OF_FORM.get(form, ())} - args.keys())


def read_scores(reward: Reward, returned: Any, count: int) -> list[Score]:
    """The scores in what a function returned, one an item. Raises BadScore in words where it is no score or the number is wrong."""
    if not reward.batch:
        return [_read(returned)]
    if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__") or not hasattr(returned, "__iter__"):
        raise BadScore(f"a group of {count} needs a list of {count} scores, it returned {_show(returned)}")
    if len(returned) != count:
        raise BadScore(f"a group of {count} needs {count} scores, it returned {len(returned)}")
    return [_read(value) for value in returned]


def _form(names: frozenset[str]) -> str | None:
    table = {
        "verl": {"solution_str", "ground_truth"},
        "easyr1_batch": {"reward_inputs"},
        "easyr1": {"reward_input"},
        "trl": {"completions"},
        "ours": {"completion"},
    }
    return next((form for form, marks in table.items() if marks <= names), None)


def _is_setting(parameter: inspect.Parameter) -> bool:
    by_default = parameter.default is not None and parameter.default is not parameter.empty
    return parameter.name not in DATA_NAMES and (by_default or parameter.kind is parameter.KEYWORD_ONLY)


def _ours(items: Sequence[Item]) -> dict[str, Any]:
    return dict(items[0])


def _verl(items: Sequence[Item]) -> dict[str, Any]:
    columns = {name: value for name, value in items[0].items() if name != "completion"}
    extra = columns.get("extra_info", columns)
    own = {"data_source": columns.get("data_source", ""), "solution_str": items[0]["completion"], "extra_info": extra}
    return columns | _ground_truth(columns) | own


def _easyr1_one(item: Item) -> dict[str, Any]:
    own = {"response": item["completion"], "response_length": item.get("completion_length", len(item["completion"]))}
    return dict(item) | _ground_truth(item) | own


def _ground_truth(item: Item) -> dict[str, Any]:
    name = "ground_truth" if "ground_truth" in item else "answer"
    return {"ground_truth": item[name]} if name in item else {}


def _trl(items: Sequence[Item]) -> dict[str, Any]:
    columns = sorted({name for item in items for name in item} - {"prompt", "completion"})
    rows: dict[str, Any] = {name: [item.get(name) for item in items] for name in columns}
    rows["prompts"] = [item.get("prompt") for item in items]
    rows["completions"] = [_as_trl_has_it(item) for item in items]
    return rows


def _as_trl_has_it(item: Item) -> Any:
    spoken = isinstance(item.get("prompt"), list)  # a conversation is answered by messages, a text by a text
    return [{"role": "assistant", "content": item["completion"]}] if spoken else item["completion"]


_FORM_ARGUMENTS: dict[str, Callable[[Sequence[Item]], dict[str, Any]]] = {
    "ours": _ours,
    "verl": _verl,
    "easyr1": lambda items: {"reward_input": _easyr1_one(items[0])},
    "easyr1_batch": lambda items: {"reward_inputs": [_easyr1_one(item) for item in items]},
    "trl": _trl,
}


def _read(returned: Any) -> Score:
    if not isinstance(returned, Mapping):
        return _number(returned), {}
    key = next((key for key in SCORE_KEYS if key in returned), None)
    if key is None:
        raise BadScore(f"a dict needs one of the entries {', '.join(SCORE_KEYS)}, it has {', '.join(map(str, returned)) or 'none'}")
    others = {str(name): float(value) for name, value in returned.items() if name != key and _is_number(value) and math.isfinite(value)}
    return _number(returned[key]), others


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise BadScore(f"a score is a number or None, it returned {_show(value)}")
    score = float(value)
    if not math.isfinite(score):
        raise BadScore(f"a score must be finite, it returned {score}")
    return score


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return True
    # numpy and torch scalars, without importing either: they turn into a float and have no axes
    return hasattr(value, "__float__") and not isinstance(value, (str, bytes)) and getattr(value, "shape", ()) == ()


def _show(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"
