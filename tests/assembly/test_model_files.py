"""What is refused before a weight is read, at start and by dry_run: in words, with exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit import run as door
from rlkit.assembly import plan
from rlkit.assembly.model_files import ALL_MODELS, CAUSAL_LM, CLASSIFIER, ENCODERS, TABLES, check_config, list_model_types
from rlkit.config.compose import compose_config
from rlkit.config.recipe import read_recipe
from rlkit.errors import UserError

Config = dict[str, Any]


def write_config(change: Callable[[Config], Config]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return write


def shard(*names: str) -> Callable[[Path], object]:
    """The weights in another file, and an index of these files."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        index = {"weight_map": {f"tensor{i}": name for i, name in enumerate(names)} | {"model.norm.weight": "a.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def remove(*patterns: str) -> Callable[[Path], object]:
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def cut(kept: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:kept])


def fill_half(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def quantise(method: str | None) -> Callable[[Path], object]:
    return write_config(lambda config: config | {"quantization_config": {"quant_method": method, "bits": 4}})


def twice(folder: Path) -> None:
    """One tensor in both of two files, with other values."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"] + 1}, folder / "b.safetensors")
    index = {name: "b.safetensors" if name == "model.norm.weight" else "a.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def store_as(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)
    save_file(tensors, folder / "model.safetensors")


CODE = {"AutoConfig": "my.MyConfig", "AutoModelForCausalLM": "my.MyModel"}
ENCODER = "is an encoder and no causal language model"
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown type": (write_config(lambda config: config | {"model_type": "qwne3"}), "knows no model_type 'qwne3' (did you mean qwen3"),
    "no type": (write_config(lambda config: {}), "config.json is not the configuration of a model: it names no model_type"),
    "broken json": (
        lambda folder: (folder / "config.json").write_text('{"model_type": '),
        "config.json is not the configuration of a model",
    ),
    "empty json": (lambda folder: (folder / "config.json").write_text(""), "config.json is not the configuration of a model"),
    "no config": (remove("config.json"), "has no config.json (in it: chat_template.jinja, generation_config.json, model.safetensors,"),
    "adapters": (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "it holds LoRA adapters: merge them"),
    "gguf beside": (lambda folder: (folder / "config.json").rename(folder / "x.gguf"), "a file in GGUF is named by model.path="),
    "nothing": (remove("*"), "has no config.json (it is empty)"),
    "t5": (write_config(lambda config: {"model_type": "t5", "is_encoder_decoder": True}), "is an encoder and a decoder and no causal"),
    "bert": (write_config(lambda config: {"model_type": "bert"}), ENCODER),
    "vision": (write_config(lambda config: {"model_type": "vit"}), "(model_type vit) is no causal language model of transformers"),
    "gptq": (quantise("gptq"), "holds weights quantised by gptq, which cannot be trained; take the model that they were made of"),
    "awq": (quantise("awq"), "holds weights quantised by awq"),
    "fp8": (quantise("fp8"), "holds weights quantised by fp8"),
    "in 4 bits": (quantise("bitsandbytes"), "holds weights quantised by bitsandbytes"),
    "quantised by nobody": (quantise(None), "holds weights quantised by a method that it does not name, which cannot be trained"),
    "quantised by a word": (write_config(lambda config: config | {"quantization_config": "gptq"}), "by a method that it does not name"),
    "half of it never written": (
        lambda folder: (folder / "model.safetensors").write_bytes(fill_half((folder / "model.safetensors").read_bytes())),
        "model.safetensors holds zeros where there should be weights, in ",
    ),
    "code": (
        write_config(lambda config: config | {"model_type": "mine", "auto_map": CODE}),
        "code of its own (my.MyModel), which would run",
    ),
    "short": (write_config(lambda config: config | {"max_position_embeddings": 40}), "= 80 is more than the 40 tokens that model.path"),
    "no tokenizer": (remove("tokenizer*"), "has no tokenizer (in it: chat_template.jinja, config.json, generation_config.json, model.safe"),
    "no weights": (remove("model.safetensors"), "has no weights (in it: chat_template.jinja, config.json"),
    "absent shard": (shard("a.safetensors", "b.safetensors"), "1 of 2 files that model.safetensors.index.json names are missing (b.safe"),
    "lost tensor": (shard("a.safetensors"), "model.safetensors.index.json names 1 tensors that no file holds (tensor0)"),
    "a tensor twice": (twice, "1 tensors are in several files (model.norm.weight); download or copy all again"),
    "int8": (lambda folder: store_as(folder, torch.int8), "quantised tensors (model.norm.weight: I8), which cannot be trained"),
    "float8": (lambda folder: store_as(folder, torch.float8_e4m3fn), "quantised tensors (model.norm.weight: F8_E4M3), which cannot be"),
    "adapters beside": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds a whole model and LoRA adapters"),
    "cut off": (cut(-1), "model.safetensors is damaged or incomplete (it has "),
    "header cut off": (cut(100), "model.safetensors is damaged or incomplete (its header is cut off)"),
    "empty file": (cut(0), "model.safetensors is damaged or incomplete (its header is cut off)"),
    "end of a turn": (
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "two"}'),
        'generation_config.json: eos_token_id holds "two", which is no token; valid: the id of a token (an integer from 0), a list of',
    ),
    "broken index": (lambda folder: (shard()(folder), (folder / "model.safetensors.index.json").write_text("[]")), "index.json is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dry_run_refuses_what_the_json_tells(fault: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, message = FAULTS[fault]
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    words = ["recipe=grpo_math", f"model.path={folder}", "max_prompt_tokens=48", "max_completion_tokens=32", "dry_run=true"]
    assert door.main(words) == 0
    capsys.readouterr()
    damage(folder)
    assert door.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and str(folder) in said.err and "Traceback" not in said.err, said.err


@pytest.mark.parametrize(("kind", "more"), [("qwen3", {}), ("gpt2", {}), ("bert", {"is_decoder": True}), ("mine", {"auto_map": CODE})])
def test_a_causal_model_and_trusted_code_are_taken(kind: str, more: Config) -> None:
    check_config({"model_type": kind, **more}, "model.path x", auto_class=CAUSAL_LM, trust_remote_code=True)


def test_code_for_another_class_is_none_for_this_one() -> None:
    with pytest.raises(UserError, match="knows no model_type 'mine'"):
        check_config({"model_type": "mine", "auto_map": CODE}, "model.path x", auto_class=CLASSIFIER, trust_remote_code=True)


def test_the_tables_read_from_the_source_are_those_of_transformers() -> None:
    from transformers.models.auto import modeling_auto

    for table in (*TABLES.values(), ALL_MODELS):
        assert list_model_types(table) == set(getattr(modeling_auto, table))
    assert list_model_types(TABLES[CAUSAL_LM]) > ENCODERS


BLANK = {
    "model.path=''": "model.path='' is not valid: it is blank; write what is meant, or leave the key out",
    "model.path='  '": "model.path='  ' is not valid: it is blank",
    "model.revision=''": "model.revision='' is not valid: it is blank",
    "model.lora.targets=['']": "model.lora.targets=[''] is not valid: it is blank",
    "model.lora.targets=[q_proj,' ']": "model.lora.targets=['q_proj', ' '] is not valid: it is blank",
    "model.lora.targets=''": "model.lora.targets='' is not valid: it is blank",
    "model.lora.modules_to_save=['']": "model.lora.modules_to_save=[''] is not valid: it is blank",
    "data.train=''": "data.train.path='' is not valid: it is blank",
    "data.columns={prompt: ''}": "data.columns.prompt='' is not valid: it is blank",
    "data.curriculum=''": "data.curriculum='' is not valid: it is blank",
    "output_dir=''": "output_dir='' is not valid: it is blank",
    "report.wandb=''": "report.wandb='' is not valid: it is blank",
}


@pytest.mark.parametrize("word", BLANK)
def test_a_blank_value_is_refused_by_its_key(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["recipe=grpo_math", word, "dry_run=true"]) == 2
    assert capsys.readouterr().err.startswith(f"rlkit: {BLANK[word]}")


def test_a_plan_shows_what_is_done_with_code_that_the_library_stands_in_for(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    reward = f"+rewards.rm={{path: reward_model, args: {{model: {folder}}}}}"
    words = ["recipe=grpo_math", f"model.path={folder}", reward, "dry_run=true"]

    def describe(*more: str) -> list[str]:
        recipe = read_recipe(compose_config([*words, *more], None))
        return [value for label, value in plan.describe_plan(recipe) if label == "own code"]

    assert describe() == []
    write_config(lambda config: config | {"auto_map": CODE})(folder)
    instead = "does not run: transformers' own class of this model_type is used in its place"
    scorer = f"my.MyConfig of {folder} {instead} (rewards.rm.args.trust_remote_code=false)"
    assert describe() == [f"my.MyModel of {folder} {instead} (model.trust_remote_code=false)", scorer]
    assert describe("model.trust_remote_code=true") == [f"my.MyModel of {folder} runs (model.trust_remote_code=true)", scorer]


def test_a_revision_is_of_the_hub(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["recipe=grpo_math", f"model.path={tiny_model}", "model.revision=v2", "dry_run=true"]) == 2
    assert f"model.revision=v2 is of a name of the hub, and model.path {tiny_model} is on this disk" in capsys.readouterr().err


def test_a_reward_model_and_a_file_in_gguf_are_looked_at_too(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    reward = f"+rewards.rm={{path: reward_model, args: {{model: {folder}}}}}"
    assert door.main(["recipe=grpo_math", reward, "dry_run=true"]) == 0
    write_config(lambda config: config | {"model_type": "mine", "auto_map": {"AutoModelForSequenceClassification": "my.MyModel"}})(folder)
    assert door.main(["recipe=grpo_math", reward, "model.trust_remote_code=true", "dry_run=true"]) == 2
    assert "and allow it with rewards.rm.args.trust_remote_code=true" in capsys.readouterr().err
    reward = reward.replace("}}", ", trust_remote_code: true}}")
    assert door.main(["recipe=grpo_math", reward, "dry_run=true"]) == 0
    quantise("gptq")(folder)
    assert door.main(["recipe=grpo_math", reward, "dry_run=true"]) == 2
    assert f"rewards.rm: the reward model {folder} holds weights quantised by gptq" in capsys.readouterr().err
    for file in ("absent.gguf", folder / "absent.gguf"):
        assert door.main(["recipe=grpo_math", f"model.path={file}", "dry_run=true"]) == 2
        assert "absent.gguf does not exist; in " in capsys.readouterr().err
    monkeypatch.setattr("rlkit.engines.gguf_file.find_spec", lambda name: None)
    assert door.main(["recipe=grpo_math", "model.path=x/y@z.gguf", "dry_run=true"]) == 2
    assert "model.path x/y@z.gguf is in GGUF, which needs the package gguf: pip install 'rlkit[gguf]'" in capsys.readouterr().err


def test_a_file_and_a_folder_that_is_not_there_are_named(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in {
        tiny_model / "model.safetensors": "is a file; name the folder of the model",
        tiny_model / "x.GGUF": "does not exist; in",
        tiny_model.parent / "modle": f"does not exist; in {tiny_model.parent} there is model",
    }.items():
        assert door.main(["recipe=grpo_math", f"model.path={path}", "dry_run=true"]) == 2
        assert words in (error := capsys.readouterr().err), error
