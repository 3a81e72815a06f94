"""A reward's path becomes a function, or a message that names the nearest one."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.resolve import import_reward, list_shipped_rewards, locate_reward
from rlkit.rewarding.spec import RewardSpec
from rlkit.runtime.paths import find_bundled_folder
from tests.rewarding.settings import make_settings


def test_shipped_rewards_are_found_by_name() -> None:
    assert locate_reward("accuracy").file == find_bundled_folder("rewards") / "accuracy.py"
    assert import_reward("overlong")(completion="", completion_length=95, longest=100, buffer=10) == -0.5


def test_every_shipped_file_has_a_function_of_its_name() -> None:
    assert {"accuracy", "format_tags", "length", "overlong", "repetition", "exact_match", "countdown"} <= set(list_shipped_rewards())
    for name in list_shipped_rewards():
        assert import_reward(name).__name__ == name


def test_file_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("from neighbour import TWO\ndef two(completion): return TWO\n")
    (tmp_path / "neighbour.py").write_text("TWO = 2.0\n")
    monkeypatch.chdir(tmp_path)
    assert import_reward("mine.py:two")(completion="") == 2.0


def test_two_files_of_one_name_do_not_shadow_each_other(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "same.py").write_text(f"def f(completion): return {number}\n")
    assert [import_reward(f"{tmp_path / str(number) / 'same.py'}:f")("") for number in (1, 2, 1)] == [1, 2, 1]


@pytest.mark.parametrize("path", ["os.path:basename", "os.path.basename"])
def test_dotted_names(path: str) -> None:
    assert import_reward(path) is os.path.basename


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("acuracy", r"unknown reward 'acuracy' \(did you mean accuracy or strict_accuracy\?\)"),
        ("my_rewards.py", r"names a file but no function; write my_rewards.py:function_name"),
        ("os.path:basenam", r"module os.path has no function 'basenam' \(did you mean basename\?\)"),
        ("no_such_package.module:f", r"no module 'no_such_package'"),
    ],
)
def test_unknown_paths_name_the_nearest(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_reward(path)


def test_missing_file_and_missing_function(write_rewards: Callable[[str], str]) -> None:
    file = write_rewards("def accurate(completion): return 1.0\n")
    with pytest.raises(UserError, match=r"has no function 'acurate' \(did you mean accurate\?\)"):
        import_reward(f"{file}:acurate")
    with pytest.raises(UserError, match=r"no file .*my_reward\.py \(did you mean my_rewards\.py\?\)"):
        import_reward(f"{file.replace('rewards.py', 'reward.py')}:accurate")


def test_the_client_refuses_what_does_not_exist_before_anything_starts() -> None:
    with pytest.raises(UserError, match="did you mean repetition"):
        RewardClient({"r": RewardSpec(path="repetitions")}, make_settings())
    with pytest.raises(UserError, match=r"needs a gate: set rewards.<name>.gate=true for one of a"):
        RewardClient({"a": RewardSpec(path="accuracy")}, make_settings(combine="gate"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module\ndef f(completion): return 1.0\n", "cannot be imported:\n.*No module named 'no_such_module'"),
        ("def f(completion) return 1.0\n", "cannot be imported:\n.*SyntaxError"),
        ("import sys; sys.exit(4)\n", "cannot be imported:\n.*it calls sys\\.exit\\(4\\)"),
        ("def g(completion): return 1.0\n", "has no function 'f'"),
        ("def f(text): return 1.0\n", r"has the parameters \(text\); one form is needed: completion"),
        ("def f(completion, *, url, key='K'): return 1.0\n", r"needs 'url' in rewards.mine.args: a parameter after a `\*` is a setting"),
        ("import os; os.abort()\n", "the worker process was ended by SIGABRT while it imported"),
        ("import time; time.sleep(60)\n", "took more than 3 s"),
    ],
)
def test_files_that_cannot_be_used_stop_the_run_in_words(write_rewards: Callable[[str], str], source: str, message: str) -> None:
    rewards = {"mine": RewardSpec(path=f"{write_rewards(source)}:f")}
    with (
        RewardClient(rewards, make_settings(workers=1, load_timeout=3.0)) as client,
        pytest.raises(UserError, match=f"(?s){message}") as caught,
    ):
        client.wait_until_ready()
    assert len(str(caught.value).splitlines()) <= 10
