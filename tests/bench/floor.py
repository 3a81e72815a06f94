"""The floor of the benchmark: the same tokens with bare vLLM and a bare packed update in PyTorch, nothing of rlkit."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams

from tests.programs.toy_reward import letters


def attention(module, query, key, value, mask, scaling, sizes, **_):  # noqa: ANN001, ANN003, ANN201
    rows = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    return torch.cat([scaled_dot_product_attention(*row, is_causal=True, scale=scaling) for row in rows], 2).transpose(1, 2), None


def update(model: torch.nn.Module, prompts: list[list[int]], outputs: list[list[int]], advantages: list[float], budget: int) -> None:
    total, packs, room = sum(map(len, outputs)), [], 0
    for i in sorted(range(len(outputs)), key=lambda i: -len(outputs[i])):
        size = len(prompts[i]) + len(outputs[i])
        if size > room:
            packs, room = [*packs, []], budget
        packs[-1].append(i)
        room -= size
    for pack in packs:
        rows = [prompts[i] + outputs[i] for i in pack]
        sizes = [len(row) for row in rows]
        ids = torch.tensor([token for row in rows for token in row])
        counts = torch.cat([torch.arange(n) >= len(prompts[i]) for i, n in zip(pack, sizes, strict=True)])
        weights = torch.cat([torch.full((len(outputs[i]),), advantages[i] / total) for i in pack])
        positions = torch.cat([torch.arange(n) for n in sizes])
        hidden = model.model(input_ids=ids[None], position_ids=positions[None], use_cache=False, sizes=sizes).last_hidden_state[0]
        logs = torch.log_softmax(model.lm_head(hidden[counts.roll(-1)]), -1)
        chosen = logs.gather(-1, ids[counts][:, None])[:, 0]
        (-(chosen - chosen.detach()).exp() * weights).sum().backward()


work = json.loads(Path(sys.argv[1]).read_text())
path, count, most = f"{work['folder']}/model", work["prompts"], work["prompt_tokens"] + work["most"]
tokenizer = AutoTokenizer.from_pretrained(path)
AttentionInterface.register("floor", attention)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="floor")
optimizer = torch.optim.AdamW(model.parameters(), lr=work["lr"], betas=(0.9, 0.95), weight_decay=0.0)
settings = {"max_num_batched_tokens": max(8192, most), "enable_chunked_prefill": False, "logprobs_mode": "processed_logprobs"}
llm = LLM(path, dtype="float32", skip_tokenizer_init=True, max_model_len=most, enforce_eager=True, disable_log_stats=True, **settings)
texts = [json.loads(line)["prompt"] for line in Path(work["folder"], "prompts.jsonl").read_text().splitlines()]
for step in range(work["steps"]):
    start = time.perf_counter()
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(model.state_dict().items())})
    llm.reset_prefix_cache()
    synced = time.perf_counter()
    prompts = [p for t in texts[step * count :][:count] for p in [tokenizer.encode(t)] * work["samples"]]
    wanted = [SamplingParams(max_tokens=n, seed=i, logprobs=0, detokenize=False, ignore_eos=True) for i, n in enumerate(work["lengths"])]
    outputs = [list(o.outputs[0].token_ids) for o in llm.generate([{"prompt_token_ids": p} for p in prompts], wanted, use_tqdm=False)]
    rewards = torch.tensor([letters(text) for text in tokenizer.batch_decode(outputs)]).view(count, -1)
    sampled = time.perf_counter()
    advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)).flatten().tolist()
    update(model, prompts, outputs, advantages, work["tokens_per_micro_batch"])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    end = time.perf_counter()
    spent = {"sync": synced - start, "rollout": sampled - synced, "update": end - sampled}
    print(json.dumps({"seconds": end - start, "tokens": sum(map(len, outputs)), "updates": step + 1, "phases": spent}), flush=True)
