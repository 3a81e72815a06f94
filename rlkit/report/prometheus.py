"""An HTTP endpoint for Prometheus: report.prometheus=PORT. The only file that imports prometheus_client.

A step only adds its numbers to a few sums; all else is read when somebody asks for /metrics. Names follow Prometheus: base units, and
_total for what only grows (it begins anew with each attempt). rlkit/docs/trackers.md describes them, launch/grafana.json shows them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

import rlkit
from rlkit.errors import UserError
from rlkit.report.gpu_usage import read_gpu_usage
from rlkit.report.status import RunStatus
from rlkit.runtime.timer import PHASES

GIB = 2**30
STATES = ("running", "done", "stopped", "failed")
LAST = {  # metric of the last step that has it -> name and description
    "throughput/tokens_per_second": ("rlkit_tokens_per_second", "Completion tokens over the time of the last step"),
    "throughput/mfu": ("rlkit_mfu_ratio", "Model FLOP utilisation of the last update"),
    "reward": ("rlkit_reward", "Mean reward of the last step's samples"),
    "loss": ("rlkit_loss", "Loss of the last step"),
    "kl": ("rlkit_kl_nats", "Estimate of the KL to the starting model, a token"),
    "entropy": ("rlkit_entropy_nats", "Mean entropy of the policy"),
    "grad_norm": ("rlkit_gradient_norm", "Global gradient norm before clipping"),
    "completions/mean_length": ("rlkit_completion_tokens", "Mean length of the last step's completions"),
    "eval/accuracy": ("rlkit_held_out_accuracy_ratio", "Accuracy of the last evaluation"),
    "eval/loss": ("rlkit_held_out_loss", "Loss of the last evaluation"),
}
_PARTS = {  # metrics of the last step with a part of their name as a label
    re.compile(r"memory/(?P<phase>.+)_peak_gib"): ("rlkit_memory_peak_bytes", "Largest memory of this process in a phase", GIB),
    re.compile(r"memory/(?P<phase>.+)_predicted_gib"): ("rlkit_memory_predicted_bytes", "What the plan expected", GIB),
    re.compile(r"rewards/(?P<reward>.+)/failure_rate"): ("rlkit_reward_failure_ratio", "Calls of a reward that failed in the last step", 1),
}


class Endpoint:
    """A tracker that waits to be asked. Raises UserError where the address is taken, or not of this machine."""

    def __init__(self, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._registry = CollectorRegistry()
        try:
            self._server, self._thread = start_http_server(port, host, self._registry)
        except OSError as error:
            raise UserError(
                f"report.prometheus: {host}:{port} cannot be listened on ({error.strerror or error}); "
                "set another port, report.prometheus=null, or end what listens there"
            ) from error
        self._lock = threading.Lock()  # between the run and the threads that answer
        self._last: dict[str, float] = {}
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._step_seconds = self._reward_failures = 0.0
        self._reported = time.time()

    def follow(self, recipe: str, folder: Path, status: Callable[[], RunStatus]) -> Self:
        """Answers from now on with the facts of a run."""
        from prometheus_client import ProcessCollector

        self._labels = {"recipe": recipe, "run": folder.name, "version": rlkit.__version__}
        self._status = status
        psutil.cpu_percent()  # of the time since the last call
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of one step."""
        known = {name: float(value) for name, value in metrics.items() if value is not None}
        with self._lock:
            self._reported = time.time()
            self._last |= known
            for phase in PHASES:
                self._seconds[phase] += known.get(f"time/{phase}", 0.0)
            self._step_seconds += known.get("time/step", 0.0)
            self._reward_failures += known.get("rewards_failed", 0.0)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: they are no numbers."""

    def close(self, state: str) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Any]:
        """What prometheus_client asks for: all families of metrics."""
        with self._lock:
            last, seconds = dict(self._last), dict(self._seconds)
            totals = {
                "rlkit_step_seconds": ("Time of all steps, evaluations included", self._step_seconds),
                "rlkit_reward_failures": ("Samples without a reward, because one failed", self._reward_failures),
                "rlkit_tokens": ("Tokens sampled or read since the beginning, prompts included", last.get("num_tokens", 0.0)),
            }
            age = time.time() - self._reported
        yield from self._describe_run(age)
        for name, (text, value) in totals.items():
            yield _build_family(name, text, {(): value}, total=True)
        yield _build_family("rlkit_phase_seconds", "Time by phase of a step", {(p,): s for p, s in seconds.items()}, ["phase"], total=True)
        for metric, (name, text) in LAST.items():
            if metric in last:
                yield _build_family(name, text, {(): last[metric]})
        for pattern, (name, text, unit) in _PARTS.items():
            found: dict[tuple[str, ...], float] = {
                (match[1],): value * unit for metric, value in last.items() if (match := pattern.fullmatch(metric))
            }
            if found:
                yield _build_family(name, text, found, list(pattern.groupindex))
        yield from _describe_machine()

    def _describe_run(self, age: float) -> Iterator[Any]:
        status = self._status()
        yield _build_family("rlkit_run_info", "The run", {tuple(self._labels.values()): 1.0}, list(self._labels))
        states: dict[tuple[str, ...], float] = {(state,): float(state == status.state) for state in STATES}
        yield _build_family("rlkit_run_state", "1 for the state that the run is in", states, ["state"])
        yield _build_family("rlkit_phase", "1 for the phase that the run is in", {(status.phase,): 1.0}, ["phase"])
        yield _build_family("rlkit_step", "The last finished step", {(): float(status.step)})
        yield _build_family("rlkit_steps", "Steps that are planned", {(): float(status.steps)})
        yield _build_family("rlkit_step_age_seconds", "Since the last step was finished, or the process began", {(): age})
        yield _build_family("rlkit_start_time_seconds", "Unix time at which this attempt began", {(): status.started})
        yield _build_family("rlkit_attempt", "1, and one more after each restart", {(): float(status.attempt)})
        yield _build_family("rlkit_restarts", "Attempts before this one", {(): status.attempt - 1.0}, total=True)


def _describe_machine() -> Iterator[Any]:
    memory = psutil.virtual_memory()
    yield _build_family("rlkit_node_cpu_utilisation_ratio", "Of all cores, since the last scrape", {(): psutil.cpu_percent() / 100})
    yield _build_family(
        "rlkit_node_memory_used_bytes", "Memory of the machine that is not available", {(): memory.total - memory.available}
    )
    yield _build_family("rlkit_node_memory_bytes", "Memory of the machine", {(): memory.total})
    gpus = read_gpu_usage()
    labels = ["gpu", "name"]
    for name, text, field in (
        ("rlkit_gpu_utilisation_ratio", "Share of the last sampling period in which a kernel ran", "utilisation"),
        ("rlkit_gpu_memory_used_bytes", "Memory in use on a GPU, by all processes", "memory_used"),
        ("rlkit_gpu_memory_bytes", "Memory of a GPU", "memory"),
    ):
        yield _build_family(name, text, {(str(gpu.index), gpu.name): getattr(gpu, field) for gpu in gpus}, labels)


def _build_family(name: str, text: str, values: Mapping[tuple[str, ...], float], labels: Sequence[str] = (), total: bool = False) -> Any:
    """total: a counter, whose name ends with _total."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = (CounterMetricFamily if total else GaugeMetricFamily)(name, text, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family
