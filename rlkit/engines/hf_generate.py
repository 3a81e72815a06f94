"""Rollouts by transformers' `generate`: the engine for machines without vLLM, and the twin that vLLM is tested against.

Sampling is greedy decoding of logits / temperature plus seeded Gumbel noise (Gumbel-max): each request has a generator of its own, so its
tokens do not depend on the rest of the batch. B requests, P tokens of the longest prompt, T of the longest completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlkit.engines.base import check_names, make_sample
from rlkit.engines.bit_sums import SentWeights, WeightComparison, compare_state
from rlkit.engines.loading import load_causal_lm
from rlkit.errors import RunFailed
from rlkit.types import Request, Sample, Sampling, Stop

WHOLE = 2**31 - 1  # tokens: every sample to its end


@dataclass(eq=False)
class PartialSample:
    """A request that is being sampled; tokens and logprobs: those of this engine, after what the request had."""

    request: Request
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def context(self) -> tuple[int, ...]:
        return (*self.request.context, *self.tokens)

    @property
    def tokens_left(self) -> int:
        return self.request.tokens_left - len(self.tokens)


class HFEngine:
    """Samples `rows` requests at a time, each to its end or by at most tokens_per_advance tokens, whose prefix it then reads again."""

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        device: torch.device,
        eos: frozenset[int],
        pad: int,
        offline: bool,
        trust_remote_code: bool = False,
        rows: int = 256,
        tokens_per_advance: int = WHOLE,
    ) -> None:
        model = load_causal_lm(path, dtype, offline=offline, trust_remote_code=trust_remote_code)
        self.model = model.eval().requires_grad_(False).to(device)
        self.model.config.output_router_logits = False  # which would have it compute the auxiliary loss of a mixture of experts
        self.device, self.eos, self.pad, self.rows = device, eos, pad, rows
        self.version: int | None = None
        self.tokens_per_advance = tokens_per_advance
        self._waiting: list[PartialSample] = []

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        if self.version is None:
            raise RunFailed("the rollout engine was asked to sample before its first weights arrived")
        self._waiting.append(PartialSample(request, torch.Generator().manual_seed(request.seed)))

    def advance(self) -> list[Sample]:
        if not self._waiting:
            return []
        kind = replace(self._waiting[0].request.sampling, max_tokens=1)
        batch = [row for row in self._waiting if replace(row.request.sampling, max_tokens=1) == kind][: self.rows]
        taken = {id(row) for row in batch}
        others = [row for row in self._waiting if id(row) not in taken]
        stops = self._generate(batch)
        self._waiting = [row for row, stop in zip(batch, stops, strict=True) if stop is None] + others
        return [self._build_sample(row, stop) for row, stop in zip(batch, stops, strict=True) if stop is not None]

    def abort(self) -> list[Sample]:
        aborted = [self._build_sample(row, Stop.ABORTED) for row in self._waiting]
        self._waiting = []
        return aborted

    def _build_sample(self, row: PartialSample, stop: Stop) -> Sample:
        return make_sample(row.request, row.tokens, row.logprobs, stop, self.version)

    def _generate(self, batch: list[PartialSample]) -> list[Stop | None]:
        """Adds tokens to the rows; why each ended, None for those that go on."""
        from transformers import GenerationConfig

        limit = min(max(row.tokens_left for row in batch), self.tokens_per_advance)
        longest = max(len(row.context) for row in batch)
        ids = torch.full((len(batch), longest), self.pad)  # [B, P], padded on the left
        for i, row in enumerate(batch):
            ids[i, longest - len(row.context) :] = torch.tensor(row.context)
        mask = torch.stack([torch.arange(longest) >= longest - len(row.context) for row in batch]).long()  # [B, P]
        sampler = GumbelSampler(batch[0].request.sampling, [row.generator for row in batch])
        config = GenerationConfig(
            max_new_tokens=limit, do_sample=False, eos_token_id=sorted(self.eos), pad_token_id=self.pad, use_cache=True
        )
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), generation_config=config, logits_processor=[sampler]
            )
        logprobs = torch.stack(sampler.logprobs, dim=1).cpu()  # [B, T, V]
        return [self._extend_row(row, out[i, longest:].cpu(), logprobs[i]) for i, row in enumerate(batch)]

    def _extend_row(self, row: PartialSample, ids: Tensor, logprobs: Tensor) -> Stop | None:
        """ids [T], logprobs [T, V]; T is that of the batch, of which a request may want less. Returns why the row ended, if it did."""
        ids = ids[: row.tokens_left]
        ends = [t for t, token in enumerate(ids.tolist()) if token in self.eos]
        tokens = ids[: ends[0] + 1] if ends else ids
        row.tokens += tokens.tolist()
        row.logprobs += logprobs[: len(tokens)].gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()  # [L]
        return Stop.EOS if ends else Stop.LENGTH if not row.tokens_left else None

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        own = self.model.state_dict()
        arrived: dict[str, None] = {}
        with torch.no_grad():
            for name, tensor in weights:
                if name in own:
                    own[name].copy_(tensor)
                arrived[name] = None
        check_names(own, arrived)
        self.version = version

    def compare_weights(self, sent: SentWeights) -> WeightComparison:
        return compare_state(self.model.state_dict(), sent.weights)

    def wake_weights(self) -> None: ...

    def wake_cache(self) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...


class GumbelSampler:
    """A logits processor: scales and truncates with the request's settings, records the log-probs, then adds each request's own noise."""

    def __init__(self, sampling: Sampling, generators: list[torch.Generator]) -> None:
        self.sampling, self.generators = sampling, generators
        self.logprobs: list[Tensor] = []  # [B, V] a token

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.sampling.greedy:
            self.logprobs.append(torch.log_softmax(logits.float(), -1))
            return logits
        logs = torch.log_softmax(truncate_logits(ids, logits.float() / self.sampling.temperature, self.sampling), -1)  # [B, V]
        self.logprobs.append(logs)
        noise = torch.stack([torch.rand(logits.shape[-1], generator=g, dtype=torch.float64) for g in self.generators])  # [B, V]
        return logs + (-torch.log(-torch.log(noise.clamp(min=1e-300)))).to(logs)


def truncate_logits(ids: Any, logits: Any, sampling: Sampling) -> Any:
    """top_k, top_p and min_p by transformers' own warpers; [B, V]."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.top_k > 0:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1.0:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    if sampling.min_p > 0.0:
        logits = MinPLogitsWarper(sampling.min_p)(ids, logits)
    return logits
