"""The model of a checkpoint: what `rlkit export` writes is what the run itself wrote, byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlkit.cli import export
from rlkit.report.folder import read_metrics
from rlkit.runtime.manifest import CheckpointWriter, write_manifest
from tests.conftest import run

SMALL = ["steps=2", "prompts_per_step=8", "tokens_per_micro_batch=320", "optim.lr=3e-3", "eval.every=1", "eval.problems=16"]
EVERY = ["checkpoint.every=1", "checkpoint.keep=9"]
KINDS = {  # processes, and words
    "all weights in shards": (2, ["recipe=dpo_math", "engine.zero_stage=3"]),
    "all weights in bfloat16": (1, ["recipe=sft_math", "model.dtype=bfloat16"]),
    "adapters merged": (1, ["recipe=dpo_math", "model.lora.rank=4", "optim.lr=3e-2"]),
    "adapters of DoRA in shards of bfloat16": (
        2,
        ["recipe=sft_math", "model.lora.rank=4", "model.lora.dora=true", "engine.zero_stage=3", "model.dtype=bfloat16"],
    ),
    "adapters alone": (1, ["recipe=dpo_math", "model.lora.rank=4", "checkpoint.export=adapter"]),
    "on 4 bits": (1, ["recipe=sft_math", "model.lora.rank=4", "model.load_in_4bit=true"]),
    "a reward model": (1, ["recipe=reward_model"]),
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replace_state(checkpoint: Path, state: dict[str, Any]) -> None:
    """As if it had been saved with another state."""
    digests = json.loads((checkpoint / "manifest.json").read_text())["files"]
    (checkpoint / "state.json").unlink()
    written = CheckpointWriter(checkpoint)
    with written.create("state.json") as file:
        file.write(json.dumps(state).encode())
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, 2, digests | written.digests)


@pytest.fixture(scope="module")
def two_steps(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    ended = run("recipe=dpo_math", f"model.path={tiny_model}", *SMALL, *EVERY, "optim.schedule=constant", f"output_dir={folder}")
    assert ended.code == 0, ended.out + ended.err
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_checkpoint_gives_the_model_of_the_run(kind: str, tiny_model: Path, even_model: Path, tmp_path: Path) -> None:
    ranks, words = KINDS[kind]
    if kind == "on 4 bits":
        pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes: the extras test and four_bit bring it")
    model = even_model if kind == "on 4 bits" else tiny_model
    folder = tmp_path / "run"
    ended = run(*words, f"model.path={model}", *SMALL, *EVERY, f"output_dir={folder}", ranks=ranks, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    assert export.run_export([str(folder)]) == 0
    assert files(folder / "model-000002") == files(folder / "model")
    assert export.run_export([str(folder), "step=1", f"to={tmp_path / 'first'}"]) == 0
    assert files(tmp_path / "first").keys() == files(folder / "model").keys()
    weights = "adapter_model.safetensors" if kind == "adapters alone" else "model.safetensors"
    assert files(tmp_path / "first")[weights] != files(folder / "model")[weights]


def test_a_checkpoint_gives_the_model_of_a_run_that_ends_there(two_steps: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["recipe=dpo_math", f"model.path={tiny_model}", *SMALL, *EVERY, "optim.schedule=constant", "steps=1"]
    ended = run(*words, f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    assert export.run_export([str(two_steps), "step=1", f"to={tmp_path / 'model'}"]) == 0
    exported, ended_there = files(tmp_path / "model"), files(tmp_path / "run" / "model")
    cards = [files.pop("README.md").decode().splitlines() for files in (exported, ended_there)]
    assert exported == ended_there
    differing = [line.split("|")[1].strip() for line, other in zip(*cards, strict=True) if line != other]
    assert differing == ["recipe"]  # its digest: the recipes have other steps


def test_the_best_is_that_of_the_best_evaluation(two_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {row["step"]: row["eval/accuracy"] for row in read_metrics(two_steps / "metrics.jsonl")}
    best = max(found, key=lambda step: (found[step], -step))  # the first of equals
    code = export.run_export([str(two_steps), "step=best", f"to={tmp_path / 'best'}"])
    said = capsys.readouterr()
    if best == 0:
        assert (code, said.err) == (
            2,
            "rlkit: the best evaluation was before the first step, of model.path itself (there are: 1, 2)\n",
        )
    else:
        number = f"held-out accuracy {found[best]:.3f} (best of 3 evaluations it was selected on)"
        assert (code, said.out) == (0, f"{tmp_path / 'best'}: the model after step {best}, {number}\n")
    last = two_steps / "checkpoints" / "step-000002"
    before = json.loads((last / "state.json").read_text())

    def replace_best(step: int) -> None:
        evaluations = before["evaluations"] | {"best": {"value": 1.0, "step": step, "held_out": {}}}
        replace_state(last, before | {"evaluations": evaluations})

    try:
        replace_best(1)
        assert export.run_export([str(two_steps), "step=best", f"to={tmp_path / 'first'}"]) == 0
        assert capsys.readouterr().out.startswith(f"{tmp_path / 'first'}: the model after step 1, held-out accuracy 1.000 (best of 3 ")
        replace_best(9)
        assert export.run_export([str(two_steps), "step=best"]) == 2
        assert (
            "the best evaluation was after step 9, but its checkpoint was not kept; checkpoint.best=true keeps it"
            in capsys.readouterr().err
        )
    finally:
        replace_state(last, before)


def test_a_run_of_adapters_is_exported_in_either_form(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two are one model: peft on the base model, and transformers alone, give the same logits."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    words = ["recipe=sft_math", f"model.path={tiny_model}", *SMALL, "steps=1", "eval.every=0", "model.lora.rank=4", "optim.lr=3e-2"]
    ended = run(*words, f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    assert export.run_export([str(tmp_path / "run"), "as=adapter"]) == 0
    adapter = tmp_path / "run" / "adapter-000001"
    assert capsys.readouterr().out == f"{adapter}: the adapter after step 1\n"
    assert export.run_export([str(tmp_path / "run"), "as=merged"]) == 0
    assert files(tmp_path / "run" / "model-000001") == files(tmp_path / "run" / "model")
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        adapted = AutoPeftModelForCausalLM.from_pretrained(adapter)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model-000001")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    assert (adapted - merged).abs().max() < 1e-5 < 1e-2 < (base - merged).abs().max()


def test_mistakes_are_reported(two_steps: Path, even_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(two_steps, here)
    shutil.copytree(two_steps, other)
    recipe = (other / "recipe.yaml").read_text()
    path = next(line for line in recipe.splitlines() if line.startswith("  path: /"))
    (other / "recipe.yaml").write_text(recipe.replace(path, f"  path: {even_model}"))
    (here / "checkpoints" / "step-000001" / "policy.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "empty").mkdir()
    cases = [
        ([str(tmp_path / "empty")], 2, "is not the folder of a run: FileNotFoundError"),
        ([str(here), "step=7"], 2, "step=7: there is no such checkpoint (there are: 1, 2; or step=best)"),
        ([str(here), "last"], 2, "unknown: last; valid: rlkit export RUN [as=merged|adapter] [step=N|best] [to=FOLDER]"),
        ([str(here), "as=adapter"], 2, f"as=adapter: {here} trained all weights (model.lora.rank is null), so it has no adapter"),
        ([str(here), "as=gguf"], 2, "as=gguf is not valid: it must be merged or adapter"),
        ([str(here), f"to={here / 'model'}"], 2, "exists already; delete it, or choose another folder with to="),
        ([str(here), "to=/proc/none/model"], 2, "/proc/none/model cannot be written"),
        ([str(here), "step=1"], 2, "step-000001 is damaged: policy.safetensors has 9 bytes, not"),
        ([str(other)], 2, "began with another model: config.json, model.safetensors of model.path changed"),
    ]
    for words, code, text in cases:
        assert export.run_export(words) == code, words
        said = capsys.readouterr().err
        assert text in said and "Traceback" not in said, said
    assert not list(here.glob("*model-*")) and not list(other.glob("*model-*")) and not list(here.glob(".model*"))
    shutil.rmtree(here / "checkpoints")
    assert export.run_export([str(here)]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"temperature": 0.6,  "top_p": 0.9, "eos_token_id": [1]}\n', None])
def test_a_model_keeps_the_generation_config_of_its_base(content: str | None, tiny_model: Path, tmp_path: Path) -> None:
    """Transformers saves no such settings without do_sample."""
    shutil.copytree(tiny_model, base := tmp_path / "base")
    (base / "generation_config.json").unlink()
    if content is not None:
        (base / "generation_config.json").write_text(content)
    words = ["recipe=sft_math", f"model.path={base}", *SMALL, *EVERY, "steps=1", "eval.every=0"]
    ended = run(*words, f"output_dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.out + ended.err
    assert export.run_export([str(tmp_path / "run"), f"to={tmp_path / 'again'}"]) == 0
    expected = None if content is None else content.encode()
    assert files(tmp_path / "run" / "model").get("generation_config.json") == expected
    assert files(tmp_path / "again") == files(tmp_path / "run" / "model")
