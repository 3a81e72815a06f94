"""The packed attention and the head in bfloat16, beside the same in float32, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from rlkit.engines import liger, packing
from rlkit.engines.base import make_sample
from rlkit.ops import logprobs as ops_logprobs
from rlkit.types import Key, Request, Sampling, Stop
from tests.gpu.table import Measured, NotRunError

RELATIVE = 0.02  # of norms: bfloat16 rounds to 2^-9, and a backward pass rounds a few times
LOGPROBS = 0.02  # nats, in the mean: logits of deviation 2 in bfloat16
LENGTHS, WINDOW = [1, 63, 64, 65, 700], 256
SMALL_LENGTHS, SMALL_WINDOW = [1, 7, 8, 9, 40], 16
TEMPERATURE = 0.7


def find_device(small: bool) -> torch.device:
    return torch.device("cpu" if small else "cuda")


def measure_distance(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    return float((found.detach().double() - wanted.double()).norm() / wanted.double().norm())


def pack_random(lengths: list[int], shared: bool, device: torch.device) -> packing.PackedRow:
    """Completions of these lengths, each after a prompt of 7 tokens of its own, or all after the same."""
    requests = [Request(Key(0 if shared else i, 0, i if shared else 0), tuple(range(7)), Sampling(), 0) for i in range(len(lengths))]
    samples = [make_sample(request, [1] * n, [0.0] * n, Stop.LENGTH, 0) for request, n in zip(requests, lengths, strict=True)]
    return packing.pack_samples(samples, max(lengths), device)


def attend(row: packing.PackedRow, tensors: list[Tensor], window: int | None, slope: Tensor) -> list[Tensor]:
    """The output [1, S, h, d] of attention, and the gradients of query, key and value."""
    bounds = packing.build_decoder_arguments(row.ids, row.positions, row.seq_lens)
    bounds = {name: value for name, value in bounds.items() if name not in ("input_ids", "position_ids", "use_cache")}
    leaves = [t.detach().requires_grad_() for t in tensors]
    output, _ = packing.attention(None, *leaves, None, scaling=tensors[0].shape[-1] ** -0.5, sliding_window=window, **bounds)
    return [output.detach(), *torch.autograd.grad(output, leaves, slope.to(output.dtype))]


def check_attention(small: bool, folder: Path) -> Measured:
    """Head dims 64 and 128, one and six query heads a key head, with a window and without, prompts alone and shared."""
    device, lengths, window = find_device(small), SMALL_LENGTHS if small else LENGTHS, SMALL_WINDOW if small else WINDOW
    draw, worst = torch.Generator(device).manual_seed(0), {"output": 0.0, "gradients": 0.0}
    cases = list(product((64, 128), (1, 6), (None, window), (False, True)))
    for dim, groups, back, shared in cases:
        row = pack_random(lengths, shared, device)
        sizes = [(1, h, row.ids.shape[1], dim) for h in (12, 12 // groups, 12 // groups)]
        tensors = [torch.randn(size, generator=draw, device=device).bfloat16() for size in sizes]
        slope = torch.randn(1, row.ids.shape[1], 12, dim, generator=draw, device=device).bfloat16()
        found, wanted = attend(row, tensors, back, slope), attend(row, [t.float() for t in tensors], back, slope)
        distances = [measure_distance(a, b) for a, b in zip(found, wanted, strict=True)]
        worst = {"output": max(worst["output"], distances[0]), "gradients": max(worst["gradients"], *distances[1:])}
    bound = f"relative distance at most {RELATIVE}"
    return Measured({"cases": float(len(cases)), **worst}, bound, max(worst.values()) <= RELATIVE)


Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # hidden [n, H], weight [V, H], tokens [n] -> log-probs, entropies


def compare_head(small: bool, head: Head) -> Measured:
    """`head` in bfloat16 beside the plain way in float32, whose logits are all in memory."""
    device = find_device(small)
    n, hidden, vocabulary = (1100, 32, 500) if small else (4096, 1536, 151936)
    draw = torch.Generator(device).manual_seed(0)
    states = torch.randn(n, hidden, generator=draw, device=device).bfloat16()
    weight = (torch.randn(vocabulary, hidden, generator=draw, device=device) * 2 / hidden**0.5).bfloat16()
    tokens = torch.randint(vocabulary, (n,), generator=draw, device=device)
    slopes = torch.randn(2, n, generator=draw, device=device)
    found = run_head(head, states, weight, tokens, slopes)
    wanted = run_head(compute_plainly, states.float(), weight.float(), tokens, slopes)
    means = [float((a - b).abs().mean()) for a, b in zip(found[:2], wanted[:2], strict=True)]
    distances = [measure_distance(a, b) for a, b in zip(found[2:], wanted[2:], strict=True)]
    figures: dict[str, float | str] = {"log-probs": means[0], "entropies": means[1], "to hidden": distances[0], "to weight": distances[1]}
    bound = f"log-probs at most {LOGPROBS} nats in the mean, gradients {RELATIVE} relative"
    return Measured(figures, bound, means[0] <= LOGPROBS and max(distances) <= RELATIVE)


def run_head(head: Head, states: Tensor, weight: Tensor, tokens: Tensor, slopes: Tensor) -> list[Tensor]:
    """Log-probs and entropies [n], and the gradients of hidden states and weight."""
    leaves = [states.detach().requires_grad_(), weight.detach().requires_grad_()]
    both = torch.stack(head(*leaves, tokens)).float()
    return [*both.detach(), *torch.autograd.grad((both * slopes).sum(), leaves)]


def compute_plainly(states: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return ops_logprobs.logprobs_from_logits(states @ weight.T, tokens, TEMPERATURE)


def check_head(small: bool, folder: Path) -> Measured:
    if small:
        ops_logprobs.BLOCK = 2**16  # several blocks
    return compare_head(small, lambda *given: ops_logprobs.logprobs_from_hidden(given[0], given[1], None, given[2], TEMPERATURE))


def check_liger(small: bool, folder: Path) -> Measured:
    """Raises NotRunError where Liger has no kernel."""
    if small or not liger.supports(torch.zeros(1, 1, device="cuda", dtype=torch.bfloat16), None):
        raise NotRunError("Liger's head has a kernel on Hopper alone, with pip install -e '.[liger]'")
    return compare_head(small, lambda *given: liger.liger_logprobs(*given, TEMPERATURE))
