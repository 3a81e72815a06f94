"""Under ZeRO 3 no process ever holds a whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import run

SIDES = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.mark.slow
def test_each_of_two_processes_loads_its_half(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    large, out = tmp_path / "large", tmp_path / "loading.json"
    shutil.copytree(tiny_model, large, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(tiny_model)
    config.update({**SIDES, "head_dim": 64, "layer_types": ["full_attention"] * SIDES["num_hidden_layers"]})
    model = AutoModelForCausalLM.from_config(config)
    size = sum(p.numel() for p in model.parameters())
    model.save_pretrained(large, max_shard_size="40MB")
    ended = run(str(large), str(tiny_model), str(out), program="loading.py", ranks=2, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    for seen in json.loads(out.read_text()):
        print(f"{size:,} weights, {4 * size / 2**20:.0f} MiB: {seen}")
        assert size / 2 <= seen["held"] < 0.501 * size
        assert seen["most"] < 0.75 * 4 * size / 2**20
