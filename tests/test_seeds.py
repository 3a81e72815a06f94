from __future__ import annotations

import itertools
import os
import subprocess
import sys

from rlkit import seeds
from rlkit.types import Key


def test_seeds_are_these_for_ever() -> None:
    """Worked out once; a change of it would change every run that is resumed."""
    assert seeds.sample_seed(0, Key(0, 0, 0)) == 3464133503326729545
    assert seeds.sample_seed(7, Key(12, 3, 4, 1)) == 8882083076480780987
    assert seeds.derive_seed("shuffle", 1) == 8904977412942448956


def test_a_seed_knows_no_rank_no_process_and_no_order() -> None:
    keys = [Key(p, d, s) for p in range(3) for d in range(2) for s in range(2)]
    forwards = {key: seeds.sample_seed(5, key) for key in keys}
    assert {key: seeds.sample_seed(5, key) for key in reversed(keys)} == forwards
    code = "from rlkit import seeds; from rlkit.types import Key; print(seeds.sample_seed(5, Key(2, 1, 0)))"
    env = os.environ | {"RANK": "3", "WORLD_SIZE": "4", "PYTHONHASHSEED": "1234"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(there.stdout) == forwards[Key(2, 1, 0)]


def test_every_key_has_a_seed_of_its_own() -> None:
    keys = [(seed, Key(*key)) for seed in range(4) for key in itertools.product(range(30), range(4), range(16), range(3))]
    drawn = {seeds.sample_seed(seed, key) for seed, key in keys}
    assert len(drawn) == len(keys) == 23_040 and all(0 <= s < 2**63 for s in drawn)


def test_parts_do_not_run_into_each_other() -> None:
    alike = [
        (1, 23),
        (12, 3),
        ("1", 23),
        (1, "23"),
        (123,),
        ("12", "3"),
        ("1", "2", "3"),
        (12, 3, 0),
        (0, 12, 3),
    ]
    assert len({seeds.derive_seed(*parts) for parts in alike}) == len(alike)


def test_every_bit_of_a_seed_is_a_coin() -> None:
    """Of 4,000 neighbouring keys each of 63 bits is set in half, within five standard deviations (158)."""
    drawn = [seeds.sample_seed(0, Key(prompt, 0, 0)) for prompt in range(4000)]
    assert all(abs(sum(s >> bit & 1 for s in drawn) - 2000) < 158 for bit in range(63))
