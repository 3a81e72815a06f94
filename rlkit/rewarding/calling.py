"""Loads a reward function and calls it with the parameters that it has, so that functions of other toolkits run unchanged (forms.py).

A parameter after a `*`, or with a default other than None, is a setting: its value comes from the recipe's args, else from its default,
never from a column.
"""

from __future__ import annotations

import ast
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.forms import (
    ANSWER_NAMES,
    DATA_NAMES,
    FORMS_HELP,
    TRL,
    TRL_IDS,
    CallLog,
    Form,
    Item,
    build_trainer_arguments,
    detect_form,
)
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.python_functions import Parameters, find_registered
from rlkit.rewarding.resolve import RewardLocation, import_reward, locate_reward
from rlkit.rewarding.scores import Score, parse_scores


@dataclass(frozen=True)
class RewardFunction:
    """An imported reward function.

    names: its parameters. required: those without a default. settings: those that no column fills. takes_all: it has **columns. args: what
    the recipe passes to each call.
    """

    reward: WorkerReward
    function: Callable[..., Any]
    form: Form
    names: frozenset[str]
    required: frozenset[str]
    settings: frozenset[str]
    takes_all: bool
    args: Mapping[str, Any]

    @property
    def is_async(self) -> bool:
        """Whether several samples may run at the same time."""
        # the second: an object whose class has an async __call__
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(type(self.function).__call__)

    @property
    def from_trainer(self) -> frozenset[str]:
        """What it gets that is no column: the names in forms.TRAINER_NAMES."""
        named = self.names | ({"completion_ids", "trainer_state"} if self._has_trl_form and self.takes_all else set())
        return named | ({"prompt_text"} if "queries" in self.names else set())

    @property
    def _has_trl_form(self) -> bool:
        return self.form in (TRL, TRL_IDS)

    def call(self, items: Sequence[Item], log: CallLog) -> Any:
        """What the function returns for this sample (a list of one) or group; an awaitable where it is async. log: gets what it logs."""
        offered = self.form.build(items)
        from_trainer = build_trainer_arguments(items, batch=self.form.batch)
        if self._has_trl_form:
            from_trainer |= {"log_metric": log.log_metric, "log_extra": log.log_extra}
        offered |= from_trainer if self._has_trl_form else {name: value for name, value in from_trainer.items() if name in self.names}
        return self.function(**self._select_arguments(offered))

    def parse(self, returned: Any, log: CallLog, count: int) -> list[Score]:
        """The scores in what a call returned, one per item. Raises InvalidScore."""
        return parse_scores(self.form, returned, count, log.list_entries())

    def _select_arguments(self, offered: dict[str, Any]) -> dict[str, Any]:
        offered = {name: value for name, value in offered.items() if name not in self.settings} | dict(self.args)
        missing = sorted(self.required - offered.keys())
        if missing:
            columns = ", ".join(sorted(offered.keys() - {"log_metric", "log_extra"}))
            answer = ", set the column of answers with data.columns.answer" if ANSWER_NAMES & set(missing) else ""
            raise UserError(
                f"rewards.{self.reward.name} ({self.reward.path}) needs {', '.join(map(repr, missing))}, which the data row does not have "
                f"(it has: {columns}); add a column of that name to the data{answer}, or set rewards.{self.reward.name}.args"
            )
        return offered if self.takes_all else {name: value for name, value in offered.items() if name in self.names}


def load_function(reward: WorkerReward) -> RewardFunction:
    """Import a reward and recognise its form. Raises UserError where its parameters match no form, or its args do not fit them."""
    function: Callable[..., Any] = pickle.loads(reward.pickled) if reward.pickled else import_reward(reward.path)
    args, where = dict(reward.args), f"rewards.{reward.name} ({reward.path})"
    if inspect.isclass(function):
        function, args = _create_instance(function, args, where)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise UserError(f"{where} does not show its parameters; wrap it in a function of your own") from None
    if by_place := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]:
        raise UserError(f"{where} takes {', '.join(by_place)} by position only, and arguments are passed by name; remove the `/`")
    names = frozenset(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    required = frozenset(p.name for p in parameters if p.name in names and p.default is p.empty)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    form = detect_form(names)
    if form is None:
        raise UserError(
            f"rewards.{reward.name}: {reward.path} has the parameters ({', '.join(sorted(names))}); one form is needed: {FORMS_HELP}"
        )
    settings = frozenset(p.name for p in parameters if p.name in names and _is_setting(p)) if form.has_columns else frozenset()
    if unset := sorted(settings & required - args.keys()):
        raise UserError(
            f"{where} needs {', '.join(map(repr, unset))} in rewards.{reward.name}.args: a parameter after a `*` is a setting, "
            "which no column fills"
        )
    if not takes_all and (unknown := sorted(args.keys() - names)):
        raise UserError(
            f"{where} does not take {', '.join(map(repr, unknown))} of rewards.{reward.name}.args (it takes: {', '.join(sorted(names))})"
        )
    return RewardFunction(reward, function, form, names, required, settings, takes_all, args)


def _create_instance(kind: type, args: dict[str, Any], where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """An object of a class with __call__, made with those args that its __init__ names; and the args that are left for its calls."""
    if "__call__" not in {name for base in kind.__mro__ for name in vars(base)}:
        raise UserError(f"{where} is a class without __call__; add one, or name a function")
    wanted = {p.name: p for p in inspect.signature(kind).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if missing := [name for name, p in wanted.items() if p.default is p.empty and name not in args]:
        raise UserError(f"{where} needs {', '.join(map(repr, missing))} of its __init__ in args")
    instance = kind(**{name: value for name, value in args.items() if name in wanted})
    return instance, {name: value for name, value in args.items() if name not in wanted}


def needs_answer(path: str, args: Mapping[str, Any]) -> bool:
    """Whether the reward cannot run without an answer. Read from the source of its file; nothing is imported.

    False too where the source does not show it (a module, an object, a decorated function): such a reward fails when it is called without
    an answer. Raises UserError like locate_reward.
    """
    registered = find_registered(path)
    parameters = registered.parameters if registered else _read_parameters(locate_reward(path))
    form = detect_form(parameters.names) if parameters else None
    return parameters is not None and form is not None and bool(parameters.required & {"answer", *form.answers} - args.keys())


def _read_parameters(location: RewardLocation) -> Parameters | None:
    """The parameters of a function as its source shows them; None where it does not."""
    try:
        body = ast.parse(location.file.read_bytes()).body if location.file else []
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None  # the workers report it when they import the file
    found = _find_function(body, location.function)
    if found is None or found.decorator_list:
        return None
    signature = found.args
    positional = [argument.arg for argument in (*signature.posonlyargs, *signature.args)]
    required = {*positional[: len(positional) - len(signature.defaults)]}
    required |= {argument.arg for argument, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True) if default is None}
    return Parameters(frozenset({*positional, *(argument.arg for argument in signature.kwonlyargs)}), frozenset(required))


def _find_function(body: Sequence[ast.stmt], name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The definition of the function, or of the __call__ of the class."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in body if isinstance(node, (*kinds, ast.ClassDef)) and node.name == name]
    if not found:
        return None
    last = found[-1]
    return _find_function(last.body, "__call__") if isinstance(last, ast.ClassDef) else last


def _is_setting(parameter: inspect.Parameter) -> bool:
    has_value = parameter.default is not None and parameter.default is not parameter.empty
    return parameter.name not in DATA_NAMES and (has_value or parameter.kind is parameter.KEYWORD_ONLY)
