"""TRL's side of the benchmark: GRPOTrainer, which rolls out with vLLM in its own process on a GPU, else with transformers' generate: it
cannot load weights into vLLM's layers for CPUs. Each completion ends at the length that the work says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tests.programs import toy_reward

work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
folder = Path(work["folder"])
samples = work["prompts"] * work["samples"]
gpu = torch.cuda.is_available()
spent: dict[str, float] = {}  # seconds of this step by phase


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


def timed(phase: str, call: Any) -> Any:
    def timed(*args: Any, **settings: Any) -> Any:
        begun = time.perf_counter()
        done = call(*args, **settings)
        if gpu:
            torch.cuda.synchronize()
        spent[phase] = spent.get(phase, 0.0) + time.perf_counter() - begun
        return done

    return timed


class Stopwatch(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        spent.clear()
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if gpu:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.begun

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "completions/mean_length" in logs:
            tokens = round(logs["completions/mean_length"] * samples)
            told = {"seconds": self.seconds, "tokens": tokens, "updates": state.global_step, "phases": spent}
            if gpu:
                told |= {"memory": {"whole_peak_gib": torch.cuda.max_memory_reserved() / 2**30}}
            print(json.dumps(told), flush=True)


tokenizer = AutoTokenizer.from_pretrained(folder / "model")
rows = work["trl"].get("per_device_train_batch_size", samples)
trainer = GRPOTrainer(
    model=str(folder / "model"),
    processing_class=tokenizer,
    reward_funcs=lambda completions, **_: [getattr(toy_reward, work["reward"])(text) for text in completions],
    train_dataset=Dataset.from_list([json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]),
    args=GRPOConfig(
        output_dir=str(folder / "trl"),
        num_generations=work["samples"],
        max_completion_length=work["most"],
        max_steps=work["steps"],
        learning_rate=work["lr"],
        beta=0.0,
        bf16=gpu,
        use_cpu=not gpu,
        use_vllm=gpu,
        vllm_mode="colocate",
        vllm_max_model_length=work["prompt_tokens"] + work["most"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **{"per_device_train_batch_size": rows, "gradient_accumulation_steps": samples // rows, "gradient_checkpointing": False}
        | work["trl"],
    ),
    callbacks=[Stopwatch()],
)
if gpu:
    engine = trainer.vllm_generation
    generate = engine.llm.generate

    def of_their_lengths(prompts: Any, sampling_params: Any, **settings: Any) -> Any:
        each = [sampling_params.clone() for _ in prompts]
        for one, length in zip(each, work["lengths"], strict=True):
            one.max_tokens, one.ignore_eos = length, True
        return generate(prompts, sampling_params=each, **settings)

    engine.llm.generate = of_their_lengths
    engine.generate, engine.sync_weights = timed("rollout", engine.generate), timed("sync", engine.sync_weights)
else:
    generate = trainer.model.generate

    def forced(*args: Any, **settings: Any) -> Any:
        end = Forced(settings["input_ids"].shape[1], tokenizer.eos_token_id)
        return generate(*args, **settings, logits_processor=LogitsProcessorList([end]))

    trainer.model.generate = timed("rollout", forced)
trainer.train()
