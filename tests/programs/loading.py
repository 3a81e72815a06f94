"""How many weights each process holds of a model that is loaded under ZeRO 3: loading.py MODEL OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from rlkit.engines import hf
from rlkit.engines.deepspeed_config import OptimizerSettings, config, in_parts, set_environment
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks

set_environment()
ranks = Ranks()
with in_parts(config(3, torch.float32, OptimizerSettings((0.9, 0.95), 1e-8, 0.0, 1.0), {})):
    model = hf.load_model(sys.argv[1], torch.float32, offline=True)
nothing = torch.empty(0)
found = ranks.gather(sum(p.numel() + getattr(p, "ds_tensor", nothing).numel() for p in model.parameters()))
whole = sum(p.numel() for p in hf.load_model(sys.argv[1], torch.float32, offline=True).parameters())
if ranks.rank == 0:
    Path(sys.argv[2]).write_text(json.dumps([whole, *found]))
exit_process(0)
