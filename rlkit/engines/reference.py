"""The frozen reference: a second model, or the policy with its adapters switched off. A teacher is such a model too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from rlkit.engines.base import Scores
from rlkit.engines.heads import TokenScorer, compute_logprobs
from rlkit.engines.loading import load_causal_lm
from rlkit.engines.offload import CpuOffload
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.types import Sample


class ReferenceModel:
    """A frozen model that returns log-probs; `what`: its key in messages."""

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        temperature: float,
        device: torch.device,
        offline: bool,
        trust_remote_code: bool = False,
        sp_group: SequenceParallelGroup | None = None,
        what: str = "model.path",
    ) -> None:
        model = load_causal_lm(path, dtype, what, offline=offline, trust_remote_code=trust_remote_code).eval().requires_grad_(False)
        self.scorer = TokenScorer(model, sp_group).to(device)
        self.temperature, self.device, self.sp_group = temperature, device, sp_group
        self._offload = CpuOffload(self.scorer.parameters if device.type == "cuda" else tuple)

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return compute_logprobs(self.scorer, samples, width, self.temperature, self.device, self.sp_group)

    def offload(self) -> None:
        self._offload.offload()

    def reload(self) -> None:
        self._offload.reload()


class AdaptedPolicy(Scores, Protocol):
    """A policy that can run without its adapters."""

    def disable_adapters(self) -> AbstractContextManager[None]: ...


class BaseOfPolicy:
    """The reference of a policy with adapters: the same weights with the adapters switched off, no second model."""

    def __init__(self, policy: AdaptedPolicy) -> None:
        self.policy = policy

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        with self.policy.disable_adapters():
            return self.policy.logprobs(samples, width)

    def offload(self) -> None: ...  # it moves with the policy

    def reload(self) -> None: ...
