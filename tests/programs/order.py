"""The order of the prompts as the ranks of a run take them, without engines: order.py FILE arguments...

Everything is the run's own, from the recipe to the collector's deal; only the sampler hands prompts back instead of sampling.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit import run
from rlkit.assembly.datasets import build_datasets, count_steps
from rlkit.config import recipe
from rlkit.config.compose import compose_config
from rlkit.data.renderer import Renderer
from rlkit.rollout.collector import Collector
from rlkit.runtime.ranks import Ranks
from rlkit.types import Sampling


class StubSampler:
    def sample_groups(self, prompts: Sequence[Any], *rest: Any) -> Any:
        return prompts


told = recipe.read_recipe(compose_config(sys.argv[2:], None))
stream, _, _ = build_datasets(told, Renderer(told.model.path))
told = count_steps(told, len(stream.rows))
ranks = Ranks()
collector = Collector(StubSampler(), stream, ranks, told.prompts_per_step, told.samples_per_prompt, Sampling(), False)  # type: ignore[arg-type]
steps = []
for _ in range(told.steps or 0):
    taken = collector.take()
    assert taken is not None
    everyone = sorted(place for mine in ranks.gather(taken.groups) for place in mine)
    steps.append([[prompt.row, prompt.draw] for _, prompt in everyone])
if ranks.main:
    Path(sys.argv[1]).write_text(json.dumps(steps))
run.exit_process(0)
