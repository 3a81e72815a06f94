"""Families that vLLM serves with transformers' own classes: the trainer's models of the same class are not touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run
from tests.engines.test_agreement import agreement
from tests.random_models import save_random_model

FAMILIES = ("smollm3", "olmo2", "olmo3", "gpt_neox", "phi", "glm4", "hunyuan_v1_dense", "arcee")  # gpt_neox: other names in its files


@pytest.mark.slow
def test_a_run_with_a_reference_and_a_bias_on_the_head(small_vllm: list[str], tmp_path: Path) -> None:
    model, folder = save_random_model(tmp_path / "model", "phi"), tmp_path / "run"
    words = ["steps=3", "eval.every=0", "eval.problems=1", "checkpoint.every=0", "algorithm.kl_coef=0.1", f"output_dir={folder}"]
    ended = run(*small_vllm, f"model.path={model}", *words)
    assert ended.code == 0, ended.out + ended.err
    _, *rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0 and rows[2]["kl"] > 1e-3  # the reference, which is built after the engine, stays what the policy was
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-5 for row in rows)


@pytest.mark.nightly(part="matrices")
@pytest.mark.parametrize("family", FAMILIES)
def test_families_agree_after_large_updates(family: str, tmp_path: Path) -> None:
    """With an engine that is there before any model of the trainer is."""
    found = agreement(save_random_model(tmp_path / "model", family), tmp_path, ["full-1", "lora-3"], ranks=1)
    for kind, seen in found.items():
        assert seen["first"] < 1e-4 and seen["fresh"] < 1e-4 and seen["stale"] > 0.1, kind
    assert found["lora-3"]["reference"] < 1e-6 and found["lora-3"]["loaded"] < 1e-6
