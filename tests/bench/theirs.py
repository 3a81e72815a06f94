"""TRL's side of the benchmark: GRPOTrainer on transformers' generate, each completion ended at the length that the work says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.programs.toy_reward import letters

work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
folder = Path(work["folder"])
samples = work["prompts"] * work["samples"]


class Forced(LogitsProcessor):
    """The end token where a completion has its length, and nowhere before."""

    def __init__(self, before: int, eos: int) -> None:
        self.lengths, self.before, self.eos = torch.tensor(work["lengths"]), before, eos

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ends = self.lengths == ids.shape[1] - self.before + 1
        scores[:, self.eos] = float("-inf")
        scores[ends] = float("-inf")
        scores[ends, self.eos] = 0.0
        return scores


class Stopwatch(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds = time.perf_counter() - self.begun

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "completions/mean_length" in logs:
            tokens = round(logs["completions/mean_length"] * samples)
            print(json.dumps({"seconds": self.seconds, "tokens": tokens, "updates": state.global_step}), flush=True)


model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
generate = model.generate


def forced(*args: Any, **settings: Any) -> Any:
    end = Forced(settings["input_ids"].shape[1], tokenizer.eos_token_id)
    return generate(*args, **settings, logits_processor=LogitsProcessorList([end]))


model.generate = forced
trainer = GRPOTrainer(
    model=model,
    processing_class=tokenizer,
    reward_funcs=lambda completions, **_: [letters(text) for text in completions],
    train_dataset=Dataset.from_list([json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]),
    args=GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=samples,
        num_generations=work["samples"],
        max_completion_length=work["most"],
        max_steps=work["steps"],
        learning_rate=work["lr"],
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    ),
    callbacks=[Stopwatch()],
)
trainer.train()
