"""What a run is made of, as digests for its audit: equal for equal runs, wherever their folders are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from rlkit.assembly.model_record import Record, hash_once
from rlkit.config.eval_section import list_scored_rewards
from rlkit.config.recipe import ENVIRONMENT, Recipe
from rlkit.data.columns import RowReader
from rlkit.environments.loading import locate_environment
from rlkit.rewarding.resolve import locate_reward

PLACES = ("output_dir",)  # keys of a recipe that say where a run is written


def identify_inputs(recipe: Recipe, text: str, readers: Mapping[str, list[RowReader[Any]]], models: Record) -> dict[str, Any]:
    """Digests of the recipe without its folder, of the files of data and rewards by name, and of the models as in models.json.

    text: the recipe as it is written. Left out: rows that lie in no file, and the code of rewards that are named as a module.
    """
    data = {split: hash_files(file for reader in found for file in reader.rows.files) for split, found in readers.items()}
    paths = {reward.path for reward in list_scored_rewards(recipe).values() if reward.path not in ("reward_model", ENVIRONMENT)}
    files = {file for path in paths if (file := locate_reward(path).file)}
    own = recipe.environment.path or {}
    environment = [file for path in ([own] if isinstance(own, str) else own.values()) for file in locate_environment(path)]
    played = {"environment": hash_files(environment)} if environment else {}
    return {"recipe": hash_recipe(text), "models": models, "data": data, "rewards": hash_files(files), **played}


def hash_recipe(text: str) -> str:
    import yaml

    kept = {key: value for key, value in yaml.safe_load(text).items() if key not in PLACES}
    return str(blake3(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest())


def hash_files(files: Iterable[Path]) -> dict[str, str]:
    """By name, and of files with the same name by path."""
    found = sorted(set(files))
    names = [file.name for file in found]
    return {file.name if names.count(file.name) == 1 else str(file): hash_once(file) for file in found}
