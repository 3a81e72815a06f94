"""Rewards on a few rows without any model: the first thing that a person who writes a reward wants to see."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.rewarding.judge import RewardClient
from rlkit.rewarding.outcome import Outcome
from rlkit.rewarding.spec import RewardSettings, RewardSpec

SHOWN = 40  # characters of a completion in the table


def trial(specs: Sequence[RewardSpec], settings: RewardSettings, items: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    """A table of what the rewards say about these samples; below it the first failure of each reward in full, and columns it does not get.

    items: the number of the data row, whose samples are one group, and what a reward gets: prompt, completion, columns.
    """
    sizes = Counter(row for row, _ in items)
    with RewardClient(specs, settings) as judge:
        for number, (row, item) in enumerate(items):
            judge.submit(number, {"completion_length": len(item["completion"]), **item}, group=row, group_size=sizes[row])
        judged = judge.judged(range(len(items)))
        ignored = judge.ignored({column for _, item in items for column in item})
    names = [spec.name for spec in specs]
    lines = [["row", "completion", *names, "reward", "seconds"]]
    for number, (row, item) in enumerate(items):
        parts = judged[number].parts
        seconds = sum(outcome.seconds for outcome in parts.values())
        scores = [*(_said(parts[name]) for name in names), _number(judged[number].reward)]
        lines.append([str(row + 1), _short(item["completion"]), *scores, f"{seconds:.4f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*table, *_failures(names, [verdict.parts for verdict in judged.values()]), *(f"\n{line}" for line in ignored)])


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
