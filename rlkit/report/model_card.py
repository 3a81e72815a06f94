"""README.md of an exported model, in the form of the Hugging Face hub: what it was trained from, on what, how, with what result.

It repeats facts of the run's audit, environment.json, recipe.yaml and metrics.jsonl that are equal in equal runs, so that their models are
equal file by file. Who ran it, where and when is in the audit alone: a model is handed on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import UserError
from rlkit.report.audit import AUDIT
from rlkit.report.console import escape_control, format_number
from rlkit.report.folder import METRICS, read_metrics
from rlkit.report.names import find_set_accuracies
from rlkit.runtime.model_path import is_hub_name

MODEL_CARD = "README.md"
HELD_OUT = ("eval/accuracy", "eval/reward", "eval/loss")


def build_model_card(run: Path, step: int) -> str:
    """The text for the model after `step` of the run in this folder. Raises OSError."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    environment = json.loads((run / "environment.json").read_bytes())
    inputs = read_inputs(run)
    base, algorithm = str(recipe["model"]["path"]), recipe["algorithm"]["name"]
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["rlkit", algorithm]}
    of_hub = "/" in base and is_hub_name(base) and not Path(base).exists()
    if of_hub:
        head["base_model"] = base
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    git = environment["git"] or {}
    code = [("commit of rlkit", f"{git['commit']}{', with changes' if git['dirty'] else ''}")] if git.get("commit") else []
    facts = [
        ("base model", base if of_hub else Path(base).name),
        *(("digest of " + name, digest) for name, digest in list_digests(inputs.get("models", {}))),
        ("algorithm", algorithm),
        ("recipe", f"{recipe.get('recipe')}, digest {inputs.get('recipe', 'unknown')}"),
        ("seed", str(recipe["seed"])),
        ("steps", str(step)),
        *(("data, " + name, digest) for name, digest in list_digests(inputs.get("data", {}))),
        *(("reward " + name, digest) for name, digest in inputs.get("rewards", {}).items()),
        *list_results(run, step),
        *code,
        ("versions", versions),
    ]
    rows = "\n".join(f"| {escape_cell(name)} | {escape_cell(value)} |" for name, value in facts)
    front = yaml.safe_dump(head, sort_keys=False)
    return f"---\n{front}---\n\n# A model trained by rlkit\n\nDigests are BLAKE3.\n\n| | |\n|---|---|\n{rows}\n"


def read_inputs(run: Path) -> Mapping[str, Any]:
    """What the last start or resume of a run read, by its audit; empty without one."""
    found: Mapping[str, Any] = {}
    try:
        lines = (run / AUDIT).read_bytes().splitlines()
    except OSError:
        return found
    for line in lines:
        if b'"inputs"' in line:
            found = json.loads(line).get("inputs", found)
    return found


def list_digests(files: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for group, digests in files.items():
        for name, digest in digests.items():
            yield f"{group} {name}", digest


def list_results(run: Path, step: int) -> Iterator[tuple[str, str]]:
    """What was measured on held-out rows before training, and at or last before `step`; nothing of metrics.jsonl that is damaged."""
    try:
        rows = [row for row in read_metrics(run / METRICS) if row["step"] <= step]
    except (OSError, UserError):
        return
    sets = dict.fromkeys(f"eval/{name}/accuracy" for row in rows for name in find_set_accuracies(row))
    for name in (*HELD_OUT, *sets):
        measured = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if measured:
            (first, before), (last, after) = measured[0], measured[-1]
            yield f"held-out {name.removeprefix('eval/')}", f"{format_number(before)} (step {first}), {format_number(after)} (step {last})"


def escape_cell(text: str) -> str:
    """Text of a cell of a table in Markdown."""
    return escape_control(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
