"""Reward statistics of all ranks as metrics.jsonl gets them: rates.py FILE. Rank 0 judges three samples, rank 1 one, which fails."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from rlkit.metrics import metric_values
from rlkit.rewarding import RewardClient, RewardSettings, RewardSpec
from rlkit.run import exit_process
from rlkit.runtime.ranks import Ranks

ranks = Ranks()
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "mine.py")
    file.write_text("def f(completion): return {'score': 1 / len(completion), 'size': len(completion)}\n")
    with RewardClient([RewardSpec("f", f"{file}:f")], RewardSettings(workers=1, max_failure_rate=1.0)) as judge:
        said = ["a", "bb", "cccccc"] if ranks.main else [""]
        for number, text in enumerate(said):
            judge.submit(number, {"prompt": "p", "completion": text})
        judge.collect(range(len(said)))
        merged = ranks.merge_metrics(judge.stats())
        seconds = merged["time/reward_p99"].numbers  # type: ignore[union-attr]
if ranks.main:
    Path(sys.argv[1]).write_text(json.dumps({**metric_values(merged), "counted": len(seconds)}))
exit_process(0)
