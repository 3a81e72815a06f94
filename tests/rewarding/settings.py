"""Settings of rewards for tests: the defaults of recipes/config.yaml with two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlkit.rewarding.spec import RewardSettings


def make_settings(**changes: Any) -> RewardSettings:
    defaults = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "config.yaml").read_text())["rewarding"]
    return RewardSettings(**(defaults | {"workers": 2} | changes))
