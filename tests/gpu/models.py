"""Models of real architecture and size with random weights, and rows for them; made once in the folder of a session."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from tests.bench.grpo_step import ROOT, make_model
from tests.random_models import save_random_model

REWARD = f"rewards.accuracy.path={ROOT / 'tests' / 'programs' / 'toy_reward.py'}:distinct"  # every completion earns another number
ROWS, PROMPT = 640, 100  # tokens of a prompt, of the built-in tokenizer one a character


def find_model(name: str, small: bool, folder: Path) -> Path:
    """The folder of Qwen2.5 of a size (0_5b, 1_5b, 7b), or of its small form."""
    place = folder / "models" / ("small" if small else name)
    if not (place / "config.json").is_file():
        unfinished = place.with_name(f".{place.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_random_model(unfinished, "qwen2") if small else make_model(unfinished, f"qwen2_5_{name}")
        unfinished.rename(place)
    return place


def find_rows(folder: Path) -> Path:
    """A file of random prompts."""
    rows = folder / "rows.jsonl"
    if not rows.is_file():
        draw = random.Random(1)
        texts = ["".join(draw.choices("abcdefghij ", k=PROMPT)) for _ in range(ROWS)]
        rows.write_text("".join(json.dumps({"prompt": text, "answer": ""}) + "\n" for text in texts))
    return rows
