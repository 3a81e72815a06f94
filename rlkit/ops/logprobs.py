"""Log-probabilities of given tokens. The only shift between logits and tokens in rlkit is here.

n tokens, H hidden size, V vocabulary, v columns of a block of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

BLOCK = 2**25  # logits in memory at once: 128 MiB in float32, for any n and V


def build_predict_index(firsts: list[int], lengths: list[int]) -> Tensor:
    """Flat positions whose outputs predict the completion tokens, completion by completion; [sum of lengths] int64.

    Completion i is at the flat positions firsts[i], firsts[i] + 1, ...; the output that predicts a token is one position before it.
    """
    spans = [torch.arange(first - 1, first - 1 + n) for first, n in zip(firsts, lengths, strict=True)]
    return torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)


def logprobs_from_logits(logits: Tensor, tokens: Tensor, temperature: float, cap: float | None = None) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) of the tokens, and the entropy of that distribution in nats.

    logits [n, V] of any float type, tokens [n] int64; returns [n] and [n], float32 (float64 of
    float64 logits), both with gradient. cap: of soft capping (Gemma 2, arXiv 2408.00118), logits become cap tanh(logits / cap).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scaled = (wide if cap is None else cap * torch.tanh(wide / cap)) / temperature  # [n, V]
    logs = torch.log_softmax(scaled, dim=-1)  # [n, V]
    chosen = logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [n]
    entropy = -(logs.exp() * logs).sum(-1)  # [n]
    return chosen, entropy


def logprobs_from_hidden(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`logprobs_from_logits` of the logits hidden @ weight.T + bias, with at most BLOCK logits in memory at once.

    hidden [n, H], weight [V, H], bias [V], tokens [n]; gradients flow to hidden, weight and bias. If all logits fit in one
    block they are kept for the backward pass, else it computes them again, block by block of the vocabulary.
    """
    if tokens.numel() * weight.shape[0] <= BLOCK:
        return logprobs_from_logits(linear(hidden, weight, bias), tokens, temperature, cap)
    chosen, entropy = BlockwiseLogprobs.apply(hidden, weight, bias, tokens, temperature, cap)  # type: ignore[no-untyped-call]
    return chosen, entropy


class BlockwiseLogprobs(torch.autograd.Function):
    """A softmax over the vocabulary in one pass (Milakov and Gimelshein 2018, arXiv 1805.02867), with the entropy beside it.

    With z = logits / temperature, top = max z, mass = sum e^(z - top) and tilt = sum e^(z - top) (z - top): log p = z - top - log mass
    and entropy = log mass - tilt / mass. d log p_k / dz = [k] - p and d entropy / dz = -p (log p + entropy). Blocks of the vocabulary,
    not of the tokens, so that each row of the weight's gradient is computed once, not as a sum of rounded parts.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        mass, tilt, own = (hidden.new_zeros(len(tokens), dtype=wide) for _ in range(3))  # [n] each
        top = torch.full_like(mass, torch.finfo(wide).min / 2)  # [n]
        for a, b in split_vocabulary(len(tokens), weight.shape[0]):
            z = compute_scaled_logits(hidden, weight, bias, a, b, temperature, cap)  # [n, v]
            inside, column = locate_in_block(tokens, a, b)
            own = torch.where(inside, z.gather(-1, column).squeeze(-1), own)
            higher = torch.maximum(top, z.amax(-1))
            sunk = top - higher  # [n], of what was summed so far
            tilt = sunk.exp() * (tilt + mass * sunk)
            mass = sunk.exp() * mass
            top = higher
            z -= top.unsqueeze(-1)
            share = z.exp()  # [n, v]
            mass += share.sum(-1)
            tilt += share.mul_(z).sum(-1)
        log_mass = mass.log()
        entropy = log_mass - tilt / mass
        ctx.save_for_backward(hidden, weight, bias, tokens, top, log_mass, entropy)
        ctx.temperature, ctx.cap = temperature, cap
        ctx.set_materialize_grads(False)
        return own - top - log_mass, entropy

    @staticmethod
    def backward(ctx: Any, by_chosen: Tensor | None, by_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, top, log_mass, entropy = ctx.saved_tensors
        one = torch.zeros_like(top) if by_chosen is None else by_chosen  # [n]
        if by_entropy is not None and not by_entropy.any():
            by_entropy = None  # no loss uses it
        to_hidden = torch.zeros_like(hidden, dtype=top.dtype) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for a, b in split_vocabulary(len(tokens), weight.shape[0]):
            z = compute_scaled_logits(hidden, weight, bias, a, b, ctx.temperature, ctx.cap)
            bend = None if ctx.cap is None else 1 - (z * (ctx.temperature / ctx.cap)).square()  # [n, v], the slope of the soft cap
            z -= top.unsqueeze(-1)
            z -= log_mass.unsqueeze(-1)  # [n, v], log p
            slope = z.exp()  # p
            if by_entropy is None:
                slope *= -one.unsqueeze(-1)
            else:
                slope *= z.add_(entropy.unsqueeze(-1)).mul_(by_entropy.unsqueeze(-1)).add_(one.unsqueeze(-1)).neg_()
            inside, column = locate_in_block(tokens, a, b)
            slope.scatter_add_(-1, column, torch.where(inside, one, 0.0).unsqueeze(-1))
            slope /= ctx.temperature
            if bend is not None:
                slope *= bend
            slope = slope.to(hidden.dtype)  # [n, v], by logits
            if to_hidden is not None:
                to_hidden += slope @ weight[a:b]
            if to_weight is not None:
                to_weight[a:b] = slope.T @ hidden
            if to_bias is not None:
                to_bias[a:b] = slope.sum(0)
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, to_bias, None, None, None


def split_vocabulary(tokens: int, vocabulary: int) -> list[tuple[int, int]]:
    """Columns [a, b) of the logits, at most BLOCK logits for so many tokens."""
    columns = max(1, BLOCK // tokens)
    return [(a, min(a + columns, vocabulary)) for a in range(0, vocabulary, columns)]


def compute_scaled_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, a: int, b: int, temperature: float, cap: float | None
) -> Tensor:
    """Columns [a, b) of logits / temperature, [n, v], at least float32; a new tensor."""
    logits = linear(hidden, weight[a:b], None if bias is None else bias[a:b])
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if cap is not None:
        wide.div_(cap).tanh_().mul_(cap)
    return wide.div_(temperature)


def locate_in_block(tokens: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Which tokens [n] are in columns [a, b), and their index in them [n, 1]; any valid index for the others."""
    return (tokens >= a) & (tokens < b), (tokens - a).clamp(0, b - a - 1).unsqueeze(-1)
