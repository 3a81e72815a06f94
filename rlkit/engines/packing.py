"""Samples end to end in one row, without padding, for a causal LM of transformers: the layout, and the attention that keeps them apart.

A prompt stands once in the row, whatever number of its completions follow: all of them look back on it, and its gradient is theirs
together, so that it is computed once (Liu et al. 2025, "Prefix Grouper", arXiv 2506.05433).

On a GPU in half precision the attention is torch's flash attention for packed sequences; elsewhere one call a sample, which on a CPU
is as fast as any batching of them. S tokens in the row, h heads, k heads of keys, d their size. A run is tokens that follow each other
in the row and look back together: a prompt and its first completion, or another completion of it; there are N runs, in whose order
stand K keys, those of prompts as often as runs look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlkit.errors import UserError
from rlkit.ops.logprobs import build_predict_index
from rlkit.types import Sample

NAME = "rlkit_packed"  # of the attention, as transformers knows it
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
LATE_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of configurations: what comes after the head


class Text(NamedTuple):
    """What a model reads of a sample."""

    prompt: Sequence[int]
    tokens: Tensor  # [L] of the completion


class SeqLens(NamedTuple):
    """Which runs look back on what. A run stands at the end of what it looks at."""

    queries: Tensor  # [N + 1] int32, where each run begins in the row, and the end
    keys: Tensor  # [N + 1] int32, where what it looks at begins among the K keys, and the end
    most_queries: int  # of a run
    most_keys: int
    seen: Tensor | None  # [K] positions in the row; None: each run looks at itself alone


class PackedRow(NamedTuple):
    """Samples as a model takes them."""

    ids: Tensor  # [1, S]
    positions: Tensor  # [1, S] in their own sample
    looks: SeqLens
    where: Tensor  # [n] positions in ids whose outputs predict the completion tokens
    tokens: Tensor  # [n] the completion tokens
    place: Tensor  # [n] their flat positions on the grid [B, width]
    begins: list[tuple[int, int]]  # of each sample in ids: its prompt, its completion


def pack_samples(samples: Sequence[Sample | Text], width: int, device: torch.device) -> PackedRow:
    """Samples by their prompts, in the order in which these come first. Without samples one token, for nothing: sharded models are
    gathered on all ranks together, so a rank without work goes along."""
    if not samples:
        one = torch.zeros(1, dtype=torch.int64, device=device)
        bounds = torch.tensor([0, 1], dtype=torch.int32, device=device)
        return PackedRow(one.view(1, 1), one.view(1, 1), SeqLens(bounds, bounds, 1, 1, None), one, one, one[:0], [])
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        of_prompt.setdefault(tuple(sample.prompt), []).append(i)
    lengths = [len(s.tokens) for s in samples]
    begins = [(0, 0)] * len(samples)
    ids, positions, seen, queries, keys = list[Tensor](), list[Tensor](), list[Tensor](), [0], [0]
    for prompt, members in of_prompt.items():
        begin, size = queries[-1], len(prompt)
        ids.append(torch.tensor(prompt, dtype=torch.int64))
        for i in members:
            first, n = i == members[0], lengths[i]
            start = begin + size if first else queries[-1]
            begins[i] = begin, start
            if first or n:
                ids.append(samples[i].tokens)
                positions.append(torch.arange(0 if first else size, size + n))
                seen += [torch.arange(begin, begin + size), torch.arange(start, start + n)]
                queries.append(start + n)
                keys.append(keys[-1] + size + n)
    where = build_predict_index([start for _, start in begins], lengths)  # [n]
    said = [i for i, n in enumerate(lengths) if n]
    firsts = [0, *accumulate(lengths)]
    # the first token of any completion is predicted at the end of its prompt
    where[[firsts[i] for i in said]] = torch.tensor([begins[i][0] + len(samples[i].prompt) - 1 for i in said], dtype=torch.int64)
    shared = keys[-1] > queries[-1]
    bounds = [torch.tensor(ends, dtype=torch.int32) for ends in (queries, keys)]
    row, tokens = torch.cat([torch.cat(ids)[None], torch.cat(positions)[None]]), torch.cat([s.tokens for s in samples])
    parts = (row, *bounds, where, tokens, grid_indices(lengths, width))
    row, ends, key_ends, where, tokens, place = (t.to(device, non_blocking=True) for t in parts)
    most = (max(b - a for a, b in pairwise(each)) for each in (queries, keys))
    looks = SeqLens(ends, key_ends, *most, torch.cat(seen).to(device) if shared else None)
    return PackedRow(row[:1], row[1:], looks, where, tokens, place, begins)


def grid_indices(lengths: Sequence[int], width: int) -> Tensor:
    """Flat positions on the grid [B, width] of completions of these lengths; [n]."""
    spans = [torch.arange(i * width, i * width + n) for i, n in enumerate(lengths)]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def decoder_arguments(ids: Tensor, positions: Tensor, looks: SeqLens) -> dict[str, Any]:
    """What a decoder of transformers is called with; the names of the bounds are those of its flash attention."""
    return {
        "input_ids": ids,
        "position_ids": positions,
        "use_cache": False,
        "cu_seq_lens_q": looks.queries,
        "cu_seq_lens_k": looks.keys,
        "max_length_q": looks.most_queries,
        "max_length_k": looks.most_keys,
        "seen": looks.seen,
    }


Attention = Callable[..., Any]
Around = Callable[[Attention, Any], tuple[str, Attention]]  # attention and configuration -> attention over several ranks, and its name


def keep_apart(model: Any, around: Around | None = None) -> None:
    """Gives a model the attention that keeps packed samples apart; `around` makes it one of rows that ranks share, as
    SequenceParallelGroup.around does. Raises UserError where that would not be the same model."""
    config = model.config.get_text_config()
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS)
    found = [
        (foreign, f"samples packed into one row would mix in layers of {', '.join(foreign)}"),
        (not model._supports_attention_backend, "transformers gives them no exchangeable attention"),
        (getattr(config, "attn_logit_softcapping", None), "their attention has soft caps"),
        (any(name.endswith("sinks") for name, _ in model.named_parameters()), "their attention has sinks"),
        *((getattr(config, name, None) not in (None, 1.0), f"{name} changes logits after the head") for name in LATE_CHANGES),
    ]
    reasons = [reason for there, reason in found if there]
    if reasons:
        raise UserError(f"models of type {config.model_type} cannot be trained here: {'; '.join(reasons)}; choose another model.path")
    from transformers import AttentionInterface

    name, how = (NAME, attention) if around is None else around(attention, config)
    AttentionInterface.register(name, how)
    model.set_attn_implementation(name)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    cu_seq_lens_k: Tensor,
    max_length_q: int,
    max_length_k: int,
    seen: Tensor | None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, h, S, d], key and value [1, k, S, d] -> [1, S, h, d]; each sample looks back on itself, `sliding_window` tokens far."""
    window = sliding_window if sliding_window and sliding_window < max_length_k else None
    looks = SeqLens(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, seen)
    if seen is not None:
        key, value = (x.index_select(2, seen) for x in (key, value))  # [1, k, K, d]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return attend_in_one_kernel(query, key, value, looks, scaling, window), None
    return attend_one_by_one(query, key, value, looks, scaling, window), None


def attend_in_one_kernel(query: Tensor, key: Tensor, value: Tensor, looks: SeqLens, scaling: float, window: int | None) -> Tensor:
    """Flash attention, since its version 2.1, puts the last query of a run over its last key, as it must be here. Not run yet where prompts
    are shared."""
    from torch.nn.attention.varlen import varlen_attn

    shared = query.shape[1] // key.shape[1]
    if shared > 1 and "enable_gqa" not in signature(varlen_attn).parameters:  # torch 2.11
        key, value, shared = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), 1
    flat = (x[0].transpose(0, 1) for x in (query, key, value))  # [S, h, d], [K, k, d]
    back = -1 if window is None else window - 1
    grouped = {"enable_gqa": True} if shared > 1 else {}
    return varlen_attn(*flat, *looks[:4], scale=scaling, window_size=(back, 0), **grouped)[None]


def attend_one_by_one(query: Tensor, key: Tensor, value: Tensor, looks: SeqLens, scaling: float, window: int | None) -> Tensor:
    queries, keys = looks.queries.diff().tolist(), looks.keys.diff().tolist()
    many = query.shape[1] != key.shape[1]
    found = []
    for q, k, v in zip(query.split(queries, dim=2), key.split(keys, dim=2), value.split(keys, dim=2), strict=True):
        near, before = None, k.shape[2] - q.shape[2]
        if before or (window is not None and window < k.shape[2]):
            back = torch.arange(before, k.shape[2], device=q.device)[:, None] - torch.arange(k.shape[2], device=q.device)  # [Lq, Lk]
            near = (back >= 0) & (back < (window or k.shape[2]))
        found.append(scaled_dot_product_attention(q, k, v, near, is_causal=near is None, scale=scaling, enable_gqa=many))
    return torch.cat(found, dim=2).transpose(1, 2)  # [1, S, h, d]
