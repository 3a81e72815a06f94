"""Rollouts by transformers' `generate`: the engine for machines without vLLM, and the twin that vLLM is tested against.

Sampling is greedy decoding of logits / temperature plus seeded Gumbel noise (Gumbel-max): each request has a generator of its own, so its
tokens do not depend on the rest of the batch. B requests, P tokens of the longest prompt, T of the longest completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkit.engines.base import check_names, make_sample
from rlkit.engines.bit_sums import SentWeights, WeightComparison, compare_state
from rlkit.engines.loading import load_causal_lm
from rlkit.errors import RunFailed
from rlkit.types import Request, Sample, Sampling, Stop


class HFEngine:
    """Samples `rows` requests at a time, each to its end."""

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
    ) -> None:
        model = load_causal_lm(path, dtype, offline=offline, trust_remote_code=trust_remote_code)
        self.model = model.eval().requires_grad_(False).to(device)
        self.model.config.output_router_logits = False  # which would have it compute the auxiliary loss of a mixture of experts
        self.device, self.eos, self.pad, self.rows = device, eos, pad, rows
        self.version: int | None = None
        self._waiting: list[Request] = []

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        if self.version is None:
            raise RunFailed("the rollout engine was asked to sample before its first weights arrived")
        self._waiting.append(request)

    def advance(self) -> list[Sample]:
        if not self._waiting:
            return []
        kind = replace(self._waiting[0].sampling, max_tokens=1)
        batch = [r for r in self._waiting if replace(r.sampling, max_tokens=1) == kind][: self.rows]
        in_batch = {id(r) for r in batch}
        self._waiting = [r for r in self._waiting if id(r) not in in_batch]
        return self._generate(batch)

    def abort(self) -> list[Sample]:
        """As of RolloutEngine; a request is sampled to its end within `advance`, so what is pending has no tokens yet."""
        aborted = [make_sample(r, [], [], Stop.ABORTED, self.version) for r in self._waiting]
        self._waiting = []
        return aborted

    def _generate(self, batch: list[Request]) -> list[Sample]:
        from transformers import GenerationConfig

        limit = max(r.sampling.max_tokens for r in batch)
        longest = max(len(r.tokens) for r in batch)
        ids = torch.full((len(batch), longest), self.pad)  # [B, P], padded on the left
        for i, request in enumerate(batch):
            ids[i, longest - len(request.tokens) :] = torch.tensor(request.tokens)
        mask = torch.stack([torch.arange(longest) >= longest - len(r.tokens) for r in batch]).long()  # [B, P]
        sampler = GumbelSampler(batch)
        config = GenerationConfig(
            max_new_tokens=limit, do_sample=False, eos_token_id=sorted(self.eos), pad_token_id=self.pad, use_cache=True
        )
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), generation_config=config, logits_processor=[sampler]
            )
        logprobs = torch.stack(sampler.logprobs, dim=1).cpu()  # [B, T, V]
        return [self._cut_at_eos(request, out[i, longest:].cpu(), logprobs[i]) for i, request in enumerate(batch)]

    def _cut_at_eos(self, request: Request, row: Tensor, logprobs: Tensor) -> Sample:
        """row [T], logprobs [T, V]; T is that of the batch, of which a request may want less."""
        row = row[: request.sampling.max_tokens]
        ends = [t for t, token in enumerate(row.tolist()) if token in self.eos]
        tokens = row[: ends[0] + 1] if ends else row
        chosen = logprobs[: len(tokens)].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [L]
        return make_sample(request, tokens.tolist(), chosen.tolist(), Stop.EOS if ends else Stop.LENGTH, self.version)

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

    def __init__(self, batch: list[Request]) -> None:
        self.sampling = batch[0].sampling
        self.generators = [torch.Generator().manual_seed(r.seed) for r in batch]
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
