"""Pairs, rated completions and demonstrations: every format that people bring gives the same tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlkit.data.columns import Columns
from rlkit.data.completions import CompletionRow, DemonstrationReader, PairReader, RatedReader
from rlkit.data.cursor import Cursor
from rlkit.data.offline_rows import Demonstration, DemonstrationSet, Pair, PairSet, RatedCompletion, RatedSet
from rlkit.data.renderer import Renderer
from rlkit.data.rows import BadRow, ListRows
from rlkit.data.sources import open_rows
from rlkit.data.stream import Counts, Stream
from rlkit.errors import UserError

from .conftest import make_model

USER, SYSTEM = {"role": "user", "content": "1+1"}, {"role": "system", "content": "be brief"}
GOOD, BAD = {"role": "assistant", "content": "2"}, {"role": "assistant", "content": "3"}
HUMAN, GPT_GOOD, GPT_BAD = {"from": "human", "value": "1+1"}, {"from": "gpt", "value": "2"}, {"from": "gpt", "value": "3"}


def rows(*those: dict[str, Any]) -> ListRows:
    return ListRows("data.train a.jsonl", those)


def pair(row: dict[str, Any], **columns: Any) -> CompletionRow:
    return PairReader(rows(row), Columns(**columns)).read(0)


def refusal(reader: type, row: dict[str, Any], **columns: Any) -> str:
    with pytest.raises(UserError) as caught:
        reader(rows(row), Columns(**columns)).read(0)
    return str(caught.value)


# -- formats ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1+1", "chosen": "2", "rejected": "3"},
        {"prompt": [USER], "chosen": "2", "rejected": "3"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"prompt": "1+1", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "1+1", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"conversations": [HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD},
        {"conversations": [HUMAN], "chosen": [GPT_GOOD], "rejected": [GPT_BAD]},
        {"messages": [USER, GOOD], "rejected_response": "3"},
        {"messages": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_format_of_pairs_says_the_same(row: dict[str, Any]) -> None:
    assert pair(row) == CompletionRow(0, (USER,), (GOOD, BAD))
    assert PairReader(rows(row, row), Columns()).check() == []


def test_text_called_prompt_is_raw_as_for_prompts() -> None:
    raw = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    assert pair(raw) == CompletionRow(0, "1+1=", (GOOD, BAD))
    assert pair(raw, chat=True).prompt == ({**USER, "content": "1+1="},)


def test_system_and_template_are_put_on() -> None:
    row = {"question": "1+1", "chosen": "2", "rejected": "3"}
    dressed = pair(row, system="be brief", template="{{ prompt }} = ?").prompt
    assert dressed == (SYSTEM, {"role": "user", "content": "1+1 = ?"})
    sharegpt = {"conversations": [HUMAN, GPT_GOOD, HUMAN], "chosen": GPT_GOOD, "rejected": GPT_BAD, "system": "be brief"}
    assert pair(sharegpt).prompt == (SYSTEM, USER, GOOD, USER)


def test_columns_are_mapped() -> None:
    row = {"q": {"text": "1+1"}, "good": "2", "bad": "3", "prompt": "no", "chosen": "no", "rejected": "no"}
    assert pair(row, prompt="q.text", chosen="good", rejected="bad") == CompletionRow(0, (USER,), (GOOD, BAD))
    said = {"query": "1+1", "text": "2", "ok": 0}
    assert RatedReader(rows(said), Columns(prompt="query", completion="text", label="ok")).read(0) == CompletionRow(
        0, (USER,), (GOOD,), False
    )


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "1+1", "chosen": "2"}, 'row 1 has no column "rejected" (columns: prompt, chosen); set data.columns.rejected'),
        ({"prompt": "1+1", "rejected": "2"}, 'row 1 has no column "chosen" (columns: prompt, rejected); set data.columns.chosen'),
        ({"chosen": "2", "rejected": "3"}, 'row 1 has no column "prompt" (columns: chosen, rejected); set data.columns.prompt'),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, BAD]}, "chosen and rejected of different conversations"),
        ({"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, 'another prompt in column "prompt" than its chosen'),
        ({"chosen": [USER, GOOD], "rejected": [GOOD, USER]}, 'has in column "rejected" no reply: the last message is of "user"'),
        ({"prompt": "1+1", "chosen": "2", "rejected": "2"}, 'has the same text as chosen and as rejected: "2"; fix the row, or set'),
        ({"prompt": "1+1", "chosen": "2", "rejected": None}, 'has nothing in column "rejected"'),
    ],
)
def test_what_is_no_pair_is_refused_in_words(row: dict[str, Any], fault: str) -> None:
    assert fault.replace("row 1 ", "") in refusal(PairReader, row) and refusal(PairReader, row).startswith("data.train a.jsonl row 1 ")


def test_a_missing_column_shows_what_was_looked_for_and_the_first_row() -> None:
    assert refusal(PairReader, {"prompt": "1+1", "answer": "2"}).splitlines()[1:] == [
        "looked for: rejected, rejected_response",
        'first row: {"prompt": "1+1", "answer": "2"}',
    ]


@pytest.mark.parametrize(("label", "says"), [(True, True), (0, False), ("True", True), ("false", False), (1.0, True)])
def test_rated_completions_have_labels(label: object, says: bool) -> None:
    for row in ({"question": "1+1", "completion": "2", "label": label}, {"messages": [USER, GOOD], "label": label}):
        assert RatedReader(rows(row), Columns()).read(0) == CompletionRow(0, (USER,), (GOOD,), says)


def test_a_label_that_is_none_is_refused() -> None:
    assert "neither true nor false: 'good'" in refusal(RatedReader, {"prompt": "1+1", "completion": "2", "label": "good"})
    assert 'has no column "label"' in refusal(RatedReader, {"prompt": "1+1", "completion": "2"})


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1+1", "completion": "2", "answer": "no"},
        {"prompt": [USER], "response": "2"},
        {"question": "1+1", "solution": "2"},
        {"question": "1+1", "answer": "2"},
        {"messages": [USER, GOOD], "answer": "no"},
        {"conversations": [HUMAN, GPT_GOOD]},
        {"prompt": [USER], "completion": [GOOD]},
    ],
    ids=lambda row: "-".join(row),
)
def test_every_format_of_demonstrations_says_the_same(row: dict[str, Any]) -> None:
    assert DemonstrationReader(rows(row), Columns()).read(0) == CompletionRow(0, (USER,), (GOOD,))


# -- tokens -------------------------------------------------------------------------------------------------------------------------


def text(renderer: Renderer, ids: tuple[int, ...] | list[int]) -> str:
    return renderer.decode(ids, special=True)


def test_a_completion_follows_the_opened_prompt_and_ends(model_folder: Path) -> None:
    renderer = Renderer(model_folder)
    pairs = PairSet(
        PairReader(rows({"question": "é?", "chosen": "2", "rejected": "3"}), Columns()),
        renderer,
        max_prompt_tokens=99,
        max_completion_tokens=9,
    )
    found = pairs.get(0)
    assert isinstance(found, Pair)
    assert text(renderer, found.prompt) == "<bos><user>é?</><assistant>"  # the same tokens as a prompt that is sampled from
    assert (text(renderer, found.chosen), text(renderer, found.rejected)) == ("2</><eos>", "3</><eos>")


QWEN = (
    "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def test_nothing_comes_after_the_end_of_the_turn(tmp_path: Path) -> None:
    renderer = Renderer(make_model(tmp_path / "qwen", chat_template=QWEN))
    assert text(renderer, renderer.encode_completion([USER], GOOD)) == "2<eos>"


def test_raw_text_is_followed_by_its_completion_and_the_end(model_folder: Path) -> None:
    renderer = Renderer(model_folder)
    assert text(renderer, renderer.encode_completion("1+1=", {"role": "assistant", "content": " 2"})) == " 2<eos>"
    assert renderer.encode_prompt("1+1=")[-1] not in renderer.eos_ids


def test_tokens_never_cross_the_border(tmp_path: Path) -> None:
    """A tokenizer that would join the prompt's last sign with the reply's first keeps the prompt as it is when it is sampled from."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, "b": 1, "ab": 2, "<eos>": 3}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(str(tmp_path))
    renderer = Renderer(tmp_path)
    assert renderer.encode_prompt("aba") == [2, 0]
    assert renderer.encode_completion("aba", {"role": "assistant", "content": "ba"}) == [1, 0, 3]  # "abaab" as a whole is 2, 2, 0


THINKS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"


def test_a_template_that_writes_another_prompt_before_a_reply_is_told(tmp_path: Path) -> None:
    renderer = Renderer(make_model(tmp_path / "thinks", chat_template=THINKS))
    with pytest.raises(UserError) as caught:
        renderer.encode_completion([USER], GOOD)
    first, asked, replied, mend = str(caught.value).splitlines()
    assert "writes another prompt once a reply follows it" in first
    assert asked.endswith("<assistant><think>'") and replied.endswith("<assistant>2<eos>'") and "model.chat_template_kwargs" in mend


# -- sets and streams ---------------------------------------------------------------------------------------------------------------


def many(count: int, long: tuple[int, ...] = (), same: tuple[int, ...] = ()) -> ListRows:
    """Prompts of 5 tokens; completions of 4, or of 20; the rejected one is another, or the same."""
    wide = {True: 19, False: 3}
    return rows(
        *(
            {"prompt": f"{i:04d}", "chosen": "y" * 3, "rejected": ("y" if i in same else "n") * wide[i in long], "label": i % 2}
            for i in range(count)
        )
    )


LIMITS = {"max_prompt_tokens": 8, "max_completion_tokens": 8}


def test_a_row_with_a_long_completion_is_left_out_whole_and_counted(model_folder: Path) -> None:
    pairs = PairSet(PairReader(many(6, long=(1, 4)), Columns()), Renderer(model_folder), **LIMITS)
    some, counts = pairs.read_all(limit=3)
    assert [item.row for item in some] == [0, 2, 3] and counts == Counts(looked_at=4, too_long=1)
    assert pairs.describe_skips(counts) == (
        "data.train a.jsonl: of 4 rows looked at, 1 left out: a prompt longer than 8 or a completion longer than 8 tokens"
    )
    cut = PairSet(PairReader(many(2), Columns()), Renderer(model_folder), max_prompt_tokens=3, max_completion_tokens=8, on_long="cut")
    assert [(item.cut, len(item.prompt), len(item.chosen)) for item in cut.read_all()[0]] == [(True, 3, 4)] * 2


def test_two_equal_completions_stop_the_run_or_are_skipped_and_counted(model_folder: Path) -> None:
    reader = PairReader(many(6, same=(2,)), Columns())
    with pytest.raises(BadRow, match=re.escape("data.train a.jsonl row 3 has the same text as chosen and as rejected")):
        PairSet(reader, Renderer(model_folder), **LIMITS).read_all()
    some, counts = PairSet(reader, Renderer(model_folder), **LIMITS, on_bad_row="skip").read_all()
    assert [item.row for item in some] == [0, 1, 3, 4, 5] and counts == Counts(looked_at=6, bad_row=1)


@pytest.mark.parametrize("at", [1, 7, 23])
def test_a_stream_of_pairs_resumed_anywhere_repeats_and_skips_nothing(model_folder: Path, at: int) -> None:
    def fresh() -> Stream[Pair]:
        reader = PairReader(many(10, long=(3,), same=(5,)), Columns())
        return Stream(PairSet(reader, Renderer(model_folder), **LIMITS, on_bad_row="skip"), Cursor(10, seed=4))

    whole = fresh().take(30)
    first = fresh()
    before = first.take(at)
    second = fresh()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + second.take(30 - at) == whole
    assert len({(item.row, item.draw) for item in whole}) == 30 and not {3, 5} & {item.row for item in whole}


def test_rated_rows_and_demonstrations_have_the_tokens_of_pairs(model_folder: Path) -> None:
    renderer = Renderer(model_folder)
    mapped = Columns(completion="chosen")
    pairs = PairSet(PairReader(many(4), Columns()), renderer, **LIMITS).read_all()[0]
    rated = RatedSet(RatedReader(many(4), mapped), renderer, **LIMITS).read_all()[0]
    shown = DemonstrationSet(DemonstrationReader(many(4), mapped), renderer, **LIMITS).read_all()[0]
    assert rated == [RatedCompletion(p.row, 0, p.prompt, p.chosen, p.row % 2 == 1) for p in pairs]
    assert shown == [Demonstration(p.row, 0, p.prompt, p.chosen) for p in pairs]


def test_the_builtin_problems_come_as_pairs_rated_rows_and_demonstrations() -> None:
    def first(split: str) -> tuple[int, dict[str, Any]]:
        table = open_rows(f"builtin@{split}", split_default="train", offline=True)
        return len(table), table[0]

    count, row = first("test_pairs")
    assert count == 650 and row["chosen"].endswith("\\boxed{45}") and row["rejected"].endswith("\\boxed{35}")
    count, rated = first("test_rated")
    assert (count, rated) == (1300, {"prompt": row["prompt"], "completion": row["chosen"], "label": True})
    count, shown = first("test_demonstrations")
    assert count == 1000 and (shown["completion"], shown["answer"]) == (row["chosen"], "45")
    with pytest.raises(UserError, match=r"the built-in task sums has no 'pears'; after train_ it has pairs, rated, demonstrations"):
        first("train_pears")


def test_real_pairs_are_read(gsm8k: Path, model_folder: Path) -> None:
    """Every one of them: 2,601,300 bytes of right and wrong solutions that models wrote."""
    folder = gsm8k.with_name("gsm8k_pairs")
    if not folder.is_dir():
        pytest.skip(f"no pairs in {folder}")
    reader = PairReader(open_rows(str(folder), split_default="train", offline=True), Columns(chat=True))
    bad = reader.check(stop=False)
    renderer = Renderer(model_folder)
    pairs = PairSet(reader, renderer, max_prompt_tokens=2000, max_completion_tokens=2000, on_bad_row="skip")
    some, _ = pairs.read_all(limit=200)
    assert len(some) == 200 and len(bad) / len(reader) < 0.01
    row = reader.rows[some[0].row]
    assert text(renderer, some[0].prompt + some[0].chosen) == f"<bos><user>{row['prompt']}</><assistant>{row['chosen']}</><eos>"
