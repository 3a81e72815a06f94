"""What others see of a real run: Prometheus while it runs, W&B and MLflow in the folders that it leaves."""

from __future__ import annotations

import json
import os
import re
import struct
import threading
import time
import urllib.error
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from huggingface_hub import ModelCard

from rlkit.report.folder import read_rows
from rlkit.runtime.timer import PHASES
from tests.cli.conftest import call
from tests.conftest import Ended, free_port, run
from tests.report.test_audit import write_key
from tests.report.test_prometheus import HOME, parse, scrape

PLANTED = "planted-key-7"
RUN = [
    *("offline=true", "report.wandb=sums", "report.mlflow=sums", "report.upload_samples=true", "report.table_every=1", "seed=3"),
    *("steps=2", "eval.every=0", "checkpoint.every=0"),
]


@dataclass
class Watched:
    """A run, and what was seen of it meanwhile."""

    folder: Path
    scraped: list[str] = field(default_factory=list)
    listening: set[str] = field(default_factory=set)  # addresses of its port
    ended: list[Ended] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "metrics.jsonl")

    @property
    def recipe(self) -> dict[str, Any]:
        written: dict[str, Any] = yaml.safe_load((self.folder / "recipe.yaml").read_text())
        return written


@pytest.fixture(scope="module")
def watched(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The recipe `small`, with a credential in it, scraped until it ends."""
    watched, port = Watched(tmp_path_factory.mktemp("watched") / "run"), free_port()
    reward = f"rewards.mine={{path: 'mine.py:score', weight: 0.0, args: {{api_key: {PLANTED}}}}}"
    (watched.folder.parent / "mine.py").write_text("def score(completion, api_key):\n    return 0.5\n")
    key, _ = write_key(watched.folder.parent, "audit", Ed25519PrivateKey.generate())
    words = [*small, *RUN, reward, f"report.audit_key={key}", f"report.prometheus={port}", f"output_dir={watched.folder}"]
    environment = {"WANDB_MODE": "online", "WANDB_BASE_URL": f"http://{HOME}:9", "MLFLOW_TRACKING_URI": f"http://{HOME}:9"}
    thread = threading.Thread(target=lambda: watched.ended.append(run(*words, cwd=watched.folder.parent, **environment)))
    thread.start()
    while thread.is_alive():
        try:
            text = scrape(port)
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
            continue
        if not watched.listening:
            watched.listening = {c.laddr.ip for c in psutil.net_connections("inet") if c.laddr.port == port and c.status == "LISTEN"}
        watched.scraped.append(text)
        time.sleep(0.05)
    assert watched.ended and watched.ended[0].code == 0, watched.ended and watched.ended[0].out + watched.ended[0].err
    warnings = [line for line in watched.ended[0].out.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "data.test has 8 problems" in warnings[0]
    return watched


def test_what_a_run_serves(watched: Watched) -> None:
    values = [found for found in map(parse, watched.scraped) if found.get(("rlkit_run_state", "running"))][-1]  # the last may be of its end
    done = int(values["rlkit_step", ""])
    rows = [row for row in watched.rows if row["step"] <= done]
    assert done >= 1 and len(rows) == done + 1  # with the evaluation before the first step
    for phase in PHASES:
        assert values["rlkit_phase_seconds_total", phase] == pytest.approx(sum(row.get(f"time/{phase}", 0.0) for row in rows))
    assert values["rlkit_step_seconds_total", ""] == pytest.approx(sum(row["time/step"] for row in rows))
    assert sum(values["rlkit_phase_seconds_total", phase] for phase in PHASES) <= values["rlkit_step_seconds_total", ""]
    last, evaluated = rows[-1], [row for row in rows if "eval/accuracy" in row][-1]
    assert values["rlkit_tokens_total", ""] == last["num_tokens"] > 0
    assert values["rlkit_tokens_per_second", ""] == pytest.approx(last["throughput/tokens_per_second"])
    assert values["rlkit_reward", ""] == pytest.approx(last["reward"])
    assert values["rlkit_held_out_accuracy_ratio", ""] == evaluated["eval/accuracy"]
    assert values["rlkit_memory_peak_bytes", "train"] == pytest.approx(last["memory/train_peak_gib"] * 2**30)
    assert values["rlkit_reward_failure_ratio", "accuracy"] == values["rlkit_reward_failures_total", ""] == 0
    assert (values["rlkit_attempt", ""], values["rlkit_restarts_total", ""], values["rlkit_steps", ""]) == (1, 0, 2)
    assert [values["rlkit_run_state", state] for state in ("running", "done", "stopped", "failed")] == [1, 0, 0, 0]
    assert 0 <= values["rlkit_step_age_seconds", ""] < 60
    assert 2**27 < values["process_resident_memory_bytes", ""] < values["rlkit_node_memory_used_bytes", ""] * 2
    assert 0 <= values["rlkit_node_cpu_utilisation_ratio", ""] <= 1


def test_it_listens_on_this_machine_alone(watched: Watched) -> None:
    assert watched.listening == {HOME}


def read_wandb(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: blocks of 32 KiB as LevelDB's log has them, each record a message of wandb's protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        rest = 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7]) if rest >= 7 else (0, 0, 0)
        if kind == 0:
            at += rest
            continue
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_holds_config_metrics_tables_and_the_exit_code(watched: Watched) -> None:
    (file,) = watched.folder.glob("wandb/offline-run-*/*.wandb")
    records: defaultdict[str, list[Any]] = defaultdict(list)
    for record in read_wandb(file):
        kind = record.WhichOneof("record_type")
        records[kind].append(getattr(record, kind))
    (begun,) = records["run"]
    assert (begun.project, begun.display_name, begun.run_group) == ("sums", "grpo_math-seed3", "grpo_math on builtin@train")
    assert list(begun.tags) == ["grpo", "model"]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update if item.key != "_wandb"}
    assert config == watched.recipe and config["rewards"]["mine"]["args"] == {"api_key": "***"}
    history = [{"/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in records["history"]]
    rewards = {row["step"]: row["reward"] for row in history if "reward" in row}
    assert rewards == {row["step"]: row["reward"] for row in watched.rows if "reward" in row} and len(rewards) == 2
    tables = [row["samples/train/path"] for row in history if "samples/train/path" in row]
    shown = [json.loads((file.parent / "files" / path).read_text()) for path in tables]
    assert [[row[table["columns"].index("completion")] for row in table["data"]] for table in shown] == completions(watched, (1, 2))
    assert [ended.exit_code for ended in records["exit"]] == [0]


def completions(watched: Watched, steps: tuple[int, ...]) -> list[list[str]]:
    rows = [row for row in read_rows(watched.folder / "samples.jsonl") if row["split"] == "train"]
    found = [[row["completion"] for row in rows if row["step"] == step] for step in steps]
    assert all(len(step) == 16 for step in found)
    return found


def test_mlflow_holds_config_metrics_tables_and_the_end(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    client = mlflow.MlflowClient((watched.folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("sums")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "grpo_math-seed3")
    assert found.data.tags["rlkit.group"] == "grpo_math on builtin@train"
    assert found.data.params["optim.lr"] == "0.003" and found.data.params["rewards.mine.args.api_key"] == "***"
    history = {point.step: point.value for point in client.get_metric_history(found.info.run_id, "reward")}
    assert history == {row["step"]: row["reward"] for row in watched.rows if "reward" in row}
    files = Path(found.info.artifact_uri.removeprefix("file://"))
    assert yaml.safe_load((files / "recipe.yaml").read_text()) == watched.recipe
    table = json.loads((files / "samples/attempt-1/step-000002.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["completion"] for row in rows if row["split"] == "train"] == completions(watched, (2,))[0]


def test_no_file_of_the_run_holds_the_credential(watched: Watched) -> None:
    files = [path for path in watched.folder.rglob("*") if path.is_file()]
    assert len(files) > 100  # MLflow keeps a file a parameter
    assert [path for path in files if PLANTED.encode() in path.read_bytes()] == []
    assert not any(name.startswith(("wandb", "mlruns", "mlflow")) for name in os.listdir(watched.folder.parent))


def test_its_audit_is_signed_and_has_its_evaluations(watched: Watched) -> None:
    code, out, _ = call("audit", str(watched.folder), "--key", str(watched.folder.parent / "audit.pub"))
    assert code == 0, out
    lines = [json.loads(line) for line in (watched.folder / "audit.jsonl").read_text().splitlines()]
    found = {line["step"]: line["held_out"]["eval/accuracy"] for line in lines if line["event"] == "evaluated"}
    assert found == {row["step"]: row["eval/accuracy"] for row in watched.rows if "eval/accuracy" in row} and len(found) == 2


def test_its_model_has_a_card(watched: Watched) -> None:
    card = ModelCard.load(watched.folder / "model" / "README.md")
    assert card.data.library_name == "transformers" and card.data.tags == ["rlkit", "grpo"]
    facts = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card.text, re.MULTILINE))
    inputs = json.loads((watched.folder / "audit.jsonl").read_text().splitlines()[0])["inputs"]
    assert facts["recipe"] == f"grpo_math, digest {inputs['recipe']}" and facts["seed"] == "3" and facts["steps"] == "2"
    assert facts["reward mine.py"] == inputs["rewards"]["mine.py"] and inputs["models"]
    for files in inputs["models"].values():
        assert set(files.values()) <= set(facts.values())
    first, last = (row["eval/accuracy"] for row in watched.rows if "eval/accuracy" in row)
    assert facts["held-out accuracy"] == f"{first:.3f} (step 0), {last:.3f} (step 2)"
    assert str(watched.folder.parent) not in card.content and os.uname().nodename not in card.content
