from __future__ import annotations

import math
import random
import subprocess
import sys

import pytest
import torch

from rlkit.ops import logprobs
from rlkit.ops.logprobs import build_predict_index, logprobs_from_hidden, logprobs_from_logits
from tests.ops import oracle


def test_the_token_before_predicts() -> None:
    """A prompt at 0, 1, 2, its completion at 3, 4; another prompt at 6, its completion at 7, 8, 9. Logits stand one before."""
    assert build_predict_index([3, 7], [2, 3]).tolist() == [2, 3, 6, 7, 8]
    assert build_predict_index([2], [0]).tolist() == [] and build_predict_index([], []).tolist() == []
    with pytest.raises(ValueError):
        build_predict_index([1, 2], [1])


def test_index_t_speaks_of_token_t() -> None:
    """A model that always bets on the token after the one it reads is certain of an ascending row, wherever the prompt ends."""
    ids = torch.tensor([[4, 5, 6, 7, 8, 0], [1, 2, 3, 4, 0, 0]])  # [B, S], padded with 0
    logits = torch.full((2, 6, 10), -100.0).scatter(-1, (ids + 1).unsqueeze(-1), 100.0)  # [B, S, V]
    for cut in (1, 2, 3):
        where = build_predict_index([cut, 6 + cut], [5 - cut, 4 - cut])
        tokens = torch.cat([ids[0, cut:5], ids[1, cut:4]])
        chosen, entropy = logprobs_from_logits(logits.reshape(12, 10)[where], tokens, 1.0)
        assert chosen.tolist() == [0.0] * (9 - 2 * cut) and entropy.tolist() == [0.0] * (9 - 2 * cut)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_log_probs_and_entropy_are_the_loops(temperature: float, size: float) -> None:
    rng = random.Random(1)
    rows = [[rng.uniform(-size, size) for _ in range(7)] for _ in range(20)]
    tokens = [rng.randrange(7) for _ in rows]
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    chosen, entropy = logprobs_from_logits(logits, torch.tensor(tokens), temperature)
    for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        assert chosen[i].item() == pytest.approx(oracle.log_softmax(row, temperature)[token], rel=1e-10, abs=1e-10)
        assert entropy[i].item() == pytest.approx(oracle.entropy(row, temperature), rel=1e-10, abs=1e-10)
    if size == 1.0:
        (chosen.sum() + entropy.sum()).backward()
        assert logits.grad is not None
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            wanted = oracle.slopes(lambda x, k=token: oracle.log_softmax(x, temperature)[k] + oracle.entropy(x, temperature), row)
            assert logits.grad[i].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_exact_numbers() -> None:
    """Logits (ln 1, ln 2, ln 5): probabilities 1/8, 2/8, 5/8; at temperature 1/2 they are squared: 1/30, 4/30, 25/30."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    chosen, entropy = logprobs_from_logits(logits, torch.tensor([1]), 1.0)
    assert chosen.item() == pytest.approx(math.log(2 / 8), abs=1e-6)
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8)), abs=1e-6)
    assert logprobs_from_logits(logits, torch.tensor([1]), 0.5)[0].item() == pytest.approx(math.log(4 / 30), abs=1e-6)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """Of 1,000 equal logits each has probability 1/1000: in bfloat16 the logarithm would be off by 0.03."""
    chosen, entropy = logprobs_from_logits(torch.zeros(1, 1000, dtype=torch.bfloat16), torch.tensor([3]), 1.0)
    assert chosen.dtype == entropy.dtype == torch.float32
    assert chosen.item() == pytest.approx(-math.log(1000), abs=1e-5) and entropy.item() == pytest.approx(math.log(1000), abs=1e-5)


HELD = {"all": 2**25, "blocks of 5, the last of 2": 5 * 20, "one column": 1}  # of 20 x 17 logits


def both_ways(dtype: torch.dtype, bias: bool, entropy: bool, size: float = 1.0, cap: float | None = None) -> list[list[torch.Tensor]]:
    """Values, and gradients by hidden, weight and bias, of the plain way and of ours."""
    random = torch.Generator().manual_seed(2)
    found = []
    leaves = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((20, 6), (17, 6), (17,))]
    slopes = torch.randn(2, 20, generator=random, dtype=torch.float64).to(dtype)
    tokens = torch.tensor([0, 16, 4, 5, *(torch.randint(17, (16,), generator=random).tolist())])
    for ours in (False, True):
        hidden, weight, offset = ((leaf * size).to(dtype).requires_grad_() for leaf in leaves)
        given = offset if bias else None
        if ours:
            said = logprobs_from_hidden(hidden, weight, given, tokens, 0.7, cap)
        else:
            said = logprobs_from_logits(torch.nn.functional.linear(hidden, weight, given), tokens, 0.7, cap)
        loss = (said[0] * slopes[0]).sum() + (said[1] * slopes[1]).sum() * float(entropy)
        wanted = [hidden, weight, *([offset] if bias else [])]
        found.append([*(s.detach() for s in said), *torch.autograd.grad(loss if entropy else (said[0] * slopes[0]).sum(), wanted)])
    return found


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_in_blocks_it_is_the_plain_way(
    held: str, dtype: torch.dtype, off: float, bias: bool, entropy: bool, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", HELD[held])
    plain, ours = both_ways(dtype, bias, entropy, cap=cap)
    assert len(ours) == 4 + bias
    for one, other in zip(plain, ours, strict=True):
        assert one.norm() > 1e-2 and (one - other).norm() < off * one.norm()


def test_a_soft_cap_bounds_logits_before_the_temperature() -> None:
    """Of 2 tanh(z / 2) / 0.5 at z = 0 and 2 artanh(1/2), which are 0 and 2."""
    chosen, _ = logprobs_from_logits(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]), 0.5, 2.0)
    assert chosen.item() == pytest.approx(2 - math.log(1 + math.e**2), abs=1e-6)


def test_in_blocks_it_stands_logits_of_ten_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entropy computed as the difference of two such logits would be off by 1e-3."""
    monkeypatch.setattr(logprobs, "BLOCK", 100)
    for one, other in zip(*both_ways(torch.float64, True, True, size=70.0), strict=True):
        assert (one - other).abs().max() < 1e-9 * max(1.0, float(one.abs().max()))
    chosen, entropy = logprobs_from_hidden(torch.full((40, 1), 1e4), torch.ones(8, 1), None, torch.zeros(40, dtype=torch.int64), 1.0)
    assert (chosen + math.log(8)).abs().max() < 1e-6 and (entropy - math.log(8)).abs().max() < 1e-6


def test_a_frozen_head_costs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", 10)
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3)
    logprobs_from_hidden(hidden, weight, None, torch.tensor([0, 1, 2, 8]), 1.0)[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None


MEASURE = """
import re, sys, torch
from pathlib import Path
from rlkit.ops.logprobs import logprobs_from_hidden, logprobs_from_logits
torch.set_num_threads(1)
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
way, tokens, vocabulary = sys.argv[1], int(sys.argv[2]), 151_936
hidden, weight = torch.randn(tokens, 8).requires_grad_(), torch.randn(vocabulary, 8).requires_grad_()
chosen = torch.arange(tokens)
before = peak()
said = logprobs_from_hidden(hidden, weight, None, chosen, 1.0) if way == "ours" else logprobs_from_logits(hidden @ weight.T, chosen, 1.0)
(said[0].sum() + said[1].sum()).backward()
print(peak() - before)
"""


def grown(way: str, tokens: int) -> float:
    """MiB that the peak memory of a process grew by in a forward and a backward pass."""
    done = subprocess.run([sys.executable, "-c", MEASURE, way, str(tokens)], capture_output=True, text=True, check=True)
    return float(done.stdout) / 1024


def test_peak_memory_does_not_grow_with_tokens_and_vocabulary() -> None:
    """At V = 151,936 the logits of 512 tokens are 297 MiB, those of 1,024 are 593. The plain way holds them several times over."""
    few, many = grown("ours", 512), grown("ours", 1024)
    assert few < 450 and abs(many - few) < 32
    assert grown("plain", 256) - grown("plain", 128) > 74  # n V 4 bytes
