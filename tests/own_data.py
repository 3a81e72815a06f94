"""Data of one's own in five common shapes, and rewards of one's own that are known to have seen it. Plain Python, without rlkit."""

from __future__ import annotations

from typing import Any

REWARD = """
def score(prompt, completion, answer, **columns) -> float:
    return float(answer) + len(completion) / 1000
"""
REWARD_OF_VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "mine" and extra_info["index"] == int(ground_truth)
    return float(ground_truth) + len(solution_str) / 1000
"""
ASKED = "Name {} fruits."
SHAPES: dict[str, Any] = {  # the row of number n
    "question": lambda n: {"question": ASKED.format(n), "answer": str(n)},
    "prompt": lambda n: {"prompt": ASKED.format(n), "solution": str(n)},
    "problem": lambda n: {"problem": ASKED.format(n), "ground_truth": str(n)},
    "messages": lambda n: {"messages": [{"role": "user", "content": ASKED.format(n)}], "answer": str(n)},
    "verl": lambda n: {
        "data_source": "mine",
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASKED.format(n)}],
        "ability": "lists",
        "reward_model": {"style": "rule", "ground_truth": str(n)},
        "extra_info": {"split": "train", "index": n},
    },
}
