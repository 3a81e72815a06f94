"""A model that changes between a run and its resume or its export."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from rlkit.assembly import model_record
from rlkit.assembly.base_model import LocatedModel, locate_model
from rlkit.assembly.model_record import COMMIT, MODEL, RECORD, check_record, hash_model, identify_models
from rlkit.assembly.teacher import LocatedTeacher
from rlkit.cli import export
from rlkit.errors import UserError
from tests.assembly.test_base_model import COMMITS, NAME, hub, read
from tests.conftest import run

__all__ = ["hub"]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def change_weight(model: Path) -> None:
    """One number of a matrix that LoRA leaves alone, with the time and the size of the file as before."""
    file = model / "model.safetensors"
    stat = file.stat()
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns


def test_adapters_are_neither_resumed_nor_exported_on_another_base(
    small: list[str], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which one weight changed; with the file put back they are exported."""
    folder, whole = tmp_path / "run", (model / "model.safetensors").read_bytes()
    words = [*small, f"model.path={model}", "model.lora.rank=2", "data.test=null", "steps=1", f"output_dir={folder}"]
    ended = run(*words)
    assert ended.code == 0, ended.out + ended.err
    (folder / "summary.json").unlink()  # as if it was killed before its end
    assert json.loads((folder / RECORD).read_text())[MODEL]["model.safetensors"] == blake3(whole).hexdigest()
    change_weight(model)
    line = f"rlkit: the run in {folder} began with another model: model.safetensors of model.path changed\n"
    refused = run(*words)
    assert (refused.code, refused.err) == (2, f"{line}put this back, or choose another output_dir\n"), refused.out + refused.err
    assert export.run_export([str(folder), f"to={tmp_path / 'exported'}"]) == 2
    assert capsys.readouterr().err == f"{line}put this back: a checkpoint holds only what was trained\n"
    (model / "model.safetensors").write_bytes(whole)
    assert export.run_export([str(folder), f"to={tmp_path / 'exported'}"]) == 0


def test_a_digest_is_read_from_the_cache_until_the_file_changes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that no program can set."""
    hashed: list[str] = []
    monkeypatch.setattr(model_record, "hash_file", lambda file: hashed.append(file.name) or blake3(file.read_bytes()).hexdigest())
    monkeypatch.setattr(model_record, "SETTLED", -(10**18))
    (model / "README.md").write_text("read by nobody")
    first = hash_model(model)
    assert sorted(hashed) == sorted(first) == ["chat_template.jinja", *FILES]
    assert hash_model(model) == first and len(hashed) == len(first)
    change_weight(model)
    assert hash_model(model) != first and hashed[len(first) :] == ["model.safetensors"]


FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_a_file_that_has_just_changed_is_not_cached(model: Path) -> None:
    """A change within the same tick of the clock would not be seen."""
    hash_model(model)
    assert not list((model.parent / "cache" / "digests").glob("*"))


def test_shards_are_listed_by_their_index(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "other.safetensors").write_text("read by nobody")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    assert sorted(hash_model(model)) == sorted(
        ["a.safetensors", "chat_template.jinja", "model.safetensors.index.json", *FILES[:2], *FILES[3:]]
    )


def test_a_model_of_the_hub_is_known_by_its_commit(hub: Path, tmp_path: Path) -> None:
    """The one of a revision too, which may be set later to go on where the hub has moved on."""
    before, now = COMMITS["main"], COMMITS["v2"]
    recipe = read(f"model.path={NAME}")
    record = identify_models(recipe, locate_model(recipe, torch.float32, main=True), None)
    assert record == {MODEL: {COMMIT: before}}
    (tmp_path / RECORD).write_text(json.dumps(record))
    (hub / "refs" / "main").write_text(now)
    moved = identify_models(recipe, locate_model(recipe, torch.float32, main=True), None)
    with pytest.raises(
        UserError, match=rf"model\.path is at commit {now}, and was at {before} \(model\.revision={before} takes that one\)"
    ):
        check_record(tmp_path, moved, "put this back")
    fixed = read(f"model.path={NAME}", f"model.revision={before}")
    check_record(tmp_path, identify_models(fixed, locate_model(fixed, torch.float32, main=True), None), "put this back")


def test_reward_models_are_compared_too_and_a_record_that_is_gone_is_named(model: Path, tmp_path: Path) -> None:
    recipe = read(f"model.path={model}", f"+rewards.rm={{path: reward_model, args: {{model: {model}}}}}")
    record = identify_models(recipe, LocatedModel(str(model), version={"x.gguf": "a" * 64}), None)
    assert record == {MODEL: {"x.gguf": "a" * 64}, "rewards.rm": hash_model(model)}
    (tmp_path / RECORD).write_text(json.dumps(record))
    change_weight(model)
    with pytest.raises(UserError, match=r"began with another model: model\.safetensors of rewards\.rm changed\nput this back"):
        check_record(tmp_path, identify_models(recipe, LocatedModel(str(model), version={"x.gguf": "a" * 64}), None), "put this back")
    (tmp_path / RECORD).unlink()
    with pytest.raises(UserError, match=r"models\.json cannot be read, so it is not known which model this run began with"):
        check_record(tmp_path, record, "put this back")


def test_a_teacher_is_compared_too(model: Path, tmp_path: Path) -> None:
    """By its files, or by the name of the model that its server has."""
    recipe = read(f"model.path={model}", "algorithm=opd", f"model.teacher.path={model}")
    located = LocatedModel(str(model), version={"x.gguf": "a" * 64})
    record = identify_models(recipe, located, LocatedTeacher(str(model)))
    assert record == {MODEL: {"x.gguf": "a" * 64}, "model.teacher": hash_model(model)}
    (tmp_path / RECORD).write_text(json.dumps(record))
    served = identify_models(recipe, located, LocatedTeacher(version={"served": "big"}))
    assert served["model.teacher"] == {"served": "big"}
    with pytest.raises(UserError, match=r"served, .* of model\.teacher changed|of model\.teacher changed"):
        check_record(tmp_path, served, "put this back")
    change_weight(model)
    with pytest.raises(UserError, match=r"model\.safetensors of model\.teacher changed\nput this back"):
        check_record(tmp_path, identify_models(recipe, located, LocatedTeacher(str(model))), "put this back")
