"""Rewards on a few rows of data, without a model: the first thing to look at when writing a reward."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.report.table import format_table
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.outcome import Outcome
from rlkit.rewarding.spec import RewardSettings, RewardSpec

SHOWN_CHARACTERS = 40  # of a completion in the table


def run_trial(rewards: Mapping[str, RewardSpec], settings: RewardSettings, items: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
    """A table of the scores of these samples; below it the first failure of each reward in full, and the columns that it does not get.

    items: the number of the data row, whose samples are one group, and what a reward gets: prompt, completion, columns.
    """
    sizes = Counter(row for row, _ in items)
    with RewardClient(rewards, settings) as client:
        for number, (row, item) in enumerate(items):
            characters = [ord(character) for character in item["completion"]]  # there is no tokenizer: each stands for a token
            known = {"completion_length": len(characters), "completion_ids": characters}
            client.submit(number, {**known, **item}, group=row, group_size=sizes[row])
        found = client.wait(range(len(items)))
        ignored = client.describe_ignored_columns({column for _, item in items for column in item})
    lines = [["row", "completion", *rewards, "reward", "seconds"]]
    for number, (row, item) in enumerate(items):
        components = found[number].components
        seconds = sum(outcome.seconds for outcome in components.values())
        scores = [*(_format_outcome(components[name]) for name in rewards), _format_number(found[number].reward)]
        lines.append([str(row + 1), _abbreviate(item["completion"]), *scores, f"{seconds:.4f}"])
    failures = _format_failures(list(rewards), [sample.components for sample in found.values()])
    return "\n".join([format_table(lines), *failures, *(f"\n{line}" for line in ignored)])


def _format_outcome(outcome: Outcome) -> str:
    return _format_number(outcome.value) if outcome.value is not None else outcome.kind.value


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _abbreviate(text: str) -> str:
    line = json.dumps(text, ensure_ascii=False)
    return line if len(line) <= SHOWN_CHARACTERS else f"...{line[-SHOWN_CHARACTERS + 3 :]}"


def _format_failures(names: Sequence[str], components: Sequence[Mapping[str, Outcome]]) -> list[str]:
    first = {name: next((own[name] for own in components if own[name].kind.failed), None) for name in names}
    return [f"\n{name}: {outcome.kind.value}\n{outcome.detail.rstrip()}" for name, outcome in first.items() if outcome is not None]
