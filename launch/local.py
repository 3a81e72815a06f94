"""Several processes on this machine: `python -m launch.local [gpus_per_node=N | workers_per_node=N] recipe=NAME [key=value ...]`.

No Ray. The exit codes are those of rlkit.run. A run that dies starts again from its last checkpoint, `launch.max_restarts` times.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from launch.launcher import Launcher, StopSignals, describe_ranks
from launch.node import set_network_interface
from launch.spec import LaunchSpec, run_launcher
from launch.worker_group import WorkerGroup, build_environments, find_free_port
from rlkit.errors import UserError
from rlkit.runtime.hardware import count_visible_gpus

LOCALHOST = "127.0.0.1"


@dataclass
class LocalFleet:
    """The ranks of one machine (a `Fleet`)."""

    spec: LaunchSpec
    _workers: WorkerGroup | None = field(default=None)

    def start(self, first: bool) -> str:
        settings = self.spec.settings
        ranks = settings.gpus_per_node or count_visible_gpus() or settings.workers_per_node
        try:
            self.spec.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {self.spec.folder} cannot be created ({error.strerror}); choose another one") from error
        try:
            port = find_free_port(LOCALHOST, settings.port)
        except OSError as error:
            raise UserError(f"launch.port={settings.port} is in use on this machine; choose another one, or leave it out") from error
        base = set_network_interface(dict(os.environ), settings.interface, LOCALHOST)
        environments = build_environments(base, 0, ranks, ranks, LOCALHOST, port)
        self._workers = WorkerGroup(LOCALHOST, self.spec.build_command(sys.executable, first), environments, self.spec.folder)
        return describe_ranks(ranks, [LOCALHOST])

    def poll(self) -> list[dict[str, Any]]:
        assert self._workers is not None
        return [self._workers.poll()]

    def signal(self, number: int) -> None:
        if self._workers:
            self._workers.signal(number)

    def dump_stacks(self) -> None:
        if self._workers:
            self._workers.dump_stacks()

    def end(self) -> None:
        if self._workers:
            self._workers.end()

    def append_line(self, name: str, line: str) -> None:
        with (self.spec.folder / name).open("a") as file:
            file.write(line + "\n")


def check_single_node(spec: LaunchSpec) -> None:
    """Raises UserError where the run needs more than this machine has."""
    if spec.settings.nodes > 1:
        raise UserError(f"launch.nodes={spec.settings.nodes}: launch.local starts ranks on this machine only; use `python -m launch.ray`")
    if (wanted := spec.settings.gpus_per_node or 0) > count_visible_gpus():
        raise UserError(f"launch.gpus_per_node={wanted}, and this machine shows {count_visible_gpus()} (nvidia-smi, CUDA_VISIBLE_DEVICES)")


def launch_local(spec: LaunchSpec) -> int:
    """Runs on this machine; returns the exit code."""
    check_single_node(spec)
    signals = StopSignals()
    signals.install()
    return Launcher(LocalFleet(spec), spec.settings, signals).run()


if __name__ == "__main__":
    run_launcher(launch_local)
