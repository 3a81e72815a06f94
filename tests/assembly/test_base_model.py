from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rlkit.assembly.base_model import build_renderer, locate_model
from rlkit.config.compose import compose_config
from rlkit.config.recipe import Recipe, read_recipe
from rlkit.errors import UserError

NAME, COMMITS = "someone/some-model", {"main": "a" * 40, "v2": "b" * 40}


def read(*words: str) -> Recipe:
    return read_recipe(compose_config(["recipe=grpo_math", "offline=true", *words], None))


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two revisions of a model; that of the second has room for 64 tokens."""
    folder = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (folder / "refs" / name).write_text(commit)
        shutil.copytree(tiny_model, folder / "snapshots" / commit)
    file = folder / "snapshots" / COMMITS["v2"] / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 64}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def test_a_revision_is_one_folder_for_all_that_is_loaded(hub: Path) -> None:
    recipe = read(f"model.path={NAME}", "model.revision=v2")
    model = locate_model(recipe, torch.float32, main=True)
    assert Path(model.path) == hub / "snapshots" / COMMITS["v2"]
    assert model.origin == f"{NAME}, revision v2, commit {COMMITS['v2']}"
    with pytest.raises(UserError, match="= 80 is more than the 64 tokens"):
        build_renderer(recipe, model.path)
    assert locate_model(read(f"model.path={NAME}"), torch.float32, main=True).path == NAME  # the hub's own default


def test_a_revision_that_is_not_there_is_refused(hub: Path) -> None:
    with pytest.raises(
        UserError, match=f"model.path {NAME} with model.revision=v3 cannot be loaded: the hub cannot be asked .* not in the"
    ):
        locate_model(read(f"model.path={NAME}", "model.revision=v3"), torch.float32, main=True)


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert build_renderer(read(f"model.path={folder}"), str(folder)).vocabulary == config["vocab_size"] == 259
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 258}))
    with pytest.raises(UserError, match=r"a special token .* of the id 258, and its .* a model that knows 258 tokens"):
        build_renderer(read(f"model.path={folder}"), str(folder))


@pytest.mark.parametrize("settings", [{"num_hidden_layers": "two"}, {"layer_types": ["a"]}], ids=lambda value: next(iter(value)))
def test_a_fault_of_the_config_is_not_put_on_the_tokenizer(settings: dict[str, object], tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=f"^model.path {folder}: its config.json is not valid: .*{next(iter(settings))[:4]}"):
        build_renderer(read(f"model.path={folder}"), str(folder))


def test_a_name_that_is_neither_here_nor_in_the_cache_is_refused_with_what_is_near(
    hub: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    with pytest.raises(
        UserError, match=r"^model.path modle is not a folder here; in .* there is model\nas one of the hub: .* the hub cannot"
    ):
        build_renderer(read("model.path=modle"), "modle")
