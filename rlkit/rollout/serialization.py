"""Groups as plain JSON and back without loss: samples in a checkpoint that are still to be learned from."""

from __future__ import annotations

import json
from typing import Any

import torch

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
    sample = {**vars(scored.sample), **{name: getattr(scored.sample, name).tolist() for name in TENSORS}}
    rewards = {"reward": scored.reward, "components": dict(scored.components), "turn_rewards": list(scored.turn_rewards)}
    return {"sample": sample, **rewards, "extra": dict(scored.extra)}


def sample_from_json(data: dict[str, Any]) -> ScoredSample:
    fields = data["sample"]
    tensors = {name: torch.tensor(fields[name], dtype=dtype) for name, dtype in TENSORS.items()}
    sample = Sample(**{**fields, **tensors, "key": Key(*fields["key"]), "prompt": tuple(fields["prompt"]), "stop": Stop(fields["stop"])})
    turn_rewards = tuple((place, reward) for place, reward in data.get("turn_rewards", ()))
    return ScoredSample(sample, data["reward"], data["components"], data["extra"], turn_rewards)
