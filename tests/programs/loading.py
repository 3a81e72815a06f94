"""What each process holds of a model loaded under ZeRO 3: loading.py MODEL SMALL OUT. The weights, and at most how many MiB more."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import torch

from rlkit.engines import hf
from rlkit.engines.deepspeed import config, in_parts, set_environment
from rlkit.ranks import Ranks
from rlkit.run import leave


def anonymous() -> float:
    """MiB of this process that no file backs: weights mapped from their file are not in it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return float(line.split()[1]) / 1024


def loaded(path: str) -> dict[str, float]:
    seen, over = [before := anonymous()], threading.Event()

    def look() -> None:
        while not over.wait(0.002):
            seen.append(anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    with in_parts(config(3, torch.float32, 1.0, {})):
        model = hf.load_model(path, torch.float32, offline=True)
    over.set()
    thread.join()
    held = sum(p.numel() + getattr(p, "ds_tensor", torch.empty(0)).numel() for p in model.parameters())
    return {"held": held, "most": max(seen) - before}


set_environment()
ranks = Ranks()
loaded(sys.argv[2])  # the libraries take memory, once
found = ranks.gather(loaded(sys.argv[1]))
if ranks.rank == 0:
    Path(sys.argv[3]).write_text(json.dumps(found))
leave(0)
