"""rlkit data show: rows, prompts and tokens as the run reads them, what is left out and why. No model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import call

OWN = ("recipe=grpo", "model.path=builtin", "data.train=mine.jsonl", "max_prompt_tokens=64", "max_completion_tokens=64")


def show_own_rows(folder: Path, rows: list[dict[str, Any]], *words: str) -> tuple[int, str, str]:
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return call("data", "show", *OWN, f"data.train={file}", *words, RLKIT_CACHE=str(folder / "cache"))


def test_prompts_are_what_the_model_gets(tmp_path: Path) -> None:
    code, out, err = show_own_rows(tmp_path, [{"question": "1+1?", "answer": "2", "level": 3}], "--json")
    [split] = json.loads(out)["splits"].values()
    assert (code, err) == (0, "")
    assert split["sources"][0]["columns"] == ["question", "answer", "level"]
    assert split["sources"][0]["used"] == {"prompt": "question", "answer": "answer"}
    [row] = split["shown"]
    text = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert row["parts"] == {"prompt": {"text": text, "tokens": 3 + len("user\n1+1?\nassistant\n")}}  # a token a byte, three special ones
    assert row["answer"] == "2"
    assert not list((tmp_path / "cache").glob("builtin-*/*.safetensors"))


def test_what_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    rows = [{"question": "1+1?", "answer": "2"}, {"question": "x" * 99, "answer": "2"}, {"question": "", "answer": "3"}]
    code, out, _ = show_own_rows(tmp_path, rows, "data.on_bad_row=skip", "n=2")
    lines = out.splitlines()
    name = f"data.train {tmp_path}/mine.jsonl row"
    assert code == 0 and "left out: 2 of 3" in lines
    assert f"  {name} 2: longer than 64 tokens" in lines
    assert any(line.startswith(f"  {name} 3: has a blank prompt") for line in lines)
    assert f"{name} 2: left out, longer than 64 tokens" in lines
    code, out, err = show_own_rows(tmp_path, rows)
    assert (code, out) == (2, "") and "row 3 has a blank prompt" in err  # as the run, which stops there


def test_text_of_a_row_is_text_and_mistakes_are_told(tmp_path: Path) -> None:
    code, out, _ = show_own_rows(tmp_path, [{"question": "\x1b[2J?", "answer": "\x1b]0;x\x07"}])
    assert code == 0 and "\x1b" not in out and r"\x1b[2J?" in out
    for word, message in (("n=0", "n=0 is not valid"), ("split=tset", "train or test"), ("split=test", "no data.test")):
        code, out, err = show_own_rows(tmp_path, [{"question": "?", "answer": "1"}], word)
        assert (code, out) == (2, "") and message in err
