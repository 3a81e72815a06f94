"""Every key of a recipe as a table: type, valid values, unit, default and meaning, from the typed sections and the defaults in recipes/.

    python -m rlkit.config.keys > rlkit/docs/keys.md

Left out: the keys of a class of your own (algorithm=custom).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rlkit.algorithms import ALGORITHMS, OFFLINE
from rlkit.config.eval_section import EvalSetSection
from rlkit.config.recipe import Recipe
from rlkit.config.sections import LARGEST_COUNT, LARGEST_SEED, SourceSection
from rlkit.runtime.paths import find_bundled_folder

Schema = Mapping[str, Any]
TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "object": "mapping", "null": "null"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
UNLIMITED = (LARGEST_COUNT, LARGEST_SEED)  # what no library takes more of
REQUIRED = "required"
NAMED = (SourceSection.__name__, EvalSetSection.__name__)  # sections by name whose keys are listed below their description
GROUPS = {"model": "hf", "engine": "colocated", "rollout": "whole_step"}  # sections whose defaults are in the file of a group
INTRODUCTION = """\
# Keys

Every key of a recipe. Set one on the command line, `KEY=VALUE`, or in a recipe of your own; `rlkit keys WORD` prints those that speak of
WORD. Text in capitals is a name that you choose. A default is that of recipes/config.yaml; a recipe may set another one, and
`python -m rlkit.run recipe=grpo_math --cfg job` prints all values of one. This page is made by `python -m rlkit.config.keys`.
"""


@dataclass(frozen=True)
class KeyEntry:
    """A row of the table. algorithms: those that have the key; empty where all do."""

    key: str
    type: str
    unit: str
    default: str
    meaning: str
    algorithms: tuple[str, ...] = ()


def list_entries() -> list[KeyEntry]:
    """Every key, in the order of the typed recipe."""
    schema = Recipe.model_json_schema()
    entries = []
    for name, field in schema["properties"].items():
        if name == "algorithm":
            entries += list_algorithm_entries()
        else:
            entries += list(_walk(name, field, schema["$defs"], read_defaults().get(name, REQUIRED)))
    return entries


def list_algorithm_entries() -> list[KeyEntry]:
    """The keys of the section `algorithm`, one entry for those that several algorithms share."""
    found: dict[tuple[str, str, str, str], dict[str, str]] = {}  # what describes a key -> the default of each algorithm
    for name, kind in {**ALGORITHMS, **OFFLINE}.items():
        defaults = read_algorithm(name)
        for key, field in kind.model_json_schema()["properties"].items():
            if key != "name":
                entry = (f"algorithm.{key}", describe_type(field, {}), field.get("unit", ""), field["description"])
                found.setdefault(entry, {})[name] = format_value(defaults[key])
    names = KeyEntry("algorithm", " or ".join([*ALGORITHMS, *OFFLINE, "custom"]), "", "grpo", "which algorithm; its keys follow")
    entries = [KeyEntry(key, kind, unit, _join(own), text, tuple(own)) for (key, kind, unit, text), own in found.items()]
    return [names, *entries]


def read_defaults() -> dict[str, Any]:
    """recipes/config.yaml, with the sections of the groups."""
    folder = find_bundled_folder("recipes")
    groups = {group: yaml.safe_load((folder / group / f"{name}.yaml").read_text()) for group, name in GROUPS.items()}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return {**config, **groups, "data": {"train": "builtin@train", "test": "builtin@test", **config["data"]}}


def read_algorithm(name: str) -> dict[str, Any]:
    """The defaults of an algorithm, with those of the files that its own includes."""
    folder = find_bundled_folder("recipes") / "algorithm"
    own = yaml.safe_load((folder / f"{name}.yaml").read_text())
    shared = [yaml.safe_load((folder / f"{base}.yaml").read_text()) for base in own.get("defaults", ()) if base != "_offline"]
    return {key: value for part in [*shared, own.get("algorithm", own)] for key, value in part.items()}


def _walk(key: str, field: Schema, sections: Mapping[str, Schema], default: Any) -> Iterator[KeyEntry]:
    """The entry of a key, or those of the section that it holds."""
    inner = _find_section(field, sections)
    if "description" in field:
        yield KeyEntry(key, describe_type(field, sections), field.get("unit", ""), format_value(default), field["description"])
    if inner is None or ("description" in field and inner["title"] not in NAMED) or key == "data.test":
        return  # the keys of a source stand once, and those of data.columns too
    named = "additionalProperties" in json.dumps(field)
    for name, part in inner["properties"].items():
        own = part.get("default", REQUIRED) if not isinstance(default, Mapping) or named else default.get(name, part.get("default"))
        yield from _walk(f"{key}.NAME.{name}" if named else f"{key}.{name}", part, sections, own)


def _find_section(field: Schema, sections: Mapping[str, Schema]) -> Schema | None:
    """The section that a field holds, by itself or by name; None for a value."""
    for part in (field, *field.get("anyOf", ())):
        extra = part.get("additionalProperties")
        reference = part.get("$ref") or (extra.get("$ref") if isinstance(extra, Mapping) else None)
        if reference:
            return sections[reference.rpartition("/")[2]]
    return None


def describe_type(field: Schema, sections: Mapping[str, Schema]) -> str:
    """A JSON schema in words: `whole number, at least 1, or null`."""
    if "anyOf" in field:
        parts = [describe_type(part, sections) for part in field["anyOf"]]
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    if "$ref" in field:
        return describe_type(sections[field["$ref"].rpartition("/")[2]], sections)
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        parts = [describe_type(part, sections) for part in field.get("prefixItems", ())]
        return f"[{'; '.join(parts)}]" if parts else f"list of {describe_type(field['items'], sections)}"
    limits = [f"{word} {field[limit]:g}" for limit, word in LIMITS.items() if limit in field and field[limit] not in UNLIMITED]
    return ", ".join([TYPES[field.get("type", "object")], *limits])


def format_value(value: Any) -> str:
    """As it is written on a command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list | dict):
        inner = ", ".join(map(format_value, value)) if isinstance(value, list) else ", ".join(f"{k}: {v}" for k, v in value.items())
        return f"[{inner}]" if isinstance(value, list) else f"{{{inner}}}"
    return REQUIRED if value == "???" else f"{value:g}" if isinstance(value, float) else str(value)


def _join(own: Mapping[str, str]) -> str:
    """One default where all agree, else each with its algorithms."""
    values = list(dict.fromkeys(own.values()))
    if len(values) == 1:
        return values[0]
    return "; ".join(f"{value} ({', '.join(name for name in own if own[name] == value)})" for value in values)


def find_entries(word: str) -> list[KeyEntry]:
    """Those whose key or meaning holds a word; all without one."""
    return [entry for entry in list_entries() if word.lower() in f"{entry.key} {entry.meaning}".lower()]


def format_entry(entry: KeyEntry) -> str:
    """For a terminal."""
    unit = f" {entry.unit}" if entry.unit else ""
    return f"{entry.key}={entry.default}{unit}\n    {entry.type}\n    {entry.meaning}{format_owners(entry)}"


def format_owners(entry: KeyEntry) -> str:
    """The algorithms that have a key, in brackets; empty for a key of every run."""
    if not entry.algorithms:
        return ""
    return " (of all that sample)" if set(entry.algorithms) == set(ALGORITHMS) else f" (of {', '.join(entry.algorithms)})"


def format_page() -> str:
    """The page rlkit/docs/keys.md."""
    sections: dict[str, list[KeyEntry]] = {"general": []}
    for entry in list_entries():
        sections.setdefault(entry.key.partition(".")[0] if "." in entry.key or entry.key == "algorithm" else "general", []).append(entry)
    lines = [INTRODUCTION]
    for section, entries in sections.items():
        lines.append(f"## {section}\n\n| key | value | unit | default | what it does |\n|---|---|---|---|---|")
        lines += ["| " + " | ".join(_format_cells(entry)) + " |" for entry in entries] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _format_cells(entry: KeyEntry) -> list[str]:
    default = entry.default if entry.default == REQUIRED else f"`{entry.default}`"
    cells = [f"`{entry.key}`", entry.type, entry.unit, default, entry.meaning + format_owners(entry)]
    return [cell.replace("|", "\\|") for cell in cells]


if __name__ == "__main__":
    print(format_page(), end="")
