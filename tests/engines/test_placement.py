"""Who has the memory when: the order of moves, the illegal ones, and that what was parked comes back to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlkit.engines import offload as offload_file
from rlkit.engines import placement as placement_file
from rlkit.engines.base import make_sample
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.offload import CpuOffload, allocate_pinned
from rlkit.engines.placement import MOVES, Colocated
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Request, Sampling, Stop
from tests.backends import deepspeed


class Told:
    """Policy, reference and rollout engine in one: writes down what it is asked. keeps: its weights, when asleep."""

    def __init__(self, keeps: bool) -> None:
        self.said: list[str] = []
        self.version: int | None = None
        self.keeps = keeps

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.said.append(name)

    def sleep(self) -> None:
        self.said.append("sleep")
        self.version = self.version if self.keeps else None

    def send(self, policy: object, engine: object, version: int) -> None:
        self.said.append(f"send {version}")
        self.version = version

    def take(self) -> list[str]:
        said, self.said = self.said, []
        return said


def placed(keeps: bool = False, mode: str = "sleep_and_offload") -> tuple[Told, Colocated]:
    told = Told(keeps)
    return told, Colocated(told, told, (), lambda name: nullcontext(), told.send, mode)  # type: ignore[arg-type]


def one_step(placement: Colocated, version: int) -> None:
    with placement.rollout():
        pass
    with placement.train():
        pass
    placement.version = version


def test_the_order_of_a_step() -> None:
    told, placement = placed()
    one_step(placement, 1)
    assert told.take() == ["send 0", "sleep", "reload"]  # the engine starts awake and without weights
    one_step(placement, 2)
    assert told.take() == ["offload", "wake_weights", "send 1", "wake_cache", "sleep", "reload"]


def test_an_evaluation_after_a_step_costs_no_second_sync() -> None:
    told, placement = placed()
    one_step(placement, 1)
    told.take()
    for _ in range(2):
        with placement.rollout():
            pass
    assert told.take() == ["offload", "wake_weights", "send 1", "wake_cache"]


def test_an_engine_that_kept_the_newest_weights_gets_none() -> None:
    told, placement = placed(keeps=True)
    one_step(placement, 0)
    told.take()
    one_step(placement, 1)
    assert told.take() == ["offload", "wake_weights", "wake_cache", "sleep", "reload"]


@pytest.mark.parametrize("mode", ["resident", "sleep", "sleep_and_offload"])
def test_who_leaves(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(
        placement_file.torch, "cuda", SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: given_back.append(""))
    )
    monkeypatch.setattr(placement_file, "PeakMemory", lambda: SimpleNamespace(start=int, peak=int, behind_torch=nullcontext))
    told, placement = placed(mode=mode)
    one_step(placement, 1)
    one_step(placement, 2)
    assert ({"offload", "reload"} <= set(told.take())) == (mode == "sleep_and_offload")
    assert placement.peaks.keys() == {"rollout", "train"}
    assert bool(given_back) == (mode != "resident")  # where all fits, what was freed is waited for, not asked for again


def test_every_other_move_raises() -> None:
    moves = {move for _, move in MOVES}
    states = {state for state, _ in MOVES} | set(MOVES.values())
    assert (len(states), len(moves)) == (5, 6)
    for state in states:
        for move in moves:
            _, placement = placed()
            placement.state = state
            if (state, move) in MOVES:
                getattr(placement, move)()
                assert placement.state == MOVES[state, move]
            elif (state, move) != ("open", "wake_cache"):
                with pytest.raises(RuntimeError, match=f"{move} while memory is in the state {state}; there: "):
                    getattr(placement, move)()
    _, placement = placed()
    placement.state = "open"
    with pytest.raises(RuntimeError, match="wake_cache while memory is in the state open; there: send"):
        placement.wake_cache()  # its weights are not the policy's
    with placement.train(), pytest.raises(RuntimeError, match="phase rollout was entered inside phase train"), placement.rollout():
        pass


class CountingHost:
    """Host memory that writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, size: int) -> torch.Tensor:
        self.asked.append(size)
        return allocate_pinned(size)


def test_what_is_parked_comes_back_in_the_same_blocks_and_views() -> None:
    flat = torch.randn(1000)
    view, kept = flat[100:200], torch.randn(50)
    before, things, host = flat.clone(), [flat, view, kept], CountingHost()
    offload = CpuOffload(lambda: things, keep=lambda: [kept[:3]], host=host, block=1024)
    offload.offload()
    assert offload.bytes == 4000 and flat.untyped_storage().nbytes() == 0  # once, though a view is named too
    assert host.asked == [1024] * 4  # 4000 bytes, rounded up to one block
    assert kept.untyped_storage().nbytes() == 200  # shared with what must stay
    offload.offload()
    offload.reload()
    offload.reload()
    assert torch.equal(flat, before) and torch.equal(view, before[100:200])
    view += 1
    assert torch.equal(flat[100:200], before[100:200] + 1)  # still the same memory
    offload.offload()
    offload.reload()
    assert len(host.asked) == 4 and torch.equal(view, before[100:200] + 1)


def test_storages_of_any_size_share_the_blocks() -> None:
    """Of odd sizes, smaller and larger than a block, and of every bit pattern; no size is allocated for its own sake."""
    host, things = CountingHost(), list[torch.Tensor]()
    offload = CpuOffload(lambda: things, host=host, block=1024)
    asked = []
    for sizes in ([1, 1023, 1024, 2049], [4097], [7] * 585, [3000, 2120, 1], [5121], [1]):
        things[:] = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
        before = [thing.clone() for thing in things]
        offload.offload()
        assert offload.bytes == sum(sizes) and not any(thing.untyped_storage().nbytes() for thing in things)
        offload.reload()
        assert all(map(torch.equal, things, before)) and offload.bytes == 0
        asked.append(len(host.asked))
    assert asked == [5, 5, 5, 6, 6, 6]  # 4097, 4097, 4095, 5121, 5121 bytes and 1
    assert set(host.asked) == {1024} and offload_file.BLOCK.bit_count() == 1


PARAMETERS = 58_880


def policy_of(model: Path, stage: int, offload: bool = False) -> PolicyLearner:
    return PolicyLearner(str(model), torch.float32, backend=deepspeed(stage, offload=offload), temperature=1.0, offline=True)


def large_update(policy: PolicyLearner, sign: float) -> None:
    asked = [Request(Key(i, 0, 0), (40 + i, 50, 60), Sampling(), 0) for i in range(4)]
    samples = [make_sample(request, [70, 80 + i, 90], [0.0] * 3, Stop.LENGTH, 0) for i, request in enumerate(asked)]
    with policy.enable_grad():
        policy.backward(sign * policy.logprobs(samples, 3)[0].sum())
    assert policy.step(0.01).applied


def held(policy: PolicyLearner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.weights()}


def alike(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], within: float = 0.0) -> bool:
    return all(torch.allclose(tensor, two[name], rtol=0.0, atol=within) for name, tensor in one.items())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_parked_optimizer_goes_on_as_if_nothing_was(stage: int, ranks: Ranks, tiny_model: Path) -> None:
    moved, still = policy_of(tiny_model, stage), policy_of(tiny_model, stage)
    for policy in (moved, still):
        large_update(policy, 1.0)
    moved.backend._offload.offload()
    bytes_each = moved.backend._offload.bytes / PARAMETERS
    assert 12 <= bytes_each < 12.1 if stage < 3 else 16 <= bytes_each < 16.1  # masters and two moments; ZeRO 3 keeps gradients too
    assert alike(held(moved), held(still))  # what is sent to the rollout engine stays
    moved.backend._offload.reload()
    for policy in (moved, still):
        large_update(policy, -1.0)
    assert alike(held(moved), held(still))


@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_takes_the_same_steps(stage: int, ranks: Ranks, tiny_model: Path) -> None:
    here, away = policy_of(tiny_model, stage), policy_of(tiny_model, stage, offload=True)
    before = held(here)
    for policy in (here, away):
        large_update(policy, 1.0)
        large_update(policy, 1.0)
    assert alike(held(here), held(away), within=1e-6)
    assert not alike(held(here), before, within=1e-3)
