"""From a recipe's words to its rows: when an answer is asked for, and what is told of rows left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.assembly.datasets import build_datasets, build_readers, count_steps
from rlkit.config import recipe as recipes
from rlkit.config.compose import compose_config
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.errors import UserError
from rlkit.rollout.sampler import build_reward_item
from tests.conftest import ROOT
from tests.data.conftest import make_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


class Letters:
    """A renderer of one token a letter."""

    eos_ids = frozenset({0})

    def encode_prompt(self, prompt: Any, tools: Any, **limits: Any) -> Sequence[int]:
        return list(prompt[0]["content"].encode())


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(*overrides: str) -> Recipe:
    return recipes.read_recipe(compose_config(["recipe=grpo_math", "data.test=null", *overrides], None))


WITHOUT = ["~rewards.accuracy"]
LENGTH = [*WITHOUT, "rewards.length.path=length", "rewards.length.args={longest: 9}"]
JUDGE = [*WITHOUT, "rewards.judge.path=llm_judge", "rewards.judge.args={url: 'http://localhost', model: m}"]
TESTS = [*WITHOUT, "rewards.code.path=code_tests"]
COUNTDOWN = [*WITHOUT, "rewards.countdown.path=countdown"]


@pytest.mark.parametrize("rewards", [LENGTH, JUDGE, TESTS, COUNTDOWN], ids=["length", "llm_judge", "code_tests", "countdown"])
def test_rewards_that_ask_for_no_answer_take_rows_without_one(tmp_path: Path, rewards: list[str]) -> None:
    """Held-out rows likewise; what columns there are arrive."""
    file = lines(tmp_path / "a.jsonl", {"question": "Write square(n).", "tests": ["assert square(3) == 9"], "nums": [1, 2], "target": 3})
    told = recipe(f"data.train={file}", f"data.test={file}", *rewards)
    stream, [held_out], _ = build_datasets(told, Letters())  # type: ignore[arg-type]
    [prompt] = stream.take(1)
    assert prompt.answer is held_out.answer is None
    assert build_reward_item(prompt) == {**prompt.columns, "prompt": [{"role": "user", "content": "Write square(n)."}]}


def test_a_reward_that_asks_for_an_answer_has_a_missing_one_refused_at_the_start(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"question": "a", "answer": "1"}, {"question": "b"})
    told = rf'data.train {file} row 2 has no column "answer" \(columns: question\); set data.columns.answer'
    with pytest.raises(UserError, match=told):
        build_datasets(recipe(f"data.train={file}"), Letters())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=told):  # the recipe says that there is one
        build_datasets(recipe(f"data.train={file}", "data.columns.answer=answer", *LENGTH), Letters())  # type: ignore[arg-type]
    some = build_datasets(recipe(f"data.train={file}", *LENGTH), Letters())[0].take(2)  # type: ignore[arg-type]
    assert {prompt.prompt[0]["content"]: prompt.answer for prompt in some} == {"a": "1", "b": None}
    held_out = lines(tmp_path / "b.jsonl", {"question": "b"})
    with pytest.raises(UserError, match=rf'data.test {held_out} row 1 has no column "answer"'):
        build_datasets(recipe(f"data.train={tmp_path}/a.jsonl", f"data.test={held_out}", "data.on_bad_row=skip"), Letters())  # type: ignore[arg-type]


def test_answers_reach_rewards_as_they_are_in_the_row(tmp_path: Path) -> None:
    truth = {"target": 98, "numbers": [44, 19, 35]}
    rows = [{"question": "a", "answer": ["0.5", "1/2"]}, {"question": "b", "answer": 7}, {"question": "c", "answer": truth}]
    same = [*WITHOUT, "rewards.same.path=exact_match"]
    [reader] = build_readers(told := recipe(f"data.train={lines(tmp_path / 'a.jsonl', *rows)}", *same), "prompts", "train", told.data.train)
    assert [build_reward_item(reader.read(number))["answer"] for number in range(3)] == [["0.5", "1/2"], 7, truth]


CHOICE = [*WITHOUT, "rewards.choice.path=multiple_choice"]


@pytest.mark.parametrize(
    ("rewards", "answer", "reason"),
    [
        ([], {"value": 1}, "the reference answer is of type dict"),
        ([], [], "the reference answer is empty"),
        ([], r"\boxed{1} so \boxed{2}", "the reference answer has several boxes"),
        (CHOICE, "both", "the reference answer must be one letter"),
    ],
)
def test_a_reference_that_a_shipped_grader_cannot_grade_is_a_bad_row(tmp_path: Path, rewards: list[str], answer: Any, reason: str) -> None:
    file = lines(tmp_path / "a.jsonl", {"question": "a", "answer": "1" if not rewards else "B"}, {"question": "b", "answer": answer})
    with pytest.raises(UserError, match=rf"a\.jsonl row 2 has in column \"answer\" what its reward cannot grade: {reason}"):
        build_datasets(recipe(f"data.train={file}", *rewards), Letters())  # type: ignore[arg-type]
    stream, _, _ = build_datasets(recipe(f"data.train={file}", "data.on_bad_row=skip", *rewards), Letters())  # type: ignore[arg-type]
    assert [prompt.row for prompt in stream.take(2)] == [0, 0]


def test_epochs_count_rows_that_are_left_out_and_say_so(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"question": "q" * (99 if i % 2 else 9), "answer": "1"} for i in range(64)))
    asked = [f"data.train={file}", "max_prompt_tokens=50", "steps=null", "prompts_per_step=8"]
    stream, _, told = build_datasets(recipe(*asked, "data.epochs=1"), Letters())  # type: ignore[arg-type]
    assert told == (
        "data.epochs=1 counts all rows; those not left out come up about 2 times. "
        f"data.train {file}: of 64 rows looked at, 32 left out: longer than 50 tokens"
    )
    steps = count_steps(recipe(*asked, "data.epochs=1"), len(stream.rows)).steps
    taken = [prompt.row for _ in range(steps or 0) for prompt in stream.take(8)]
    assert steps == 8 and sorted(taken) == sorted(2 * list(range(0, 64, 2)))
    assert build_datasets(recipe(*asked, "data.epochs=1", "max_prompt_tokens=99"), Letters())[2] is None  # type: ignore[arg-type]


def test_shipped_recipes_still_ask_for_answers() -> None:
    for file in sorted((ROOT / "recipes" / "recipe").glob("*_math.yaml")):
        told = recipes.read_recipe(
            compose_config([f"recipe={file.stem}", *(["model.teacher.path=builtin"] if file.stem == "opd_math" else [])], None)
        )
        if told.rewards:
            [reader] = build_readers(told, "prompts", "train", told.data.train)
            assert reader._answer_required  # type: ignore[attr-defined]


def test_a_chat_template_that_refuses_a_row_is_found_before_the_run_begins(tmp_path: Path, model_folder: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "tool", "content": "b"}]})
    words = [f"data.train={file}", *LENGTH]
    with pytest.raises(UserError, match=r"data\.train .*a\.jsonl row 2: the chat template .* refuses a prompt: no tools here"):
        build_datasets(recipe(*words), Renderer(model_folder))
    stream, _, _ = build_datasets(recipe(*words, "data.on_bad_row=skip"), Renderer(model_folder))
    assert [prompt.row for prompt in stream.take(3)] == [0, 0, 0] and stream.counts.bad_row >= 2


def test_rows_of_which_none_can_be_used_are_found_before_the_run_begins(tmp_path: Path, model_folder: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"question": "x" * 99} for _ in range(3)))
    with pytest.raises(UserError, match=r"no row can be used\. .* of 3 rows looked at, 3 left out: longer than 48 tokens"):
        build_datasets(recipe(f"data.train={file}", *LENGTH), Renderer(model_folder))


@pytest.mark.parametrize(("labels", "said"), [((True, True), True), ((False, False), True), ((True, False), False)])
def test_rows_whose_labels_are_all_equal_are_reported(labels: tuple[bool, bool], said: bool, tmp_path: Path, model_folder: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"question": "a", "completion": "2", "label": label} for label in labels))
    told = recipes.read_recipe(compose_config(["recipe=kto_math", f"data.train={file}"], None))
    note = build_datasets(told, Renderer(model_folder), "rated")[2]
    text = f"data.train {file}: every row has the label {str(labels[0]).lower()}; the algorithm compares rows of both labels"
    assert note == (text if said else None)


def test_tools_that_the_chat_template_does_not_read_are_reported(tmp_path: Path, model_folder: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"question": "a", "tools": [{"type": "function"}]})
    note = build_datasets(recipe(f"data.train={file}", *LENGTH), Renderer(model_folder))[2]
    assert note == f"data.train {file}: rows have schemas in the column tools, and the chat template of the model does not read them"


def test_a_model_without_an_end_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = recipe(f"data.train={lines(tmp_path / 'a.jsonl', {'question': 'Count.'})}", "model.path=x/y", *LENGTH)
    assert build_datasets(told, Letters())[2] is None  # type: ignore[arg-type]
    monkeypatch.setattr(Letters, "eos_ids", frozenset())
    note = build_datasets(told, Letters())[2]  # type: ignore[arg-type]
    assert note and note.startswith("model.path x/y: neither its tokenizer nor its generation_config.json (eos_token_id) names a token")
    assert note.endswith(f"end only at max_completion_tokens={told.max_completion_tokens}")
