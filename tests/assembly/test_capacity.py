"""A plan that does not fit is refused before anything is loaded, with the first change that makes it fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit import run as door
from rlkit.assembly import capacity, plan
from rlkit.config.compose import compose_config
from rlkit.config.recipe import Recipe, read_recipe
from rlkit.errors import UserError
from rlkit.profiling.host_estimate import LIBRARIES, estimate_host_peaks
from rlkit.runtime.hardware import HostMemory
from tests.conftest import run
from tests.profiling.test_memory_estimate import JOB

GIB = 2**30
SMALL = "{hidden: 576, intermediate: 1536, layers: 30, heads: 9, kv_heads: 3, head_dim: 64, vocab: 49152, tied: true}"  # SmolLM2-135M
HUGE = "{hidden: 8192, intermediate: 28672, layers: 8000, heads: 64, kv_heads: 8, head_dim: 128, vocab: 128256, tied: false}"
STEP = ["prompts_per_step=64", "samples_per_prompt=8", "max_prompt_tokens=96", "max_completion_tokens=32", "tokens_per_micro_batch=16384"]

SMALLEST = ["model.lora.rank=16", "prompts_per_step=2", "engine.gradient_checkpointing=1", "engine.rollout=hf"]


def recipe_of(*words: str) -> Recipe:
    return read_recipe(
        compose_config(["recipe=grpo_math", "model=hf", "model.path=some/model", f"model.shape={SMALL}", *STEP, *words], None)
    )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of 24 GiB, 23 of them free, without a GPU; this process has nothing in memory."""
    monkeypatch.setattr(plan, "host_memory", lambda: HostMemory(24.0 * GIB, 23.0 * GIB))
    monkeypatch.setattr(plan, "resident_memory", lambda: 0.0)
    monkeypatch.setattr(plan, "gpu_memory", lambda: None)
    return monkeypatch


def test_134_million_weights_and_16384_tokens_are_too_much_for_24_gib(host: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        plan.check_memory(recipe_of())
    assert str(error.value).startswith("the plan does not fit into memory: the phase train needs 2")
    assert "and this machine has 24.00 GiB, 23.00 GiB of them free; tokens_per_micro_batch=8192 makes it fit" in str(error.value)
    assert str(error.value).endswith("; hardware.force=true starts it all the same")
    plan.check_memory(recipe_of("tokens_per_micro_batch=8192"))
    forced = recipe_of("hardware.force=true")
    plan.check_memory(forced)
    assert dict(plan.describe_plan(forced))["too large"].endswith("makes it fit; it starts all the same, by hardware.force=true")
    assert "too large" not in dict(plan.describe_plan(recipe_of("tokens_per_micro_batch=8192")))


def test_a_micro_batch_is_no_larger_than_a_step(host: pytest.MonkeyPatch) -> None:
    job = plan.build_job(recipe_of("prompts_per_step=8"))
    assert job is not None and (job.tokens, job.completions, job.accumulates) == (8 * (96 + 8 * 32), 8 * 8 * 32, False)
    plan.check_memory(recipe_of("prompts_per_step=8"))


def test_the_processes_of_a_machine_share_its_memory(host: pytest.MonkeyPatch) -> None:
    words = ("tokens_per_micro_batch=4096", "engine.rollout=hf")
    host.setenv("WORLD_SIZE", "4")
    host.setenv("LOCAL_WORLD_SIZE", "2")  # on two machines
    plan.check_memory(recipe_of(*words))
    host.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(
        UserError, match=r"needs 3\d\.\d\d GiB for 4 processes, and this machine .*; tokens_per_micro_batch=2048 makes it fit"
    ):
        plan.check_memory(recipe_of(*words))


def test_what_the_processes_hold_already_is_not_asked_for_again(host: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("tokens_per_micro_batch=8192")
    host.setattr(plan, "host_memory", lambda: HostMemory(24.0 * GIB, 14.0 * GIB))
    with pytest.raises(UserError):
        plan.check_memory(recipe)
    host.setattr(plan, "resident_memory", lambda: 9.0 * GIB)
    plan.check_memory(recipe)


def test_a_gpu_that_is_too_small_is_refused_like_a_host(host: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("tokens_per_micro_batch=16384")
    host.setattr(plan, "gpu_memory", lambda: 8.0 * GIB)
    host.setattr(plan, "count_gpus", lambda: 1)
    with pytest.raises(
        UserError, match=r"train does not fit: it needs .* GiB, and 7\.36 GiB of a GPU can be used; .* makes it fit; hardware"
    ):
        plan.check_memory(recipe)
    host.setattr(plan, "gpu_memory", lambda: 80.0 * GIB)
    plan.check_memory(recipe)
    host.setattr(plan, "host_memory", lambda: HostMemory(24.0 * GIB, 4.0 * GIB))
    with pytest.raises(UserError, match=r"the host needs 4\.25 GiB, and this machine has 24.00 GiB, 4.00 GiB of them free"):
        plan.check_memory(recipe)


def test_a_plan_for_another_machine_is_not_refused(host: pytest.MonkeyPatch) -> None:
    """In a dry run alone: a run here is a run without a GPU."""
    elsewhere = recipe_of("hardware.gpu_gib=8", "dry_run=true")
    plan.check_memory(elsewhere)
    assert "of a GPU can be used" in dict(plan.describe_plan(elsewhere))["too large"]
    assert dict(plan.describe_plan(recipe_of("hardware.gpu_gib=80", "dry_run=true")))["memory"].endswith("; it fits")
    with pytest.raises(UserError, match=r"this machine has 24\.00 GiB"):
        plan.check_memory(recipe_of("hardware.gpu_gib=80"))


def test_a_run_is_large_from_4_gib_on(host: pytest.MonkeyPatch) -> None:
    assert plan.is_large_on_host(recipe_of("tokens_per_micro_batch=2048")) and not plan.is_large_on_host(recipe_of(*SMALLEST))
    host.setattr(plan, "gpu_memory", lambda: 80.0 * GIB)
    assert not plan.is_large_on_host(recipe_of("tokens_per_micro_batch=2048"))


def test_where_nothing_helps_a_larger_machine_is_named() -> None:
    told = capacity.explain_host_excess(JOB, 1, HostMemory(1.0 * GIB, 0.5 * GIB))
    assert told is not None and told.endswith("no setting makes it fit: take a smaller model or a larger machine")
    assert capacity.explain_host_excess(JOB, 1, HostMemory(4.0 * GIB, 4.0 * GIB)) is None


def test_peaks_of_a_host_by_hand() -> None:
    """JOB has 436 weights of 2 bytes, 100 tokens with 50 through a head of 10; a layer keeps 172 bytes of a token and its result again."""
    offline = replace(JOB, samples=False)
    state, gradients = 872 + 12 * 436, 4 * 436
    activations = 2 * 100 * (172 + 6 * 2)
    assert estimate_host_peaks(offline) == {"train": LIBRARIES["none"] + state + gradients + activations + 4 * 4 * 50 * 10}
    short = replace(offline, tokens=1, completions=1, keys=1)
    assert estimate_host_peaks(short)["train"] == LIBRARIES["none"] + state + gradients + 436 * 4  # the optimizer's step
    shared = replace(offline, keys=150)  # 50 keys and values again in each layer, and a mask of 20 keys for half of the tokens
    more = estimate_host_peaks(shared)["train"] - estimate_host_peaks(offline)["train"]
    assert more == 2 * (50 * 2 * 3 * 2 + 50 * 20 * 2)
    away = replace(short, offload=True)  # gradients in 2 bytes, and 20 bytes a weight where the others have their state
    assert estimate_host_peaks(away)["train"] == LIBRARIES["none"] + 872 + 20 * 436 + 2 * 2 * 40 + 2 * 436 + 2 * 436
    once = replace(offline, accumulates=False)
    assert estimate_host_peaks(once)["train"] == estimate_host_peaks(offline)["train"] - gradients


# -- the command -------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_exits_like_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main(["recipe=grpo_math", "model=hf", "model.path=some/model", f"model.shape={HUGE}", "dry_run=true"]) == 2
    said = capsys.readouterr()
    assert "too large:" in said.out and "steps:" in said.out
    assert "rlkit: the plan does not fit into memory: the phase train needs" in said.err and "Traceback" not in said.err


def test_a_run_that_does_not_fit_is_refused_before_it_writes(small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*small, "steps=1", "eval.every=0", "data.test=null", f"model.shape={HUGE}", f"output_dir={folder}"]
    ended = run(*words)
    assert ended.code == 2 and "does not fit into memory" in ended.err and "Traceback" not in ended.err, ended.out + ended.err
    assert not folder.exists()
    ended = run(*words, "hardware.force=true", "report.roofline=false")
    assert ended.code == 0, ended.out + ended.err
    assert "it starts all the same, by hardware.force=true" in ended.out
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"
