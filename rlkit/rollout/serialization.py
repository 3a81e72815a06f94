"""Groups as plain JSON and back without loss: samples in a checkpoint that are still to be learned from, or to be continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from rlkit.rollout.open_groups import OpenGroup, PromptRequest
from rlkit.types import Group, Key, Sample, ScoredSample, Stop

TENSORS = {"tokens": torch.int64, "mask": torch.bool, "rollout_logprobs": torch.float32, "versions": torch.int32}


def group_to_json(group: Group) -> dict[str, Any]:
    return {
        "index": group.index,
        "samples": [sample_to_json(s) for s in group.samples],
        "greedy": None if group.greedy is None else sample_to_json(group.greedy),
        "answer": json.dumps(group.answer, default=str),  # a table may hold dates
    }


def group_from_json(data: dict[str, Any]) -> Group:
    greedy = None if data["greedy"] is None else sample_from_json(data["greedy"])
    return Group(data["index"], tuple(sample_from_json(s) for s in data["samples"]), greedy, json.loads(data["answer"]))


def sample_to_json(scored: ScoredSample) -> dict[str, Any]:
    rewards = {"reward": scored.reward, "components": dict(scored.components), "turn_rewards": list(scored.turn_rewards)}
    return {"sample": tokens_to_json(scored.sample), **rewards, "extra": dict(scored.extra)}


def sample_from_json(data: dict[str, Any]) -> ScoredSample:
    turn_rewards = tuple((place, reward) for place, reward in data.get("turn_rewards", ()))
    return ScoredSample(tokens_from_json(data["sample"]), data["reward"], data["components"], data["extra"], turn_rewards)


def tokens_to_json(sample: Sample) -> dict[str, Any]:
    """A sample without a reward."""
    return {**vars(sample), **{name: getattr(sample, name).tolist() for name in TENSORS}}


def tokens_from_json(fields: dict[str, Any]) -> Sample:
    tensors = {name: torch.tensor(fields[name], dtype=dtype) for name, dtype in TENSORS.items()}
    return Sample(**{**fields, **tensors, "key": Key(*fields["key"]), "prompt": tuple(fields["prompt"]), "stop": Stop(fields["stop"])})


def open_group_to_json(group: OpenGroup) -> dict[str, Any]:
    """Its prompt is in the data, and is named by row and draw."""
    own = {"index": group.index, "row": group.prompt.row, "draw": group.prompt.draw, "age": group.age}
    return {**own, "samples": [tokens_to_json(s) for s in group.samples]}


def open_group_from_json(data: dict[str, Any], get_prompt: Callable[[int, int], PromptRequest]) -> OpenGroup:
    samples = tuple(tokens_from_json(s) for s in data["samples"])
    return OpenGroup(data["index"], get_prompt(data["row"], data["draw"]), data["age"], samples)
