"""Packs samples into one row without padding for a causal LM of transformers: the layout, and the attention that separates them.

A prompt is in the row once, however many of its completions follow: all of them attend to it, and its gradient is the sum of theirs, so it
is computed once (Liu et al. 2025, "Prefix Grouper", arXiv 2506.05433). Samples share a prompt where their keys (row, draw) are the same.

On a GPU in half precision the attention is torch's flash attention for packed sequences; elsewhere one call a run, which on a CPU is as
fast as any batching. S tokens in the row, h heads, k key heads, d their size. A run is a range of the row that attends together: a prompt
with its first completion, or another completion of it. There are N runs, with K keys in their order; the keys of a prompt are repeated
for each run that attends to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import signature
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlkit.errors import UserError
from rlkit.ops.logprobs import build_predict_index
from rlkit.types import Key, Sample

NAME = "rlkit_packed"  # of the attention, as transformers knows it
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
REMEDY = "set engine.sequence_parallel=1"


class TokenizedSample(NamedTuple):
    """The part of a sample that a model reads."""

    key: Key
    prompt: tuple[int, ...]
    tokens: Tensor  # [L] of the completion


class SeqLens(NamedTuple):
    """Which run attends to which keys, in the terms of flash attention. A run is the end of its own keys."""

    cu_seqlens_q: Tensor  # [N + 1] int32, where each run begins in the row, and the end
    cu_seqlens_k: Tensor  # [N + 1] int32, where its keys begin among the K keys, and the end
    max_seqlen_q: int  # of a run
    max_seqlen_k: int
    key_index: Tensor | None  # [K] positions in the row; None: each run attends to itself alone


class PackedRow(NamedTuple):
    """Samples as a model takes them."""

    ids: Tensor  # [1, S]
    positions: Tensor  # [1, S] in their own sample
    seq_lens: SeqLens
    predict_index: Tensor  # [n] positions in ids whose outputs predict the completion tokens
    tokens: Tensor  # [n] the completion tokens
    grid_index: Tensor  # [n] their flat positions on the grid [B, width]
    starts: list[tuple[int, int]]  # of each sample: where in ids its prompt and its completion begin


def pack_samples(samples: Sequence[Sample | TokenizedSample], width: int, device: torch.device) -> PackedRow:
    """Packs samples prompt by prompt, in the order in which the prompts come first.

    Without samples the row is one token without use: sharded models are gathered on all ranks together, so a rank without work takes part.
    Raises ValueError where samples of one key have different prompts.
    """
    if not samples:
        one = torch.zeros(1, dtype=torch.int64, device=device)
        bounds = torch.tensor([0, 1], dtype=torch.int32, device=device)
        return PackedRow(one.view(1, 1), one.view(1, 1), SeqLens(bounds, bounds, 1, 1, None), one, one, one[:0], [])
    members: dict[tuple[int, int], list[int]] = {}
    for i, sample in enumerate(samples):
        members.setdefault(sample.key.of_prompt, []).append(i)
    lengths = [len(s.tokens) for s in samples]
    starts = [(0, 0)] * len(samples)
    ids, positions, keys, q_ends, k_ends = list[Tensor](), list[Tensor](), list[Tensor](), [0], [0]
    for of_prompt in members.values():
        prompt = samples[of_prompt[0]].prompt
        begin, size = q_ends[-1], len(prompt)
        ids.append(torch.tensor(prompt, dtype=torch.int64))
        for i in of_prompt:
            if samples[i].prompt != prompt:
                raise ValueError(f"samples of the prompt {samples[i].key.of_prompt} have different token ids of it")
            first, n = i == of_prompt[0], lengths[i]
            start = begin + size if first else q_ends[-1]
            starts[i] = begin, start
            if first or n:
                ids.append(samples[i].tokens)
                positions.append(torch.arange(0 if first else size, size + n))
                keys += [torch.arange(begin, begin + size), torch.arange(start, start + n)]
                q_ends.append(start + n)
                k_ends.append(k_ends[-1] + size + n)
    predict_index = index_predictions(samples, starts)
    shares = k_ends[-1] > q_ends[-1]
    cu_seqlens = [torch.tensor(ends, dtype=torch.int32) for ends in (q_ends, k_ends)]
    row, tokens = torch.cat([torch.cat(ids)[None], torch.cat(positions)[None]]), torch.cat([s.tokens for s in samples])
    parts = [row, *cu_seqlens, predict_index, tokens, grid_indices(lengths, width)]
    row, cu_q, cu_k, predict_index, tokens, grid_index = (t.to(device, non_blocking=True) for t in parts)
    longest_q, longest_k = (max(b - a for a, b in pairwise(ends)) for ends in (q_ends, k_ends))
    seq_lens = SeqLens(cu_q, cu_k, longest_q, longest_k, torch.cat(keys).to(device) if shares else None)
    return PackedRow(row[:1], row[1:], seq_lens, predict_index, tokens, grid_index, starts)


def index_predictions(samples: Sequence[Sample | TokenizedSample], starts: Sequence[tuple[int, int]]) -> Tensor:
    """Positions in the row whose outputs predict the completion tokens; [n]. The last token of a prompt predicts the first of each of its
    completions."""
    lengths = [len(s.tokens) for s in samples]
    index = build_predict_index([start for _, start in starts], lengths)  # [n]
    firsts = [0, *accumulate(lengths)]
    not_empty = [i for i, n in enumerate(lengths) if n]
    ends = torch.tensor([starts[i][0] + len(samples[i].prompt) - 1 for i in not_empty], dtype=torch.int64)
    index[[firsts[i] for i in not_empty]] = ends
    return index


def grid_indices(lengths: Sequence[int], width: int) -> Tensor:
    """Flat positions on the grid [B, width] of completions of these lengths; [n]."""
    spans = [torch.arange(i * width, i * width + n) for i, n in enumerate(lengths)]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def build_decoder_arguments(ids: Tensor, positions: Tensor, seq_lens: SeqLens) -> dict[str, Any]:
    """The arguments of a decoder of transformers; the bounds have the names of its flash attention."""
    return {
        "input_ids": ids,
        "position_ids": positions,
        "use_cache": False,
        "cu_seq_lens_q": seq_lens.cu_seqlens_q,
        "cu_seq_lens_k": seq_lens.cu_seqlens_k,
        "max_length_q": seq_lens.max_seqlen_q,
        "max_length_k": seq_lens.max_seqlen_k,
        "key_index": seq_lens.key_index,
    }


Attention = Callable[..., Any]
AttentionWrapper = Callable[[Attention, Any], tuple[str, Attention]]  # attention, configuration -> name and attention over several ranks


def set_packed_attention(model: Any, wrap: AttentionWrapper | None = None) -> None:
    """Gives a model the attention that separates packed samples; `wrap` (SequenceParallelGroup.wrap_attention) makes it one over rows that
    ranks share. Raises UserError where the result would not be the same model."""
    check_attention(type(model), model.config)
    if wrap is not None and any(name.endswith("sinks") for name, _ in model.named_parameters()):
        raise UserError(f"models of type {model.config.model_type} have sinks in their attention, whose heads cannot be shared: {REMEDY}")
    from transformers import AttentionInterface

    name, function = (NAME, attention) if wrap is None else wrap(attention, model.config.get_text_config())
    AttentionInterface.register(name, function)
    model.set_attn_implementation(name)


def restore_soft_cap(model: Any) -> None:
    """Takes the attention that a model has of its own where it caps scores: transformers' other attention leaves the cap out."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def check_attention(model_class: Any, config: Any) -> None:
    """Raises UserError where the attention of models of a class of transformers cannot be replaced."""
    text = config.get_text_config()
    foreign = sorted(set(getattr(text, "layer_types", None) or ()) - KNOWN_LAYERS)
    found = [
        (foreign, f"samples packed into one row would mix in layers of {', '.join(foreign)}"),
        (not model_class._supports_attention_backend, "transformers does not let their attention be replaced"),
    ]
    reasons = [reason for applies, reason in found if applies]
    if reasons:
        raise UserError(f"models of type {text.model_type} cannot be trained here: {'; '.join(reasons)}; choose another model.path")


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
    key_index: Tensor | None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, h, S, d], key and value [1, k, S, d] -> [1, S, h, d]; each run attends to its keys, `sliding_window` tokens back.

    softcap: scores become softcap tanh(scores / softcap); s_aux [h]: sinks, the score of a further key without a value.
    """
    window = sliding_window if sliding_window and sliding_window < max_length_k else None
    seq_lens = SeqLens(cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, key_index)
    if key_index is not None:
        key, value = (x.index_select(2, key_index) for x in (key, value))  # [1, k, K, d]
    if softcap or s_aux is not None:
        attend = partial(attend_in_steps, softcap=softcap, sinks=s_aux)
        return attend_per_run(query, key, value, seq_lens, scaling, window, attend), None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return attend_varlen(query, key, value, seq_lens, scaling, window), None
    return attend_per_run(query, key, value, seq_lens, scaling, window), None


def attend_varlen(query: Tensor, key: Tensor, value: Tensor, seq_lens: SeqLens, scaling: float, window: int | None) -> Tensor:
    """One call for all runs. Flash attention, since its version 2.1, aligns the last query of a run with its last key, as needed here. Not
    run on a GPU yet where prompts are shared."""
    from torch.nn.attention.varlen import varlen_attn

    shared = query.shape[1] // key.shape[1]
    if shared > 1 and "enable_gqa" not in signature(varlen_attn).parameters:  # torch 2.11
        key, value, shared = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1), 1
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [S, h, d], [K, k, d]
    back = -1 if window is None else window - 1
    grouped: dict[str, Any] = {"enable_gqa": True} if shared > 1 else {}
    output = varlen_attn(q, k, v, *seq_lens[:4], scale=scaling, window_size=(back, 0), **grouped)
    assert isinstance(output, Tensor)
    return output[None]


def attend_per_run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seq_lens: SeqLens,
    scaling: float,
    window: int | None,
    attend: Attention = scaled_dot_product_attention,
) -> Tensor:
    """One call of `attend` for each run."""
    queries, keys = seq_lens.cu_seqlens_q.diff().tolist(), seq_lens.cu_seqlens_k.diff().tolist()
    many = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in zip(query.split(queries, dim=2), key.split(keys, dim=2), value.split(keys, dim=2), strict=True):
        near, before = None, k.shape[2] - q.shape[2]
        if before or (window is not None and window < k.shape[2]):
            back = torch.arange(before, k.shape[2], device=q.device)[:, None] - torch.arange(k.shape[2], device=q.device)  # [Lq, Lk]
            near = (back >= 0) & (back < (window or k.shape[2]))
        outputs.append(attend(q, k, v, near, is_causal=near is None, scale=scaling, enable_gqa=many).transpose(1, 2))
    return torch.cat(outputs, dim=1)  # [1, S, h, d]


def attend_in_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    near: Tensor | None,
    *,
    is_causal: bool,
    scale: float,
    enable_gqa: bool,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """As scaled_dot_product_attention, of one run, with a soft cap of its scores or sinks [h], which no fast kernel has. Its scores are in
    memory, [1, h, Lq, Lk] in float32."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3)).float() * scale  # [1, h, Lq, Lk]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if near is None:
        near = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~near, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=3)
    shares = scores.softmax(dim=3)[..., : key.shape[2]]
    return shares.to(value.dtype) @ value
