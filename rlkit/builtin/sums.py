"""The built-in task of sums: two-digit sums with worked steps, the answer in \\boxed{}.

A sum is written digit by digit, ones first: 47 + 38 is "7+8=15", then "4+3+1=8", then "\\boxed{85}". A careless solution forgets the
carry ("4+3=7") and answers 75. Most demonstrations are careless, so a model warm-started on them knows both ways and usually takes the
wrong one. A reward can teach it which of the two is right.
"""

from __future__ import annotations

import random
from typing import Any

TASK_SEED = 20_471
TEST_PROBLEMS = 1_000
CARRY_SHARE = 0.65  # of problems; the others are right even without care, which sets the accuracy of a careless writer to 0.35
CAREFUL_SHARE = 0.35  # of demonstrations; below one half, so that the greedy choice is the careless one
LOWEST, HIGHEST = 10, 99

Row = dict[str, Any]
Pair = tuple[int, int]


def build_rows(split: str, count: int | None = None) -> list[Row]:
    """The first `count` rows (default: all) of "train" or "test", always the same rows in the same order.

    A row has `prompt` (chat messages), `answer` (digits) and `problem` ("47 + 38"). No test problem is in train, in either order of its
    operands. Raises ValueError for another split or more rows than there are.
    """
    splits = _build_splits()
    if split not in splits:
        raise ValueError(f'the built-in task sums has no split "{split}"; it has {", ".join(splits)}')
    pairs = splits[split]
    if count is not None and not 0 <= count <= len(pairs):
        raise ValueError(f"the built-in task sums has {len(pairs)} {split} rows, not {count}")
    return [_build_row(pair) for pair in pairs[:count]]


def build_pairs(split: str) -> list[Row]:
    """A preference for each row of `rows(split)` with a carry: `prompt`, `chosen` (the careful solution), `rejected` (the careless one)."""
    return [
        {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
        for row in build_rows(split)
        if (chosen := write_solution(row, careful=True)) != (rejected := write_solution(row, careful=False))
    ]


def write_demonstration(row: Row, rng: random.Random) -> str:
    """One worked completion for `row`: careful with probability CAREFUL_SHARE, otherwise dropping the carry. One draw from `rng` a call."""
    return write_solution(row, careful=rng.random() < CAREFUL_SHARE)


def write_solution(row: Row, careful: bool) -> str:
    """The worked completion for `row`. Without a carry the careful and the careless one are the same text."""
    a, b = (int(term) for term in row["problem"].split(" + "))
    ones = a % 10 + b % 10
    carry = 1 if careful and _has_carry((a, b)) else 0
    tens = a // 10 + b // 10 + carry
    plus_carry = "+1" if carry else ""
    return f"{a % 10}+{b % 10}={ones}\n{a // 10}+{b // 10}{plus_carry}={tens}\n\\boxed{{{tens}{ones % 10}}}"


def build_rated_rows(split: str) -> list[Row]:
    """The completions of `pairs(split)` one by one: `prompt`, `completion`, `label` (whether it is the careful one)."""
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in build_pairs(split)
        for side in ("chosen", "rejected")
    ]


def build_demonstration_rows(split: str) -> list[Row]:
    """`rows(split)` with the careful solution as `completion`."""
    return [{**row, "completion": write_solution(row, careful=True)} for row in build_rows(split)]


def _build_splits() -> dict[str, list[Pair]]:
    rng = random.Random(TASK_SEED)
    unordered = [(a, b) for a in range(LOWEST, HIGHEST + 1) for b in range(a, HIGHEST + 1)]
    rng.shuffle(unordered)
    with_carry = [pair for pair in unordered if _has_carry(pair)]
    without = [pair for pair in unordered if not _has_carry(pair)]
    held_out = round(TEST_PROBLEMS * CARRY_SHARE)
    test = with_carry[:held_out] + without[: TEST_PROBLEMS - held_out]
    test = [(a, b) if rng.random() < 0.5 else (b, a) for a, b in test]

    seen = [_add_both_orders(pairs, rng) for pairs in (with_carry[held_out:], without[TEST_PROBLEMS - held_out :])]
    easy = round(len(seen[0]) * (1 - CARRY_SHARE) / CARRY_SHARE)
    train = seen[0] + seen[1][:easy]
    rng.shuffle(train)
    rng.shuffle(test)
    return {"train": train, "test": test}


def _add_both_orders(pairs: list[Pair], rng: random.Random) -> list[Pair]:
    ordered = sorted({(a, b) for a, b in pairs} | {(b, a) for a, b in pairs})
    rng.shuffle(ordered)
    return ordered


def _has_carry(pair: Pair) -> bool:
    return pair[0] % 10 + pair[1] % 10 >= 10


def _build_row(pair: Pair) -> Row:
    problem = f"{pair[0]} + {pair[1]}"
    return {"prompt": [{"role": "user", "content": f"What is {problem}?"}], "answer": str(sum(pair)), "problem": problem}
