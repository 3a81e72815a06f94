from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.engines.classifier import Classifier
from rlkit.engines.loading import find_prefix, load_causal_lm, load_classifier
from rlkit.errors import UserError
from rlkit.runtime.ranks import Ranks
from tests.backends import deepspeed
from tests.conftest import run

CPU, FLOAT, WEIGHTS = torch.device("cpu"), torch.float32, "model.safetensors"
Tensors = dict[str, torch.Tensor]


def test_under_zero_3_each_of_two_processes_keeps_its_half_as_it_loads(tiny_model: Path, tmp_path: Path) -> None:
    """Before DeepSpeed's engine is made, which puts on a GPU what is there; a model loaded afterwards is whole."""
    ended = run(str(tiny_model), str(tmp_path / "held.json"), program="loading.py", ranks=2, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    whole, *held = json.loads((tmp_path / "held.json").read_text())
    assert whole == 58_880
    assert held == [whole // 2] * 2


def change_model(model: Path, folder: Path, change: Callable[[Tensors], Tensors], **settings: object) -> str:
    """A copy of a model with other tensors and settings."""
    shutil.copytree(model, folder)
    save_file(change(load_file(model / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | settings))
    return str(folder)


def without(name: str, tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if name not in key}


def layer_more(tensors: Tensors) -> Tensors:
    return tensors | {key.replace(".1.", ".2."): tensor.clone() for key, tensor in tensors.items() if ".layers.1." in key}


NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "prefix": (
        lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()},
        r"2[45] missing \(.*, \.\.\.\), 2[45] unexpected \(module\..*, \.\.\.\); names in the files start with 'module\.'",  # or a head
    ),
    "layer missing": (lambda tensors: without(".layers.1.", tensors), r"11 missing \(model\.layers\.1\.input_layernorm\.weight, "),
    "layer more": (layer_more, r"11 unexpected \(model\.layers\.2\.input_layernorm\.weight, .*; take a complete checkpoint"),
    "nan": (lambda tensors: tensors | {NORM: torch.full((48,), float("nan"))}, r"model\.norm\.weight holds NaN or infinity;"),
    "infinity": (lambda tensors: tensors | {NORM: tensors[NORM] / 0}, r"model\.norm\.weight holds NaN or infinity;"),
    "shape": (lambda tensors: tensors | {NORM: torch.ones(47)}, r"1 of another shape \(model\.norm\.weight \[47\] instead of \[48\]\);"),
}


UNSEEN = {("nan", 3), ("infinity", 3)}  # each process of ZeRO 3 holds a part of a tensor


@pytest.mark.parametrize(("fault", "stage"), [(fault, stage) for fault in FAULTS for stage in (1, 3) if (fault, stage) not in UNSEEN])
def test_no_tensor_is_left_random_or_left_over(fault: str, stage: int, tiny_model: Path, tmp_path: Path, ranks: Ranks) -> None:
    """transformers warns of it, and of left-over tensors not at all under ZeRO 3."""
    change, message = FAULTS[fault]
    path = change_model(tiny_model, tmp_path / "model", change)
    with deepspeed(stage).shard_on_load(FLOAT), pytest.raises(UserError, match=f"model.path {path}: .*{message}"):
        load_causal_lm(path, FLOAT, offline=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_nor_in_a_reward_model(fault: str, tiny_model: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    load_classifier(str(tiny_model), FLOAT, 0, offline=True).save_pretrained(tmp_path / "whole")
    path = change_model(tmp_path / "whole", tmp_path / "model", change)
    with pytest.raises(UserError, match=f"the reward model {path}: .*{message}"):
        Classifier(path, FLOAT, device=CPU, offline=True)
    with pytest.raises(UserError, match=f"model.path {path}: .*{message}"):
        load_classifier(path, FLOAT, 0, offline=True)  # which makes the score anew


def test_a_head_may_be_missing_where_it_is_the_embedding(tiny_model: Path, tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(tiny_model / WEIGHTS)
    load_causal_lm(str(tiny_model), FLOAT, offline=True)
    untied = change_model(tiny_model, tmp_path / "model", dict, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"1 missing \(lm_head\.weight\);"):
        load_causal_lm(untied, FLOAT, offline=True)


def test_heads_that_a_reward_model_gets_or_drops_and_old_buffers_are_no_fault(tiny_model: Path, tmp_path: Path) -> None:
    def with_head(tensors: Tensors) -> Tensors:
        inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
        return tensors | inverse | {"lm_head.weight": 2 * tensors["model.embed_tokens.weight"]}

    untied = change_model(tiny_model, tmp_path / "model", with_head, tie_word_embeddings=False)
    model = load_causal_lm(untied, FLOAT, offline=True)
    assert torch.equal(model.lm_head.weight, 2 * model.model.embed_tokens.weight)
    load_classifier(untied, FLOAT, 0, offline=True).save_pretrained(tmp_path / "classifier")
    scored = change_model(tmp_path / "classifier", tmp_path / "scored", lambda t: t | {"lm_head.weight": torch.ones(2, 48)})
    Classifier(scored, FLOAT, device=CPU, offline=True)
    load_classifier(scored, FLOAT, 0, offline=True)
    with pytest.raises(UserError, match=r"unexpected \(score\.weight\)"):
        load_causal_lm(str(tmp_path / "classifier"), FLOAT, offline=True)


@pytest.mark.parametrize("kept", [0, 1000, -1])
@pytest.mark.parametrize("file", [WEIGHTS, "pytorch_model.bin"])
def test_a_file_that_was_cut_off_is_refused_in_words(file: str, kept: int, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns(WEIGHTS))
    torch.save(load_file(tiny_model / WEIGHTS), tmp_path / "pytorch_model.bin")
    whole = (tiny_model if file == WEIGHTS else tmp_path) / file
    (tmp_path / "model" / file).write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"cannot be loaded as a causal language model: .*; a file of it is damaged or incomplete"):
        load_causal_lm(str(tmp_path / "model"), FLOAT, offline=True)


SETTINGS = {
    "num_hidden_layers": ("two", "Validation error for field 'num_hidden_layers': TypeError: .* expected int, got str"),
    "num_attention_heads": (0, "ZeroDivisionError: .*; its config.json or its files are not those of such a model"),
    "hidden_act": ("nope", "KeyError: 'nope'; its config.json or its files"),
    "vocab_size": (10**12, r"1 of another shape \(model\.embed_tokens\.weight \[259, 48\] instead of \[1000000000000, 48\]\)"),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_makes_no_model_is_refused_in_words(key: str, tiny_model: Path, tmp_path: Path) -> None:
    value, message = SETTINGS[key]
    path = change_model(tiny_model, tmp_path / "model", dict, **{key: value})
    with pytest.raises(UserError, match=f"model.path {path}.*: {message}"):
        load_causal_lm(path, FLOAT, offline=True)


def test_a_config_of_a_larger_model_is_refused_before_memory_is_taken(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever hardware.force overrides: this one would take 190 GB."""
    from transformers import AutoModelForCausalLM

    devices, load = list[object](), AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **more: devices.append(more.get("device_map")) or load(*a, **more)
    )
    path = change_model(tiny_model, tmp_path / "model", dict, vocab_size=10**9)
    with pytest.raises(UserError, match=r"1 of another shape \(model\.embed_tokens\.weight \[259, 48\] instead of \[1000000000, 48\]\)"):
        load_causal_lm(path, FLOAT, offline=True)
    assert devices == ["meta"]


def test_an_error_of_the_device_is_none_of_the_files(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str, model: torch.nn.Module) -> None:
        if not next(model.parameters()).is_meta:
            raise RuntimeError("the device is lost")

    monkeypatch.setattr("rlkit.engines.loading.check_finite", fail)
    with pytest.raises(RuntimeError, match="the device is lost"):
        load_causal_lm(str(tiny_model), FLOAT, offline=True)


def test_a_prefix_is_found_by_a_name_that_it_stands_before() -> None:
    assert find_prefix(["other", "base.module.a.b"], {"a.b"}) == "base.module."
    assert find_prefix(["a.b.c", "xa.b"], {"a.b"}) is None


def test_a_head_that_is_said_to_be_tied_and_is_another_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="tie_word_embeddings=true, and the files hold a head that differs from the embedding"):
        load_causal_lm(str(folder), torch.float32, offline=True)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors", {"format": "pt"})
    model = load_causal_lm(str(folder), torch.float32, offline=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
