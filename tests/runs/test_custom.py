"""An algorithm in a user's own file: the example of the documentation trains, and what is wrong with such a file is told."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from itertools import groupby
from pathlib import Path

import pytest

from rlkit.config import recipe as recipes
from rlkit.config.compose import compose_config
from rlkit.errors import UserError
from tests.conftest import ROOT, run

PAGE = (ROOT / "rlkit" / "algorithms" / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(COMMAND,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_of_the_documentation_trains(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "my_algorithm.py").write_text(EXAMPLE)
    words = [*shlex.split(COMMAND)[3:], *small[1:], "steps=1", "eval.every=0", "algorithm.bad_weight=0.25", "output_dir=run"]
    ended = run(*words, cwd=tmp_path)
    assert ended.code == 0, ended.out + ended.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["split"] == "train"]
    assert len(trained) == 16
    for _, members in groupby(trained, key=lambda row: row["key"][:2]):
        group = list(members)
        baseline = statistics.median_low([row["reward"] for row in group])  # of an even number torch takes the lower one
        assert [row["advantage"] for row in group] == pytest.approx([row["reward"] - baseline for row in group], abs=1e-6)
    plain = run(*words[:-2], "algorithm.bad_weight=1.0", "output_dir=plain", cwd=tmp_path)
    assert plain.code == 0, plain.err
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for name in ("run", "plain")]
    assert losses[0] != losses[1]  # its loss is the one that is learned from


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("median.py", "names no class in a file; write my_algorithm.py:MyAlgorithm"),
        ("nowhere.py:Median", "there is no file"),
        ("mine.py:MedianBaselin", "is not in that file (did you mean MedianBaseline?)"),
        ("mine.py:json", "is not a subclass of rlkit.algorithms.Objective; it has: MedianBaseline"),
        ("broken.py:Mine", "cannot be imported: NameError: name 'torhc' is not defined"),
        ("exits.py:Mine", "algorithm.path=exits.py:Mine cannot be imported: RuntimeError: it calls sys.exit(0)"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(path: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(f"import json\n{EXAMPLE}")
    (tmp_path / "broken.py").write_text("torhc\n")
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(told)):
        recipes.read_recipe(compose_config(["recipe=grpo_math", "algorithm=custom", f"algorithm.path={path}"], None))


def test_its_keys_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE)
    monkeypatch.chdir(tmp_path)
    words = ["recipe=grpo_math", "algorithm=custom", "algorithm.path=mine.py:MedianBaseline"]
    assert recipes.read_recipe(compose_config(words, None)).algorithm.bad_weight == 0.5
    for key, told in (("bad_weight=-1", "algorithm.bad_weight=-1 is not valid"), ("bad_wieght=1", "unknown key algorithm.bad_wieght")):
        with pytest.raises(UserError, match=told):
            recipes.read_recipe(compose_config([*words, f"algorithm.{key}"], None))
