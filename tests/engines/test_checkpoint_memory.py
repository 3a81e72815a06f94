"""A checkpoint is written and read tensor by tensor: no rank holds the training state beside the one that it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlkit.engines.tensor_file import TensorReader, write_tensors
from tests.conftest import run

LAYERS = "32"  # of 261,632 weights


@pytest.mark.parametrize(("stage", "dtype", "ranks"), [("1", "bfloat16", 1), ("3", "float32", 2)])
def test_no_rank_holds_more_than_a_few_tensors_of_the_state(stage: str, dtype: str, ranks: int, tmp_path: Path) -> None:
    """The state has 100 MB, its largest tensor 1 MB; the rest of the limit is what libraries load in the first call. And it comes back to
    the last bit, where a second rank holds less of a tensor than the first too."""
    out = tmp_path / "out.json"
    ended = run(stage, dtype, LAYERS, str(tmp_path), str(out), program="checkpoint_memory.py", ranks=ranks)
    assert ended.code == 0, ended.err
    found = json.loads(out.read_text())
    assert found["state"] == 100_466_688 and found["largest"] == 1_044_484 and len(found["ranks"]) == ranks
    for rank in found["ranks"]:
        assert rank["restored"], rank
        assert rank["first save"] < 24 * 2**20 and max(rank["save"], rank["load"]) < 16 * found["largest"], rank


def test_tensors_are_read_as_they_were_written_in_any_order(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "none": torch.empty(0, 4), "b": torch.tensor(-0.0), "c": torch.randn(7).bfloat16()}
    path = tmp_path / "state.safetensors"
    with path.open("wb") as file:
        write_tensors(file, {name: tensor.shape for name, tensor in tensors.items()}, tensors.values())
    with path.open("rb") as file:
        reader = TensorReader(file)
        for name in reversed(tensors):
            assert torch.equal(reader.read(name), tensors[name].float()) and reader.read(name).shape == tensors[name].shape
        with pytest.raises(KeyError, match="d"):
            reader.read("d")
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as file, pytest.raises(EOFError, match="the file ends inside c"):
        TensorReader(file).read("c")
