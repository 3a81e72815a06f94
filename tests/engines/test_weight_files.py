"""Files of the right size, parts of which were never written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.engines.weight_files import PIECE, check_written, read_header
from rlkit.errors import UserError


def check(file: Path) -> None:
    check_written(file, read_header(file), f"model.path x: {file.name}")


def test_a_file_whose_second_half_was_never_written_is_refused_by_names(tiny_model: Path, tmp_path: Path) -> None:
    """Norms, which are not looked at, and matrices: those after the middle of the file."""
    whole = (tiny_model / "model.safetensors").read_bytes()
    check(tiny_model / "model.safetensors")
    file = tmp_path / "model.safetensors"
    file.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    header = read_header(file)
    lost = [name for name, tensor in header.items() if tensor.begin >= len(whole) // 2 and len(tensor.shape) > 1]
    assert 5 < len(lost) < sum(len(tensor.shape) > 1 for tensor in header.values())
    with pytest.raises(UserError, match=r"model\.path x: model\.safetensors holds zeros .* in \d+ matrices \(model\.layers.*, \.\.\.\)"):
        check(file)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.embed_tokens.weight"])
def test_a_matrix_of_zeros_is_refused(name: str, tiny_model: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_model / "model.safetensors") | {"lm_head.weight": torch.ones(259, 48)}
    save_file(tensors, tmp_path / "x.safetensors")
    check(tmp_path / "x.safetensors")
    tensors[name][len(tensors[name]) // 2 :] = 0.0
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=rf"in 1 matrices \({name}\)"):
        check(tmp_path / "x.safetensors")


def test_a_hole_of_two_pieces_in_a_large_matrix_is_found_wherever_it_is(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.ones(16 * PIECE // 1024, 512, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    check(tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.seek(5 * PIECE + 4096)
        file.write(bytes(2 * PIECE))
    with pytest.raises(UserError, match=r"in 1 matrices \(a\.weight\)"):
        check(tmp_path / "x.safetensors")


def test_what_may_be_zero_is_taken(tmp_path: Path) -> None:
    """Biases, norms, masks, the second matrix of an adapter, a new head of a reward model, rows of unused tokens, a few rows of a layer."""
    zeros = torch.zeros(64, 64)
    rows = torch.ones(64, 64)
    rows[56:] = 0.0
    tensors = {
        "q.bias": torch.zeros(4096),
        "norm.weight": torch.zeros(4096),
        "h.0.attn.bias": zeros.clone(),
        "mask.weight": torch.zeros(1, 4096),
        "q.lora_B.speech.weight": zeros.clone(),
        "score.weight": zeros.clone(),
        "sizes.weight": zeros.long(),
        "embed_tokens.weight": rows.clone(),
        "q.weight": rows.clone(),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    check(tmp_path / "x.safetensors")


def test_an_expert_of_zeros_is_refused(tmp_path: Path) -> None:
    experts = torch.ones(4, 32, 64)
    experts[2] = 0.0
    save_file({"mlp.experts.gate_up_proj": experts}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"in 1 matrices \(mlp\.experts\.gate_up_proj\)"):
        check(tmp_path / "x.safetensors")


@pytest.mark.parametrize("entry", [[], {"dtype": "F32"}, {"dtype": "F32", "shape": [1], "data_offsets": [0]}])
def test_a_header_of_another_form_is_a_damaged_file(entry: object, tmp_path: Path) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="its header is none of safetensors"):
        read_header(tmp_path / "x.safetensors")
