"""rlkit's side of the benchmark: a run as a user starts it, but each completion ends at the length that the work says."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlkit import run
from rlkit.engines.vllm import VLLMEngine
from rlkit.runtime.timer import PHASES
from rlkit.types import Request

work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
folder = Path(work["folder"])
lengths = itertools.cycle(work["lengths"])
add = VLLMEngine.add


def forced(self: VLLMEngine, request: Request) -> None:
    self.eos = frozenset()  # no token ends a completion
    add(self, replace(request, sampling=replace(request.sampling, max_tokens=next(lengths))))


VLLMEngine.add = forced  # type: ignore[method-assign]
out = folder / f"run-{len(list(folder.iterdir()))}"
reward = Path(__file__).parents[1] / "programs" / "toy_reward.py"
code = run.main(
    [
        "recipe=grpo_math",
        f"model.path={folder / 'model'}",
        f"data.train={folder / 'prompts.jsonl'}",
        "data.test=null",
        f"rewards.accuracy.path={reward}:{work['reward']}",
        f"steps={work['steps']}",
        f"prompts_per_step={work['prompts']}",
        f"samples_per_prompt={work['samples']}",
        f"max_prompt_tokens={work['prompt_tokens']}",
        f"max_completion_tokens={work['most']}",
        f"tokens_per_micro_batch={work['tokens_per_micro_batch']}",
        f"optim.lr={work['lr']}",
        "eval.every=0",
        "checkpoint.every=0",
        f"output_dir={out}",
        *work["words"],
        *sys.argv[2:],
    ]
)
for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines() if code == 0 else ()):
    if "reward" in row:
        spent = {phase: row[f"time/{phase}"] for phase in PHASES if f"time/{phase}" in row}
        tokens = round(row["completions/mean_length"] * work["prompts"] * work["samples"])
        floors = {name.removeprefix("floor/"): times for name, times in row.items() if name.startswith("floor/")}
        peaks = {
            name.removeprefix("memory/"): gib for name, gib in row.items() if name.startswith("memory/") and name.endswith("_peak_gib")
        }
        told = {"seconds": row["time/step"], "tokens": tokens, "updates": row["step"], "phases": spent, "floors": floors}
        told |= {"memory": peaks, "mfu": row["throughput/mfu"]}
        print(json.dumps(told), flush=True)
run.exit_process(code)
