"""Rewards on a few rows without any model: the first thing that a person who writes a reward wants to see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.judge import Judge
from rlkit.rewarding.outcome import Outcome
from rlkit.rewarding.spec import RewardSettings, RewardSpec

SHOWN = 40  # characters of a completion in the table


def trial(specs: Sequence[RewardSpec], settings: RewardSettings, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of what the rewards say about these rows, and below it the first failure of each reward in full.

    A row with a `completion` is judged as it is (lines of a run's samples.jsonl are such rows). One without stands for two samples: its
    answer in a box, and an empty completion.
    """
    items = [item for row in rows for item in _items(row)]
    with Judge(specs, settings) as judge:
        for number, item in enumerate(items):
            judge.submit(number, item, group=0, group_size=len(items))
        judged = judge.judged(range(len(items)))
    names = [spec.name for spec in specs]
    lines = [["completion", *names, "reward", "seconds"]]
    for number, item in enumerate(items):
        parts = judged[number].parts
        reward = judged[number].reward
        seconds = sum(outcome.seconds for outcome in parts.values())
        lines.append([_short(item["completion"]), *(_said(parts[name]) for name in names), _number(reward), f"{seconds:.4f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, *_failures(names, [verdict.parts for verdict in judged.values()])])


def read_rows(file: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of a JSONL file. Raises UserError where it cannot be read."""
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as JSONL, one object a line: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} holds no rows: it needs one JSON object a line")
    return rows


def _items(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    said = [row["completion"]] if "completion" in row else [f"\\boxed{{{row.get('answer', '')}}}", ""]
    return [{"prompt": "", "completion_length": len(text), **row, "completion": text} for text in said]


def _said(outcome: Outcome) -> str:
    return _number(outcome.value) if outcome.value is not None else outcome.kind.value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line) <= SHOWN else f"...{line[-SHOWN + 3 :]}"


def _failures(names: Sequence[str], parts: Sequence[Mapping[str, Outcome]]) -> list[str]:
    first = {name: next((its[name] for its in parts if its[name].kind.failed), None) for name in names}
    return [f"\n{name}: {outcome.kind.value}\n{outcome.detail.rstrip()}" for name, outcome in first.items() if outcome is not None]
