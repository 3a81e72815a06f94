"""From a row to a prompt and its completions: pairs, rated, demonstrations. Columns are found by name, or set by data.columns:

pairs            prompt, chosen, rejected             each of the two a text, a message, a reply in a list, or a whole conversation
                 messages, rejected_response          the conversation ends with the chosen reply (ms-swift)
rated            prompt, completion, label            label: true or false
demonstrations   prompt, completion (or response, solution, answer)
                 messages                             the conversation ends with the reply

Messages are {role, content}, or sharegpt's {from, value}. A whole conversation brings its prompt along: all before its last message.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlkit.data.columns import PROMPT_COLUMNS, Columns, RowReader, get_column, has_column, require_column
from rlkit.data.messages import ROLES, Message, read_tools
from rlkit.data.rows import BadRow, Row, RowFault, Rows, show, truncate

CONVERSATIONS = ("messages", "conversations")
REJECTED_COLUMNS = ("rejected", "rejected_response")
COMPLETION_COLUMNS = ("completion", "response")
SOLUTION_COLUMNS = ("solution", "answer")  # after a conversation: of a row with both, these are for a reward
FIX = "fix the row, or set data.on_bad_row=skip"
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class CompletionRow:
    """A row as a prompt and its completions: messages of the assistant after a chat, of which raw text takes the content alone."""

    row: int
    prompt: str | tuple[Message, ...]
    completions: tuple[Message, ...]
    desirable: bool = True
    tools: tuple[Mapping[str, Any], ...] = ()  # schemas, for the chat template


class _CompletionReader(RowReader[CompletionRow]):
    """Reads completions from some columns, after one prompt; base of the three readers."""

    def __init__(self, rows: Rows, columns: Columns) -> None:
        super().__init__(rows, columns)
        self._completions = self._find_completions(columns)
        self._prompt = columns.prompt or self._find_prompt()

    @abstractmethod
    def _find_completions(self, columns: Columns) -> dict[str, str]:
        """The recipe's word for each completion -> its column."""

    def name_columns(self) -> dict[str, str]:
        return {**({"prompt": self._prompt} if self._prompt else {}), **self._completions}

    def _build_row(self, index: int, row: Row) -> CompletionRow:
        sides = {what: self._read_content(row, column, what) for what, column in self._completions.items()}
        completions = tuple(_get_reply(self._completions[what], side) for what, side in sides.items())
        raw = self._read_prompt(row, sides)
        chat = self._text_is_chat(self._prompt) or not all(isinstance(side, str) for side in sides.values())
        return CompletionRow(index, self._format_prompt(row, raw, chat=chat), completions, self._read_label(row), read_tools(row))

    def _read_label(self, row: Row) -> bool:
        return True

    def _read_prompt(self, row: Row, sides: dict[str, str | list[Message]]) -> str | list[Message]:
        """What all sides answer: the conversation that they bring along, or the prompt's column."""
        brought = {what: side[:-1] for what, side in sides.items() if not isinstance(side, str) and len(side) > 1}
        shared = next(iter(brought.values()), None)
        if any(side != shared for side in brought.values()):
            raise RowFault(f"has {' and '.join(sides)} of different conversations: they differ before the last message")
        if self._prompt is None or self._prompt in self._completions.values():
            if shared is None:
                column = next(iter(self._completions.values()))
                raise RowFault(f'has no prompt: column "{column}" holds only the reply; set data.columns.prompt')
            return shared
        prompt = self._read_chat(row, self._prompt)
        if shared is None:
            return prompt
        if prompt not in (shared, shared[-1].get("content")):
            raise RowFault(
                f'has another prompt in column "{self._prompt}" than its {next(iter(brought))} answers: {show(prompt)}; '
                "leave the replies alone in their columns, or take the prompt's column away"
            )
        return shared

    def _find_prompt(self) -> str | None:
        """None where every completion's column is a whole conversation."""
        for name in PROMPT_COLUMNS:
            if has_column(self.first, name):
                return name
        values = [get_column(self.first, column) for column in self._completions.values()]
        return None if all(isinstance(value, list) and len(value) > 1 for value in values) else self._find_column(PROMPT_COLUMNS, "prompt")

    def _find_conversations(self) -> list[str]:
        """The columns of conversations that end with the assistant's message."""
        found = []
        for name in CONVERSATIONS:
            value = get_column(self.first, name)
            last = value[-1] if isinstance(value, list) and len(value) > 1 else None
            if isinstance(last, dict) and ROLES.get(str(last.get("role", last.get("from"))).lower()) == "assistant":
                found.append(name)
        return found


class PairReader(_CompletionReader):
    """Two completions of one prompt, the better one first."""

    def _find_completions(self, columns: Columns) -> dict[str, str]:
        rejected = columns.rejected or self._find_column(REJECTED_COLUMNS, "rejected")
        whole = [] if has_column(self.first, "chosen") else self._find_conversations()
        return {"chosen": columns.chosen or self._find_column(("chosen", *whole), "chosen"), "rejected": rejected}

    def _build_row(self, index: int, row: Row) -> CompletionRow:
        found = super()._build_row(index, row)
        chosen, rejected = found.completions
        if chosen == rejected:
            raise RowFault(
                f"has the same text as chosen and as rejected: {truncate(json.dumps(chosen['content'], ensure_ascii=False))}; {FIX}"
            )
        return found


class RatedReader(_CompletionReader):
    """One completion, and whether it is desirable."""

    def find_labels(self) -> set[bool]:
        """The labels of all rows that have one; stops as soon as both are found."""
        found: set[bool] = set()
        for row in self.rows.scan([self._label, self._label.split(".")[0]]):
            with suppress(RowFault):
                found |= set() if isinstance(row, BadRow) else {self._read_label(row)}
            if len(found) == 2:
                break
        return found

    def __init__(self, rows: Rows, columns: Columns) -> None:
        super().__init__(rows, columns)
        self._label = columns.label or self._find_column(("label",), "label")

    def _find_completions(self, columns: Columns) -> dict[str, str]:
        return {"completion": columns.completion or self._find_column((*COMPLETION_COLUMNS, *self._find_conversations()), "completion")}

    def name_columns(self) -> dict[str, str]:
        return {**super().name_columns(), "label": self._label}

    def _read_label(self, row: Row) -> bool:
        value = require_column(row, self._label, "label")
        label = LABELS.get(str(value).strip().lower()) if isinstance(value, (str, int, float)) else None
        if label is None:
            raise RowFault(f'has in column "{self._label}" neither true nor false: {show(value)}; {FIX}')
        return label


class DemonstrationReader(_CompletionReader):
    """One completion to learn from."""

    def _find_completions(self, columns: Columns) -> dict[str, str]:
        known = (*COMPLETION_COLUMNS, *self._find_conversations(), *SOLUTION_COLUMNS)
        return {"completion": columns.completion or self._find_column(known, "completion")}


def _get_reply(column: str, side: str | Sequence[Message]) -> Message:
    """The last message, which is the assistant's."""
    if isinstance(side, str):
        return {"role": "assistant", "content": side}
    if side[-1]["role"] != "assistant":
        raise RowFault(f'has in column "{column}" no reply: the last message is of "{side[-1]["role"]}", not of the assistant; {FIX}')
    return side[-1]
