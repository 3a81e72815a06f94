"""Data of one's own in five common shapes with a reward of one's own: `recipe=grpo` and three keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run
from tests.own_data import ASKED, REWARD, REWARD_OF_VERL, SHAPES

SMALL = ["steps=1", "prompts_per_step=2", "samples_per_prompt=2", "max_prompt_tokens=128", "max_completion_tokens=8", "engine.rollout=hf"]


@pytest.mark.parametrize("shape", SHAPES)
def test_three_keys_train_on_it(shape: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = [SHAPES[shape](n) for n in range(2, 6)]
    if shape == "verl":
        import pyarrow as pa
        import pyarrow.parquet

        name = "mine.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        name = "mine.jsonl"
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_rewards.py").write_text(REWARD_OF_VERL if shape == "verl" else REWARD)
    function = "compute_score" if shape == "verl" else "score"
    three = [f"model.path={tiny_model}", f"data.train={name}", f"rewards.accuracy.path=my_rewards.py:{function}"]
    ended = run("grpo", *three, *SMALL, "output_dir=out", cwd=tmp_path)
    assert ended.code == 0, ended.err
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4
    for sample in samples:
        number = int(sample["reward"])  # of the row: its answer reached the function
        assert ASKED.format(number) in sample["prompt"]
        assert sample["reward"] == pytest.approx(number + len(sample["completion"]) / 1000)
        assert ("Be brief." in sample["prompt"]) is (shape == "verl")
        assert ("assistant" in sample["prompt"]) is (shape != "prompt")  # the chat template, but for raw text
