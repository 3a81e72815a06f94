"""How many weights each process holds of a model that is loaded under ZeRO 3: loading.py MODEL OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlkit.engines.loading import load_causal_lm
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from tests.backends import deepspeed

ranks = Ranks()
with deepspeed(3).shard_on_load(torch.float32):
    model = load_causal_lm(sys.argv[1], torch.float32, offline=True)
nothing = torch.empty(0)
found = ranks.gather(sum(p.numel() + getattr(p, "ds_tensor", nothing).numel() for p in model.parameters()))
whole = sum(p.numel() for p in load_causal_lm(sys.argv[1], torch.float32, offline=True).parameters())
if ranks.rank == 0:
    Path(sys.argv[2]).write_text(json.dumps([whole, *found]))
exit_process(0)
