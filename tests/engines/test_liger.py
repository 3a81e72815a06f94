"""Liger's head says and learns what ours does: its own code for devices without its kernel, which takes and gives the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from rlkit.engines import heads, liger
from rlkit.ops import logprobs
from tests.engines.test_packing import CPU, TEMPERATURE, apart, model_of, samples_of


@pytest.fixture
def library() -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed (the extra liger): its head is not tried here")


@dataclass
class States:
    """Hidden states, as far as they are looked at."""

    dtype: torch.dtype = torch.bfloat16
    is_cuda: bool = True
    rows: int = 2
    device: torch.device = CPU

    def __len__(self) -> int:
        return self.rows


def test_where_it_has_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    found, capability = {"liger_kernel", "cutlass", "liger_kernel.ops.fused_linear_scaled_cross_entropy"}, [(9, 0)]
    monkeypatch.setattr(liger, "find_spec", lambda name: name if name in found else None)
    monkeypatch.setattr(liger.torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(liger, "is_installed", liger.is_installed.__wrapped__)  # asked anew each time
    assert liger.supports(States(), None)  # type: ignore[arg-type]
    for other in (States(torch.float32), States(is_cuda=False), States(rows=0)):
        assert not liger.supports(other, None)  # type: ignore[arg-type]
    assert not liger.supports(States(), torch.zeros(5))  # type: ignore[arg-type]
    capability[0] = (10, 0)
    assert not liger.supports(States(), None)  # type: ignore[arg-type]
    capability[0] = (9, 0)
    for name in sorted(found):
        found.remove(name)
        assert not liger.supports(States(), None), name  # type: ignore[arg-type]
        found.add(name)


def test_values_and_gradients_are_those_of_the_plain_way(library: None) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=draw, requires_grad=True) for shape in ((1100, 8), (31, 8)))  # several of its chunks
    tokens, slopes = torch.randint(31, (1100,), generator=draw), torch.randn(2, 1100, generator=draw)
    seen = []
    for said in (
        liger.liger_logprobs(hidden, weight, tokens, TEMPERATURE),
        logprobs.logprobs_from_hidden(hidden, weight, None, tokens, TEMPERATURE),
    ):
        seen.append([*said, *torch.autograd.grad((torch.stack(said) * slopes).sum(), (hidden, weight))])
    for theirs, ours in zip(*seen, strict=True):
        assert theirs.dtype == ours.dtype == torch.float32
        assert apart([ours.detach()], [theirs.detach()]) < 1e-6


def test_a_model_learns_through_it(library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, seen = samples_of(), []
    for served in (False, True):
        monkeypatch.setattr(liger, "supports", lambda hidden, bias, served=served: served and bias is None)
        model = model_of("qwen2", torch.float32)
        grids = heads.compute_logprobs(heads.TokenScorer(model), samples, 9, TEMPERATURE, CPU)
        (grids[0].sum() + 0.5 * grids[1].sum()).backward()
        seen.append((grids, [p.grad for p in model.parameters()]))
    (plain, slopes), (fused, others) = seen
    assert all(float((a - b).abs().max()) < 1e-5 for a, b in zip(plain, fused, strict=True))
    assert apart(slopes, others) < 1e-6
