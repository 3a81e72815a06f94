from __future__ import annotations

import math
import random

import pytest
import torch

from rlkit.ops.logprobs import of_chosen, predecessors
from tests.ops import oracle


def test_the_token_before_predicts() -> None:
    """Row 0: prompt at 0, 1, 2, completion at 3, 4. Row 1 begins at 6: prompt 6, completion 7, 8, 9. Logits stand one before."""
    assert predecessors([3, 1], [2, 3], width=6).tolist() == [2, 3, 6, 7, 8]
    assert predecessors([2], [0], width=4).tolist() == [] and predecessors([], [], width=4).tolist() == []
    with pytest.raises(ValueError):
        predecessors([1, 2], [1], width=4)


def test_index_t_speaks_of_token_t() -> None:
    """A model that always bets on the token after the one it reads is certain of an ascending row, wherever the prompt ends."""
    ids = torch.tensor([[4, 5, 6, 7, 8, 0], [1, 2, 3, 4, 0, 0]])  # [B, S], padded with 0
    logits = torch.full((2, 6, 10), -100.0).scatter(-1, (ids + 1).unsqueeze(-1), 100.0)  # [B, S, V]
    for cut in (1, 2, 3):
        where = predecessors([cut, cut], [5 - cut, 4 - cut], 6)
        tokens = torch.cat([ids[0, cut:5], ids[1, cut:4]])
        chosen, entropy = of_chosen(logits.reshape(12, 10)[where], tokens, 1.0)
        assert chosen.tolist() == [0.0] * (9 - 2 * cut) and entropy.tolist() == [0.0] * (9 - 2 * cut)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_log_probs_and_entropy_are_the_loops(temperature: float, size: float) -> None:
    rng = random.Random(1)
    rows = [[rng.uniform(-size, size) for _ in range(7)] for _ in range(20)]
    tokens = [rng.randrange(7) for _ in rows]
    logits = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    chosen, entropy = of_chosen(logits, torch.tensor(tokens), temperature)
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
    chosen, entropy = of_chosen(logits, torch.tensor([1]), 1.0)
    assert chosen.item() == pytest.approx(math.log(2 / 8), abs=1e-6)
    assert entropy.item() == pytest.approx(-sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8)), abs=1e-6)
    assert of_chosen(logits, torch.tensor([1]), 0.5)[0].item() == pytest.approx(math.log(4 / 30), abs=1e-6)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    """Of 1,000 equal logits each has probability 1/1000: in bfloat16 the logarithm would be off by 0.03."""
    chosen, entropy = of_chosen(torch.zeros(1, 1000, dtype=torch.bfloat16), torch.tensor([3]), 1.0)
    assert chosen.dtype == entropy.dtype == torch.float32
    assert chosen.item() == pytest.approx(-math.log(1000), abs=1e-5) and entropy.item() == pytest.approx(math.log(1000), abs=1e-5)
