"""Weights on their way from the trainer to the rollout engine: which travel together, in which dtype, under which name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlkit.engines.base import RolloutEngine, Shards, Source
from rlkit.engines.bit_sums import SentWeights
from rlkit.errors import RunFailed, list_some

BUCKET = {"cuda": 2**30, "cpu": 2**26}  # bytes gathered at once: enough for a full-speed collective, little beside the weights


def split_into_buckets(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut so that the sizes of a bucket sum to at most `limit`; a larger one is a bucket of its own."""
    buckets: list[list[str]] = []
    filled = 0
    for name, size in sizes.items():
        if not buckets or filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets


def stream_weights(
    parts: Mapping[str, Sequence[Tensor]], build: Callable[[str], Tensor], dtype: torch.dtype, shards: Shards, limit: int
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for every name, bucket by bucket of `limit` bytes, on every rank in the same order; floats in `dtype`.

    parts: by name the tensors that must be whole for it; build: called while they are, returns the tensor to send. Of sharded tensors a
    copy is sent: the receiver keeps tensors until it has all of a layer, and by then the gathered storage is gone.
    """
    sizes = {name: sum(shards.count_elements(part) * part.element_size() for part in tensors) for name, tensors in parts.items()}
    for names in split_into_buckets(sizes, limit):
        wanted = {id(part): part for name in names for part in parts[name]}  # a tied tensor has two names
        with shards.gather(list(wanted.values())), torch.no_grad():
            ready = [(name, convert(build(name), dtype, copy=any(map(shards.is_sharded, parts[name])))) for name in names]
        while ready:
            yield ready.pop(0)  # drops the reference, so that what was taken in is freed


def convert(tensor: Tensor, dtype: torch.dtype, copy: bool) -> Tensor:
    """A floating-point tensor in `dtype`, any other as it is."""
    target = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(target, copy=copy)


class AdapterSource(Source, Protocol):
    """A policy of which the adapters alone can be sent."""

    def base_weights(self) -> Iterator[tuple[str, Tensor]]: ...

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]: ...

    def write_adapter(self, folder: Path, tensors: Mapping[str, Tensor]) -> None: ...

    @property
    def adapter_scaling(self) -> float:
        """s in W x + s B A x."""
        ...


class AdapterEngine(RolloutEngine, Protocol):
    """A rollout engine that takes adapters."""

    def load_adapter(
        self, tensors: Iterator[tuple[str, Tensor]], write: Callable[[Path, Mapping[str, Tensor]], None], version: int
    ) -> None: ...


Send = Callable[[Any, Any, int, SentWeights], None]


def send_merged(policy: Source, engine: RolloutEngine, version: int, sent: SentWeights) -> None:
    """Sends all weights, adapters merged into them."""
    engine.load(sent.record(policy.weights()), version)


def send_to_module(policy: Source, engine: RolloutEngine, version: int, sent: SentWeights) -> None:
    """Sends all weights, adapters merged into them, to an engine that samples with the same module."""
    engine.load(sent.record(policy.module_weights()), version)


def send_adapter(policy: AdapterSource, engine: AdapterEngine, version: int, sent: SentWeights) -> None:
    """Sends the adapter alone; before it the base, where the engine has none."""
    if engine.version is None:
        engine.load(sent.record(policy.base_weights()), version)
    engine.load_adapter(sent.record_adapter(policy.adapter_weights(), policy.adapter_scaling), policy.write_adapter, version)


class WeightSync:
    """Sends the policy's weights, and compares what the engine then holds with what was sent.

    gather: the items of all ranks; warn: called once, where the engine holds something in another form.
    """

    def __init__(self, send: Send, gather: Callable[[list[str]], list[list[str]]], warn: Callable[[str], None]) -> None:
        self._send, self._gather, self._warn = send, gather, warn
        self._warned = False

    def __call__(self, policy: Any, engine: RolloutEngine, version: int) -> None:
        """Raises RunFailed on all ranks, with the same words, where an engine of any of them holds something else than it was sent."""
        sent = SentWeights()
        self._send(policy, engine, version, sent)
        found = engine.compare_weights(sent)
        ranks = self._gather(found.differing)
        if names := list(dict.fromkeys(name for differing in ranks for name in differing)):
            where = f" on {sum(map(bool, ranks))} of {len(ranks)} processes" if len(ranks) > 1 else ""
            raise RunFailed(
                f"the rollout engine does not hold the weights that it was sent in the sync of version {version}: {len(names)} of "
                f"{len(sent.weights) + len(sent.adapter)} tensors differ{where}: {list_some(names)}; nothing was sampled from them"
            )
        if found.uncompared and not self._warned:
            self._warned = True
            self._warn(
                f"the rollout engine holds {len(found.uncompared)} tensors in another form than they were sent, so that they cannot be "
                f"compared bit by bit, only by log-probs (engine.mismatch_limit): {list_some(found.uncompared)}"
            )
