"""rlkit/docs/metrics.md has every name that the code can write and that runs of every kind do write, and no other."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from rlkit.runtime.timer import PHASES
from tests.conftest import ROOT, run

ROOMS = ("algorithms", "rollout", "trainers", "updates", "engines/logprob_check.py", "rewarding/combining.py", "profiling/memory_peak.py")
WORDS = {"SET": r"[^/]+", "NAME": r"[^/]+", "ENTRY": r".+", "PHASE": r"[a-z]+", "@K": r"@\d+"}
METRIC = re.compile(r'"((?:[a-z_]+/)+[a-z_]+)"')


@cache
def page() -> dict[str, tuple[str, str, str]]:
    """name -> unit, healthy range, meaning."""
    lines = (ROOT / "rlkit" / "docs" / "metrics.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert all(len(row) == 4 for row in cells)
    names = [row[0].strip("`") for row in cells]
    assert len(names) == len(set(names))
    return {name: (row[1], row[2], row[3]) for name, row in zip(names, cells, strict=True)}


def find_name(metric: str) -> str | None:
    """The name on the page that covers a metric."""
    patterns = {name: re.sub("|".join(WORDS), lambda word: WORDS[word[0]], name) for name in page()}
    return next((name for name, pattern in patterns.items() if metric == name or (pattern != name and re.fullmatch(pattern, metric))), None)


def written_names() -> set[str]:
    """Metrics that stand in the code as they are."""
    files = [file for room in ROOMS for place in [ROOT / "rlkit" / room] for file in (place.rglob("*.py") if place.is_dir() else [place])]
    return {name for file in files for name in METRIC.findall(file.read_text())}


def test_every_name_in_the_code_is_on_the_page() -> None:
    names = written_names() | {f"time/{phase}" for phase in PHASES}
    assert len(names) > 40 and [name for name in sorted(names) if find_name(name) is None] == []


def test_every_name_on_the_page_has_a_meaning() -> None:
    for name, (unit, _, meaning) in page().items():
        assert meaning or name.startswith("eval/"), name
        assert unit or not name.startswith(("time/", "memory/")), name


KINDS = {  # what makes a run write what others do not
    "online": [
        "recipe=ppo_math",
        "algorithm.kl_coef=0.01",
        "algorithm.kl_target=1.0",
        "algorithm.critic_warmup_steps=0",
        "eval.samples=2",
        "eval.sets.hard={path: builtin@test, problems: 3, samples: 2}",
        "eval.second_opinion.strict.path=strict_accuracy",
    ],
    "rated": ["recipe=kto_math"],
    "reward model": ["recipe=reward_model"],
}
SMALL = ["steps=2", "prompts_per_step=4", "max_completion_tokens=32", "tokens_per_micro_batch=512", "eval.problems=4", "checkpoint.every=0"]
ONLINE = ["samples_per_prompt=4", "engine.rollout=hf", "max_completion_tokens=16"]


def test_every_name_that_a_run_writes_is_on_the_page_and_every_name_of_the_page_is_written(
    small: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    toy = next(word for word in small if word.startswith("rewards.accuracy.path"))
    seen: set[str] = set()
    for kind, words in KINDS.items():
        own = [*words, *SMALL, *([*ONLINE, toy] if kind == "online" else [])]
        ended = run(*own, f"model.path={tiny_model}", f"output_dir={tmp_path / kind}")
        assert ended.code == 0, ended.err
        rows = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
        seen |= {name for row in rows for name in row}
    assert [name for name in sorted(seen) if find_name(name) is None] == []
    never = {name for name in page() if not any(find_name(metric) == name for metric in seen | written_names())}
    # the first: of algorithms whose baseline is the group; the second: of a function that logs numbers of its own
    assert never <= {"frac_reward_zero_std", "rewards/NAME/ENTRY"}
