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
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlkit.engines.transfer import copy_to_device
from rlkit.errors import UserError
from rlkit.ops.logprobs import build_predict_index, build_ranges
from rlkit.types import Key, Sample

NAME = "rlkit_packed"  # of the attention, as transformers knows it
KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})
REMEDY = "set engine.sequence_parallel=1"


class TokenizedSample(NamedTuple):
    """The part of a sample that a model reads."""

    key: Key
    prompt: tuple[int, ...]
    tokens: Tensor  # [L] of the completion
    mask: Tensor  # [L] bool, which of them count


class SeqLens(NamedTuple):
    """Which run attends to which keys, in the terms of flash attention. A run is the end of its own keys."""

    cu_seqlens_q: Tensor  # [N + 1] int32, where each run begins in the row, and the end
    cu_seqlens_k: Tensor  # [N + 1] int32, where its keys begin among the K keys, and the end
    q_lens: tuple[int, ...]  # of each run; on the host, which need not wait for the bounds
    k_lens: tuple[int, ...]
    key_index: Tensor | None  # [K] positions in the row; None: each run attends to itself alone

    @property
    def max_seqlen_q(self) -> int:
        return max(self.q_lens)

    @property
    def max_seqlen_k(self) -> int:
        return max(self.k_lens)


class PackedRow(NamedTuple):
    """Samples as a model takes them: n of their completion tokens count."""

    ids: Tensor  # [1, S]
    positions: Tensor  # [1, S] in their own sample
    seq_lens: SeqLens
    predict_index: Tensor  # [n] positions in ids whose outputs predict the tokens that count
    tokens: Tensor  # [n] these tokens
    grid_index: Tensor  # [n] their flat positions on the grid [B, width]
    starts: list[tuple[int, int]]  # of each sample: where in ids its prompt and its completion begin

    def to(self, device: torch.device) -> PackedRow:
        """The row on a device, in one copy for which the host does not wait."""
        bounds = self.seq_lens
        tensors = [*self[:2], *bounds[:2], *self[3:6], *([] if bounds.key_index is None else [bounds.key_index])]
        ids, positions, cu_q, cu_k, predict_index, tokens, grid_index, *keys = copy_to_device(tensors, device)
        seq_lens = bounds._replace(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, key_index=keys[0] if keys else None)
        return PackedRow(ids, positions, seq_lens, predict_index, tokens, grid_index, self.starts)


def pack_samples(samples: Sequence[Sample | TokenizedSample], width: int, device: torch.device, whole: bool = False) -> PackedRow:
    """Packs samples prompt by prompt, in the order in which the prompts come first.

    Of a completion the tokens before the last one that counts are in the row: the others predict nothing that counts. With `whole` all
    are. Without samples the row is one token without use: sharded models are gathered on all ranks together, so a rank without work takes
    part. Raises ValueError where samples of one key have different prompts.
    """
    if not samples:
        one = torch.zeros(1, dtype=torch.int64)
        return PackedRow(one.view(1, 1), one.view(1, 1), build_seq_lens([1], [1], None), one, one, one[:0], []).to(device)
    lengths = [len(s.tokens) for s in samples]
    all_tokens, counts = torch.cat([s.tokens for s in samples]), torch.cat([s.mask for s in samples])
    inputs = lengths if whole else count_inputs(counts, lengths)
    members: dict[tuple[int, int], list[int]] = {}
    for i, sample in enumerate(samples):
        members.setdefault(sample.key.of_prompt, []).append(i)
    firsts = [0, *accumulate(lengths)]
    starts = [(0, 0)] * len(samples)
    prompts, pieces, runs, end = list[int](), list[Piece](), list[AttentionRun](), 0
    for of_prompt in members.values():
        prompt = samples[of_prompt[0]].prompt
        begin, size = end, len(prompt)
        pieces.append(Piece(len(all_tokens) + len(prompts), 0, size))
        prompts += prompt
        end += size
        for i in of_prompt:
            if samples[i].prompt != prompt:
                raise ValueError(f"samples of the prompt {samples[i].key.of_prompt} have different token ids of it")
            starts[i] = begin, end
            first = i == of_prompt[0]
            if first or inputs[i]:
                pieces.append(Piece(firsts[i], size, inputs[i]))
                runs.append(AttentionRun(begin, size, end, inputs[i], first))
                end += inputs[i]
    sources, offsets, sizes = zip(*pieces, strict=True)
    ids = torch.cat([all_tokens, torch.tensor(prompts, dtype=torch.int64)])[build_ranges(sources, sizes)]
    ends = [prompt + len(sample.prompt) for (prompt, _), sample in zip(starts, samples, strict=True)]
    predict_index = index_predictions(ends, [start for _, start in starts], lengths)[counts]
    outputs = (predict_index, all_tokens[counts]) if len(predict_index) else (torch.zeros(1, dtype=torch.int64),) * 2  # one of no use
    row = ids[None], build_ranges(offsets, sizes)[None], lay_out(runs), *outputs, index_grid(samples, width), starts
    return PackedRow(*row).to(device)


class Piece(NamedTuple):
    """A part of a row: `size` tokens from `source` on, of which the first is at this position in its sample."""

    source: int
    position: int
    size: int


class AttentionRun(NamedTuple):
    """A completion of `size` tokens from `start` on in the row, and its prompt. `first`: the prompt attends in this run too."""

    prompt: int
    prompt_size: int
    start: int
    size: int
    first: bool


def lay_out(runs: Sequence[AttentionRun]) -> SeqLens:
    """Which keys the runs attend to."""
    q_lens = [run.size + run.first * run.prompt_size for run in runs]
    k_lens = [run.size + run.prompt_size for run in runs]
    if q_lens == k_lens:
        return build_seq_lens(q_lens, k_lens, None)
    spans = [span for run in runs for span in ((run.prompt, run.prompt_size), (run.start, run.size))]
    return build_seq_lens(q_lens, k_lens, build_ranges(*zip(*spans, strict=True)))


def build_seq_lens(q_lens: Sequence[int], k_lens: Sequence[int], key_index: Tensor | None) -> SeqLens:
    cu_q, cu_k = (torch.tensor([0, *accumulate(lens)], dtype=torch.int32) for lens in (q_lens, k_lens))
    return SeqLens(cu_q, cu_k, tuple(q_lens), tuple(k_lens), key_index)


def count_inputs(counts: Tensor, lengths: Sequence[int]) -> list[int]:
    """Of completions of these lengths, end to end, the tokens before the last one that counts; counts [sum of lengths] bool."""
    sizes = torch.tensor(lengths, dtype=torch.int64)
    places = build_ranges([0] * len(lengths), lengths) * counts
    sample = torch.arange(len(lengths)).repeat_interleave(sizes)
    return torch.zeros(len(lengths), dtype=torch.int64).scatter_reduce(0, sample, places, "amax").tolist()


def index_predictions(ends: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Positions in the row whose outputs predict the completion tokens; [sum of lengths]. Completions start at `starts`, their prompts end
    before `ends`: the last token of a prompt predicts the first of each of its completions."""
    index = build_predict_index(starts, lengths)
    firsts = [0, *accumulate(lengths)]
    written = [i for i, n in enumerate(lengths) if n]
    index[[firsts[i] for i in written]] = build_predict_index([ends[i] for i in written], [1] * len(written))
    return index


def index_grid(samples: Sequence[Sample | TokenizedSample], width: int) -> Tensor:
    """Flat positions on the grid [B, width] of the completion tokens that count; [n]."""
    index = build_ranges([i * width for i in range(len(samples))], [len(s.tokens) for s in samples])
    return index[torch.cat([s.mask for s in samples])] if samples else index


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
        "q_lens": seq_lens.q_lens,
        "k_lens": seq_lens.k_lens,
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
    q_lens: tuple[int, ...],
    k_lens: tuple[int, ...],
    key_index: Tensor | None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, h, S, d], key and value [1, k, S, d] -> [1, S, h, d]; each run attends to its keys, `sliding_window` tokens back.

    softcap: scores become softcap tanh(scores / softcap); s_aux [h]: sinks, the score of a further key without a value.
    """
    seq_lens = SeqLens(cu_seq_lens_q, cu_seq_lens_k, q_lens, k_lens, key_index)
    window = sliding_window if sliding_window and sliding_window < seq_lens.max_seqlen_k else None
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
    output = varlen_attn(
        q, k, v, *seq_lens[:2], seq_lens.max_seqlen_q, seq_lens.max_seqlen_k, scale=scaling, window_size=(back, 0), **grouped
    )
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
    queries, keys = seq_lens.q_lens, seq_lens.k_lens
    many = query.shape[1] != key.shape[1]
    biases = build_causal_bias(seq_lens.max_seqlen_k, window, query.dtype, query.device) if window or queries != keys else None
    outputs = []
    for q, k, v in zip(query.split(queries, dim=2), key.split(keys, dim=2), value.split(keys, dim=2), strict=True):
        near, before = None, k.shape[2] - q.shape[2]
        if biases is not None and (before or (window is not None and window < k.shape[2])):
            near = biases[before : k.shape[2], : k.shape[2]]  # [Lq, Lk]
        outputs.append(attend(q, k, v, near, is_causal=near is None, scale=scaling, enable_gqa=many).transpose(1, 2))
    return torch.cat(outputs, dim=1)  # [1, S, h, d]


def build_causal_bias(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores [size, size] of queries and keys in order: 0 where a query attends to a key, else -inf. The last rows and
    columns that are left out make it that of fewer."""
    place = torch.arange(size, device=device)
    back = place[:, None] - place
    return torch.zeros(size, size, dtype=dtype, device=device).masked_fill_((back < 0) | (back >= (window or size)), float("-inf"))


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
        near = build_causal_bias(scores.shape[3], None, scores.dtype, scores.device)
    scores = scores + near
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], dim=3)
    shares = scores.softmax(dim=3)[..., : key.shape[2]]
    return shares.to(value.dtype) @ value
