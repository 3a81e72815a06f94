"""Groups as plain JSON and back, every bit of them: what a checkpoint keeps of samples that are still to be learned from."""

from __future__ import annotations

from typing import Any

import torch

from rlkit.types import Group, Key, Sample, ScoredSample, Stop

TENSORS = {"tokens": torch.int64, "mask": torch.bool, "rollout_logprobs": torch.float32, "versions": torch.int32}


def group_to_json(group: Group) -> dict[str, Any]:
    return {
        "index": group.index,
        "samples": [sample_to_json(s) for s in group.samples],
        "greedy": None if group.greedy is None else sample_to_json(group.greedy),
    }


def group_from_json(stored: dict[str, Any]) -> Group:
    greedy = stored["greedy"]
    return Group(
        stored["index"], tuple(sample_from_json(s) for s in stored["samples"]), None if greedy is None else sample_from_json(greedy)
    )


def sample_to_json(scored: ScoredSample) -> dict[str, Any]:
    sample = {**vars(scored.sample), **{name: getattr(scored.sample, name).tolist() for name in TENSORS}}
    return {"sample": sample, "reward": scored.reward, "components": dict(scored.components), "extra": dict(scored.extra)}


def sample_from_json(stored: dict[str, Any]) -> ScoredSample:
    kept = stored["sample"]
    tensors = {name: torch.tensor(kept[name], dtype=dtype) for name, dtype in TENSORS.items()}
    sample = Sample(**{**kept, **tensors, "key": Key(*kept["key"]), "prompt": tuple(kept["prompt"]), "stop": Stop(kept["stop"])})
    return ScoredSample(sample, stored["reward"], stored["components"], stored["extra"])
