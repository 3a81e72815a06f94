"""Misspelt raw settings of vLLM and DeepSpeed are refused by name, by lists that are those of the installed versions."""

from __future__ import annotations

import sys

import pytest

from rlkit import run
from rlkit.assembly import raw_settings
from rlkit.engines.deepspeed_config import DeepSpeedSettings, OptimizerSettings, build_config
from tests.raw_settings import make, write


def test_the_lists_are_those_of_the_installed_versions() -> None:
    assert raw_settings.NAMES.read_text() == write(make()), "python -m tests.raw_settings"


WRONG = {
    "engine.vllm.gpu_memory_utilisation=0.5": "engine.vllm.gpu_memory_utilisation: vLLM 0.32 has no such setting (did you mean "
    "gpu_memory_utilization",
    "engine.deepspeed.gradient_cliping=1.0": "engine.deepspeed.gradient_cliping: DeepSpeed 0.19 has no such setting (did you mean "
    "gradient_clipping",
    "engine.deepspeed.zero_optimization.overlap_com=true": "engine.deepspeed.zero_optimization.overlap_com: DeepSpeed 0.19 has no such "
    "setting",
}


@pytest.mark.parametrize("word", WRONG)
def test_a_misspelt_setting_is_refused_and_no_library_loaded(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(sys.modules)
    for more in (["dry_run=true"], ["--cfg", "job"], []):
        assert run.main(["recipe=grpo_math", word, *more]) == 2
        told = capsys.readouterr()
        assert WRONG[word] in told.err and told.out == ""
    assert not {"vllm", "deepspeed"} & (set(sys.modules) - before)


def test_what_rlkit_sets_itself_is_on_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.distributed as dist

    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    settings = DeepSpeedSettings(2, OptimizerSettings((0.9, 0.95), 1e-8, 0.0, 1.0), offload_optimizer=True)
    config = build_config(settings, torch.bfloat16)
    assert list(raw_settings.list_unknown_settings(config, raw_settings.read_names()["deepspeed"]["names"])) == []


def test_another_installed_version_is_not_judged_by_these_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_settings, "find_version", lambda library: "9.9")
    assert run.main(["recipe=grpo_math", "engine.vllm.new_in_nine=1", "--cfg", "job"]) == 0
