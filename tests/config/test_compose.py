"""Recipes that nobody should write: each is refused in a few lines, before any of it costs time or memory. What data.test follows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from rlkit import run
from rlkit.config.compose import compose_config

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "recipe=null": "there is no recipe 'null'; valid: ",
    "+model=0.1": "Config group override must be a string or a list",
    "rewards.accuracy.weight=nan": "rewards.accuracy.weight=nan is not valid: it should be a finite number",
    "rewards.accuracy.weight=-inf": "rewards.accuracy.weight=-inf is not valid: it should be a finite number",
    f"seed={2**63}": f"seed={2**63} is not valid: it should be less than or equal to {2**63 - 1}",
    f"prompts_per_step={2**31}": f"prompts_per_step={2**31} is not valid: it should be less than or equal to {2**31 - 1}",
    "steps=" + "9" * 5000: "steps='9",
    "steps=interval()": "steps",
    "steps=interval(0,1)": "Sweep parameters '++steps=interval(0,1)' requires --multirun",
    "data.train=" + "[" * 500 + "]" * 500: "cannot be read: it is nested too deep",
    "data.train=" + "[" * 500: "",
    "output_dir=a\0b": "output_dir holds a sign that is no text (NUL, or a byte that is not UTF-8): 'a\\x00b'; write it without",
    "data.train=a\udcff": "data.train holds a sign that is no text",
    "+a\0b=1": "",
    "model.path=" + "x" * 5000: "a path of the recipe is longer than a file system takes",
    "model.shape={nope: 3}": "unknown key model.shape.nope",
    "model.shape={}": "model.shape.hidden is not set",
    "algorithm=null": "there is no algorithm 'null'",
    "algorithm.name=[grpo]": "there is no algorithm ['grpo']",
    "~algorithm": "algorithm is not set",
    "optim=" + "x" * 5000: "optim='xxxx",
}
FILES: dict[str, tuple[bytes, str]] = {
    "utf-16": ("steps: 3\n".encode("utf-16"), "cannot be read: UnicodeDecodeError"),
    "latin-1": ("# größe\nsteps: 3\n".encode("latin-1"), "cannot be read: UnicodeDecodeError"),
    "alias bomb": (BOMB.encode(), "mine.yaml holds 490,329,064 values, nested 11 deep; a recipe has at most 10,000, 50 deep"),
    "brackets": (b"steps: " + b"[" * 500 + b"]" * 500, "mine.yaml holds"),
    "open brackets": (b"steps: " + b"[" * 500, ""),
    "no algorithm": (b"algorithm: null\n", "algorithm=None is not valid: choose one by its name, algorithm=grpo"),
    "NUL": (b"output_dir: \"a\\0b\"\n", "output_dir holds a sign that is no text"),
    "a list": (b"[1, 2]\n", ""),
    "python": (b"steps: !!python/object/apply:os.getpid []\n", "could not determine a constructor for the tag"),
    "itself": (b"seed: ${seed}\n", ""),
}  # fmt: skip


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    started = time.monotonic()
    assert run.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("rlkit: ") and "Traceback" not in told.err
    assert len(told.err.splitlines()) <= 10 and len(told.err) <= 3000 and time.monotonic() - started < 30
    return told.err


@pytest.mark.parametrize("word", REFUSED, ids=lambda word: repr(word[:30]))
def test_no_word_leads_to_a_traceback(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert REFUSED[word] in refuse([*([] if word.startswith("recipe=") else ["recipe=grpo_math"]), "dry_run=true", word], capsys)


@pytest.mark.parametrize("name", FILES)
def test_no_file_leads_to_a_traceback(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_bytes(b"# @package _global_\n" + FILES[name][0])
    assert FILES[name][1] in refuse(["--config-dir", str(tmp_path), "recipe=mine", "dry_run=true"], capsys)


def test_a_message_is_never_longer_than_ten_lines() -> None:
    shown = run.truncate_message("\n".join([*"abcdefghijkl", "x" * 2000]))
    assert shown.splitlines()[:9] == list("abcdefghi") and shown.splitlines()[9:] == ["... (4 more lines; debug=true shows all)"]
    assert len(run.truncate_message("x" * 2000)) < 1100 and run.truncate_message("a\nb") == "a\nb"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"hidden_size": "x"}', b"\xff\xfe"])
def test_the_damaged_configuration_of_a_model_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")
    text = (
        content
        if content != b'{"hidden_size": "x"}'
        else b'{"hidden_size": "x", ' + b", ".join(b'"%s": 1' % k.encode() for k in keys) + b"}"
    )
    (tmp_path / "config.json").write_bytes(text)
    words = ["recipe=grpo_gsm8k", f"model.path={tmp_path}", "dry_run=true"]
    assert f"{tmp_path}/config.json is not the configuration of a model" in refuse(words, capsys)


# -- data.test ---------------------------------------------------------------------------------------------------------------------


def test_of(words: list[str], folder: Path | None = None) -> Any:
    return compose_config(words, folder)["data"]["test"]


test_of.__test__ = False  # type: ignore[attr-defined]


def test_evaluation_is_off_where_only_the_training_rows_are_the_users_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("data.train=a.jsonl", "data.train.path=a.jsonl", "data.train={a: {path: a.jsonl}}", "data={train: a.jsonl}"):
        assert test_of(["recipe=grpo_gsm8k", word]) is None, word
    assert test_of(["recipe=grpo", "model.path=m", "data.train=a.jsonl"]) is None  # where the recipe has none either
    assert test_of(["recipe=grpo_gsm8k"]) == "openai/gsm8k:main@test"
    assert test_of(["recipe=grpo_gsm8k", "data.train=a.jsonl", "data.test=b.jsonl"]) == "b.jsonl"
    assert test_of(["recipe=grpo_gsm8k", "data={train: a.jsonl, test: b.jsonl}"]) == "b.jsonl"
    assert test_of(["recipe=grpo_math", "data=gsm8k"]) == "openai/gsm8k:main@test"
    assert test_of(["recipe=grpo_math", "data.system=x"]) == "builtin@test"
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    assert run.main(["recipe=grpo_math", "data.train=a.jsonl", "dry_run=true"]) == 0
    told = capsys.readouterr().out
    assert "a.jsonl; held out: none (data.test is not set: evaluation is off)" in told and "evaluation none" in told


@pytest.mark.parametrize(
    ("recipe", "words", "test"),
    [
        ("data: {train: a.jsonl}", [], None),
        ("data: {train: a.jsonl, test: 'builtin@test'}", [], "builtin@test"),  # as the group has it, and named
        ("data: {train: a.jsonl, test: b.jsonl}", ["data.train=c.jsonl"], None),
        ("data: {train: a.jsonl}", ["data.test=b.jsonl"], "b.jsonl"),
        ("defaults: [sft_math]\ndata: {train: a.jsonl}", [], None),
        ("defaults: [sft_math]\nseed: 1", [], "builtin@test_demonstrations"),
        ("defaults: [sft_math]\ndata: {test: b.jsonl}", [], "b.jsonl"),
    ],
)
def test_a_recipe_of_ones_own_is_read_the_same_way(recipe: str, words: list[str], test: str | None, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(f"# @package _global_\n{recipe}\n")
    assert test_of(["recipe=mine", *words], tmp_path) == test
