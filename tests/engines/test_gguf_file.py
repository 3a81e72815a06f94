"""What is left of a model that was written to GGUF after rlkit has read the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlkit.builtin.model import build_tokenizer
from rlkit.engines.gguf_file import convert_gguf, split_as_smollm
from rlkit.engines.loading import load_causal_lm
from rlkit.errors import UserError
from rlkit.runtime.cache import ensure_folder
from tests.gguf_models import VOCABULARY, Change, build_model, write_gguf


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True)])
def test_a_model_in_gguf_is_the_model_that_was_written(kind: str, tied: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build_model(kind, tied)
    convert_gguf(write_gguf(model, tmp_path / "a b.gguf"), tmp_path / "out", torch.float32)
    assert capfd.readouterr().err == ""  # no progress bars
    found = load_causal_lm(str(tmp_path / "out"), torch.float32, offline=True)
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    tokens = torch.arange(40).unsqueeze(0)  # [1, T]
    assert torch.equal(found.eval()(tokens).logits, model.eval()(tokens).logits)


def test_in_bfloat16_the_weights_are_those_of_the_file_rounded_and_the_tokenizer_goes_with_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = build_model("llama", tied=True)
    convert_gguf(write_gguf(model, tmp_path / "x.gguf"), tmp_path / "out", torch.bfloat16)
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name].bfloat16()) for name, tensor in held.items())
    tokenizer, chat = AutoTokenizer.from_pretrained(tmp_path / "out"), [{"role": "user", "content": "What is 7 + 5?"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == build_tokenizer().apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text).input_ids == build_tokenizer()(text).input_ids
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer("hehe").input_ids == [VOCABULARY - 1] * 2


FAULTS: dict[str, tuple[Change, str]] = {
    "scaling": (
        lambda keys, _: keys.update({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
        r"its header has keys that are not read: rope\.scaling\.factor, rope\.scaling\.type; take the model as a folder of safetensors",
    ),
    "window": (lambda keys, _: keys.update({"attention.sliding_window": 8}), r"keys that are not read: attention\.sliding_window;"),
    "factors": (
        lambda _, tensors: tensors.update({"rope_freqs.weight": np.ones(16, np.float32)}),
        r"tensors that are not read: rope_freqs\.w",
    ),
    "bias": (
        lambda _, tensors: tensors.update({"blk.0.attn_q.bias": np.ones(128, np.float32)}),
        "holds 103,104 weights, and its .* 102,976;",
    ),
    "layer": (lambda _, tensors: [tensors.pop(name) for name in [*tensors] if "blk.1" in name], r"9 missing \(model\.layers\.1\."),
    "keys": (lambda keys, _: keys.pop("attention.head_count_kv"), r"its header lacks attention\.head_count_kv;"),
    "rotary": (
        lambda keys, _: keys.update({"attention.key_length": 16}),
        r"attention\.key_length=16 in its header, where .* has heads of 32",
    ),
    "shape": (lambda _, tensors: tensors.update({"output_norm.weight": np.ones(63, np.float32)}), r"norm\.weight \[63\] instead of \[64\]"),
    "tokenizer": (lambda keys, _: keys.update({"tokenizer.ggml.pre": "tekken"}), r"a tokenizer of the kind gpt2/tekken; .* gpt2/smollm"),
    "parts": (lambda keys, _: keys.update({"split.count": 3}), r"is one of 3 files of a model; merge them"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_transformers_would_pass_over_is_refused(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    file = write_gguf(build_model("llama", tied=True), tmp_path / "x.gguf", change)
    with pytest.raises(UserError, match=f"model.path {file}.*{message}"):
        convert_gguf(file, tmp_path / "out", torch.float32)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    model = build_model("llama", tied=True)
    model.config.model_type = "gemma2"
    file = write_gguf(model, tmp_path / "x.gguf")
    with pytest.raises(UserError, match="holds the architecture gemma2; from GGUF llama, qwen2, qwen3 are read;"):
        convert_gguf(file, tmp_path / "out", torch.float32)


@pytest.mark.parametrize("kept", [0, 3, 40, 5000, -1])
def test_a_gguf_file_that_was_cut_off_is_refused(kept: int, tmp_path: Path) -> None:
    file = write_gguf(build_model("llama", tied=True), tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"model.path {file} cannot be read as a GGUF file: .*; it is damaged or incomplete, copy it again"):
        convert_gguf(file, tmp_path / "out", torch.float32)


def spoil(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.ffn_up.weight"][3, 5] = np.nan


def empty(keys: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    tensors["blk.1.ffn_up.weight"][:] = 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil, r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
        (empty, r"holds zeros where .* 1 matrices \(model\.layers\.1"),
    ],
)
def test_weights_that_are_none_are_refused_by_the_name_of_the_file(change: Change, message: str, tmp_path: Path) -> None:
    """Not by that of a folder in the cache, which is not written."""
    file = write_gguf(build_model("llama", tied=True), tmp_path / "x.gguf", change)
    with pytest.raises(UserError, match=f"^model.path {file}:? {message}"):
        ensure_folder(tmp_path / "out", lambda part: convert_gguf(file, part, torch.float32))
    assert not (tmp_path / "out").exists()


def test_without_the_package_its_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.engines.gguf_file.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"x\.gguf is in GGUF, which needs the package gguf: pip install 'rlkit\[gguf\]'"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", torch.float32)


def test_smollm_splits_digits_off_before_words() -> None:
    """So that two line feeds before a number stay together: GPT-2's rule parts them."""
    backend = build_tokenizer().backend_tokenizer
    split_as_smollm(backend)
    assert [text for text, _ in backend.pre_tokenizer.pre_tokenize_str("a\n\n75 b")] == ["a", "ĊĊ", "7", "5", "Ġb"]
