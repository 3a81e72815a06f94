from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.columns import Columns, PromptReader, PromptRow
from rlkit.data.rows import BadRow, ListRows
from rlkit.data.sources import open_rows
from rlkit.errors import UserError

USER, SYSTEM = {"role": "user", "content": "1+1"}, {"role": "system", "content": "be brief"}


def reader(rows: list[dict[str, Any]], needs_answer: bool = True, **settings: Any) -> PromptReader:
    return PromptReader(ListRows("data.train gsm8k/train.jsonl", rows), Columns(**settings), needs_answer=needs_answer)


def read(row: dict[str, Any], **settings: Any) -> PromptRow:
    return reader([row], **settings).read(0)


def test_messages_are_the_chat_up_to_the_answer() -> None:
    row = {"messages": [SYSTEM, {**USER, "tool_calls": None}, {"role": "assistant", "content": "2"}], "answer": "2"}
    assert read(row).prompt == (SYSTEM, USER)
    assert read(row).columns == row  # a reward sees the row as it is


def test_text_called_prompt_is_raw_and_a_question_is_what_a_user_says() -> None:
    assert read({"prompt": "1+1", "answer": "2"}).prompt == "1+1"
    assert read({"prompt": "1+1", "answer": "2"}).messages == (USER,)
    assert read({"prompt": "1+1", "answer": "2"}, chat=True).prompt == (USER,)
    assert read({"prompt": "1+1", "answer": "2"}, system="be brief").prompt == (SYSTEM, USER)
    for column in ("question", "problem"):
        assert read({column: "1+1", "answer": "2"}).prompt == (USER,)
        assert read({column: "1+1", "answer": "2"}, chat=False).prompt == "1+1"
    with pytest.raises(UserError, match=r"data\.system needs a chat"):
        read({"question": "1+1", "answer": "2"}, system="be brief", chat=False)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": "2", "solution": "x"}, "2"),
        ({"solution": "2"}, "2"),
        ({"ground_truth": 2}, 2),
        ({"reward_model": {"style": "rule", "ground_truth": "2"}}, "2"),
        ({"reward_model.ground_truth": "2"}, "2"),
        ({"answer": ["2", "two"]}, ["2", "two"]),
        ({"reward_model": {"ground_truth": {"target": 98, "numbers": [44, 19]}}}, {"target": 98, "numbers": [44, 19]}),
    ],
)
def test_answers_are_found_by_themselves_and_stay_what_they_are(row: dict[str, Any], answer: Any) -> None:
    assert read({"question": "1+1", **row}).answer == answer


def test_columns_are_mapped_and_dotted() -> None:
    row = {"question": "no", "answer": "no", "task": {"text": "1+1", "meta": {"key": 0}}}
    found = read(row, prompt="task.text", answer="task.meta.key")
    assert (found.prompt, found.answer) == ((USER,), 0)


def test_a_row_without_the_answer_column_is_named_as_the_house_says() -> None:
    rows = [{"question": "1+1", "answer": "2"}] * 16 + [{"question": "2+2", "solution": "4"}]
    with pytest.raises(BadRow) as caught:
        reader(rows).check()
    mend = 'data.train gsm8k/train.jsonl row 17 has no column "answer" (columns: question, solution); set data.columns.answer'
    assert str(caught.value) == mend
    with pytest.raises(BadRow, match=re.escape(mend)):
        reader(rows).read(16)
    assert reader(rows, needs_answer=False).read(16).answer is None
    assert [str(bad) for bad in reader(rows).check(stop=False)] == [mend]


def test_without_the_columns_the_first_row_is_shown() -> None:
    with pytest.raises(UserError) as caught:
        reader([{"text": "1+1", "label": 2}])
    assert str(caught.value).splitlines() == [
        'data.train gsm8k/train.jsonl row 1 has no column "prompt" (columns: text, label); set data.columns.prompt and data.columns.answer',
        "looked for: prompt, messages, conversations, question, problem",
        'first row: {"text": "1+1", "label": 2}',
    ]
    with pytest.raises(UserError, match=r'has no column "answer" \(columns: question\); set data.columns.answer'):
        reader([{"question": "1+1"}])
    assert reader([{"question": "1+1"}], needs_answer=False).read(0).answer is None


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"question": None, "answer": "2"}, 'has nothing in column "question"'),
        ({"question": "1+1", "answer": None}, 'has nothing in column "answer"'),
        ({"question": 11, "answer": "2"}, "neither text nor a list of messages: 11"),
        ({"question": [{"from": "human"}], "answer": "2"}, "has messages without role and content"),
        ({"question": [{"role": "assistant", "content": "2"}], "answer": "2"}, "has only the assistant's messages"),
    ],
)
def test_faults_of_a_row(row: dict[str, Any], fault: str) -> None:
    rows = [{"question": "1+1", "answer": "2"}, row]
    with pytest.raises(BadRow, match=re.escape(fault)) as caught:
        reader(rows).read(1)
    assert str(caught.value).startswith("data.train gsm8k/train.jsonl row 2 ")
    assert len(reader(rows).check(stop=False)) == 1


def test_an_answer_is_extracted_by_a_rule() -> None:
    row = {"question": "1+1", "answer": "#### no\nso 1+1 = <<1+1=2>>2\n####  1,002 \n"}
    assert read(row, answer_pattern="#### (.+)").answer == "1,002"
    with pytest.raises(BadRow) as caught:
        read({"question": "1+1", "answer": "two"}, answer_pattern="#### (.+)")
    assert str(caught.value) == (
        'data.train gsm8k/train.jsonl row 1 has no match of data.answer_pattern "#### (.+)" in column "answer", '
        "which data.answer_pattern=null takes whole: two"
    )
    assert read({"question": "1+1", "answer": 1002}, answer_pattern="(\\d+)$").answer == "1002"
    with pytest.raises(
        BadRow, match=r'row 1 has no text in column "answer" for data.answer_pattern "#### \(\.\+\)" to search: \[\'#### 2\'\]'
    ):
        read({"question": "1+1", "answer": ["#### 2"]}, answer_pattern="#### (.+)")
    with pytest.raises(UserError, match="has 0 groups; expected one"):
        read(row, answer_pattern="#### .+")
    with pytest.raises(UserError, match="is not a regular expression"):
        read(row, answer_pattern="#### (.+")


def test_a_template_writes_what_the_user_says() -> None:
    boxed = "{{ prompt }} = ?\nUnit: {{ unit }}. Answer in \\boxed{}."
    said = "1+1 = ?\nUnit: apples. Answer in \\boxed{}."
    assert read({"question": "1+1", "unit": "apples", "answer": "2"}, template=boxed).prompt == ({"role": "user", "content": said},)
    assert read({"prompt": "1+1", "unit": "apples", "answer": "2"}, template=boxed).prompt == said
    chat = read({"prompt": [SYSTEM, USER], "unit": "apples", "answer": "2"}, template=boxed, system="be right").prompt
    assert chat == ({"role": "system", "content": "be right"}, {"role": "user", "content": said})
    with pytest.raises(BadRow, match=r"row 1 does not fit data.template: 'unit' is undefined \(columns: question, answer\)"):
        read({"question": "1+1", "answer": "2"}, template=boxed)
    with pytest.raises(BadRow, match=r"set data\.template=null for none, or a template over these columns and `prompt`, the user's text"):
        read({"question": "1+1", "answer": "2"}, template=boxed)
    with pytest.raises(UserError, match=r"data\.template line 1 is not a Jinja template"):
        read({"question": "1+1", "answer": "2"}, template="{{ prompt ")


def test_a_template_reaches_nothing_but_the_row() -> None:
    with pytest.raises(BadRow, match="unsafe"):
        read({"question": "1+1", "answer": "2"}, template="{{ ''.__class__.__mro__[1].__subclasses__() }}")


def test_a_curriculum_needs_numbers() -> None:
    rows = [{"question": "a", "answer": "1", "level": "3"}, {"question": "b", "answer": "2", "level": 1.5}]
    assert reader(rows).read_numbers("level").tolist() == [3.0, 1.5]
    with pytest.raises(BadRow, match='row 3 has no number in column "level"'):
        reader([*rows, {"question": "c", "answer": "3", "level": "hard"}]).read_numbers("level")


def test_every_real_row_has_its_number(gsm8k: Path) -> None:
    rows = open_rows(str(gsm8k), split_default="train", offline=True)
    real = PromptReader(rows, Columns(answer_pattern="#### (.+)"))
    assert real.check() == []
    answers = [real.read(index).answer for index in range(len(rows))]
    assert answers[0] == rows[0]["answer"].splitlines()[-1].removeprefix("#### ")
    assert real.read(0).prompt[0]["content"] == rows[0]["question"]
    assert [answer for answer in answers if not re.fullmatch(r"-?\$?[\d,]+(\.\d+)?", answer)] == []
