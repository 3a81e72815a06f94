from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlkit.data.columns import Columns, PromptReader
from rlkit.data.cursor import Cursor
from rlkit.data.renderer import Renderer
from rlkit.data.rows import BadRow, ListRows
from rlkit.data.sources import open_rows
from rlkit.data.stream import Counts, PromptSet, SkipReason, Stream
from rlkit.errors import UserError

LIMIT = 12  # tokens: <bos> and 11 bytes


def table(count: int, long: tuple[int, ...] = (), bad: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Rows of 5 tokens, but for the long ones of 20 and the bad ones without an answer."""
    return [{"prompt": f"{i:04d}" if i not in long else f"{i:019d}", "answer": None if i in bad else str(i)} for i in range(count)]


def reader(rows: list[dict[str, Any]], name: str = "data.train a.jsonl") -> PromptReader:
    return PromptReader(ListRows(name, rows), Columns())


def prompts(model: Path, rows: list[dict[str, Any]], **settings: Any) -> PromptSet:
    return PromptSet(reader(rows), Renderer(model), max_prompt_tokens=LIMIT, **settings)


def names(stream: Stream, n: int) -> list[tuple[int, int]]:
    return [(prompt.row, prompt.draw) for prompt in stream.take(n)]


def test_prompts_carry_their_row_tokens_and_answer(model_folder: Path) -> None:
    renderer = Renderer(model_folder)
    stream = Stream(prompts(model_folder, table(10)), Cursor(10, seed=0))
    for prompt in stream.take(20):
        assert renderer.decode(prompt.tokens) == f"{prompt.row:04d}" == prompt.prompt
        assert prompt.answer == str(prompt.row) == prompt.columns["answer"] and not prompt.cut


def test_long_rows_are_left_out_and_counted(model_folder: Path) -> None:
    stream = Stream(prompts(model_folder, table(10, long=(3, 7))), Cursor(10, seed=0))
    whole = [place for place in Cursor(10, seed=0).take(0, 20) if place[0] not in (3, 7)]
    assert names(stream, 5) + names(stream, 11) == whole
    assert len(whole) == 16 and stream.counts.too_long in (3, 4) and stream.counts.looked_at - stream.counts.too_long == 16


def test_a_prompt_that_was_taken_is_found_again(model_folder: Path) -> None:
    stream = Stream(prompts(model_folder, table(10, long=(3,))), Cursor(10, seed=0))
    assert all(stream.get(prompt.row, prompt.draw) == prompt for prompt in stream.take(15))
    counts = stream.counts
    with pytest.raises(UserError, match=r"a\.jsonl row 4: the checkpoint continues a sample of it"):
        stream.get(3, 0)
    assert stream.counts == counts


def test_a_long_row_can_be_cut_at_its_start(model_folder: Path) -> None:
    some, counts = prompts(model_folder, table(3, long=(1,)), on_long="cut").read_all()
    assert [prompt.cut for prompt in some] == [False, True, False]
    assert Renderer(model_folder).decode(some[1].tokens) == "0" * 11 + "1" and len(some[1].tokens) == LIMIT
    assert counts == Counts(looked_at=3, cut=1)


def test_held_out_problems_come_in_the_order_of_the_file(model_folder: Path) -> None:
    held_out = prompts(model_folder, table(10, long=(0, 2)))
    some, counts = held_out.read_all(limit=4)
    assert [prompt.row for prompt in some] == [1, 3, 4, 5] and counts == Counts(looked_at=6, too_long=2)
    assert held_out.describe_skips(counts) == "data.train a.jsonl: of 6 rows looked at, 2 left out: longer than 12 tokens"
    assert len(held_out.read_all()[0]) == 8 and held_out.describe_skips(Counts(looked_at=6)) is None


def test_bad_rows_stop_or_are_skipped_and_counted(model_folder: Path) -> None:
    with pytest.raises(BadRow, match='row 3 has nothing in column "answer"'):
        prompts(model_folder, table(5, bad=(2,))).read_all()
    skipping = prompts(model_folder, table(5, bad=(2,)), on_bad_row="skip")
    some, counts = skipping.read_all()
    assert [prompt.row for prompt in some] == [0, 1, 3, 4] and counts == Counts(looked_at=5, bad_row=1)
    assert skipping.get(2) is SkipReason.BAD_ROW
    assert "1 left out: cannot be used, the first: data.train a.jsonl row 3 has nothing in" in (skipping.describe_skips(counts) or "")


@pytest.mark.parametrize("at", [1, 9, 23, 57])
def test_a_stream_resumed_anywhere_repeats_and_skips_nothing(model_folder: Path, at: int) -> None:
    def fresh() -> Stream:
        sources = [reader(table(20, long=(4, 5, 6))), reader(table(6), "data.train b.jsonl")]
        mixed = PromptSet(sources, Renderer(model_folder), max_prompt_tokens=LIMIT)
        return Stream(mixed, Cursor([20, 6], seed=9, weights=[3, 1]))

    whole = names(fresh(), 80)
    first = fresh()
    before = names(first, at)
    state = json.loads(json.dumps(first.state_dict()))
    second = fresh()
    second.load_state_dict(state)
    assert before + names(second, 80 - at) == whole and len(set(whole)) == 80


def test_a_state_of_other_rows_or_another_seed_is_refused(model_folder: Path) -> None:
    state = Stream(prompts(model_folder, table(10)), Cursor(10, seed=0)).state_dict()
    with pytest.raises(UserError, match="the checkpoint was made with rows=10, now it is 9; start a new run"):
        Stream(prompts(model_folder, table(9)), Cursor(9, seed=0)).load_state_dict(state)
    with pytest.raises(UserError, match="seed=0, now it is 1"):
        Stream(prompts(model_folder, table(10)), Cursor(10, seed=1)).load_state_dict(state)


def test_a_state_of_other_rows_of_the_same_number_is_refused(model_folder: Path, jsonl: Callable[..., Path]) -> None:
    def stream(rows: list[dict[str, Any]]) -> Stream:
        source = PromptReader(open_rows(str(jsonl(rows)), split_default="train", offline=True), Columns())
        return Stream(PromptSet(source, Renderer(model_folder), max_prompt_tokens=LIMIT), Cursor(len(rows), seed=0))

    rows = table(1000)
    state = stream(rows).state_dict()
    stream(rows).load_state_dict(state)
    for others in (rows[::-1], [*rows[1:], rows[0]], [row | {"level": 1} for row in rows], [row | {"answer": "0"} for row in rows]):
        with pytest.raises(
            UserError, match="was made with as many rows, but others or in another order; put them back, or start a new run"
        ):
            stream(others).load_state_dict(state)
    stream([*rows[:17], rows[17] | {"answer": "mended"}, *rows[18:]]).load_state_dict(
        state
    )  # every second of 1,000 is looked at, from 0 on


def test_some_rows_are_spread_over_all_and_stand_for_them(model_folder: Path) -> None:
    few, many = prompts(model_folder, table(64, long=tuple(range(0, 64, 2)))), prompts(model_folder, table(1201))
    assert few.count_sample() == Counts(looked_at=64, too_long=32)
    assert list(many.pick_sample()) == list(range(0, 1201, 3)) and many.count_sample() == Counts(looked_at=401)


def test_two_sources_three_to_one_and_the_rows_of_each(model_folder: Path) -> None:
    sources = [reader(table(40)), PromptReader(ListRows("data.train b", [{"question": "q", "solution": "s"}]), Columns())]
    stream = Stream(PromptSet(sources, Renderer(model_folder), max_prompt_tokens=40), Cursor([40, 1], seed=0, weights=[3, 1]))
    taken = stream.take(400)
    assert sum(prompt.row < 40 for prompt in taken) == 300
    assert {prompt.prompt[0]["content"] for prompt in taken if prompt.row == 40} == {"q"}  # type: ignore[index]


def test_where_no_row_fits_the_run_stops_in_words(model_folder: Path) -> None:
    stream = Stream(prompts(model_folder, table(4, long=(0, 1, 2, 3))), Cursor(4, seed=0))
    with pytest.raises(UserError) as caught:
        stream.take(1)
    assert str(caught.value).splitlines() == [
        "no row can be used. data.train a.jsonl: of 8 rows looked at, 8 left out: longer than 12 tokens",
        "raise the limit, set data.on_long=cut, or fix the rows",
    ]
    with pytest.raises(UserError, match="no row can be used"):
        prompts(model_folder, table(2, long=(0, 1))).read_all()


def test_a_curriculum_in_a_stream(model_folder: Path, jsonl: Callable[..., Path]) -> None:
    rows = [{"prompt": str(i), "answer": "0", "level": -i} for i in range(9)]
    source = PromptReader(open_rows(str(jsonl(rows)), split_default="train", offline=True), Columns())
    stream = Stream(
        PromptSet(source, Renderer(model_folder), max_prompt_tokens=LIMIT), Cursor(9, seed=0, values=source.read_numbers("level"))
    )
    assert [prompt.row for prompt in stream.take(9)] == list(range(8, -1, -1))


def test_real_problems_become_chats_with_their_answers(model_folder: Path, gsm8k: Path) -> None:
    settings = Columns(answer_pattern="#### (.+)", template="{{ question }}\nPut the answer in \\boxed{}.", system="Think.")
    source = PromptReader(open_rows(str(gsm8k), split_default="train", offline=True), settings)
    some, counts = PromptSet(source, Renderer(model_folder), max_prompt_tokens=400).read_all(limit=20)
    text = Renderer(model_folder).decode(some[0].tokens)
    row = json.loads((gsm8k / "train.jsonl").read_text().splitlines()[some[0].row])
    assert text == f"<system>Think.</><user>{row['question']}\nPut the answer in \\boxed{{}}.</><assistant>"
    assert some[0].answer == row["answer"].splitlines()[-1].removeprefix("#### ") and counts.looked_at - counts.too_long == 20


def test_rows_of_a_large_file_stay_on_disk(tmp_path: Path, model_folder: Path) -> None:
    """In a process of its own, where what it holds in memory is its own doing. Each row was looked at before, as in a second run."""
    path = tmp_path / "large.jsonl"
    line = json.dumps({"question": "x" * 300, "answer": "#### 7"}) + "\n"
    with path.open("w") as file:
        for _ in range(30):
            file.write(line * 10_000)
    program = f"""
import resource, time
from rlkit.data import columns, cursor, renderer, row_check, sources, stream
r = renderer.Renderer({str(model_folder)!r}, offline=True)
def held(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
before = held()
reader = columns.PromptReader(sources.open_rows({str(path)!r}, split_default="train", offline=True), columns.Columns())
first = time.process_time()
row_check.check_once(reader, None)
start = time.process_time()
rows = sources.open_rows({str(path)!r}, split_default="train", offline=True)
reader = columns.PromptReader(rows, columns.Columns(answer_pattern="#### (.+)"))
row_check.check_once(reader, None)
s = stream.Stream(stream.PromptSet(reader, r, max_prompt_tokens=512), cursor.Cursor(len(rows), 0))
assert len({{p.row for p in s.take(256)}}) == 256 and len(rows) == 300_000
print(start - first, time.process_time() - start, held() - before)
"""
    begun = time.monotonic()
    settings = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parents[2]}
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"RLKIT_CACHE": str(tmp_path)}, **settings)
    *_, measured = done.stdout.splitlines()  # below the line of a first look that takes seconds
    looked, seconds, mebibytes = map(float, measured.split())
    print(f"first look {looked:.1f} s, then {seconds:.1f} s of CPU, {mebibytes:.0f} MiB, {time.monotonic() - begun:.1f} s in all")
    assert seconds < looked / 2 and mebibytes < 60  # the file has 100 MB


def test_importing_the_room_is_silent_and_light() -> None:
    program = (
        "import sys; from rlkit.data import sources, columns, cursor, renderer, stream;"
        "print([m for m in ('datasets', 'transformers', 'tokenizers', 'pandas', 'pyarrow', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_ranks_see_one_order(model_folder: Path) -> None:
    """Every rank takes the whole step and picks its share: 1, 2 and 4 of them make the same step together."""
    steps = []
    for ranks in (1, 2, 4):
        streams = [Stream(prompts(model_folder, table(50, long=(2, 9))), Cursor(50, seed=4)) for _ in range(ranks)]
        taken = [[names(stream, 8) for _ in range(5)] for stream in streams]
        steps.append([[taken[number % ranks][step][number] for number in range(8)] for step in range(5)])
    assert steps[0] == steps[1] == steps[2] and np.shape(steps[0]) == (5, 8, 2)
