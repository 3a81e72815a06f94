"""What a vLLM model holds, compared with what was sent to it: its own parameters, exactly, over the ranks that share it.

vLLM fuses tensors (q, k and v in one), pads vocabularies, and under tensor parallelism holds a part of most tensors on each rank and a copy
of others. Sums of bits (rlkit/engines/bit_sums.py) are taken part by part where a module knows the sizes of what is fused in it. Names are
matched by their ends: vLLM puts other prefixes before them. Tensors of a layer whose names match nothing are compared together, if their
first sums agree. Left out: what the engine computes for itself (rotary caches); what quantisation repacked is listed as not compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.engines.bit_sums import SentTensor, SentWeights, WeightComparison, read_totals, sum_as, sum_bits

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # where a model lists no others
RECORD = "rlkit_packed"  # attribute of a module: see record_before_packing
MODULUS = 2**64

Gather = Callable[[list[int]], list[list[int]]]  # the lists of all ranks that share the engine, in the order of the ranks


@dataclass(frozen=True)
class Part:
    """A part of a tensor on this rank: all of it, or one of those that are fused in it."""

    total: Tensor | None  # [] int64, of sum_bits; None: the engine holds it in another form
    count: int  # elements, without the padding of an adapter's rank
    copies: int = 1  # ranks that hold the same part, where its module knows
    padded: bool = False  # a vocabulary, whose length is rounded up
    buffer: bool = False


@dataclass(frozen=True)
class Match:
    """Tensors that were sent, and the parts that hold them together."""

    sent: list[str]
    held: list[tuple[str, int]]  # name of the engine's tensor, index of its part
    by_name: bool = True  # False: what was left of a layer


class HeldWeights:
    """Compares what one engine holds with what was sent, after each sync."""

    def __init__(self, gather: Gather) -> None:
        self._gather = gather
        self._matches: dict[tuple[str, ...], list[Match]] = {}  # by the names that were sent
        self._agreed: set[str] = set()  # first names of matches that were the same once

    def compare(self, model: nn.Module, sent: SentWeights) -> WeightComparison:
        """The weights of the checkpoint and the adapter, as far as they were sent."""
        found = WeightComparison([], [])
        if sent.weights:
            dtype = next(tensor.dtype for tensor in sent.weights.values() if tensor.dtype.is_floating_point)
            found += self._compare(model, sent.weights, list_held(model, dtype))
        if sent.adapter:
            rank = next(tensor.shape[0] for name, tensor in sent.adapter.items() if "lora_A" in name)
            found += self._compare(model, sent.adapter, list_held_adapter(model, rank))
        return found

    def _compare(self, model: nn.Module, sent: Mapping[str, SentTensor], held: Mapping[str, list[Part]]) -> WeightComparison:
        names = tuple(sent)
        if names not in self._matches:
            self._matches[names] = pair_names(names, held, {**FUSED, **(getattr(model, "packed_modules_mapping", None) or {})})
        own = dict(zip(names, read_totals([tensor.total for tensor in sent.values()]), strict=True))
        ranks = gather_totals(held, self._gather)
        differing: list[str] = []
        uncompared: list[str] = []
        compared: set[tuple[int, torch.Size]] = set()
        for match in self._matches[names]:
            parts = [held[name][i] for name, i in match.held]
            totals = [[totals[name][i] for name, i in match.held] for totals in ranks]
            same = compare_totals(
                sum(own[name] for name in match.sent), sum(sent[name].shape.numel() for name in match.sent), parts, totals
            )
            if same is None or not (same or match.by_name or match.sent[0] in self._agreed):
                uncompared += match.sent
                continue
            self._agreed.update(match.sent[:1] if same else ())
            differing += [] if same else match.sent
            compared |= {(own[name], sent[name].shape) for name in match.sent}
        second_names = {name for name in uncompared if (own[name], sent[name].shape) in compared}  # of a tied tensor that is held once
        return WeightComparison(differing, [name for name in uncompared if name not in second_names])


def compare_totals(sent: int, count: int, parts: Sequence[Part], totals: Sequence[Sequence[int]]) -> bool | None:
    """Whether tensors of `count` elements and the sum `sent` are what the ranks hold; None where that cannot be seen. totals: of the parts,
    by rank."""
    copies = None if any(part.total is None for part in parts) else count_copies(count, parts, len(totals))
    if copies is None:
        return None
    whole = 0
    for i, ranks in enumerate(copies):
        for first in range(0, len(totals), ranks):
            if any(totals[first + other][i] != totals[first][i] for other in range(ranks)):
                return False
            whole += totals[first][i]
    return (whole - sent) % MODULUS == 0


def count_copies(count: int, parts: Sequence[Part], ranks: int) -> list[int] | None:
    """By part, how many neighbouring ranks hold the same; None where the parts of all ranks are not `count` elements in any way."""
    if all(part.padded for part in parts) and parts:
        return [1] * len(parts) if sum(part.count for part in parts) * ranks >= count else None
    for copies in ([part.copies for part in parts], [ranks] * len(parts)):
        if sum(part.count * (ranks // same) for part, same in zip(parts, copies, strict=True)) == count:
            return copies
    return None


def gather_totals(held: Mapping[str, list[Part]], gather: Gather) -> list[dict[str, list[int]]]:
    """The sums of all parts by name, on each rank that shares the engine."""
    ends = [0, *accumulate(len(parts) for parts in held.values())]
    ranks = gather(read_totals([part.total for parts in held.values() for part in parts]))
    return [{name: totals[ends[i] : ends[i + 1]] for i, name in enumerate(held)} for totals in ranks]


# -- what is held --------------------------------------------------------------------------------------------------------------------


def list_held(model: nn.Module, dtype: torch.dtype) -> dict[str, list[Part]]:
    """The parts of each parameter and buffer, by its name in the model. dtype: of the floats that were sent."""
    found: dict[str, list[Part]] = {}
    known: dict[int, list[Part]] = {}  # tied tensors have several names
    for prefix, module in model.named_modules(remove_duplicate=False):
        for kind, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                parts = known.get(id(tensor)) or list_parts(module, kind, tensor, dtype)
                known[id(tensor)] = found[f"{prefix}.{kind}".replace(".base_layer.", ".")] = parts
    return found


def list_parts(module: Any, kind: str, tensor: Tensor, dtype: torch.dtype) -> list[Part]:
    """The parts of one tensor of a module."""
    kernel, totals, counts = getattr(module, RECORD, (None, [], []))
    if kind != "weight" or tensor.numel() or kernel is None or kernel is not module.cpu_linear:
        parts = split_fused(module, tensor)
        totals, counts = [sum_as(part, dtype) for part in parts], [part.numel() for part in parts]
    replicas = getattr(module, "num_kv_head_replicas", 1)
    copies = [1, replicas, replicas] if len(totals) == 3 else [1] * len(totals)  # of q, k and v
    padded, buffer = hasattr(module, "num_embeddings_padded"), kind in module._buffers
    return [Part(*facts, padded, buffer) for facts in zip(totals, counts, copies, strict=True)]


def split_fused(module: nn.Module, tensor: Tensor) -> Sequence[Tensor]:
    """The tensors that are fused in one of a module, which are rows of it; itself where there are none."""
    sizes = getattr(module, "output_partition_sizes", [])
    return tensor.split(sizes) if len(sizes) > 1 and tensor.dim() and sum(sizes) == len(tensor) else [tensor]


def record_before_packing(pack: Callable[..., None]) -> Callable[..., None]:
    """`pack(layer, ...)`, which makes a layer's kernel `cpu_linear` of its weight, repacked, and mostly drops the weight: with the sums of
    the weight kept beside that kernel."""

    @wraps(pack)
    def record_and_pack(layer: Any, *arguments: Any, **keywords: Any) -> None:
        parts = [] if layer.weight.is_meta else split_fused(layer, layer.weight)
        totals, counts = [sum_bits(part) for part in parts], [part.numel() for part in parts]
        pack(layer, *arguments, **keywords)
        setattr(layer, RECORD, (getattr(layer, "cpu_linear", None), totals, counts))

    return record_and_pack


def list_held_adapter(model: nn.Module, rank: int) -> dict[str, list[Part]]:
    """The parts of the one adapter that vLLM holds, by name."""
    found: dict[str, list[Part]] = {}
    for prefix, module in model.named_modules():
        for kind, stacked, side in (("lora_A", "lora_a_stacked", -1), ("lora_B", "lora_b_stacked", -2)):
            tensors = vars(module).get(stacked)  # [adapters, 1, rank, in] and [adapters, 1, out, rank], one for each that is fused
            if isinstance(tensors, tuple):
                found[f"{prefix}.{kind}.weight"] = [Part(sum_bits(tensor[0]), rank * tensor.shape[side]) for tensor in tensors]
    return found


# -- which holds which ---------------------------------------------------------------------------------------------------------------


def pair_names(sent: Sequence[str], held: Mapping[str, list[Part]], fused: Mapping[str, Sequence[str]]) -> list[Match]:
    """Which parts hold which tensors. Tensors of one layer that match none by name are put together with the parts that are left."""
    by_end = index_ends(held)
    found: dict[str, list[tuple[str, int | None]]] = {}  # by the engine's tensor: what was sent, and the index of its part
    left: dict[str, list[str]] = {}  # by layer
    for name in sent:
        place = find_place(name.removeprefix("base_model.model."), by_end, held, fused)
        if place is None:
            left.setdefault(layer_of(name), []).append(name)
        else:
            found.setdefault(place[0], []).append((name, place[1]))
    matches: list[Match] = []
    for target, entries in found.items():
        parts = [(target, i) for i in range(len(held[target]))]
        if any(index is None for _, index in entries):
            matches.append(Match([name for name, _ in entries], parts))
        else:
            matches += [Match([name], [parts[index]]) for name, index in entries if index is not None]
    for layer, names in left.items():
        free = [name for name, parts in held.items() if name not in found and layer_of(name) == layer and not parts[0].buffer]
        matches.append(Match(names, [(name, i) for name in free for i in range(len(held[name]))], by_name=False))
    return matches


def find_place(
    name: str, by_end: Mapping[str, list[str]], held: Mapping[str, list[Part]], fused: Mapping[str, Sequence[str]]
) -> tuple[str, int | None] | None:
    """The engine's tensor that holds one that was sent, and the index of its part there, None for all parts together; None: no such."""
    if target := find_by_end(name, by_end):
        return target, 0 if len(held[target]) == 1 else None
    words = name.split(".")
    for whole, parts in fused.items():
        for place in (place for place, word in enumerate(words) if word in parts):
            if target := find_by_end(".".join([*words[:place], whole, *words[place + 1 :]]), by_end):
                return target, list(parts).index(words[place]) if len(held[target]) == len(parts) else None
    return None


def index_ends(names: Mapping[str, Any]) -> dict[str, list[str]]:
    """By each end of a name the names that have it."""
    ends: dict[str, list[str]] = {}
    for name in names:
        for end in list_ends(name):
            ends.setdefault(end, []).append(name)
    return ends


def find_by_end(name: str, by_end: Mapping[str, list[str]]) -> str | None:
    """The one name with the longest common end; None where there is none, or more than one."""
    targets = next((by_end[end] for end in list_ends(name) if end in by_end), [])
    return targets[0] if len(targets) == 1 else None


def list_ends(name: str) -> Iterator[str]:
    """The ends of a name from the longest, down to two words, all with the numbers of layer and expert."""
    words = name.split(".")
    for start in range(max(1, len(words) - 1)):
        yield ".".join(words[start:])
        if words[start].isdigit():
            return


def layer_of(name: str) -> str:
    """The number of the layer in a name; empty where it has none."""
    number = re.search(r"\.(\d+)\.", name)
    return number[1] if number else ""
