"""Rewards by hand: the table, and its messages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.rewarding.replay import write_replay
from rlkit.rewarding.spec import RewardSpec
from rlkit.rewarding.trial import run_trial
from tests.conftest import ROOT, Ended, environment, run
from tests.rewarding.settings import make_settings


def test_a_table_of_samples_and_the_first_failure(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def brief(completion): return 10 / len(completion)\n")
    items = [
        (0, {"answer": "5", "completion": "\\boxed{5}"}),
        (0, {"answer": "5", "completion": ""}),
        (6, {"answer": "7", "completion": "it is 7"}),
    ]
    table = run_trial(
        {"accuracy": RewardSpec(path="accuracy"), "brief": RewardSpec(path=f"{file}:brief", weight=0.5)}, make_settings(), items
    ).splitlines()
    assert table[0].split() == ["row", "completion", "accuracy", "brief", "reward", "seconds"]
    assert table[1].split()[:5] == ["1", '"\\\\boxed{5}"', "1", "1.111", "1.556"]
    assert table[2].split()[:5] == ["1", '""', "0", "error", "-"]
    assert table[3].split()[0] == "7" and table[3].rsplit(maxsplit=4)[1:4] == ["1", "1.429", "1.714"]
    assert table[5] == "brief: error" and table[-1] == "ZeroDivisionError: division by zero"


def test_columns_that_a_reward_does_not_get_stand_below_the_table(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def easy(completion, level=1): return level\n")
    table = run_trial({"easy": RewardSpec(path=f"{file}:easy")}, make_settings(), [(0, {"completion": "", "level": 3})]).splitlines()
    assert table[1].split()[:3] == ["1", '""', "1"]
    assert table[3].startswith(f"rewards.easy ({file}:easy) does not get the data columns level")


def command(*arguments: str, cwd: Path = ROOT) -> Ended:
    return run("reward", *arguments, module="rlkit.cli.main", cwd=cwd, timeout=100)


def lines(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_rewards_of_a_recipe_on_rows_of_its_data(tmp_path: Path, write_rewards: Callable[[str], str]) -> None:
    """Every signature sees what it will see in a run: the prompt as the recipe writes it, the answer cut out, the row's other columns."""
    mine = write_rewards(
        "def seen(prompts, completions, level, answer):\n"
        "    return [float(p[0]['content'] == 'Q: 1+1' and l == 3 and a == '2') for p, l, a in zip(prompts, level, answer)]\n"
    )
    data = lines(tmp_path / "rows.jsonl", *({"question": "1+1", "answer": "so\n#### 2", "level": 3} for _ in range(9)))
    asked = [f"data.train={data}", "data.template='Q: {{ question }}'", "data.answer_pattern='#### (.+)'", f"rewards.mine.path={mine}:seen"]
    done = command("try", "recipe=grpo_math", "n=2", *asked)
    assert (done.code, done.err) == (0, "")
    table = [line.split()[:-1] for line in done.out.splitlines()]
    assert table == [
        ["row", "completion", "accuracy", "mine", "reward"],
        *(
            [row, *rest]
            for row in "12"
            for rest in (['"\\\\boxed{2}"', "1", "1", "2"], ['"so\\n####', '2"', "1", "1", "2"], ['""', "0", "1", "1"])
        ),
    ]


def test_each_of_several_right_answers_is_tried_and_a_row_without_one_stands_for_nothing(tmp_path: Path) -> None:
    data = lines(tmp_path / "rows.jsonl", {"question": "1/2?", "answer": ["0.5", "1/3", 2]})
    done = command("try", "recipe=grpo", "n=1", f"data.train={data}")  # which leaves model.path to the user: none is needed here
    assert (done.code, done.err) == (0, "")
    assert [line.split()[1:3] for line in done.out.splitlines()[1:]] == [
        ['"\\\\boxed{0.5}"', "1"],
        ['"\\\\boxed{1/3}"', "1"],
        ['"\\\\boxed{2}"', "1"],
        ['""', "0"],
    ]
    data = lines(tmp_path / "rows.jsonl", {"question": "Say something."})
    length = ["~rewards.accuracy", "rewards.length.path=length", "rewards.length.args={longest: 9}"]
    done = command("try", "recipe=grpo_math", "n=1", f"data.train={data}", *length)
    assert (done.code, [line.split()[1:3] for line in done.out.splitlines()[1:]]) == (0, [['""', "1"]]), done.err


def test_a_trial_of_a_local_file_asks_no_server_and_offline_holds_for_libraries_and_rewards(tmp_path: Path, write_rewards: Any) -> None:
    mine = write_rewards("import os\ndef offline(completion): return float(os.environ.get('HF_HUB_OFFLINE') == '1')\n")
    (tmp_path / "rows.csv").write_text("question,answer\n1+1,2\n")
    program = f"""
import socket
asked = []
socket.getaddrinfo = lambda host, *rest, **more: asked.append(host) or 1 / 0
from rlkit.cli.reward_try import run_try
code = run_try(["recipe=grpo_math", "n=1", "data.train={tmp_path}/rows.csv", "rewards.mine.path={mine}:offline", OFFLINE])
print(code, asked)
"""
    clean = {name: value for name, value in environment().items() if "OFFLINE" not in name} | {"HF_HOME": str(tmp_path / "cache")}
    for offline in ("false", "true"):
        whole = [sys.executable, "-c", program.replace("OFFLINE", f"'offline={offline}'")]
        done = subprocess.run(whole, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=100)
        table = done.stdout.splitlines()
        assert table[-1] == "0 []", done.stderr
        assert table[1].split()[:4] == ["1", '"\\\\boxed{2}"', "1", "1" if offline == "true" else "0"]


def test_stored_completions_of_a_run(tmp_path: Path) -> None:
    """The row of each is found by its key: 38 + 57 is the built-in task's first test problem but two or so; its answer is looked up."""
    from rlkit.builtin import sums

    rows = {split: sums.build_rows(split, 5) for split in ("train", "test")}
    samples = [
        {"split": split, "key": [row, 0, 0, 0], "prompt": "?", "completion": f"\\boxed{{{rows[split][row]['answer']}}}", "stop": "eos"}
        for split, row in (("test", 4), ("train", 2), ("train", 2))
    ]
    samples[2]["completion"] = "\\boxed{0}"
    file = lines(tmp_path / "samples.jsonl", *samples)
    done = command("try", "recipe=grpo_math", f"samples={file}")
    assert (done.code, done.err) == (0, "")
    assert [(line.split()[0], line.split()[2]) for line in done.out.splitlines()[1:]] == [("5", "1"), ("3", "1"), ("3", "0")]


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    readme = (ROOT / "rewards" / "README.md").read_text()
    [example] = re.findall(r"^    rlkit reward (try .*)$", readme, re.MULTILINE)
    [source] = re.findall(r"```python\n(def style.*?)```", readme, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(source)
    lines(tmp_path / "data.jsonl", {"question": "1+1?", "answer": "2", "solution": "It is 2."})
    done = command(*example.split(), cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    scores = [line.split()[-4:-1] for line in done.out.splitlines()]  # accuracy, style (ends with a full stop), their sum
    assert scores == [["accuracy", "style", "reward"], ["1", "0", "1"], ["1", "1", "2"], ["0", "0", "0"]]


def test_mistakes_are_reported_in_few_lines(tmp_path: Path) -> None:
    broken = lines(tmp_path / "broken.jsonl", {"completion": "no key"})
    held_out = lines(tmp_path / "samples.jsonl", {"split": "test", "key": [0, 0, 0, 0], "completion": "1"})
    left = write_replay(tmp_path, WorkerReward("left", "accuracy"), [], "key", Outcome(OutcomeKind.ERROR))
    left.write_text(left.read_text().replace(json.dumps(str(Path.cwd())), json.dumps(f"{tmp_path}/gone")))
    for arguments, text in [
        (("try", "recipe=grpo_math", "rewards.accuracy.path=acuracy"), "unknown reward 'acuracy' (did you mean accuracy"),
        (("try", "recipe=grpo_math", f"samples={broken}"), "cannot be read as the samples.jsonl of a run"),
        (("try", "recipe=grpo_math", "n=none"), "n=none is not valid"),
        (("try", "recipe=grpo_math", "sampels=x"), "unknown key sampels"),
        (("try",), "choose a recipe"),
        (("try", "recipe=sft_math"), "this recipe has no rewards to try"),
        (
            ("try", "recipe=grpo_math", "data.test=null", f"samples={held_out}"),
            "holds samples of data.test, which the recipe does not have",
        ),
        (("retry", str(broken)), "is not a file that a run wrote for a failed reward"),
        (("retry", str(left)), f"was written in {tmp_path}/gone, which does not exist"),
        (("rerun",), "No such command 'rerun'"),
    ]:
        done = command(*arguments)
        assert done.code == 2 and text in done.err and len(done.err.splitlines()) <= 10, done.err
