"""vLLM and the trainer on an export of a policy after three large updates: served_export.py MODEL EXPORT OUT."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rlkit.engines.vllm import build_engine_settings, set_vllm_environment
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks

set_vllm_environment(1)
os.environ.update({name: "1" if name.endswith("SIZE") else "0" for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")})
ranks = Ranks()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from tests.engines.test_experts import build_policy, plain_logprobs, samples, train  # noqa: E402

model, folder, out = sys.argv[1:]
policy = build_policy(Path(model))
trained = train(policy)
policy.export(Path(folder))
moved = float((plain_logprobs(AutoModelForCausalLM.from_pretrained(model)) - trained).abs().max())

from vllm import LLM, SamplingParams  # noqa: E402

llm = LLM(**build_engine_settings(folder, "float32", 96, gpu=False, sleeps=False) | {"load_format": "auto"})
params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
rows = [[*sample.prompt, *sample.tokens.tolist()] for sample in samples()]
outputs = llm.generate([{"prompt_token_ids": row} for row in rows], params)
said = torch.tensor(
    [
        [entry[token].logprob for entry, token in zip(o.prompt_logprobs[6:], row[6:], strict=True)]
        for o, row in zip(outputs, rows, strict=True)
    ]
)
Path(out).write_text(json.dumps({"apart": float((said - trained).abs().max()), "moved": moved}))
exit_process(0)
