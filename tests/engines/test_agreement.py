"""Sampler and trainer are one policy after large updates: every ZeRO stage, one and two processes, all weights and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run

ALONE, TWO, SHARED = ["full-1", "lora-3", "dora-1"], ["full-3", "lora-2", "dora-3", "adapter-3"], ["full-3"]
EVERY = {  # processes: every kind under every stage that differs there (0 is run as 1, and in one process 2 too)
    1: [f"{kind}-{stage}" for kind in ("full", "lora", "dora") for stage in (1, 3)],
    2: [*(f"{kind}-{stage}" for kind in ("full", "lora", "dora", "adapter") for stage in (1, 2, 3)), "rsadapter-1"],
}
NIGHTLY = pytest.mark.nightly(part="matrices")
TRAINED = {"full": 58_880, "lora": 6_528, "dora": 7_360, "adapter": 6_528, "rsadapter": 6_528, "qlora": 8_192}
# rank 4 on 7 layers of each of 2 blocks: 4 x (in + out) = 4 x (112 + 80 + 80 + 112 + 144 + 144 + 144) = 3,264 a block;
# 4 x (128 + 96 + 96 + 128 + 192 + 192 + 192) = 4,096 where rows are 64 and 128 long;
# DoRA adds the outputs: 64 + 32 + 32 + 48 + 96 + 96 + 48 = 416 a block


def agreement(model: Path, folder: Path, kinds: list[str], ranks: int, tensor_parallel: int = 1) -> dict[str, Any]:
    out = folder / "agreement.json"
    words = [str(model), str(out), ",".join(kinds), str(tensor_parallel)]
    ended = run(*words, program="agreement.py", ranks=ranks, timeout=290, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    found: dict[str, Any] = json.loads(out.read_text())
    assert list(found) == kinds
    return found


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return agreement(tiny_model, tmp_path_factory.mktemp("alone"), ALONE, ranks=1)


def check(found: dict[str, Any]) -> None:
    for word, seen in found.items():
        kind, _, stage = word.partition("-")
        assert seen["trained"] == TRAINED[kind], word
        assert (seen["shards"] > 0) == (stage == "3"), word  # the weights really were in parts
        assert seen["first"] < 1e-4, word  # the first sync fills an engine of dummy weights
        assert seen["stale"] > 0.1, word  # the updates were large: a sync that brings nothing is seen
        assert seen["fresh"] < 1e-4, word
        assert seen["warnings"] == [], word  # all that the engine holds is compared, bit by bit
        if kind == "full":
            one, *others = seen["stopped"]
            assert set(others) <= {one} and ": model.layers.1.self_attn.o_proj.weight;" in one, word
        else:
            assert seen["moved"] > 0.1, word
            assert seen["reference"] < 1e-6, word  # with its adapters off the policy is what it began as
            assert kind == "qlora" or seen["loaded"] < 1e-6, word  # which is the model on the disk


@pytest.mark.slow
def test_one_process_agrees(alone: dict[str, Any]) -> None:
    check(alone)


@pytest.mark.slow
def test_two_processes_agree_and_adapters_sent_as_such(tiny_model: Path, tmp_path: Path) -> None:
    check(agreement(tiny_model, tmp_path, TWO, ranks=2))


@NIGHTLY
@pytest.mark.parametrize("ranks", EVERY)
def test_every_kind_agrees_under_every_stage(ranks: int, tiny_model: Path, tmp_path: Path) -> None:
    check(agreement(tiny_model, tmp_path, EVERY[ranks], ranks))


@pytest.mark.parametrize(
    ("ranks", "kinds"),
    [
        pytest.param(1, ["qlora-1"], marks=pytest.mark.slow),
        pytest.param(2, ["qlora-3"], marks=pytest.mark.slow),
        pytest.param(1, ["qlora-1", "qlora-3"], marks=NIGHTLY),
        pytest.param(2, ["qlora-1", "qlora-2", "qlora-3"], marks=NIGHTLY),
    ],
)
def test_on_a_base_in_4_bits(ranks: int, kinds: list[str], even_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes: the extras test and four_bit bring it")
    check(agreement(even_model, tmp_path, kinds, ranks))


@pytest.mark.parametrize("kinds", [pytest.param(SHARED, marks=pytest.mark.slow), pytest.param(["full-2", "lora-3"], marks=NIGHTLY)])
def test_two_processes_that_share_an_engine_agree_and_sample_what_one_does(
    kinds: list[str], alone: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    left = Path("/dev/shm/rlkit-tp-999999999-tp0-cpushm_0")  # of a run that was killed
    left.touch()
    both = agreement(tiny_model, tmp_path, kinds, ranks=2, tensor_parallel=2)
    check(both)
    assert list(Path("/dev/shm").glob("*rlkit-tp-9999*")) == []
    assert all(seen["tokens"] == alone["full-1"]["tokens"] for seen in both.values())


@NIGHTLY
def test_cycles_of_rollout_and_update_leak_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """Resident MiB and open files from the fifth cycle to the last, all weights merged and adapters sent as files."""
    out = tmp_path / "leak.json"
    ended = run(str(tiny_model), str(out), program="leak.py", timeout=290, cold=True, OMP_NUM_THREADS="1")
    assert ended.code == 0, ended.out + ended.err
    for kind, cycles in json.loads(out.read_text()).items():
        assert len(cycles) == 25
        grown, files = cycles[-1][0] - cycles[4][0], {count for _, count in cycles[4:]}
        print(f"{kind}: {grown:+.1f} MiB, files {files}")
        assert grown <= 20 and len(files) == 1, (kind, cycles)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_ranks_without_work_go_along_whatever_a_loss_asks_for(stage: int, tiny_model: Path, tmp_path: Path) -> None:
    """Sharded weights are gathered on all ranks together, and gradients reduced, in each of three micro-batches that one rank has."""
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        ended = run(str(tiny_model), str(stage), str(out), program="idling.py", ranks=ranks, timeout=100, OMP_NUM_THREADS="1")
        assert ended.code == 0, ended.out + ended.err
        found.append(json.loads(out.read_text()))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[0][0] == found[0][3] != found[0][2] and min(found[0]) > 1e-4
