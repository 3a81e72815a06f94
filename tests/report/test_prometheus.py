"""report.prometheus: addresses, restarts, GPUs; Grafana's board asks for what is served. test_watched_run.py scrapes a real run."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import types
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rlkit.config.network import parse_address
from rlkit.errors import UserError
from rlkit.report import Report, gpu_usage
from tests.conftest import ROOT, free_port

Values = dict[tuple[str, str], float]
HOME = "127.0.0.1"


def parse(text: str) -> Values:
    """(name, value of the only or first label) -> number."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in found}


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://{HOME}:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_a_port_that_is_taken_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with socket.create_server((HOME, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"report.prometheus: {HOME}:{port} cannot be listened on \(Address already in use\); set anoth"
        ):
            Report(tmp_path / "run", plan=[], title="t", steps=1, main=True, prometheus=(HOME, port))
    assert not (tmp_path / "run").exists()
    Report(
        tmp_path / "other", plan=[], title="t", steps=1, main=False, prometheus=(HOME, port)
    ).close()  # another rank than 0 serves nothing


ATTEMPT = """
import sys, time
from pathlib import Path
from rlkit.report import Report
report = Report(Path(sys.argv[1]), plan=[], title="t", steps=9, main=True, prometheus=("127.0.0.1", int(sys.argv[2])))
report.log_step(int(sys.argv[3]), {"time/step": 2.0, "time/update": 1.5, "rewards_failed": 3.0, "reward": float("nan")})
print("there", file=sys.stderr, flush=True)
time.sleep(60)
"""


def test_after_a_kill_the_next_attempt_serves_at_the_same_port(tmp_path: Path) -> None:
    port = free_port()
    for step, attempt in ((4, 1), (5, 2)):
        command = [sys.executable, "-c", ATTEMPT, str(tmp_path), str(port), str(step)]
        writer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert writer.stderr is not None and writer.stderr.readline() == "there\n"
        values = parse(scrape(port))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert (values["rlkit_step", ""], values["rlkit_attempt", ""], values["rlkit_restarts_total", ""]) == (step, attempt, attempt - 1)
        assert (values["rlkit_phase_seconds_total", "update"], values["rlkit_reward_failures_total", ""]) == (1.5, 3.0)
        assert values["rlkit_reward", ""] != values["rlkit_reward", ""]  # not a number


@pytest.mark.parametrize(
    ("value", "address"),
    [(9400, (HOME, 9400)), ("9400", (HOME, 9400)), ("0.0.0.0:9400", ("0.0.0.0", 9400)), ("[::1]:9400", ("::1", 9400))],
)
def test_addresses(value: int | str, address: tuple[str, int]) -> None:
    assert parse_address(value) == address


@pytest.mark.parametrize("value", [0, 70000, "x", ":9400", "host:", "host", True])
def test_what_is_no_address(value: int | str) -> None:
    with pytest.raises(ValueError, match=r"it should be a port from 1 to 65535, or HOST:PORT"):
        parse_address(value)


def fake_nvml() -> types.ModuleType:
    """Two GPUs, the second of which does not answer: no machine of CI has one."""
    nvml: Any = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlInit, nvml.nvmlDeviceGetCount, nvml.nvmlDeviceGetName = (lambda: None), (lambda: 2), (lambda device: "H100")
    nvml.nvmlDeviceGetMemoryInfo = lambda device: types.SimpleNamespace(used=3 * 2**30, total=80 * 2**30)
    nvml.nvmlDeviceGetUtilizationRates = lambda device: types.SimpleNamespace(gpu=25, memory=5)

    def get_handle(index: int) -> int:
        if index == 1:
            raise nvml.NVMLError("GPU is lost")
        return index

    nvml.nvmlDeviceGetHandleByIndex = get_handle
    return nvml  # type: ignore[no-any-return]


def test_the_board_asks_for_everything_that_is_served_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    gpu_usage._open_nvml.cache_clear()
    port = free_port()
    row = {
        "throughput/mfu": 0.4,
        "kl": 0.1,
        "entropy": 1.0,
        "eval/loss": 0.5,
        "loss": 1.0,
        "grad_norm": 1.0,
        "completions/mean_length": 7.0,
    }
    row |= {"throughput/tokens_per_second": 9.0, "reward": 0.5, "eval/accuracy": 0.5, "rewards/a/b/failure_rate": 0.25}
    row |= {"memory/train_peak_gib": 2.0, "memory/train_predicted_gib": 3.0}
    with Report(tmp_path, plan=[], title="t", steps=1, main=True, prometheus=(HOME, port)) as report:
        report.log_step(1, row)
        values = parse(scrape(port))
    gpu_usage._open_nvml.cache_clear()
    assert values["rlkit_gpu_utilisation_ratio", "0"] == 0.25 and values["rlkit_gpu_memory_used_bytes", "0"] == 3 * 2**30
    assert ("rlkit_gpu_memory_bytes", "1") not in values and values["rlkit_reward_failure_ratio", "a/b"] == 0.25
    board = json.loads((ROOT / "launch" / "grafana.json").read_text())
    asked = {
        name for panel in board["panels"] for target in panel["targets"] for name in re.findall(r"\b(?:rlkit|process)_\w+", target["expr"])
    }
    served = {name for name, _ in values}
    assert asked - served == set()
    assert {name for name in served if name.startswith("rlkit_")} - asked == set()
    assert all(re.fullmatch(r"[a-z_]+", name) for name in asked)
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(places) == len(set(places)) == len({panel["id"] for panel in board["panels"]}) > 20
