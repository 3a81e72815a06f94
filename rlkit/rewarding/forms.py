"""The forms of reward functions: how each is recognised by its parameters, and which arguments it gets.

rlkit      f(prompt, completion, answer, **columns) -> number | dict | None                     one sample
TRL        f(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns) -> list     a group
verl       f(data_source, solution_str, ground_truth, extra_info) -> number | dict              one sample
           f(data_sources, solution_strs, ground_truths, extra_infos) -> list                   a group
OpenRLHF   f(queries, prompts, labels) -> list | dict of lists                                  a group
EasyR1     f(reward_input) -> dict, f(reward_inputs) -> list of dicts                           one sample, a group
           f(predict, ground_truth), f(predicts, ground_truths): its older forms                one sample, a group
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Item = Mapping[str, Any]

# What the trainer knows of a sample beside its data row: no column, so `**columns` does not get it (TRL's does).
TRAINER_NAMES = ("completion_ids", "trainer_state", "prompt_text")
DATA_NAMES = {  # parameters of these names are data, wherever they stand and whatever their default
    *("prompt", "completion", "answer", "completion_length", "stop", "prompts", "completions"),
    *("completion_ids", "trainer_state", "log_metric", "log_extra"),
    *("data_source", "solution_str", "ground_truth", "extra_info"),
    *("data_sources", "solution_strs", "ground_truths", "extra_infos"),
    *("queries", "labels", "reward_input", "reward_inputs", "predict", "predict_str", "predicts"),
}
ANSWER_NAMES = {"answer", "ground_truth", "ground_truths", "labels"}


@dataclass(frozen=True)
class Form:
    """How functions of one kind are recognised and called.

    parameters: those by which it is recognised. build: from the items of a call to its arguments. batch: whether a call gets a group.
    answers: the parameters in addition to `answer` that hold the answer. has_columns: columns are arguments, not entries of one argument.
    """

    parameters: frozenset[str]
    build: Callable[[Sequence[Item]], dict[str, Any]]
    batch: bool = False
    answers: tuple[str, ...] = ()
    has_columns: bool = True


@dataclass(frozen=True)
class TrainerState:
    """The part of transformers' TrainerState that there is in a run: finished steps, and all steps."""

    global_step: int = 0
    max_steps: int = 0


class CallLog:
    """What a function logs by TRL's log_metric and log_extra: for each sample of the call the values of each name."""

    def __init__(self, count: int) -> None:
        self._values: list[dict[Any, list[Any]]] = [{} for _ in range(count)]

    def log_metric(self, name: Any, value: Any) -> None:
        """A number of the whole call."""
        self.log_extra(name, [value] * len(self._values))

    def log_extra(self, column: Any, values: Sequence[Any]) -> None:
        """One value for each sample."""
        for own, value in zip(self._values, values, strict=False):
            own.setdefault(column, []).append(value)

    def list_entries(self) -> list[dict[Any, list[Any]]]:
        return self._values


def detect_form(names: frozenset[str]) -> Form | None:
    """The first form whose parameters are all among these names."""
    return next((form for form in FORMS if form.parameters <= names), None)


def _build_rlkit_arguments(items: Sequence[Item]) -> dict[str, Any]:
    return _get_columns(items[0]) | {"completion": items[0]["completion"]}


def _build_verl_arguments(items: Sequence[Item]) -> dict[str, Any]:
    columns = _get_columns(items[0])
    own = {"data_source": columns.get("data_source", ""), "extra_info": columns.get("extra_info", columns)}
    return columns | _select_ground_truth(columns) | own | {"solution_str": items[0]["completion"]}


def _build_verl_batch_arguments(items: Sequence[Item]) -> dict[str, Any]:
    each = [_build_verl_arguments([item]) for item in items]
    names = {"data_source": "data_sources", "solution_str": "solution_strs", "ground_truth": "ground_truths", "extra_info": "extra_infos"}
    own = {plural: [one[name] for one in each] for name, plural in names.items() if all(name in one for one in each)}
    return _list_columns(items) | own


def _build_openrlhf_arguments(items: Sequence[Item]) -> dict[str, Any]:
    prompts = [_get_prompt_text(item) for item in items]
    own: dict[str, Any] = {"prompts": prompts, "queries": [text + item["completion"] for text, item in zip(prompts, items, strict=True)]}
    labels = [_select_ground_truth(item).get("ground_truth") for item in items]
    return _list_columns(items) | own | ({} if None in labels else {"labels": labels})


def _build_easyr1_input(item: Item) -> dict[str, Any]:
    own = {"response": item["completion"], "response_length": item.get("completion_length", len(item["completion"]))}
    return _get_columns(item) | _select_ground_truth(item) | own | {"completion": item["completion"]}


def _build_predict_arguments(items: Sequence[Item]) -> dict[str, Any]:
    text = items[0]["completion"]
    return _get_columns(items[0]) | _select_ground_truth(items[0]) | {"predict": text, "predict_str": text}


def _build_predicts_arguments(items: Sequence[Item]) -> dict[str, Any]:
    return _build_verl_batch_arguments(items) | {"predicts": [item["completion"] for item in items]}


def _build_trl_arguments(items: Sequence[Item]) -> dict[str, Any]:
    rows = _list_columns(items)
    rows["prompts"] = [item.get("prompt") for item in items]
    rows["completions"] = [_to_trl_completion(item) for item in items]
    return rows


def build_trainer_arguments(items: Sequence[Item], *, batch: bool) -> dict[str, Any]:
    """The arguments of TRL that are no columns: completion_ids (a list of ids; for a group one of them each), trainer_state."""
    known: dict[str, Any] = {}
    if all("completion_ids" in item for item in items):
        each = [list(item["completion_ids"]) for item in items]
        known["completion_ids"] = each if batch else each[0]
    if "trainer_state" in items[0]:
        known["trainer_state"] = TrainerState(**items[0]["trainer_state"])
    return known


def _get_columns(item: Item) -> dict[str, Any]:
    """What an item holds beside its completion and what only the trainer knows."""
    return {name: value for name, value in item.items() if name != "completion" and name not in TRAINER_NAMES}


def _list_columns(items: Sequence[Item]) -> dict[str, Any]:
    """The columns of a group, each as a list."""
    names = sorted({name for item in items for name in _get_columns(item)} - {"prompt"})
    return {name: [item.get(name) for item in items] for name in names}


def _select_ground_truth(item: Item) -> dict[str, Any]:
    name = "ground_truth" if "ground_truth" in item else "answer"
    return {"ground_truth": item[name]} if name in item else {}


def _get_prompt_text(item: Item) -> str:
    """The prompt as the policy reads it, with its chat template; without a model (`rlkit reward try`) the text of its messages."""
    prompt = item.get("prompt_text", item.get("prompt", ""))
    return prompt if isinstance(prompt, str) else "\n".join(str(message.get("content")) for message in prompt)


def _to_trl_completion(item: Item) -> Any:
    """A list of messages where the prompt is one, else the text."""
    conversational = isinstance(item.get("prompt"), list)
    return [{"role": "assistant", "content": item["completion"]}] if conversational else item["completion"]


OPENRLHF = Form(frozenset({"queries", "prompts"}), _build_openrlhf_arguments, batch=True, answers=("labels",))
TRL = Form(frozenset({"completions"}), _build_trl_arguments, batch=True)
TRL_IDS = Form(frozenset({"completion_ids"}), _build_trl_arguments, batch=True)  # TRL's functions may leave out the others
FORMS = (  # in the order in which they are tried
    Form(frozenset({"solution_str", "ground_truth"}), _build_verl_arguments, answers=("ground_truth",)),
    Form(frozenset({"solution_strs", "ground_truths"}), _build_verl_batch_arguments, batch=True, answers=("ground_truths",)),
    Form(
        frozenset({"reward_inputs"}),
        lambda items: {"reward_inputs": [_build_easyr1_input(item) for item in items]},
        batch=True,
        answers=("reward_inputs",),
        has_columns=False,
    ),
    Form(
        frozenset({"reward_input"}),
        lambda items: {"reward_input": _build_easyr1_input(items[0])},
        answers=("reward_input",),
        has_columns=False,
    ),
    OPENRLHF,
    Form(frozenset({"predict", "ground_truth"}), _build_predict_arguments, answers=("ground_truth",)),
    Form(frozenset({"predict_str", "ground_truth"}), _build_predict_arguments, answers=("ground_truth",)),
    Form(frozenset({"predicts", "ground_truths"}), _build_predicts_arguments, batch=True, answers=("ground_truths",)),
    TRL,
    Form(frozenset({"completion"}), _build_rlkit_arguments),
    TRL_IDS,
)
FORMS_HELP = (
    "completion (one sample), completions (a group, TRL), solution_str and ground_truth, or solution_strs and ground_truths (verl), "
    "queries and prompts (OpenRLHF), reward_input, reward_inputs, or predict and ground_truth (EasyR1)"
)
