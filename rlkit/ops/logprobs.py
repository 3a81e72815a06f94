"""Log-probabilities of given tokens. The only shift between logits and tokens in rlkit is here.

n tokens, H hidden size, V vocabulary, v columns of a block of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

BLOCK = 2**25  # logits in memory at once: 128 MiB in float32, for any n and V


def build_predict_index(firsts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Flat positions whose outputs predict the completion tokens, completion by completion; [sum of lengths] int64.

    Completion i is at the flat positions firsts[i], firsts[i] + 1, ...; the output that predicts a token is one position before it.
    """
    return build_ranges(firsts, lengths) - 1


def build_ranges(firsts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """firsts[i], firsts[i] + 1, ... lengths[i] numbers for each i; [sum of lengths] int64. Raises ValueError where one list is longer."""
    if len(firsts) != len(lengths):
        raise ValueError(f"{len(firsts)} first positions of {len(lengths)} completions")
    sizes = torch.tensor(lengths, dtype=torch.int64)
    starts = torch.tensor(firsts, dtype=torch.int64) - sizes.cumsum(0) + sizes
    return torch.arange(sum(lengths)) + starts.repeat_interleave(sizes)


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


class UsedOutputs:
    """Which outputs a loss depends on, known before the backward pass without a look at the gradients."""

    entropy = True


def logprobs_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float,
    cap: float | None = None,
    used: UsedOutputs | None = None,
) -> tuple[Tensor, Tensor]:
    """`logprobs_from_logits` of the logits hidden @ weight.T + bias, with at most BLOCK logits in memory at once.

    hidden [n, H], weight [V, H], bias [V], tokens [n]; gradients flow to hidden, weight and bias. If all logits fit in one
    block their softmax is kept for the backward pass, else it is computed again, block by block of the vocabulary.
    """
    arguments = hidden, weight, bias, tokens, temperature, cap, used or UsedOutputs()
    chosen, entropy = BlockwiseLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return chosen, entropy


class PartialSoftmax(NamedTuple):
    """What is known of some columns z of the logits / temperature; all [n]."""

    top: Tensor  # max z
    log_mass: Tensor  # log sum e^(z - top)
    entropy: Tensor  # of the softmax over these columns

    def merge(self, other: PartialSoftmax) -> PartialSoftmax:
        """Of the columns of both. With w the share of each in the mass, the entropy is sum w (entropy - log w)."""
        top = torch.maximum(self.top, other.top)
        masses = [part.top - top + part.log_mass for part in (self, other)]
        log_mass = torch.logaddexp(*masses)
        terms = [(mass - log_mass).exp() * (part.entropy - mass + log_mass) for mass, part in zip(masses, (self, other), strict=True)]
        return PartialSoftmax(top, log_mass, terms[0] + terms[1])


class BlockwiseLogprobs(torch.autograd.Function):
    """A softmax over the vocabulary in one pass (Milakov and Gimelshein 2018, arXiv 1805.02867), with the entropy beside it.

    With z = logits / temperature: d log p_k / dz = [k] - p and d entropy / dz = -p (log p + entropy). Blocks of the vocabulary,
    not of the tokens, so that each row of the weight's gradient is computed once, not as a sum of rounded parts. It moves few bytes a
    logit: factors of a row are applied to what its columns are multiplied with. The entropy is as exact as the largest logit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        cap: float | None,
        used: UsedOutputs,
    ) -> tuple[Tensor, Tensor]:
        own = found = kept = None
        blocks = split_vocabulary(len(tokens), weight.shape[0])
        for a, b in blocks:
            z = compute_scaled_logits(hidden, weight, bias, a, b, temperature, cap)  # [n, v]
            shares = z.softmax(-1)  # [n, v]
            largest, best = shares.max(-1)
            inside, column = locate_in_block(tokens, a, b)
            here, top = z.gather(-1, torch.cat([column, best.unsqueeze(-1)], dim=-1)).unbind(-1)
            own = here if own is None else torch.where(inside, here, own)
            mean = torch.bmm(shares.unsqueeze(1), z.unsqueeze(2)).view(-1)  # [n], of z
            part = PartialSoftmax(top, -largest.log(), top - mean - largest.log())
            found = part if found is None else found.merge(part)
            kept = shares if len(blocks) == 1 and cap is None else None
            del z, shares  # before the next block
        assert own is not None and found is not None, "a vocabulary has tokens"
        ctx.save_for_backward(hidden, weight, bias, tokens, kept, *found)
        ctx.temperature, ctx.cap, ctx.used = temperature, cap, used
        ctx.set_materialize_grads(False)
        return own - found.top - found.log_mass, found.entropy

    @staticmethod
    def backward(ctx: Any, by_chosen: Tensor | None, by_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, kept, top, log_mass, entropy = ctx.saved_tensors
        log_mass = log_mass if kept is None else torch.zeros_like(log_mass)
        mass, wide = log_mass.exp(), top.dtype
        one = torch.zeros_like(top) if by_chosen is None else by_chosen  # [n]
        bent = by_entropy if ctx.used.entropy else None
        own = mass if bent is None else one * mass  # [n], what is subtracted at the chosen token
        scale = (-one if bent is None else -torch.ones_like(one)) / mass / ctx.temperature  # [n], of all columns
        factor = scale if hidden.dtype == wide else torch.ones_like(scale, dtype=hidden.dtype)  # slopes are scaled before they are rounded
        rows = hidden * factor.unsqueeze(-1)  # [n, H]
        to_hidden = torch.zeros_like(hidden, dtype=wide) if ctx.needs_input_grad[0] else None
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        to_bias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for a, b in split_vocabulary(len(tokens), weight.shape[0]):
            bend = None
            if kept is not None:
                shares, logs = kept.clone(), None if bent is None else kept.clamp(min=torch.finfo(wide).tiny).log_()
            else:
                z = compute_scaled_logits(hidden, weight, bias, a, b, ctx.temperature, ctx.cap)
                bend = None if ctx.cap is None else 1 - (z * (ctx.temperature / ctx.cap)).square()  # [n, v], the slope of the soft cap
                z -= top.unsqueeze(-1)
                shares, logs = (z.exp_(), None) if bent is None else (z.exp(), z)  # [n, v], p mass and log (p mass)
                del z
            slope = shares
            if bent is not None and logs is not None:
                level = one + bent * (entropy - log_mass)
                slope = torch.addcmul(level.unsqueeze(-1), logs, bent.unsqueeze(-1), out=logs).mul_(shares)
            inside, column = locate_in_block(tokens, a, b)
            slope.scatter_add_(-1, column, torch.where(inside, -own, 0.0).unsqueeze(-1))
            if bend is not None:
                slope *= bend
            if hidden.dtype != wide:
                slope = torch.mul(slope, scale.unsqueeze(-1), out=torch.empty_like(slope, dtype=hidden.dtype))
            if to_hidden is not None:
                to_hidden.addcmul_(slope @ weight[a:b], factor.unsqueeze(-1))
            if to_weight is not None:
                to_weight[a:b] = slope.T @ rows
            if to_bias is not None:
                to_bias[a:b] = slope.T @ factor
            del shares, logs, slope, bend  # before the next block
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, to_bias, None, None, None, None


def split_vocabulary(tokens: int, vocabulary: int) -> list[tuple[int, int]]:
    """Columns [a, b) of the logits, at most BLOCK logits for so many tokens."""
    columns = max(1, BLOCK // max(tokens, 1))
    return [(a, min(a + columns, vocabulary)) for a in range(0, vocabulary, columns)]


def compute_scaled_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, a: int, b: int, temperature: float, cap: float | None
) -> Tensor:
    """Columns [a, b) of logits / temperature, [n, v], at least float32; a new tensor."""
    logits = linear(hidden, weight[a:b], None if bias is None else bias[a:b])
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if cap is not None:
        wide.div_(cap).tanh_().mul_(cap)
    return wide if temperature == 1.0 else wide.div_(temperature)


def locate_in_block(tokens: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Which tokens [n] are in columns [a, b), and their index in them [n, 1]; any valid index for the others."""
    return (tokens >= a) & (tokens < b), (tokens - a).clamp(0, b - a - 1).unsqueeze(-1)
