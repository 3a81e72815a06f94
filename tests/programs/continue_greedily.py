"""The greedy continuations of two prompts by a model, in transformers and in vLLM, as JSON: continue_greedily.py MODEL OUT"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.engines.vllm import build_engine_settings, set_vllm_environment
from rlkit.run import exit_process

TOKENS = 16
folder, out = sys.argv[1], Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
chats = [[{"role": "user", "content": text}] for text in ("What is 27 + 18?", "Name three colours.")]
prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
greedy = {"max_new_tokens": TOKENS, "do_sample": False}
first = [model.generate(torch.tensor([prompt]), **greedy)[0, len(prompt) :].tolist() for prompt in prompts]

set_vllm_environment(1)
from vllm import LLM, SamplingParams  # noqa: E402 - it reads its environment when it is imported

engine = LLM(**build_engine_settings(folder, "float32", 128, gpu=False, sleeps=False) | {"load_format": "auto"})
params = SamplingParams(temperature=0.0, max_tokens=TOKENS, stop_token_ids=[tokenizer.eos_token_id], detokenize=False)
outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
second = [list(output.outputs[0].token_ids) for output in outputs]
out.write_text(json.dumps({"transformers": first, "vllm": second, "text": [tokenizer.decode(tokens) for tokens in first]}))
exit_process(0)
