"""Mistakes of a person's own: exit code 2, a few lines without a traceback, and the mend among them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import run

GOOD_ROW = {"question": "What is 1 + 1?", "answer": "2"}


def written(folder: Path, name: str, *lines: str) -> Path:
    place = folder / name
    place.write_text("".join(f"{line}\n" for line in lines))
    return place


def missing_model(folder: Path, model: Path) -> list[str]:
    return [f"model.path={folder / 'modle'}"]


def missing_data(folder: Path, model: Path) -> list[str]:
    written(folder, "train.jsonl", json.dumps(GOOD_ROW))
    return [f"data.train={folder / 'trian.jsonl'}"]


def no_answer(folder: Path, model: Path) -> list[str]:
    rows = [json.dumps(GOOD_ROW), json.dumps({"question": "What is 2 + 2?", "result": "4"})]
    return [f"data.train={written(folder, 'train.jsonl', *rows)}", "rewards.accuracy.path=accuracy"]


def broken_line(folder: Path, model: Path) -> list[str]:
    return [f"data.train={written(folder, 'train.jsonl', json.dumps(GOOD_ROW), '{not json')}"]


def empty_data(folder: Path, model: Path) -> list[str]:
    return [f"data.train={written(folder, 'train.jsonl')}"]


def folder_that_cannot_be_written(folder: Path, model: Path) -> list[str]:
    return [f"output_dir={written(folder, 'file') / 'run'}"]


def no_chat_template(folder: Path, model: Path) -> list[str]:
    shutil.copytree(model, folder / "base")
    (folder / "base" / "chat_template.jinja").unlink()
    return [f"model.path={folder / 'base'}"]


def weights_of_a_wrapper(folder: Path, model: Path) -> list[str]:
    shutil.copytree(model, folder / "wrapped")
    tensors = load_file(model / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, folder / "wrapped" / "model.safetensors")
    return [f"model.path={folder / 'wrapped'}"]


def weights_cut_off(folder: Path, model: Path) -> list[str]:
    shutil.copytree(model, folder / "short")
    (folder / "short" / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-1000])
    return [f"model.path={folder / 'short'}"]


def layer_that_is_missing(folder: Path, model: Path) -> list[str]:
    shutil.copytree(model, folder / "short")
    tensors = load_file(model / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}, folder / "short" / "model.safetensors")
    return [f"model.path={folder / 'short'}"]


def unknown_reward(folder: Path, model: Path) -> list[str]:
    return ["rewards.accuracy.path=acuracy"]


def too_long(folder: Path, model: Path) -> list[str]:
    return ["max_completion_tokens=4000", "tokens_per_micro_batch=8192"]


def no_step_for_the_policy(folder: Path, model: Path) -> list[str]:
    return ["algorithm=ppo", "steps=2", "algorithm.critic_warmup_steps=2"]


CASES: list[tuple[Callable[[Path, Path], list[str]], list[str]]] = [
    (missing_model, ["modle", "does not exist"]),
    (missing_data, ["trian.jsonl", "train.jsonl"]),
    (no_answer, ["answer", "columns: question, result", "data.columns.answer"]),
    (broken_line, ["train.jsonl", "2"]),
    (empty_data, ["train.jsonl", "empty"]),
    (folder_that_cannot_be_written, ["output folder", "output_dir="]),
    (no_chat_template, ["no chat template", "chat_template.jinja"]),
    (weights_of_a_wrapper, ["25 missing", "24 unexpected", "names in the files start with 'module.'"]),
    (weights_cut_off, ["model.safetensors is damaged or incomplete", "download or copy it again"]),
    (layer_that_is_missing, ["11 missing (model.layers.1.input_layernorm.weight, ", "take a complete checkpoint"]),
    (unknown_reward, ["acuracy", "accuracy"]),
    (too_long, ["max_completion_tokens", "2048 tokens"]),
    (no_step_for_the_policy, ["critic_warmup_steps=2", "steps=2"]),
]


@pytest.mark.parametrize(("mistake", "words"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_mistake_is_told_with_its_mend(
    mistake: Callable[[Path, Path], list[str]], words: list[str], tiny_model: Path, small: list[str], tmp_path: Path
) -> None:
    cold = mistake is no_chat_template  # in a new Python libraries may have something to say as they are imported
    ended = run(*small, f"output_dir={tmp_path / 'out'}", *mistake(tmp_path, tiny_model), cwd=tmp_path, cold=cold)
    assert ended.code == 2, ended.out + ended.err
    assert "Traceback" not in ended.err + ended.out
    told = ended.err.strip().splitlines()
    assert 1 <= len(told) <= 10, ended.err
    for word in words:
        assert word in ended.err
