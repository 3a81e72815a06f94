"""A model whose class stands in its own folder: refused as long as its code is not allowed, and like any other once it is."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rlkit.assembly.base_model import build_renderer
from rlkit.assembly.rewards import load_reward_models
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.engines.certificate import certify
from rlkit.engines.loading import load_causal_lm, load_classifier, load_config
from rlkit.engines.own_code import COPIES
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


FAULTS = {  # what is put at the end of the code, and what is raised
    "exits": ("raise SystemExit(3)", r"it calls sys\.exit\(3\)"),
    "raises": ("1 / 0", "division by zero"),
    "is none": ("class", r"invalid syntax.*"),
}


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


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for transformers' copies of such code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    for name in [name for name in sys.modules if name.split(".")[0] == COPIES]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"])
@pytest.mark.parametrize("fault", FAULTS)
def test_code_of_a_model_that_fails_is_named(fault: str, part: str, custom_model: Path, tmp_path: Path, modules: None) -> None:
    """Whether it ends the process, raises or is no Python, and whatever it is for."""
    end, message = FAULTS[fault]
    (custom_model / f"{part.lower()}.py").write_text(f"{CODE}\n{end}\n")
    classes = {"AutoConfig": "my.MyConfig", "AutoModelForCausalLM": "my.MyModel"}
    config = json.loads((custom_model / "config.json").read_text())
    wrong = f"{part.lower()}.{classes.get(part, 'MyTokenizer')[3:]}"
    if part == "AutoTokenizer":
        file = custom_model / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {part: [None, wrong]}, "tokenizer_class": "MyTokenizer"}))
    (custom_model / "config.json").write_text(json.dumps(config | {"auto_map": classes | ({part: wrong} if part in classes else {})}))
    words = ["recipe=grpo_math", f"model.path={custom_model}", "model.trust_remote_code=true", "max_prompt_tokens=48"]
    recipe = read_recipe(compose_config([*words, "max_completion_tokens=32"], None))
    with pytest.raises(
        UserError, match=rf"model\.path {custom_model}.*: code of its own, {part.lower()}\.py, cannot be run: (\w+: )?{message}$"
    ):
        build_renderer(recipe, str(custom_model))
        load_causal_lm(str(custom_model), torch.float32, offline=True, trust_remote_code=True)


def test_the_class_that_is_certified_is_the_one_that_is_trained(custom_model: Path, tmp_path: Path, modules: None) -> None:
    """Of a type that transformers knows, but with code of its own; never by a certificate of other code."""
    file = custom_model / "config.json"
    map_alone = {"model_type": "qwen3", "auto_map": {"AutoModelForCausalLM": "my.MyModel"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | map_alone))
    wrong = "\n    def forward(self, *a, **k):\n        out = super().forward(*a, **k)\n        out.logits = out.logits.flip(1)\n"
    settings = {"where": "model.path x", "cache": tmp_path / "cache", "checkpoint_every": 0, "device": torch.device("cpu")}

    def check(trusted: bool) -> None:
        config = load_config(str(custom_model), "model.path", offline=True, trust_remote_code=trusted)
        certify(config, "causal language model", trust_remote_code=trusted, **settings)

    check(trusted=False)
    assert len(list((tmp_path / "cache").iterdir())) == 1 and not (tmp_path / "ran").exists()
    check(trusted=True)
    assert (tmp_path / "ran").exists()
    (custom_model / "my.py").write_text(f"{CODE}{wrong}        return out\n")
    with pytest.raises(UserError, match="cannot be trained exactly: log-probs"):
        check(trusted=True)
    check(trusted=False)


def test_a_reward_model_has_a_key_of_its_own_for_its_code(tiny_model: Path, custom_model: Path, tmp_path: Path, modules: None) -> None:
    """That of the recipe's model is for the recipe's model."""
    load_classifier(str(tiny_model), torch.float32, 0, offline=True).save_pretrained(tmp_path / "scores")
    shutil.copytree(custom_model, folder := tmp_path / "classifier", ignore=shutil.ignore_patterns("*.safetensors", "my.py"))
    shutil.copy(tmp_path / "scores" / "model.safetensors", folder)
    (folder / "my.py").write_text(CODE.replace("Qwen3ForCausalLM", "Qwen3ForSequenceClassification"))
    config = json.loads((folder / "config.json").read_text())
    one = {"model_type": "qwen3", "auto_map": {"AutoModelForSequenceClassification": "my.MyModel"}, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config | one | {"id2label": {"0": "score"}, "label2id": {"score": 0}}))

    def load(trusted: bool) -> Any:
        args = f"{{model: {folder}{', trust_remote_code: true' if trusted else ''}}}"
        words = ["recipe=grpo_math", "offline=true", "model.trust_remote_code=true", f"+rewards.rm={{path: reward_model, args: {args}}}"]
        parts = {"dtype": torch.float32, "ranks": SimpleNamespace(device=torch.device("cpu"))}
        context: Any = SimpleNamespace(recipe=read_recipe(compose_config(words, None)), **parts)
        rewards, placement = SimpleNamespace(in_process={}), SimpleNamespace(pause_rollout=None)
        load_reward_models(context, cast(Any, rewards), cast(Any, placement))
        return rewards.in_process["rm"].__self__.model.model

    assert type(load(trusted=False)).__name__ == "Qwen3ForSequenceClassification"
    assert type(load(trusted=True)).__name__ == "MyModel"
