"""A run of a model in GGUF."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file

from rlkit.assembly.base_model import locate_model
from rlkit.cli import export
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.errors import UserError
from tests.conftest import run
from tests.gguf_models import build_model, write_gguf


def test_a_model_in_gguf_is_trained_and_exported(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header names the file and its digest. The step's log-prob check compares sampler and trainer."""
    file, folder = write_gguf(build_model("llama", tied=True), tmp_path / "x.gguf"), tmp_path / "run"
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    words = [*small, f"model.path={tmp_path}@x.gguf", "data.test=null", "prompts_per_step=2", "max_prompt_tokens=96", "steps=1"]
    ended = run(*words, f"output_dir={folder}")
    assert ended.code == 0, ended.out + ended.err
    assert ended.out.startswith("grpo_math\n  recipe ")
    places = [ended.out.index(text) for text in ("  folder ", "converting x.gguf", "  origin  ", "step 1/1")]
    assert places == sorted(places)  # the header first; what the conversion told, after it
    assert "not known until the model is on this disk" in ended.out[: places[1]] and "  memory  " in ended.out[places[1] : places[3]]
    assert f"{file}, BLAKE3 {blake3(file.read_bytes()).hexdigest()}" in ended.out
    assert export.run_export([str(folder), f"to={tmp_path / 'model'}"]) == 0
    for path in (folder / "model").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_file_is_converted_once_and_anew_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = build_model("llama", tied=True), tmp_path / "x.gguf"
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "cache"))
    recipe = read_recipe(compose_config(["recipe=grpo_math", f"model.path={file}"], None))
    with pytest.raises(UserError, match=r"x\.gguf does not exist; in .* there is no file in GGUF"):
        locate_model(recipe, torch.float32, main=True)
    write_gguf(model, file)
    first = locate_model(recipe, torch.float32, main=True)
    assert capsys.readouterr().out.startswith("converting x.gguf to ")
    held = load_file(Path(first.path) / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in held.items())
    assert locate_model(recipe, torch.float32, main=True) == first
    assert "converting" not in capsys.readouterr().out
    write_gguf(build_model("llama", tied=False), file)
    assert locate_model(recipe, torch.float32, main=False).path != first.path
