"""From a row to a prompt and its reference answer: which columns, which text around them, which part of the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlkit.data.rows import BadRow, Row, Rows, short
from rlkit.errors import UserError

Message = dict[str, Any]  # role, content, and whatever else the chat template reads

PROMPT_COLUMNS = ("prompt", "messages", "question", "problem")  # tried in this order, as are the next ones
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "reward_model.ground_truth")
PLAIN_COLUMN = "prompt"  # text in it is what the model sees; text of any other column is what a user says
CHECKED_ROWS = 100_000  # looked at when a run starts (about a second); a fault in a later row is told when it comes up
MISSING = object()


@dataclass(frozen=True)
class Columns:
    """The recipe's words on prompts and answers; a dotted name reaches into a column of objects."""

    prompt: str | None = None  # None: the first of PROMPT_COLUMNS that is there
    answer: str | None = None  # None: the first of ANSWER_COLUMNS that is there, if any
    answer_pattern: str | None = None  # regular expression with one group; its last match in the answer column is the answer
    system: str | None = None  # system message; replaces a row's own
    template: str | None = None  # Jinja over the row's columns and `prompt`, the user's text; writes what the user says
    chat: bool | None = None  # text is a user's message (True) or raw text (False); None: raw where the column is called "prompt"


@dataclass(frozen=True)
class PromptRow:
    """A row as a prompt."""

    row: int
    prompt: str | tuple[Message, ...]  # raw text, or a chat
    answer: str | None
    columns: Row  # the row as it is in the file

    @property
    def messages(self) -> tuple[Message, ...]:
        """The chat; raw text counts as one thing that a user says."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt


class PromptReader:
    """Reads prompts out of `rows`. The columns are found in the first row that can be read.

    needs_answer: a row without an answer is a BadRow even where no answer column was asked for.
    """

    def __init__(self, rows: Rows, columns: Columns, *, needs_answer: bool = True) -> None:
        self.rows = rows
        self._settings = columns
        self._pattern = _compiled(columns.answer_pattern)
        self._template = _template(columns.template)
        if columns.system is not None and columns.chat is False:
            raise UserError("data.system needs a chat, and data.chat=false asks for raw text; set one of the two")
        first = next((row for row in rows.scan() if not isinstance(row, BadRow)), None)
        if first is None:
            raise UserError(f"{rows.name} has no row that can be read\n{_first_fault(rows)}")
        self._prompt = columns.prompt or self._find(first, PROMPT_COLUMNS, "prompt")
        answers = ANSWER_COLUMNS if needs_answer or columns.answer_pattern else tuple(c for c in ANSWER_COLUMNS if has(first, c))
        self._answer = columns.answer or (self._find(first, answers, "answer") if answers else None)
        self._chat = self._prompt != PLAIN_COLUMN if columns.chat is None else columns.chat
        self._chat = self._chat or columns.system is not None
        self._answer_must_be = needs_answer or columns.answer is not None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> PromptRow:
        """Row `index` as a prompt. Raises BadRow, naming file and row, where that cannot be."""
        row = self.rows[index]
        try:
            return PromptRow(index, self._prompt_of(row), self._answer_of(row), row)
        except _Fault as fault:
            raise BadRow(f"{self.rows.where(index)} {fault}") from None

    def check(self, limit: int = CHECKED_ROWS, *, stop: bool = True) -> list[BadRow]:
        """Looks at the first `limit` rows for a prompt and an answer; returns the faults, or with `stop` raises the first."""
        bad: list[BadRow] = []
        wanted = [name for column in (self._prompt, self._answer) if column for name in (column, column.split(".")[0])]
        for index, row in zip(range(limit), self.rows.scan(wanted), strict=False):
            fault = row if isinstance(row, BadRow) else self._fault_of(index, row)
            if fault and stop:
                raise fault
            if fault:
                bad.append(fault)
        return bad

    def values(self, column: str) -> np.ndarray:
        """[N] float64, a number of each row, for a curriculum. Raises BadRow where it is none; unreadable rows come last."""
        numbers = np.full(len(self), np.inf)
        for index, row in enumerate(self.rows.scan([column, column.split(".")[0]])):
            if isinstance(row, BadRow):
                continue
            value = lookup(row, column)
            try:
                numbers[index] = float(value)
            except (TypeError, ValueError):
                said = "has no number in" if has(row, column) else "has no"
                raise BadRow(f'{self.rows.where(index)} {said} column "{column}" ({_listed(row)}); set data.curriculum') from None
        return numbers

    def _fault_of(self, index: int, row: Row) -> BadRow | None:
        try:
            self._raw_prompt(row)
            self._answer_of(row)
        except _Fault as fault:
            return BadRow(f"{self.rows.where(index)} {fault}")
        return None

    def _find(self, first: Row, names: Sequence[str], what: str) -> str:
        for name in names:
            if has(first, name):
                return name
        raise UserError(
            f'{self.rows.name} row 1 has no column "{names[0]}" ({_listed(first)}); set data.columns.{what}\n'
            f"looked for: {', '.join(names)}\nfirst row: {short(json.dumps(first, ensure_ascii=False, default=str), 400)}"
        )

    def _raw_prompt(self, row: Row) -> str | list[Message]:
        value = _present(row, self._prompt, "prompt")
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
            return _messages(value)
        raise _Fault(f'has in column "{self._prompt}" neither text nor a list of messages: {short(repr(value))}')

    def _prompt_of(self, row: Row) -> str | tuple[Message, ...]:
        raw = self._raw_prompt(row)
        messages = [{"role": "user", "content": raw}] if isinstance(raw, str) else raw
        if self._template is not None:
            said = next((m for m in reversed(messages) if m["role"] == "user"), None)
            if said is None:
                raise _Fault("has no message of a user for data.template to write")
            text = self._rendered(row, said["content"])
            messages = [{**m, "content": text} if m is said else m for m in messages]
        if isinstance(raw, str) and not self._chat:
            return str(messages[0]["content"])
        if self._settings.system is not None:
            messages = [{"role": "system", "content": self._settings.system}, *(m for m in messages if m["role"] != "system")]
        return tuple(messages)

    def _rendered(self, row: Row, said: Any) -> str:
        import jinja2

        try:
            return str(self._template.render({**row, "prompt": said}))
        except jinja2.TemplateError as error:
            raise _Fault(f"does not fit data.template: {error} ({_listed(row)})") from None

    def _answer_of(self, row: Row) -> str | None:
        if self._answer is None:
            return None
        if not self._answer_must_be and lookup(row, self._answer) in (MISSING, None):
            return None
        value = _present(row, self._answer, "answer")
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if self._pattern is None:
            return text
        found = self._pattern.findall(text)
        if not found:
            pattern = self._settings.answer_pattern
            raise _Fault(f'has no match of data.answer_pattern "{pattern}" in column "{self._answer}": {short(text, 160, end=True)}')
        return str(found[-1]).strip()


def lookup(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, by its full name or dotted into objects; MISSING where it is not there."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row has the column."""
    return lookup(row, column) is not MISSING


class _Fault(Exception):
    """What is wrong with a row; who knows its file and number puts them in front."""


def _present(row: Row, column: str, what: str) -> Any:
    value = lookup(row, column)
    if value is MISSING:
        raise _Fault(f'has no column "{column}" ({_listed(row)}); set data.columns.{what}')
    if value is None:
        raise _Fault(f'has nothing in column "{column}" ({_listed(row)}); fill it in, set data.columns.{what}, or data.on_bad_row=skip')
    return value


def _messages(value: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The chat up to the last turn that is not the assistant's: what the policy is asked to answer."""
    messages = [{key: part for key, part in message.items() if part is not None} for message in value]
    while messages and messages[-1].get("role") == "assistant":
        messages.pop()
    if not messages or not all(isinstance(m.get("role"), str) and "content" in m for m in messages):
        raise _Fault(f"has messages without role and content, or only the assistant's: {short(repr(list(value)))}")
    return messages


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f'data.answer_pattern "{pattern}" is no regular expression: {error}') from None
    if compiled.groups != 1:
        raise UserError(f'data.answer_pattern "{pattern}" has {compiled.groups} groups; expected one, as in "#### (.+)"')
    return compiled


def _template(text: str | None) -> Any:
    if text is None:
        return None
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.template line {error.lineno} is no Jinja template: {error.message}") from None


def _first_fault(rows: Rows) -> str:
    return str(next(row for row in rows.scan() if isinstance(row, BadRow)))


def _listed(row: Mapping[str, Any]) -> str:
    return f"columns: {', '.join(map(str, row)) or 'none'}"
