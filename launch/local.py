"""Many processes on this machine: `python -m launch.local [gpus_per_node=N | workers_per_node=N] recipe=NAME [key=value ...]`.

No Ray. Exit codes are those of rlkit.run; what dies is started again from the last checkpoint, `launch.max_restarts` times.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from launch.node import with_interface
from launch.order import Order, door
from launch.watch import Signals, Watch, ranks_on
from launch.worker_group import WorkerGroup, environments, free_port
from rlkit.errors import UserError
from rlkit.runtime.hardware import count_visible_gpus

HERE = "127.0.0.1"


@dataclass
class Local:
    """A fleet of one node."""

    order: Order
    _crew: WorkerGroup | None = field(default=None)

    def start(self, first: bool) -> str:
        settings = self.order.settings
        ranks = settings.gpus_per_node or count_visible_gpus() or settings.workers_per_node
        try:
            self.order.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir {self.order.folder} cannot be made ({error.strerror}); choose another") from error
        try:
            port = free_port(HERE, settings.port)
        except OSError as error:
            raise UserError(f"launch.port={settings.port} is in use on this machine; choose another, or leave it out") from error
        base = with_interface(dict(os.environ), settings.interface, HERE)
        each = environments(base, 0, ranks, ranks, HERE, port)
        self._crew = WorkerGroup(HERE, self.order.command(sys.executable, first), each, self.order.folder)
        return ranks_on(ranks, [HERE])

    def poll(self) -> list[dict[str, Any]]:
        assert self._crew is not None
        return [self._crew.poll()]

    def signal(self, number: int) -> None:
        if self._crew:
            self._crew.signal(number)

    def stacks(self) -> None:
        if self._crew:
            self._crew.stacks()

    def end(self) -> None:
        if self._crew:
            self._crew.end()

    def note(self, name: str, line: str) -> None:
        with (self.order.folder / name).open("a") as file:
            file.write(line + "\n")


def check(order: Order) -> None:
    """Raises UserError for what one machine cannot do."""
    if order.settings.nodes > 1:
        raise UserError(f"launch.nodes={order.settings.nodes}: launch.local starts ranks on this machine only; use `python -m launch.ray`")
    if (wanted := order.settings.gpus_per_node or 0) > count_visible_gpus():
        raise UserError(f"launch.gpus_per_node={wanted}, and this machine shows {count_visible_gpus()} (nvidia-smi, CUDA_VISIBLE_DEVICES)")


def launched(order: Order) -> int:
    check(order)
    signals = Signals()
    signals.install()
    return Watch(Local(order), order.settings, signals).run()


if __name__ == "__main__":
    door(launched)
