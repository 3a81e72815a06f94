"""Samples end to end in one row, without padding, for a causal LM of transformers: the layout, and the attention that keeps them apart.

On a GPU in half precision the attention is torch's flash attention for packed sequences; elsewhere one call a sample, which on a CPU
is as fast as any batching of them. S tokens of all samples together, h heads, k heads of keys, d their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlkit.errors import UserError
from rlkit.ops.logprobs import predecessors
from rlkit.types import Sample

if TYPE_CHECKING:
    from rlkit.engines.ulysses import Crew

NAME = "rlkit_packed"  # of the attention, as transformers knows it
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
LATE_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of configurations: what comes after the head


class Text(NamedTuple):
    """What a model reads of a sample."""

    prompt: Sequence[int]
    tokens: Tensor  # [L] of the completion


class Packed(NamedTuple):
    """Samples as a model takes them."""

    ids: Tensor  # [1, S]
    positions: Tensor  # [1, S] in their own sample
    bounds: Tensor  # [B + 1] int32, where each sample begins, and the end
    longest: int
    where: Tensor  # [n] positions in ids whose outputs predict the completion tokens
    tokens: Tensor  # [n] the completion tokens
    place: Tensor  # [n] their flat positions on the grid [B, width]


def packed(samples: Sequence[Sample | Text], width: int, device: torch.device) -> Packed:
    """Samples one after the other. Without samples one token, for nothing: sharded models are gathered on all ranks together, so a rank
    without work goes along."""
    if not samples:
        one = torch.zeros(1, dtype=torch.int64, device=device)
        return Packed(one.view(1, 1), one.view(1, 1), torch.tensor([0, 1], dtype=torch.int32, device=device), 1, one, one, one[:0])
    sizes = [len(s.prompt) + len(s.tokens) for s in samples]
    bounds = [0, *accumulate(sizes)]
    lengths = [len(s.tokens) for s in samples]
    tokens = torch.cat([s.tokens for s in samples])  # [n]
    firsts = [end - n for end, n in zip(bounds[1:], lengths, strict=True)]
    where = predecessors(firsts, lengths)  # [n]
    ids = torch.empty(bounds[-1], dtype=torch.int64)  # [S]
    ids[where + 1] = tokens
    ids[predecessors([start + 1 for start in bounds[:-1]], [len(s.prompt) for s in samples])] = torch.tensor(
        list(chain.from_iterable(s.prompt for s in samples)), dtype=torch.int64
    )
    positions = torch.cat([torch.arange(n) for n in sizes])  # [S]
    parts = (ids, positions, where, tokens, places(lengths, width))
    ids, positions, where, tokens, place = (t.to(device, non_blocking=True) for t in parts)
    return Packed(ids[None], positions[None], torch.tensor(bounds, dtype=torch.int32, device=device), max(sizes), where, tokens, place)


def places(lengths: Sequence[int], width: int) -> Tensor:
    """Flat positions on the grid [B, width] of completions of these lengths; [n]."""
    spans = [torch.arange(i * width, i * width + n) for i, n in enumerate(lengths)]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def arguments(ids: Tensor, positions: Tensor, bounds: Tensor, longest: int) -> dict[str, Any]:
    """What a decoder of transformers is called with; the names of the bounds are those of its flash attention."""
    return {
        "input_ids": ids,
        "position_ids": positions,
        "use_cache": False,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }


def keep_apart(model: Any, crew: Crew | None = None) -> None:
    """Gives a model the attention that keeps packed samples apart, in rows that a crew may share. Raises UserError where that would not
    be the same model."""
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

    name, how = (NAME, attention) if crew is None else crew.around(attention, config)
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
    max_length_q: int,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, h, S, d], key and value [1, k, S, d] -> [1, S, h, d]; each sample looks back on itself, `sliding_window` tokens far."""
    window = sliding_window if sliding_window and sliding_window < max_length_q else None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return in_one_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    return one_by_one(query, key, value, cu_seq_lens_q, scaling, window), None


def in_one_kernel(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float, window: int | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    shared = query.shape[1] // key.shape[1]
    if shared > 1 and "enable_gqa" not in signature(varlen_attn).parameters:  # torch 2.11
        key, value, shared = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), 1
    flat = (x[0].transpose(0, 1) for x in (query, key, value))  # [S, h, d], [S, k, d]
    back = -1 if window is None else window - 1
    grouped = {"enable_gqa": True} if shared > 1 else {}
    return varlen_attn(*flat, bounds, bounds, longest, longest, scale=scaling, window_size=(back, 0), **grouped)[None]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scaling: float, window: int | None) -> Tensor:
    lengths = bounds.diff().tolist()
    many = query.shape[1] != key.shape[1]
    found = []
    for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        near = None
        if window is not None and window < q.shape[2]:
            step = torch.arange(q.shape[2], device=q.device)
            back = step[:, None] - step  # [L, L]
            near = (back >= 0) & (back < window)
        found.append(scaled_dot_product_attention(q, k, v, near, is_causal=near is None, scale=scaling, enable_gqa=many))
    return torch.cat(found, dim=2).transpose(1, 2)  # [1, S, h, d]
