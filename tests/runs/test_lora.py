"""LoRA through whole runs: the reference is the model with adapters off, a resumed run goes on exactly, both exports are the policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import run
from tests.repeatable import select_repeatable


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_adapters_learn_resume_and_are_exported(small: list[str], tiny_model: Path, tmp_path: Path) -> None:
    words = [*small, "model.lora.rank=4", "optim.lr=2e-2", "algorithm.kl_coef=0.05", "steps=3", "eval.every=0", "checkpoint.every=1"]
    ended = run(*words, f"output_dir={tmp_path / 'whole'}")
    assert ended.code == 0, ended.out + ended.err
    first, _, third = rows(tmp_path / "whole")[1:]
    assert abs(first["kl"]) <= 1e-8  # adapters begin at nothing, and the reference is the model without them
    assert third["kl"] > 1e-5 and third["sampling/sampling_logp_difference/mean"] < 1e-5
    kept = load_file(tmp_path / "whole" / "checkpoints" / "step-000003" / "policy.safetensors")
    assert kept and all("lora_" in name for name in kept)  # only what is trained
    stopped = run("SIGTERM", "rollout", "3", *words, f"output_dir={tmp_path / 'cut'}", program="struck.py")
    assert stopped.code == 75, stopped.err
    ended = run(*words, f"output_dir={tmp_path / 'cut'}")
    assert ended.code == 0, ended.out + ended.err
    assert [select_repeatable(row) for row in rows(tmp_path / "cut")] == [select_repeatable(row) for row in rows(tmp_path / "whole")]
    ended = run(*words, "checkpoint.export=adapter", f"output_dir={tmp_path / 'adapter'}")
    assert ended.code == 0, ended.out + ended.err
    apart(tmp_path / "whole" / "model", tiny_model, tmp_path / "adapter" / "model")


def apart(merged: Path, base: Path, adapter: Path) -> None:
    """The merged export, and the base with the adapter on it, are one model, and not the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        plain, whole = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (base, merged))
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(ids).logits
    assert torch.allclose(whole, adapted, atol=1e-4)
    assert (whole - plain).abs().max() > 1e-2
