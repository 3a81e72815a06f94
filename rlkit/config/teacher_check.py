"""Why a recipe's teacher, and its rewards where an algorithm can do without, do not fit the rest of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlkit.algorithms import Needs


def find_teacher_conflicts(recipe: Any, needs: Needs | None) -> Iterator[str]:
    """needs: of its algorithm, None of one that samples nothing."""
    name, teacher, sampling = recipe.algorithm.name, recipe.model.teacher, recipe.sampling
    given = [f"model.teacher.{key}" for key in ("path", "url") if getattr(teacher, key)]
    if needs is None or not needs.teacher:
        if given:
            yield f"{given[0]} is set, and algorithm={name} learns from no teacher; set algorithm=opd, or leave it out"
        return
    if not given:
        yield (
            f"algorithm={name} learns from a teacher, and there is none; set model.teacher.path to a model with the tokenizer of "
            "model.path, or model.teacher.url to a server that has one"
        )
    if len(given) > 1:
        yield "model.teacher.path and model.teacher.url name two teachers; set one of the two to null"
    if teacher.api_key and not teacher.url:
        yield "model.teacher.api_key is of a server, and model.teacher.url names none; set it, or leave the key out"
    if teacher.url and sampling and sampling.temperature != 1.0:
        yield (
            f"sampling.temperature={sampling.temperature:g}: a server returns log-probs at temperature 1, which are not comparable; set it "
            "to 1, or load the teacher here with model.teacher.path"
        )


def find_missing_rewards(recipe: Any, needs: Needs) -> Iterator[str]:
    """Of an algorithm that learns without rewards too."""
    if needs.rewards:
        return
    if any(reward.counts for reward in recipe.all_rewards.values()) and recipe.samples_per_prompt == 1:
        yield (
            f"samples_per_prompt=1: algorithm={recipe.algorithm.name} compares the rewards of a prompt's samples; set it to at least 2, "
            "or the weights of all rewards to 0"
        )
    if not recipe.all_rewards and recipe.data.test is not None:
        yield (
            "data.test is set, and without rewards nothing grades what an evaluation samples; set data.test=null, or a reward of weight 0, "
            "which is measured and not trained on: rewards.accuracy={path: accuracy, weight: 0}"
        )
