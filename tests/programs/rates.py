"""Reward statistics of all ranks as metrics.jsonl gets them: rates.py FILE. Rank 0 judges three samples, rank 1 one, which fails."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from rlkit.metrics import metric_values
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSpec
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks
from tests.rewarding.settings import make_settings

ranks = Ranks()
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "mine.py")
    file.write_text("def f(completion): return {'score': 1 / len(completion), 'size': len(completion)}\n")
    with RewardClient({"f": RewardSpec(path=f"{file}:f")}, make_settings(workers=1, max_failure_rate=1.0)) as client:
        said = ["a", "bb", "cccccc"] if ranks.main else [""]
        for number, text in enumerate(said):
            client.submit(number, {"prompt": "p", "completion": text})
        client.collect(range(len(said)))
        merged = ranks.merge_metrics(client.pop_metrics())
        seconds = merged["time/reward_p99"].numbers  # type: ignore[union-attr]
if ranks.main:
    Path(sys.argv[1]).write_text(json.dumps({**metric_values(merged), "counted": len(seconds)}))
exit_process(0)
