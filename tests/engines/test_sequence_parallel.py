"""Two ranks that share their rows say what each sample says alone, and learn the same; half of the tokens goes through each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlkit.engines.packing import attention, pack_samples
from rlkit.engines.sequence_parallel import SequenceParallelGroup, pad_to_multiple
from rlkit.errors import UserError
from rlkit.runtime.ranks import Ranks
from tests.conftest import run
from tests.engines.test_packing import CPU, model_of, samples_of


@pytest.mark.timeout(600)
def test_two_ranks_are_one(tmp_path: Path) -> None:
    """7 + 9 + 5 + 2 + 10 = 33 inputs and one of no use: 17 a rank; 29 and one where a prompt is shared. Of no samples: one token a rank,
    and no gradient."""
    ended = run(str(tmp_path / "seen.pt"), program="crew.py", ranks=2, timeout=540, OMP_NUM_THREADS="1")  # 5 s alone
    assert ended.code == 0, ended.out + ended.err
    seen = torch.load(tmp_path / "seen.pt")
    assert len(seen) == 18
    for (kind, shared, _, deal), told in seen.items():
        for worst, far, passed in told:
            assert worst < 1e-12 and far < (1e-7 if shared else 1e-12), (kind, deal, worst, far)  # norms round to float32
            assert passed == (1 if deal == "nothing" else 15 if shared else 17), (kind, deal)


def test_a_row_is_lengthened_to_equal_parts() -> None:
    row = pack_samples(samples_of(shared=True), 0, CPU, whole=True)
    longer = pad_to_multiple(row, 8)  # 33 -> 40
    assert longer.ids.shape == (1, 40) and longer.ids[0, 33:].tolist() == [0] * 7
    assert longer.positions[0, 31:].tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 6]
    assert longer.seq_lens.cu_seqlens_q.tolist() == [0, 8, 15, 25, 31, 33, 40] and longer.seq_lens.cu_seqlens_k.tolist() == [
        0,
        8,
        18,
        28,
        34,
        36,
        43,
    ]
    assert longer.seq_lens.key_index is not None and longer.seq_lens.key_index.tolist()[-7:] == list(range(33, 40))
    assert (longer.seq_lens.max_seqlen_q, longer.seq_lens.max_seqlen_k) == (10, 10) and pad_to_multiple(row, 33) is row
    assert pad_to_multiple(pack_samples([], 0, CPU), 4).seq_lens.max_seqlen_k == 3  # one token for nothing, and a sample of three


@pytest.mark.parametrize(
    ("size", "more", "why"),
    [
        (3, {}, r"engine.sequence_parallel=3 cannot share the 4 attention heads \(2 of keys\) of this model; set it to one of 1, 2, 4"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, r"set it to one of 1, 2, 3, 6, 12"),
        (2, {"v_head_dim": 4}, "values of another size than keys"),
    ],
)
def test_heads_that_cannot_be_shared(size: int, more: dict[str, int], why: str, ranks: Ranks) -> None:
    crew = SequenceParallelGroup(None)
    crew.size = size
    with pytest.raises(UserError, match=why):
        crew.wrap_attention(attention, model_of("qwen3", torch.float32, **more).config)
