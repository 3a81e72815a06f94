"""How long a GRPO step takes: rlkit beside TRL's GRPOTrainer, the floor (floor.py) or bare vLLM (bare.py), on one machine in turn.

    python -m tests.bench.grpo_step --trl-python PYTHON     an environment with trl 1.16, on a GPU with a vLLM of 0.22 to 0.31 too
    python -m tests.bench.grpo_step --floor
    python -m tests.bench.grpo_step --vllm                  only rollouts are compared

The kinds 1.5b, 1.5b-long and 7b (--kind) are for a GPU. There TRL rolls out with vLLM in its own process.

Both sides get the same model (random, of the shape of the built-in one or of Qwen2.5; or SmolLM2-135M), prompts, number of samples and
lengths, which are forced: each sample ends at a length drawn once from a seed. A process runs --steps steps of one optimizer step each, of
which the first two warm up; processes of both sides alternate --rounds times. It fails where the two did not do the same work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WARM = 2  # steps of each process that do not count
ENDS = 0.0075  # chance that a ragged completion ends at a token: a mean near 115
SPREAD = 0.6  # of the logarithm of a length


SMOLLM2 = "smollm2_135m_q4"  # the one model that is not random: a package carries its weights


@dataclass(frozen=True)
class Kind:
    prompts: int
    samples: int  # of each prompt
    most: int  # tokens of a completion
    prompt: int = 24  # bytes, of the built-in tokenizer a token each, and of SmolLM2's fewer
    model: str | None = None  # of recipes/model; None: the shape of the built-in one
    mean: float = 0.0  # tokens of a completion where lengths are log-normal, before the longest are cut
    words: tuple[str, ...] = ()  # settings of rlkit's that it needs on one GPU of 140 GB
    trl: Mapping[str, Any] = field(default_factory=dict)  # of TRL's GRPOConfig, for the same


PARTED = {"per_device_train_batch_size": 8, "vllm_gpu_memory_utilization": 0.4}
# Beside vLLM, 16 bytes a weight of 7B would not fit: bfloat16 alone, which is less than rlkit holds.
LEAN = {"model_init_kwargs": {"dtype": "bfloat16"}, "gradient_checkpointing": True, "vllm_enable_sleep_mode": True}
KINDS = {
    "ragged": Kind(16, 16, 256),
    "short": Kind(64, 16, 16),
    "smollm2": Kind(8, 8, 128, model=SMOLLM2),
    "1.5b": Kind(64, 8, 512, 150, "qwen2_5_1_5b", 250.0, trl=PARTED),
    "1.5b-long": Kind(64, 8, 2048, 150, "qwen2_5_1_5b", 700.0, trl=PARTED | {"gradient_checkpointing": True}),
    "7b": Kind(64, 8, 512, 150, "qwen2_5_7b", 250.0, ("engine.gradient_checkpointing=1", "tokens_per_micro_batch=8192"), PARTED | LEAN),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument("--trl-python", metavar="PYTHON")
    side.add_argument("--floor", action="store_true")
    side.add_argument("--vllm", action="store_true")
    parser.add_argument("--kind", choices=KINDS, default="ragged")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    other, program = ("floor", "floor") if asked.floor else ("vllm", "bare") if asked.vllm else ("trl", "theirs")
    commands = {
        "rlkit": [sys.executable, "-m", "tests.bench.ours"],
        other: [asked.trl_python or sys.executable, "-m", f"tests.bench.{program}"],
    }
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(Path(folder), asked.kind, asked.steps)
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
        for _ in range(asked.rounds):
            for name, command in commands.items():
                seen[name] += measured(command, work)
    return told(asked.kind, seen)


def make_work(folder: Path, kind: str, steps: int) -> Path:
    """A file that says all that both sides are to do."""
    chosen = KINDS[kind]
    rng = random.Random(1)
    rows = ["".join(rng.choices("abcdefghij ", k=chosen.prompt)) for _ in range(chosen.prompts * steps)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row, "answer": ""}) + "\n" for row in rows))
    make_model(folder / "model", chosen.model)
    work = {
        "folder": str(folder),
        "prompts": chosen.prompts,
        "samples": chosen.samples,
        "most": chosen.most,
        "lengths": lengths(kind),
        "steps": steps,
        "prompt_tokens": chosen.prompt,
        "tokens_per_micro_batch": 16384,
        "lr": 1e-4,
        "reward": "letters" if chosen.model in (None, SMOLLM2) else "distinct",  # most tokens of a real vocabulary are no text here
        "words": chosen.words,
        "trl": dict(chosen.trl),
    }
    (folder / "work.json").write_text(json.dumps(work))
    return folder / "work.json"


def lengths(kind: str) -> list[int]:
    """Of the completions of every step."""
    chosen = KINDS[kind]
    rng, count = random.Random(0), range(chosen.prompts * chosen.samples)
    if chosen.mean:
        middle = math.log(chosen.mean) - SPREAD**2 / 2
        return [min(1 + int(rng.lognormvariate(middle, SPREAD)), chosen.most) for _ in count]
    if kind == "short":
        return [rng.randint(1, chosen.most) for _ in count]
    return [min(1 + int(math.log(1.0 - rng.random()) / math.log(1.0 - ENDS)), chosen.most) for _ in count]


def make_model(folder: Path, name: str | None) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlkit.builtin.model import _init_model, build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    if name == SMOLLM2:
        model, tokenizer = load_smollm2(folder)
    elif name is None:
        model = _init_model(tokenizer).float()
    else:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Qwen2ForCausalLM(Qwen2Config(**sides(name), dtype=torch.bfloat16))
    model.config.eos_token_id = model.generation_config.eos_token_id = None  # vLLM would stop at it, unasked
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_smollm2(folder: Path) -> tuple[Any, Any]:
    """Model in float32, and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlkit.config.compose import compose_config
    from rlkit.engines.gguf_file import convert_gguf
    from rlkit.runtime.model_path import parse_model_path

    file = parse_model_path(compose_config(["recipe=grpo_smollm2", f"model={SMOLLM2}"], None)["model"]["path"]).file
    assert file is not None
    folder.mkdir()
    convert_gguf(file, folder, torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def sides(name: str) -> dict[str, Any]:
    """The configuration of a model of recipes/model."""
    from rlkit.assembly import shapes
    from rlkit.config import recipe
    from rlkit.config.compose import compose_config

    shape = shapes.find_shape(recipe.read_recipe(compose_config(["recipe=grpo_gsm8k", f"model={name}"], None)))
    assert shape is not None and shape.qkv_bias and not shape.qk_norm, "the Qwen2 family"
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }


def measured(command: list[str], work: Path) -> list[dict[str, Any]]:
    """The steps of one process that count: each with seconds, tokens, updates so far, and seconds by phase where it says so."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    done = subprocess.run([*command, str(work)], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    steps = json.loads(work.read_text())["steps"]
    if len(lines) != steps or lines[-1]["updates"] != steps:
        raise SystemExit(f"{' '.join(command)} took {lines[-1]['updates']} optimizer steps in {len(lines)} steps, not {steps}")
    return lines[WARM:]


def told(kind: str, seen: dict[str, list[dict[str, Any]]]) -> int:
    """Prints both sides and their ratio; returns the exit code."""
    work = {name: {step["tokens"] for step in steps} for name, steps in seen.items()}
    (ours, mine), (other, theirs) = work.items()
    if len(mine) != 1 or mine != theirs:
        print(f"not the same work: completion tokens a step {ours} {sorted(mine)}, {other} {sorted(theirs)}")
        return 1
    tokens = mine.pop()
    print(f"{kind}: {tokens:,} completion tokens a step, one optimizer step; {len(seen[ours])} steps of each side, medians")
    medians = {name: statistics.median(step["seconds"] for step in steps) for name, steps in seen.items()}
    for name, steps in seen.items():
        print(f"  {name:6} {medians[name]:7.3f} s   {tokens / medians[name]:,.0f} tokens/s   {phases(steps)}")
        if "memory" in steps[0]:
            print(f"         {also(steps)}")
    if other == "vllm":  # it does nothing but roll out
        medians = {name: statistics.median(step["phases"]["rollout"] for step in steps) for name, steps in seen.items()}
    print(f"  {ours} / {other} = {medians[ours] / medians[other]:.3f}   {other} / {ours} = {medians[other] / medians[ours]:.2f}")
    return 0


def phases(steps: list[dict[str, Any]]) -> str:
    """Seconds of each, and how many times the least that the machine needs where the steps tell."""

    def median(kind: str, name: str) -> float:
        return statistics.median(step[kind][name] for step in steps)

    floors = steps[0].get("floors", {})
    return ", ".join(
        f"{name} {median('phases', name):.3f}" + (f" ({median('floors', name):.1f}x its least)" if name in floors else "")
        for name in steps[0].get("phases", {})
    )


def also(steps: list[dict[str, Any]]) -> str:
    """The model FLOP utilisation of the update where it is told, and the most memory of each phase in GiB."""
    peaks = {name: max(step["memory"][name] for step in steps) for name in steps[0]["memory"]}
    told = ", ".join(f"{name.replace('_peak_gib', '')} {gib:.1f}" for name, gib in peaks.items())
    mfu = f"mfu {statistics.median(step['mfu'] for step in steps):.1%}   " if "mfu" in steps[0] else ""
    return f"{mfu}peak GiB {told}"


if __name__ == "__main__":
    sys.exit(main())
