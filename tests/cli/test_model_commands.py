"""rlkit eval, export, chat, serve and replay on one run: each answers with its model, and leaves the run's own files as they are."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlkit.cli import serve
from rlkit.cli.model_source import ModelSource, find_source
from rlkit.errors import UserError
from rlkit.report.folder import read_metrics, read_rows
from rlkit.report.step_difference import OF_TOKENS
from tests.cli.test_commands_page import CALLS, OF_MODELS, SHOWN
from tests.conftest import Ended, environment, free_port, run

HARD = "eval.sets.hard={path: builtin@test, problems: 3, samples: 2, every: 2, max_completion_tokens: 24, grader: {path: exact_match}}"
SMALL = ["grpo_math", "engine.rollout=hf", "steps=2", "prompts_per_step=4", "eval.every=1", "eval.problems=12", "checkpoint.every=1", HARD]
PAGE = [line for line in CALLS if line.startswith(OF_MODELS)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run runs/mine, and rows in hard.jsonl."""
    folder = tmp_path_factory.mktemp("models")
    ended = run(*SMALL, "checkpoint.keep=2", "report.dump_steps=[2]", "output_dir=runs/mine", cwd=folder)
    assert ended.code == 0, ended.err
    rows = [{"question": f"What is {n} + 5?", "answer": str(n + 5)} for n in (10, 20, 30)]
    (folder / "hard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rlkit(*words: str, cwd: Path) -> Ended:
    return run(*words, module="rlkit.cli.main", cwd=cwd, timeout=280)


def answers(folder: Path) -> dict[str, str]:
    """What a greedy evaluation of the run answered after its last step, by question."""
    rows = [row for row in read_rows(folder / "runs" / "mine" / "samples.jsonl") if row["split"] == "test" and row["step"] == 2]
    return {row["prompt"].split("user\n")[1].split("\nassistant")[0]: row["completion"] for row in rows}


def test_an_evaluation_gives_the_number_of_the_run_itself(place: Path) -> None:
    files = [file for file in (place / "runs" / "mine").iterdir() if file.is_file() and file.name != "audit.jsonl"]
    before = {file: file.read_bytes() for file in files}
    ended = rlkit("eval", "runs/mine", "--json", cwd=place)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    own = read_metrics(place / "runs" / "mine" / "metrics.jsonl")[-1]
    assert found["accuracy"] == own["eval/accuracy"] and found["reward"] == own["eval/reward"]
    assert found["accuracy_interval"] == [own["eval/accuracy_low"], own["eval/accuracy_high"]]
    assert (found["rows"], found["samples"], found["step"], found["failed"]) == (12, 1, 2, 0)
    hard = found["sets"]["hard"]
    assert (hard["rows"], hard["samples"], hard["greedy"], hard["accuracy"]) == (3, 2, False, own["eval/hard/accuracy"])
    watched = {f"eval/{place}{name}" for place in ("", "hard/") for name in ("second_opinion/drift", "completions/one_shape")}
    assert {name for name, value in own.items() if name.startswith("eval/") and found["metrics"].get(name) != value} <= watched
    assert found["metrics"]["eval/second_opinion/strict_accuracy"] == own["eval/accuracy"]
    assert "eval/hard/accuracy" not in read_metrics(place / "runs" / "mine" / "metrics.jsonl")[1]  # every: 2
    graded = [row["rewards"] for row in read_rows(Path(found["folder"]) / "samples.jsonl") if row["split"] == "eval.sets.hard"]
    assert len(graded) == 6 and all(list(rewards) == ["hard_grader"] for rewards in graded)
    folder = Path(found["folder"])
    assert json.loads((folder / "result.json").read_text()) == found
    assert {str(row["key"]) + row["split"]: row["completion"] for row in read_rows(folder / "samples.jsonl")} == {
        str(row["key"]) + row["split"]: row["completion"]
        for row in read_rows(place / "runs" / "mine" / "samples.jsonl")
        if row["advantage"] is None and row["step"] == 2
    }
    assert {file: file.read_bytes() for file in before} == before


def test_an_earlier_step_other_rows_and_a_model_alone(place: Path) -> None:
    earlier = json.loads(rlkit("eval", "runs/mine", "step=1", "--json", cwd=place).out)
    own = next(row for row in read_metrics(place / "runs" / "mine" / "metrics.jsonl") if row["step"] == 1)
    assert (earlier["step"], earlier["accuracy"]) == (1, own["eval/accuracy"])
    for line in [line for line in PAGE if line.startswith("rlkit eval")][1:]:
        ended = rlkit(*shlex.split(line)[1:], cwd=place)
        assert ended.code == 0, ended.err
        rows = json.loads(ended.out)["rows"] if "--json" in line else int(ended.out.split(" rows,")[0].split()[-1])
        assert rows == (2 if "hard.jsonl" in line else 4)


def test_the_files_of_a_run_are_as_they_were_written(place: Path) -> None:
    [line] = [line for line in PAGE if line.startswith("rlkit audit")]
    ended = rlkit(*shlex.split(line)[1:], cwd=place)
    assert ended.code == 0 and "whole" in ended.out, ended.out + ended.err
    assert {"exported", "evaluated", "finished"} <= {event.split()[0] for event in ended.out.splitlines()}
    [result] = sorted((place / "runs" / "mine" / "eval").glob("*/result.json"))[:1]
    kept = result.read_bytes()
    result.write_bytes(kept.replace(b"accuracy", b"Accuracy"))
    assert f"{result.relative_to(place / 'runs' / 'mine')} is not as it was written" in rlkit("audit", "runs/mine", cwd=place).out
    result.write_bytes(kept)


def test_a_step_again_is_equal_to_the_bit(place: Path) -> None:
    before = {file: file.read_bytes() for file in (place / "runs" / "mine").iterdir() if file.is_file()}
    listed, again, changed = (rlkit(*shlex.split(line)[1:], cwd=place) for line in PAGE if line.startswith("rlkit replay"))
    assert listed.out == f"steps of {place / 'runs' / 'mine'} that can be replayed: 2\n"
    [verdict] = [shown for shown in SHOWN if shown.startswith("step 2 again")]
    assert again.code == 0 and verdict in again.out, again.out + again.err
    assert changed.code == 0, changed.err
    names = [entry["name"] for entry in json.loads(changed.out)["samples"]]
    assert names == ["completions", "rewards", "advantages", *OF_TOKENS.values()]
    rows = [row for row in read_rows(place / "runs" / "mine" / "samples.jsonl") if row["step"] == 2 and row["split"] == "train"]
    for key, entry in zip(OF_TOKENS, json.loads(changed.out)["samples"][3:], strict=True):  # the update skips samples without a signal
        assert entry["compared"] == sum(value is not None for row in rows for value in row["tokens"][key]) > 50
    assert {file: file.read_bytes() for file in before} == before


def test_a_step_again_with_another_setting_says_what_differs(place: Path) -> None:
    found = json.loads(rlkit("replay", "runs/mine", "step=2", "optim.lr=1e-3", "rewards.accuracy.weight=-1", "--json", cwd=place).out)
    differing = {entry["name"] for entry in [*found["samples"], *found["metrics"]] if entry["differing"]}
    assert found["is_equal"] is False and {"advantages", "learning_rate", "reward"} <= differing
    assert not {"completions", "completions/mean_length"} & differing


def test_a_step_again_elsewhere_where_another_number_of_threads_is_set_is_equal_to_the_bit(place: Path, tmp_path: Path) -> None:
    """It takes as many as the run did: with two, log-probs of the sampler are 1.3e-6 apart."""
    shutil.copytree(place / "runs" / "mine", tmp_path / "moved", ignore=shutil.ignore_patterns("replayed", "model", "eval"))
    assert json.loads((tmp_path / "moved" / "environment.json").read_text())["hardware"]["threads"] == 1
    words = [sys.executable, "-m", "rlkit.cli.main", "replay", "moved", "step=2", "--json"]
    env = environment(OMP_NUM_THREADS="2")
    ended = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["is_equal"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "runs/mine/model"], "name the task too, recipe=NAME"),
        (["eval", "runs/none"], "runs/none does not exist; name the folder of a run or of a model"),
        (["eval"], "name one run or one model: rlkit eval RUN|MODEL"),
        (["eval", "runs/mine", "step=7"], "step=7: there is no such checkpoint (there are: 1, 2; or step=best)"),
        (["chat", "runs"], "runs is no run (it has no recipe.yaml) and no model (no config.json)"),
        (["chat", "runs/mine", "temperature=9"], "temperature=9 is not valid"),
        (["serve", "runs/mine", "port=0"], "port=0 is not valid: it must be a whole number from 1 to 65535"),
        (["serve", "runs/mine", "host=0.0.0.0"], "set VLLM_API_KEY in its environment"),
        (["serve", "runs/mine", "api_key=of-mine"], "could be read by every user of this machine"),
        (["serve", "runs/mine", "api_k=of-mine"], "could be read by every user of this machine"),
        (["replay", "runs/mine", "step=1"], "step=1 of runs/mine cannot be replayed"),
        (["replay", "runs/mine", "step=2", "step=x"], "step=x of runs/mine cannot be replayed"),
        (["replay", "runs"], "runs is not the folder of a run: it has no recipe.yaml"),
        (["export", "runs/mine", "as=adapter"], "trained all weights (model.lora.rank is null), so it has no adapter"),
    ],
)
def test_a_mistake_is_told_in_one_line(words: list[str], message: str, place: Path) -> None:
    ended = rlkit(*words, cwd=place)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err and len(ended.err.splitlines()) == 1 and "of-mine" not in ended.err


def test_the_model_of_a_run_is_the_one_that_it_exported(place: Path, tmp_path: Path) -> None:
    """With checkpoint.best=export model/ is of the best step, and the last one is another."""
    shutil.copytree(place / "runs" / "mine", run_folder := tmp_path / "run", ignore=shutil.ignore_patterns("model-*"))
    assert find_source(str(run_folder)) == ModelSource(str(run_folder / "model"), run_folder, 2)
    summary = json.loads((run_folder / "summary.json").read_text())
    (run_folder / "summary.json").write_text(json.dumps(summary | {"selected": {"model_step": 1}}))
    assert find_source(str(run_folder)) == find_source(str(run_folder), "1") == ModelSource(str(run_folder / "model"), run_folder, 1)
    assert find_source(str(run_folder), "2") == ModelSource(str(run_folder / "model-000002"), run_folder, 2, exported=False)
    (run_folder / "model-000002").mkdir()
    with pytest.raises(UserError, match="model-000002 is no whole model"):
        find_source(str(run_folder), "2")


def test_an_address_of_the_command_wins_over_what_vllm_reads_as_one() -> None:
    command = serve.build_command("model", {"hos": "0.0.0.0", "enforce_eager": "true"}, "127.0.0.1", 8000)
    assert command[-2:] == ["--host=127.0.0.1", "--port=8000"]


def test_export_and_chat_answer_with_the_trained_model(place: Path) -> None:
    """A conversation starts with the question alone; the answers of an evaluation are greedy too."""
    [line] = [line for line in PAGE if line.startswith("rlkit export")]
    assert rlkit(*shlex.split(line)[1:], cwd=place).code == 0
    assert (place / "my_model" / "model.safetensors").read_bytes() != (place / "runs" / "mine" / "model" / "model.safetensors").read_bytes()
    [(question, answer), *_] = answers(place).items()
    ended = subprocess.run(
        [sys.executable, "-m", "rlkit.cli.main", "chat", "runs/mine"],
        input=f"{question}\n/clear\n{question}\n/exit\nWhat is 1 + 1?\n",
        capture_output=True,
        text=True,
        env=environment(),
        cwd=place,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{answer}\n{answer}\n"


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of `rlkit serve` with a key."""
    port = free_port()
    env = environment(VLLM_API_KEY="of-mine")
    with (place / "serve.log").open("w") as log:
        words = [sys.executable, "-m", "rlkit.cli.main", "serve", "runs/mine", f"port={port}"]
        process = subprocess.Popen(words, stdout=log, stderr=log, env=env, cwd=place, start_new_session=True)
    try:
        until = time.monotonic() + 240
        while not is_listening(port):
            assert process.poll() is None and time.monotonic() < until, (place / "serve.log").read_text()[-3000:]
            time.sleep(0.5)
        yield port, psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.timeout(400)
def test_a_server_answers_with_the_trained_model_on_this_machine_alone(server: tuple[int, psutil.Process], place: Path) -> None:
    import openai

    port, process = server
    client: Any = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="of-mine", max_retries=0)
    assert [model.id for model in client.models.list()] == ["grpo_math"]
    for question, answer in list(answers(place).items())[:3]:
        said = client.chat.completions.create(model="grpo_math", messages=[{"role": "user", "content": question}], temperature=0.0)
        assert said.choices[0].message.content == answer
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="another", max_retries=0).models.list()
    own = [process, *process.children(recursive=True)]
    listening = {c.laddr.ip for one in own for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert not any("of-mine" in word for one in own for word in one.cmdline())
