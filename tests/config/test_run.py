"""The door: values that Hydra's grammar does not know, signals before there is anything to save, a launch that cannot begin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlkit import run
from rlkit.config.compose import compose_config, list_groups, list_options, quote, quote_value

ROOT = Path(__file__).resolve().parents[2]


# -- what people write that Hydra's grammar does not know ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [r"(\d+)", r"answer: (.*)$", "a=b", "~/runs/x", "/tmp/größe", "it's", "\\", "a\\'b"])
def test_a_value_arrives_as_it_was_written(value: str) -> None:
    assert compose_config(["recipe=grpo_math", f"data.answer_pattern={quote_value(value)}"], None)["data"]["answer_pattern"] == value
    assert compose_config(["recipe=grpo_math", f"data.answer_pattern={quote(value)}"], None)["data"]["answer_pattern"] == value
    assert compose_config(["recipe=grpo_math", f"data.answer_pattern={value}"], None)["data"]["answer_pattern"] == value


def test_a_folder_of_recipes_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "größe=a, b"
    (folder / "recipe").mkdir(parents=True)
    (folder / "recipe" / "mine.yaml").write_text("# @package _global_\ndefaults: [grpo_math]\nsteps: 3\n")
    assert compose_config(["recipe=mine"], folder)["steps"] == 3


def test_a_recipe_that_is_no_yaml_is_told_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\nsteps: [3\nseed: 1\n")
    assert run.main(["recipe=mine", "--config-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "mine.yaml" in said and "line 3" in said and "Traceback" not in said


def test_the_door_needs_no_output(tmp_path: Path) -> None:
    command = f"{sys.executable} -m rlkit.run recipe=grpo_math dry_run=true >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT, check=False).returncode == 0


# -- being asked to stop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGHUP, True)])
def test_a_sweep_waits_for_the_job_that_saves(number: int, group: bool, tmp_path: Path) -> None:
    """A terminal sends to all of its processes, others to the sweep alone; either way the job hears of it once."""
    job = (
        "import signal, sys, time\nfrom pathlib import Path\nseen = []\n"
        f"signal.signal({int(number)}, lambda *_: seen.append(1))\n"
        f"Path({str(tmp_path / 'ready')!r}).touch()\n"
        "until = time.monotonic() + 20\nwhile not seen and time.monotonic() < until: time.sleep(0.02)\n"
        "time.sleep(1.0)\nsys.exit(75 if len(seen) == 1 else 9)"
    )
    sweep = f"import sys; from rlkit.cli import multirun; sys.exit(multirun.run_and_forward_signals([sys.executable, '-c', {job!r}]))"
    process = subprocess.Popen([sys.executable, "-c", sweep], cwd=ROOT, start_new_session=True)
    until = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, number) if group else os.kill(process.pid, number)
    assert process.wait(30) == 75


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 0), (signal.SIGINT, 75)])
def test_who_asks_again_wants_it_at_once_but_a_terminal_and_its_shell_are_two(number: int, code: int) -> None:
    twice = (
        "import os, signal; from rlkit.runtime.signals import StopRequest\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would stay ignored\n"
        "stopping = StopRequest(); stopping.install(); stopping.deferred = True\n"
        f"for _ in range(2): os.kill(os.getpid(), {int(number)})\n"
        "assert stopping.requested"
    )
    done = subprocess.run([sys.executable, "-c", twice], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "ended at once" in done.stderr) == (code, code == 75)


def test_a_stop_while_libraries_are_loaded_is_no_crash(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlkit.run", "recipe=grpo_math", "steps=0", f"output_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    maps, until = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while "libtorch" not in maps.read_text() and time.monotonic() < until:
        time.sleep(0.005)
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (75, "stopped by SIGTERM before training started; run the same command to start again\n")
    assert not (tmp_path / "run").exists()


# -- offline ---------------------------------------------------------------------------------------------------------------------


def test_offline_holds_whatever_the_environment_says() -> None:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    code = "from rlkit.runtime.library_settings import configure_libraries; configure_libraries(offline=True)"
    code += f"; import os; print(*[os.environ[n] for n in {names}])"
    environment = {**os.environ, **dict.fromkeys(names, "0")}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1", "1", "1"]


def test_a_model_of_an_unknown_shape_is_planned_once_it_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 50}')
    for name in ("tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).touch()
    assert run.main(["recipe=grpo_gsm8k", f"model.path={tmp_path}", "dry_run=true"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_launcher_says_which_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["recipe=grpo_math", f"output_dir={tmp_path / 'file' / 'run'}"]
    done = subprocess.run([sys.executable, "-m", "launch.local", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "file/run cannot be created" in done.stderr and "Traceback" not in done.stderr


def test_a_file_that_others_include_is_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert not [name for group in list_groups() for name in list_options(group, None) if name.startswith("_")]
    assert run.main(["recipe=grpo_math", "algorithm=_offline", "dry_run=true"]) == 2
    assert "there is no algorithm '_offline'" in capsys.readouterr().err


def test_a_python_without_the_packages_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = os.path.realpath(sys.executable)
    ended = subprocess.run(
        [base, "-S", "-m", "rlkit.run", "recipe=grpo_math", "dry_run=true"],
        capture_output=True,
        text=True,
        cwd=run.__file__.rsplit("/", 2)[0],
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"rlkit: {base} lacks hydra") and "source .venv/bin/activate" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    (tmp_path / "rlkit-setup").mkdir()
    (tmp_path / "rlkit-setup" / "unfinished").touch()
    assert run.explain_missing_module(ModuleNotFoundError(name="torch")) is None
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert "bash launch/local.sh again" in str(run.explain_missing_module(ModuleNotFoundError(name="torch")))
