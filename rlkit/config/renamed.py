"""What an unknown key is called here: keys and values that were renamed, and keys of other toolkits (foreign_keys.py).

A table maps a key, dotted, to its new name; `*` is a name that the user chose.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from rlkit.config.foreign_keys import FOREIGN_KEYS, FOREIGN_KEYS_OFFLINE
from rlkit.errors import UserError

RENAMED_KEYS = {
    "engine.checkpointing": "engine.gradient_checkpointing",
    "report.floors": "report.roofline",
    "rewarding.deadline": "rewarding.timeout",
    "rewarding.load_deadline": "rewarding.load_timeout",
    "rewards.*.deadline": "rewards.*.timeout",
}
RENAMED_KEYS_OF_ALGORITHM = {  # of one shipped algorithm: a user's own class may have a key of the same name
    "dpo": {"algorithm.flipped": "algorithm.label_smoothing", "algorithm.gap": "algorithm.simpo_gamma"},
}
RENAMED_VALUES: dict[str, dict[Any, Any]] = {"engine.memory": {"slept": "sleep", "swapped": "sleep_and_offload"}}


def refuse_old_names(config: Mapping[str, Any]) -> None:
    """Raises UserError where a resolved configuration uses an old key or an old value: one line each, with the new name."""
    lines = [f"{old} is called {new} now" for old, new, _ in find_keys(config, select_table(config))]
    for key, values in RENAMED_VALUES.items():
        for old, new, value in find_keys(config, {key: key}):
            if isinstance(value, str) and value in values:
                lines.append(f"{old}={value} is called {new}={values[value]} now")
    if lines:
        raise UserError("\n".join(lines))


def select_table(config: Mapping[str, Any]) -> dict[str, str]:
    """The renamed keys that a configuration with its algorithm can have."""
    algorithm = config.get("algorithm")
    name = algorithm.get("name") if isinstance(algorithm, Mapping) else None
    return RENAMED_KEYS | RENAMED_KEYS_OF_ALGORITHM.get(str(name), {})


def rename_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration of before, with the names and values of now."""
    renamed = copy.deepcopy(dict(config))
    same = {key: key for key in RENAMED_VALUES}
    for old, new, value in [*_find_paths(config, select_table(config)), *_find_paths(config, same)]:
        values = RENAMED_VALUES.get(".".join(new), {})
        _find_section(renamed, old).pop(old[-1])
        _find_section(renamed, new)[new[-1]] = values.get(value, value) if isinstance(value, str) else value
    return renamed


def _find_section(config: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The mapping that holds the last key of a path, made where it is missing."""
    for name in path[:-1]:
        config = config.setdefault(name, {})
    return config


def refuse_old_key(key: str) -> None:
    """Raises UserError where one dotted key is an old one. For a key that no configuration holds: Hydra's `~key` takes one away."""
    table = RENAMED_KEYS | {old: new for keys in RENAMED_KEYS_OF_ALGORITHM.values() for old, new in keys.items()}
    nested: Any = {}
    for part in reversed(key.split(".")):
        nested = {part: nested}
    for old, new, _ in find_keys(nested, table):
        raise UserError(f"{old} is called {new} now")


def find_keys(config: Mapping[str, Any], table: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    """(key, its other name, its value) of each key of `table` that the configuration holds, with `*` filled in."""
    for old, new, value in _find_paths(config, table):
        yield ".".join(old), ".".join(new), value


def _find_paths(config: Mapping[str, Any], table: Mapping[str, str]) -> Iterator[tuple[list[str], list[str], Any]]:
    """As find_keys, with the parts of the keys."""
    for old, new in table.items():
        for names, value in _match(config, old.split(".")):
            chosen = [name for name, part in zip(names, old.split("."), strict=True) if part == "*"]
            yield names, [chosen.pop(0) if part == "*" else part for part in new.split(".")], value


def _match(config: Any, parts: list[str]) -> Iterator[tuple[list[str], Any]]:
    """The paths in a nested mapping that fit a pattern, each with its value."""
    if not parts:
        yield [], config
        return
    if not isinstance(config, Mapping):
        return
    for name in config if parts[0] == "*" else [parts[0]]:
        if name in config:
            for rest, value in _match(config[name], parts[1:]):
                yield [str(name), *rest], value


def answer_foreign_key(key: str, offline: bool = False) -> str | None:
    """`KEY (TRL) is OURS here`; None for a key of no toolkit. offline: the algorithm samples nothing.

    The beginning of a dotted key may be left out, where all keys that end like this have the same answer: rollout.n.
    """
    tables = [*(FOREIGN_KEYS_OFFLINE.items() if offline else ()), *FOREIGN_KEYS.items()]
    for project, table in tables:
        if key in table:
            return _format_answer(key, project, table[key])
    ending = [(project, ours) for project, table in tables for theirs, ours in table.items() if theirs.endswith(f".{key}")]
    if len({split_answer(ours)[0] for _, ours in ending}) != 1:
        return None
    return _format_answer(key, *ending[0])


def _format_answer(key: str, project: str, ours: str) -> str:
    name, note = split_answer(ours)
    return f"{key} ({project}) {f'is {name} here' if name else 'needs no key here'}" + (f": {note}" if note else "")


def split_answer(answer: str) -> tuple[str, str]:
    """An answer of foreign_keys.py as the keys that it names, empty where none is to be set, and its note."""
    if answer.startswith(": "):
        return "", answer.removeprefix(": ")
    name, _, note = answer.partition(": ") if "={" not in answer else (answer, "", "")
    return name, note
