"""Many machines: `python -m launch.ray nodes=2 gpus_per_node=8 recipe=NAME [key=value ...]`, from any machine that reaches a Ray cluster.

Ray places one supervisor a node and tells when one is lost; the ranks are plain processes under it, the program that torchrun would start.
The launcher's own keys are those of `launch` in recipes/config.yaml. Exit codes are those of rlkit.run.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launch import node, preflight, worker_group
from launch.cluster import joined
from launch.order import Order, door
from launch.preflight import Trouble
from launch.watch import Lost, Signals, Watch, ranks_on, say
from rlkit.config.sections import LaunchSection
from rlkit.errors import RunFailed, Stopped, UserError

LOOK_SECONDS = 20.0  # for all nodes to be looked at
PLACE_SECONDS = 20.0  # for the supervisors to be there
POLL_PATIENCE = 20.0  # for a supervisor to answer: past it, its node is lost
END_PATIENCE = 8.0
ELASTIC_SECONDS = 5.0  # before a restart goes on without the nodes that are missing: one may have been slow only


@dataclass(frozen=True)
class Node:
    """A node of the cluster that can hold ranks."""

    id: str
    address: str


@dataclass
class Cluster:
    """A fleet of Ray nodes."""

    order: Order
    signals: Signals
    _group: Any = None
    _crews: dict[str, Any] = field(default_factory=dict)  # address -> supervisor, in the order of the ranks

    @property
    def settings(self) -> LaunchSection:
        return self.order.settings

    # -- a fleet's own words --

    def start(self, first: bool) -> str:
        chosen, local = self._chosen(first)
        self._place(chosen, local)
        main, *_ = self._crews
        try:
            port = self._ask([self._crews[main].port.remote(main, self.settings.port)], PLACE_SECONDS)[0]
        except OSError as error:
            trouble = Trouble(main, f"launch.port={self.settings.port} is in use there", "another port=, or none: a free one is found")
            raise UserError(f"not all nodes are ready\n{preflight.table([trouble])}") from error
        shared = {
            "arguments": self.order.command("", first)[1:],
            "folder": str(self.order.folder),
            "cwd": os.getcwd(),
            "given": self.given(),
            "local": local,
            "world": local * len(chosen),
            "master": main,
            "port": port,
            "interface": self.settings.interface,
        }
        orders = [{**shared, "first": n * local, "address": address} for n, address in enumerate(self._crews)]
        self._ask([c.start.remote(order) for c, order in zip(self._crews.values(), orders, strict=True)], PLACE_SECONDS)
        where = ranks_on(local * len(chosen), list(self._crews))
        say(where)
        return where

    def poll(self) -> list[dict[str, Any]]:
        return self._ask([c.poll.remote() for c in self._crews.values()], POLL_PATIENCE)

    def signal(self, number: int) -> None:
        self._tell([c.signal.remote(int(number)) for c in self._crews.values()])

    def stacks(self) -> None:
        self._tell([c.stacks.remote() for c in self._crews.values()])

    def end(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        self._tell([c.end.remote() for c in self._crews.values()])
        for supervisor in self._crews.values():
            ray.kill(supervisor)
        self._crews = {}
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def note(self, name: str, line: str) -> None:
        import ray

        for supervisor in self._crews.values():
            try:
                ray.get(supervisor.note.remote(str(self.order.folder / name), line), timeout=POLL_PATIENCE)
                return
            except (ray.exceptions.RayError, TimeoutError):
                continue  # the next one writes it
        if self.order.folder.is_dir():
            with (self.order.folder / name).open("a") as file:
                file.write(line + "\n")

    # -- which nodes --

    def given(self) -> dict[str, str]:
        return self.order.environment() | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}

    def _chosen(self, first: bool) -> tuple[list[Node], int]:
        """The nodes of this attempt, by address, and the ranks of each; waits at a restart. Raises UserError, RunFailed or Stopped."""
        begun = time.monotonic()
        while True:
            nodes, local, troubles = self._surveyed()
            if len(nodes) >= self.settings.nodes and not (first and troubles):
                return nodes[: self.settings.nodes], local
            waited = time.monotonic() - begun
            if not first and nodes and self.settings.elastic and waited >= ELASTIC_SECONDS:
                return nodes, local
            if first or waited > self.settings.wait_minutes * 60:
                text = f"not all nodes are ready\n{preflight.table(troubles)}"
                raise (
                    UserError(text) if first else RunFailed(f"{text}\nwaited {self.settings.wait_minutes:g} minutes (launch.wait_minutes)")
                )
            if self.signals.asked:
                raise Stopped
            time.sleep(1.0)

    def _surveyed(self) -> tuple[list[Node], int, list[Trouble]]:
        """The nodes that are fit, by address; the ranks of each; and what is wrong with the others that count."""
        import ray

        alive = [entry for entry in ray.nodes() if entry["Alive"]]
        local, resource = self._share(alive)
        able = {
            n["NodeManagerAddress"]: n["NodeID"] for n in alive if n["Resources"].get(resource, 0) >= local
        }  # an address is one machine
        large = [Node(able[address], address) for address in sorted(able, key=ipaddress.ip_address)]
        fit, troubles = self._looked(large, local)
        if len(large) < self.settings.nodes:
            small = sorted((n for n in alive if n["Resources"].get(resource, 0) < local), key=lambda n: str(n["NodeManagerAddress"]))
            flag = "--num-gpus" if resource == "GPU" else "--num-cpus"
            key = "gpus_per_node" if resource == "GPU" else "workers_per_node"
            for n in small:
                what = f"{n['Resources'].get(resource, 0):g} {resource}s, {local} asked for"
                troubles.append(Trouble(n["NodeManagerAddress"], what, f"{key}= at most that, or `ray start {flag}={local}` there"))
            if len(alive) < self.settings.nodes:
                what = f"{len(alive)} nodes in the cluster, nodes={self.settings.nodes} asked for"
                troubles.append(Trouble("(missing)", what, "`ray start --address=HEAD:PORT` on further machines, or fewer nodes="))
        return fit, local, troubles

    def _share(self, alive: list[Any]) -> tuple[int, str]:
        """Ranks a node, and the resource of Ray that each of them takes."""
        if self.settings.gpus_per_node:
            return self.settings.gpus_per_node, "GPU"
        counts = sorted((int(n["Resources"].get("GPU", 0)) for n in alive), reverse=True)[: self.settings.nodes]
        fewest = min(counts, default=0)
        return (fewest, "GPU") if fewest else (self.settings.workers_per_node, "CPU")

    def _looked(self, nodes: list[Node], local: int) -> tuple[list[Node], list[Trouble]]:
        """Looks at each node: which are fit, and why the others are not. One that does not answer is not there."""
        prefix = f".{secrets.token_hex(4)}-"
        mark = {n: f"{prefix}{n.id[:8]}" for n in nodes}
        folder = str(self.order.folder)
        wanted = (os.getcwd(), self.given(), preflight.paths(self.order), folder)
        found = self._on({n: (node.look, (*wanted, mark[n])) for n in nodes})
        seen = self._on(dict.fromkeys(found, (node.marks, (folder, prefix))))
        self._on({n: (node.clear, (folder, mark[n])) for n in found})
        here = node.probe(os.getcwd(), dict(os.environ))
        troubles = [Trouble(n.address, "does not answer", "`ray status`; start Ray there again") for n in nodes if n not in found]
        for n in found:
            troubles += preflight.unlike(n.address, found[n], here) + preflight.wanting(n.address, found[n], self.order, local)
        wrote = {n: mark[n] for n in seen if not found[n]["unwritable"]}
        troubles += preflight.apart({n.address: seen[n] for n in wrote}, {n.address: wrote[n] for n in wrote}, self.order.folder)
        bad = {trouble.node for trouble in troubles}
        return [n for n in nodes if n in found and n.address not in bad], troubles

    def _on(self, calls: dict[Node, tuple[Any, Sequence[Any]]]) -> dict[Node, Any]:
        """Runs a function on each node; the answers of those that answer in time."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        for n, (function, words) in calls.items():
            there = NodeAffinitySchedulingStrategy(n.id, soft=False)
            asked[n] = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*words)
        ready, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=LOOK_SECONDS) if asked else ([], [])
        for ref in late:
            ray.cancel(ref, force=True)
        answers = {}
        for n, ref in asked.items():
            if ref in ready:
                try:
                    answers[n] = ray.get(ref)
                except ray.exceptions.RaySystemError:
                    raise
                except ray.exceptions.RayError as error:
                    say(f"{n.address} could not be looked at: {' '.join(str(error).split())[-300:]}")
        return answers

    def _place(self, nodes: list[Node], local: int) -> None:
        """A supervisor on each node, with all that its ranks need reserved for it. Raises Lost."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpu = self._share([n for n in ray.nodes() if n["Alive"]])[1] == "GPU"
        needs = {"CPU": 1.0, "GPU": float(local)} if gpu else {"CPU": float(local)}
        self._group = placement_group([{**needs, f"node:{n.address}": 0.001} for n in nodes], strategy="STRICT_SPREAD")
        if not self._group.wait(PLACE_SECONDS):
            raise Lost(f"{', '.join(n.address for n in nodes)} could not be reserved within {PLACE_SECONDS:g} s: something else holds them")
        kind = ray.remote(node.Supervisor)
        for number, n in enumerate(nodes):
            bundle = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
            self._crews[n.address] = kind.options(
                num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_concurrency=4, max_restarts=0, scheduling_strategy=bundle
            ).remote()

    # -- asking --

    def _ask(self, refs: list[Any], patience: float) -> list[Any]:
        """The answers of all supervisors. Raises Lost, with the addresses of those that are gone."""
        import ray

        _, late = ray.wait(refs, num_returns=len(refs), timeout=patience)
        answers, gone = [], []
        for address, ref in zip(self._crews, refs, strict=False):
            try:
                answers.append(ray.get(ref, timeout=0 if ref in late else patience))
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from error
            except (ray.exceptions.RayError, TimeoutError):
                gone.append(address)
        if gone:
            raise Lost(f"node {', '.join(gone)} is lost: its supervisor does not answer any more")
        return answers

    def _tell(self, refs: list[Any]) -> None:
        """Waits for what can be waited for; a node that is gone needs no telling."""
        import ray

        ray.wait(refs, num_returns=len(refs), timeout=END_PATIENCE) if refs else None


def launched(order: Order) -> int:
    signals = Signals()
    with joined(order.settings) as address:
        import ray

        for module in (worker_group, node):
            ray.cloudpickle.register_pickle_by_value(module)
        signals.install()  # after ray.init, which takes SIGTERM for itself
        say(f"Ray cluster {address}")
        try:
            return Watch(Cluster(order, signals), order.settings, signals).run()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing interrupts the cleaning up


if __name__ == "__main__":
    door(launched)
