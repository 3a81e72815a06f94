"""From a row to a prompt: which columns, which text around them, which part of the answer. Completions: completions.py."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from rlkit.data.messages import Message, normalise_messages, read_tools, read_user_text, strip_replies
from rlkit.data.rows import BadRow, Row, RowFault, Rows, check_text, check_values, show, truncate
from rlkit.errors import UserError

PROMPT_COLUMNS = ("prompt", "messages", "conversations", "question", "problem")  # tried in this order, as are the next ones
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "reward_model.ground_truth")
PLAIN_COLUMN = "prompt"  # text in it is what the model sees; text of any other column is a user's message. Messages in it are no replies
MISSING = object()
T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """Columns and format of prompts and answers; a dotted name reaches into a column of objects."""

    prompt: str | None = None  # None: the first of PROMPT_COLUMNS that is there
    answer: str | None = None  # None: the first of ANSWER_COLUMNS that is there, if any
    chosen: str | None = None  # None for it and the next ones: see completions.py
    rejected: str | None = None
    completion: str | None = None
    label: str | None = None
    answer_pattern: str | None = None  # regular expression with one group; its last match in the answer column is the answer
    system: str | None = None  # system message; replaces a row's own
    template: str | None = None  # Jinja over the row's columns and `prompt`, the user's text; gives the user's message
    chat: bool | None = None  # text is a user's message (True) or raw text (False); None: raw where the column is called "prompt"


@dataclass(frozen=True)
class PromptRow:
    """A row as a prompt."""

    row: int
    prompt: str | tuple[Message, ...]  # raw text, or a chat
    answer: Any  # as it is in the row: text, a number, a list of right ones, an object; None: there is none
    columns: Row  # the row as it is in the file
    tools: tuple[Mapping[str, Any], ...] = field(default=(), kw_only=True)  # schemas, for the chat template

    @property
    def messages(self) -> tuple[Message, ...]:
        """The chat; raw text counts as one message of a user."""
        return ({"role": "user", "content": self.prompt},) if isinstance(self.prompt, str) else self.prompt


class RowReader(ABC, Generic[T]):
    """Reads prompts, pairs or other items from `rows`. Columns are found by the first row that can be read."""

    def __init__(self, rows: Rows, columns: Columns) -> None:
        self.rows = rows
        self._settings = columns
        self._template = _compile_template(columns.template)
        if columns.system is not None and columns.chat is False:
            raise UserError("data.system needs a chat, and data.chat=false asks for raw text; set one of the two")
        self.first = _find_first_row(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def _build_row(self, index: int, row: Row) -> T:
        """The item of a row. Raises RowFault."""

    @abstractmethod
    def name_columns(self) -> dict[str, str]:
        """The columns that an item is made of, by the recipe's word for them."""

    def read(self, index: int) -> T:
        """The item of row `index`. Raises BadRow, with file and row, where the row cannot be used."""
        return self._read_row(index, self.rows[index])

    def check(self, limit: int | None = None, *, stop: bool = True) -> list[BadRow]:
        """Looks at the first `limit` rows, or at all; returns the faults, or with `stop` raises the first."""
        bad: list[BadRow] = []
        wanted = (
            None
            if self._template
            else [name for column in ("system", *self.name_columns().values()) for name in (column, column.split(".")[0])]
        )
        for index, row in enumerate(islice(self.rows.scan(wanted), limit)):
            fault = row if isinstance(row, BadRow) else self._find_fault(index, row)
            if fault and stop:
                self.read(index)  # raises the same fault with all columns of the row; a scan may leave some out
                raise fault
            if fault:
                bad.append(fault)
        return bad

    def read_numbers(self, column: str) -> np.ndarray:
        """[N] float64, a number of each row, for a curriculum. Raises BadRow where it is none; unreadable rows come last."""
        numbers = np.full(len(self), np.inf)
        for index, row in enumerate(self.rows.scan([column, column.split(".")[0]])):
            if isinstance(row, BadRow):
                continue
            value = get_column(row, column)
            try:
                numbers[index] = float(value)
            except (TypeError, ValueError):
                what = "has no number in" if has_column(row, column) else "has no"
                raise BadRow(
                    f'{self.rows.describe_row(index)} {what} column "{column}" ({_describe_columns(row)}); set data.curriculum'
                ) from None
        return numbers

    def _read_row(self, index: int, row: Row) -> T:
        try:
            check_values(row)
            return self._build_row(index, row)
        except RowFault as fault:
            raise BadRow(f"{self.rows.describe_row(index)} {fault}") from None

    def _find_fault(self, index: int, row: Row) -> BadRow | None:
        try:
            self._read_row(index, row)
        except BadRow as fault:
            return fault
        return None

    def _find_column(self, names: Sequence[str], what: str, also: str = "") -> str:
        """also: another of data.columns that has to be set too."""
        for name in names:
            if has_column(self.first, name):
                return name
        raise UserError(
            f'{self.rows.name} row 1 has no column "{names[0]}" ({_describe_columns(self.first)}); set data.columns.{what}{also}\n'
            f"looked for: {', '.join(names)}\nfirst row: {truncate(json.dumps(self.first, ensure_ascii=False, default=str), 400)}"
        )

    def _read_content(self, row: Row, column: str, what: str) -> str | list[Message]:
        """Text, or messages with role and content."""
        value = require_column(row, column, what)
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(message, Mapping) for message in value):
            return normalise_messages(value, row.get("system"))
        raise RowFault(f'has in column "{column}" neither text nor a list of messages: {show(value)}')

    def _read_chat(self, row: Row, column: str) -> str | list[Message]:
        """A prompt: text, or messages without the replies of a whole conversation. In the column `prompt` they are a prompt as they are."""
        raw = self._read_content(row, column, "prompt")
        return raw if isinstance(raw, str) or column == PLAIN_COLUMN else strip_replies(raw)

    def _format_prompt(self, row: Row, raw: str | Sequence[Message], *, chat: bool) -> str | tuple[Message, ...]:
        """A prompt with the recipe's template and system message; `chat`: text is a user's message."""
        messages = [{"role": "user", "content": raw}] if isinstance(raw, str) else list(raw)
        if self._template is not None:
            user = next((m for m in reversed(messages) if m["role"] == "user"), None)
            if user is None:
                raise RowFault("has no message of a user for data.template to write")
            text = self._render_template(row, user["content"])
            messages = [{**m, "content": text} if m is user else m for m in messages]
        if not messages[-1]["content"].strip() and messages[-1]["role"] != "tool":
            raise RowFault(f"has a blank prompt: {show(messages[-1]['content'])}; fill it in, or set data.on_bad_row=skip")
        if isinstance(raw, str) and not chat:
            return str(messages[0]["content"])
        if self._settings.system is not None:
            messages = [{"role": "system", "content": self._settings.system}, *(m for m in messages if m["role"] != "system")]
        return tuple(messages)

    def _text_is_chat(self, column: str | None) -> bool:
        chat = self._settings.chat
        return (column != PLAIN_COLUMN if chat is None else chat) or self._settings.system is not None

    def _render_template(self, row: Row, user_text: Any) -> str:
        try:
            text = str(self._template.render({**row, "prompt": user_text}))
        except Exception as error:  # noqa: BLE001 - a template can divide by zero, add text to a number, or raise what it likes
            raise RowFault(
                f"does not fit data.template: {truncate(str(error) or type(error).__name__)} ({_describe_columns(row)}); "
                "set data.template=null for none, or a template over these columns and `prompt`, the user's text"
            ) from None
        check_text("data.template", text)
        return text


class PromptReader(RowReader[PromptRow]):
    """Prompts, and their answers where there are any.

    needs_answer: a row without an answer is a BadRow even where the recipe names no column of answers. checks: what the rewards of the run
    ask of an answer; each raises ValueError where it cannot be graded, which makes a BadRow too.
    """

    def __init__(self, rows: Rows, columns: Columns, *, needs_answer: bool = True, checks: Sequence[Callable[[Any], object]] = ()) -> None:
        super().__init__(rows, columns)
        self._checks = checks
        self._pattern = _compile_pattern(columns.answer_pattern)
        found = tuple(c for c in ANSWER_COLUMNS if has_column(self.first, c))
        answers = ANSWER_COLUMNS if needs_answer or columns.answer_pattern else found
        also = " and data.columns.answer" if answers and not found and columns.answer is None else ""
        self._prompt = columns.prompt or self._find_column(PROMPT_COLUMNS, "prompt", also)
        self._answer = columns.answer or (self._find_column(answers, "answer") if answers else None)
        self._answer_required = needs_answer or columns.answer is not None

    def name_columns(self) -> dict[str, str]:
        return {"prompt": self._prompt, **({"answer": self._answer} if self._answer else {})}

    def scan_texts(self) -> Iterator[str]:
        """The user's text of each row as it is in the file: no template, no system message. Empty where it cannot be read."""
        for row in self.rows.scan([self._prompt, self._prompt.split(".")[0]]):
            yield "" if isinstance(row, BadRow) else read_user_text(get_column(row, self._prompt))

    def _build_row(self, index: int, row: Row) -> PromptRow:
        prompt = self._format_prompt(row, self._read_chat(row, self._prompt), chat=self._text_is_chat(self._prompt))
        answer = self._read_answer(row)
        for check in self._checks:
            try:
                check(answer)
            except ValueError as error:
                raise RowFault(f'has in column "{self._answer}" what its reward cannot grade: {error}') from None
        return PromptRow(index, prompt, answer, row, tools=read_tools(row))

    def _read_answer(self, row: Row) -> Any:
        if self._answer is None:
            return None
        value = get_column(row, self._answer)
        if not self._answer_required and (value is MISSING or value is None):
            return None
        value = require_column(row, self._answer, "answer")
        if self._pattern is None:
            return value
        pattern = self._settings.answer_pattern
        if not isinstance(value, (str, int, float)):
            raise RowFault(f'has no text in column "{self._answer}" for data.answer_pattern "{pattern}" to search: {show(value)}')
        found = self._pattern.findall(str(value))
        if not found:
            where = f'in column "{self._answer}", which data.answer_pattern=null takes whole'
            raise RowFault(f'has no match of data.answer_pattern "{pattern}" {where}: {truncate(str(value), 160, end=True)}')
        return str(found[-1]).strip()


def get_column(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, by its full name or dotted into objects; MISSING where it is not there."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Whether the row has the column."""
    return get_column(row, column) is not MISSING


def require_column(row: Row, column: str, what: str) -> Any:
    """The value of a column. Raises RowFault where there is none; `what` is the recipe's word for the column."""
    value = get_column(row, column)
    if value is MISSING:
        raise RowFault(f'has no column "{column}" ({_describe_columns(row)}); set data.columns.{what}')
    if value is None:
        raise RowFault(
            f'has nothing in column "{column}" ({_describe_columns(row)}); fill it in, set data.columns.{what}, or data.on_bad_row=skip'
        )
    return value


def _compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f'data.answer_pattern "{pattern}" is not a regular expression: {error}') from None
    if compiled.groups != 1:
        raise UserError(f'data.answer_pattern "{pattern}" has {compiled.groups} groups; expected one, as in "#### (.+)"')
    return compiled


def _compile_template(text: str | None) -> Any:
    if text is None:
        return None
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.template line {error.lineno} is not a Jinja template: {error.message}") from None


def _find_first_row(rows: Rows) -> Row:
    """The first row that can be read. Raises UserError where there is none."""
    first_fault = ""
    for index, row in enumerate(rows.scan()):
        try:
            if isinstance(row, BadRow):
                raise row
            check_values(row)
            return row
        except RowFault as fault:
            first_fault = first_fault or f"{rows.describe_row(index)} {fault}"
        except BadRow as bad:
            first_fault = first_fault or str(bad)
    raise UserError(f"{rows.name} has no row that can be read\n{first_fault}")


def _describe_columns(row: Mapping[str, Any]) -> str:
    return f"columns: {truncate(', '.join(map(str, row)), 300) or 'none'}"
