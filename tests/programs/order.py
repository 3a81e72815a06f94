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
from rlkit.rollout.open_groups import OpenGroup
from rlkit.rollout.sampler import SampledGroups
from rlkit.runtime.ranks import Ranks
from rlkit.types import Group, Sampling


class StubSampler:
    def sample(self, groups: Sequence[OpenGroup], *rest: Any) -> SampledGroups:
        return SampledGroups([Group(g.index, (), None, [g.prompt.row, g.prompt.draw]) for g in groups], [])


told = recipe.read_recipe(compose_config(sys.argv[2:], None))
stream, _, _ = build_datasets(told, Renderer(told.model.path))
told = count_steps(told, len(stream.rows))
ranks = Ranks()
collector = Collector(StubSampler(), stream, ranks, told.prompts_per_step, told.samples_per_prompt, Sampling(), False)  # type: ignore[arg-type]
steps = []
for _ in range(told.steps or 0):
    taken = collector.take()
    assert taken is not None
    everyone = sorted((group for mine in ranks.gather(taken.groups) for group in mine), key=lambda group: group.index)
    steps.append([group.answer for group in everyone])
if ranks.main:
    Path(sys.argv[1]).write_text(json.dumps(steps))
run.exit_process(0)
