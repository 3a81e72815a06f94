"""A model whose class stands in its own folder: refused as long as its code is not allowed, and like any other once it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from rlkit.engines.loading import load_causal_lm
from rlkit.errors import UserError
from tests.conftest import run

CODE = """\
import os
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM

Path(os.environ["RAN"]).touch()

class MyConfig(Qwen3Config):
    model_type = "mine"

class MyModel(Qwen3ForCausalLM):
    config_class = MyConfig
"""


@pytest.fixture
def custom_model(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, folder := tmp_path / "custom_model")
    (folder / "my.py").write_text(CODE)
    file = folder / "config.json"
    written = {"model_type": "mine", "architectures": ["MyModel"]}
    code = {"AutoConfig": "my.MyConfig", "AutoModelForCausalLM": "my.MyModel"}
    file.write_text(json.dumps(json.loads(file.read_text()) | written | {"auto_map": code}))
    return folder


def test_code_of_a_model_runs_only_where_it_is_allowed(
    small: list[str], custom_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed it is trained, and its export carries the code, so that it is loaded from there."""
    env = {"RAN": str(tmp_path / "ran"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    words = [*small, f"model.path={custom_model}", "steps=1", "data.test=null", "prompts_per_step=2", f"output_dir={tmp_path / 'run'}"]
    refused = run(*words, **env)
    assert refused.code == 2 and not (tmp_path / "ran").exists() and not (tmp_path / "run").exists(), refused.out + refused.err
    assert "is defined by code of its own (my.MyModel)" in refused.err and "model.trust_remote_code=true" in refused.err
    ended = run(*words, "model.trust_remote_code=true", **env)
    assert ended.code == 0 and (tmp_path / "ran").exists(), ended.out + ended.err
    assert "Do you wish to run" not in refused.out + ended.out
    exported = tmp_path / "run" / "model"
    assert (exported / "my.py").read_text() == CODE
    os.environ.update(env)
    asked: list[str] = []
    model = load_causal_lm(str(exported), torch.float32, offline=True, trust_remote_code=True)
    assert type(model).__name__ == "MyModel" and model.config.model_type == "mine"
    monkeypatch.setattr("builtins.input", asked.append)
    with pytest.raises(UserError, match="contains custom code which must be executed"):
        load_causal_lm(str(exported), torch.float32, offline=True)
    assert asked == []
