"""Many machines: `python -m launch.ray nodes=2 gpus_per_node=8 recipe=NAME [key=value ...]`, from any machine that reaches a Ray cluster.

Ray places one supervisor on each node and reports when one is lost. The ranks are plain processes under it, the same that torchrun starts.
The keys of the launcher are those of `launch` in recipes/config.yaml. The exit codes are those of rlkit.run.
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
from launch.cluster import open_cluster
from launch.launcher import Launcher, NodeLost, StopSignals, describe_ranks, print_status
from launch.preflight import Problem
from launch.spec import LaunchSpec, run_launcher
from rlkit.config.sections import LaunchSection
from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.runtime import processes

INSPECT_SECONDS = 20.0  # for the inspection of all nodes
PLACE_SECONDS = 20.0  # for the supervisors to start
POLL_TIMEOUT = 20.0  # for a supervisor to answer; after that its node is lost
END_TIMEOUT = 8.0
ELASTIC_SECONDS = 5.0  # before a restart continues without the missing nodes, which may only be slow


@dataclass(frozen=True)
class Node:
    """A node of the cluster that can hold ranks."""

    id: str
    address: str


@dataclass
class RayFleet:
    """The ranks on the nodes of a Ray cluster (a `Fleet`)."""

    spec: LaunchSpec
    signals: StopSignals
    _group: Any = None
    _supervisors: dict[str, Any] = field(default_factory=dict)  # by address, in the order of the ranks

    @property
    def settings(self) -> LaunchSection:
        return self.spec.settings

    # -- Fleet --

    def start(self, first: bool) -> str:
        chosen, local = self._choose_nodes(first)
        self._place_supervisors(chosen, local)
        main, *_ = self._supervisors
        try:
            port = self._collect([self._supervisors[main].find_port.remote(main, self.settings.port)], PLACE_SECONDS)[0]
        except OSError as error:
            problem = Problem(main, f"launch.port={self.settings.port} is in use there", "another port=, or none: then a free one is found")
            raise UserError(f"not all nodes are ready\n{preflight.format_problems([problem])}") from error
        shared = {
            "arguments": self.spec.build_command("", first)[1:],
            "folder": str(self.spec.folder),
            "cwd": os.getcwd(),
            "forwarded": self._collect_environment(),
            "local": local,
            "world": local * len(chosen),
            "master": main,
            "port": port,
            "interface": self.settings.interface,
        }
        requests = [{**shared, "first": n * local, "address": address} for n, address in enumerate(self._supervisors)]
        self._collect([c.start.remote(request) for c, request in zip(self._supervisors.values(), requests, strict=True)], PLACE_SECONDS)
        where = describe_ranks(local * len(chosen), list(self._supervisors))
        print_status(where)
        return where

    def poll(self) -> list[dict[str, Any]]:
        return self._collect([c.poll.remote() for c in self._supervisors.values()], POLL_TIMEOUT)

    def signal(self, number: int) -> None:
        self._wait([c.signal.remote(int(number)) for c in self._supervisors.values()])

    def dump_stacks(self) -> None:
        self._wait([c.dump_stacks.remote() for c in self._supervisors.values()])

    def end(self) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        self._wait([c.end.remote() for c in self._supervisors.values()])
        for supervisor in self._supervisors.values():
            ray.kill(supervisor)
        self._supervisors = {}
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def append_line(self, name: str, line: str) -> None:
        import ray

        for supervisor in self._supervisors.values():
            try:
                ray.get(supervisor.append_line.remote(str(self.spec.folder / name), line), timeout=POLL_TIMEOUT)
                return
            except (ray.exceptions.RayError, TimeoutError):
                continue  # the next one writes it
        if self.spec.folder.is_dir():
            with (self.spec.folder / name).open("a") as file:
                file.write(line + "\n")

    # -- which nodes --

    def _collect_environment(self) -> dict[str, str]:
        return self.spec.collect_environment() | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}

    def _choose_nodes(self, first: bool) -> tuple[list[Node], int]:
        """The nodes of this attempt, by address, and the ranks of each; a restart waits. Raises UserError, RunFailed or Stopped."""
        start = time.monotonic()
        while True:
            nodes, local, problems = self._survey_nodes()
            if len(nodes) >= self.settings.nodes and not (first and problems):
                return nodes[: self.settings.nodes], local
            waited = time.monotonic() - start
            if not first and nodes and self.settings.elastic and waited >= ELASTIC_SECONDS:
                return nodes, local
            if first or waited > self.settings.wait_minutes * 60:
                text = f"not all nodes are ready\n{preflight.format_problems(problems)}"
                raise (
                    UserError(text) if first else RunFailed(f"{text}\nwaited {self.settings.wait_minutes:g} minutes (launch.wait_minutes)")
                )
            if self.signals.count:
                raise Stopped
            time.sleep(1.0)

    def _survey_nodes(self) -> tuple[list[Node], int, list[Problem]]:
        """The nodes that are fit, by address; the ranks of each; and the problems of the others."""
        import ray

        alive = [entry for entry in ray.nodes() if entry["Alive"]]  # type: ignore[no-untyped-call]
        local, resource = self._count_ranks_per_node(alive)
        able = {
            n["NodeManagerAddress"]: n["NodeID"] for n in alive if n["Resources"].get(resource, 0) >= local
        }  # one node for each address
        large = [Node(able[address], address) for address in sorted(able, key=ipaddress.ip_address)]
        fit, problems = self._inspect_nodes(large, local)
        if len(large) < self.settings.nodes:
            small = sorted((n for n in alive if n["Resources"].get(resource, 0) < local), key=lambda n: str(n["NodeManagerAddress"]))
            flag = "--num-gpus" if resource == "GPU" else "--num-cpus"
            key = "gpus_per_node" if resource == "GPU" else "workers_per_node"
            for n in small:
                what = f"{n['Resources'].get(resource, 0):g} {resource}s, {local} needed"
                problems.append(Problem(n["NodeManagerAddress"], what, f"{key}= at most that, or `ray start {flag}={local}` there"))
            if len(alive) < self.settings.nodes:
                what = f"{len(alive)} nodes in the cluster, nodes={self.settings.nodes} needed"
                problems.append(Problem("(missing)", what, "`ray start --address=HEAD:PORT` on further machines, or fewer nodes="))
        return fit, local, problems

    def _count_ranks_per_node(self, alive: list[Any]) -> tuple[int, str]:
        """The ranks of a node, and the Ray resource that each of them takes: GPU or CPU."""
        if self.settings.gpus_per_node:
            return self.settings.gpus_per_node, "GPU"
        counts = sorted((int(n["Resources"].get("GPU", 0)) for n in alive), reverse=True)[: self.settings.nodes]
        fewest = min(counts, default=0)
        return (fewest, "GPU") if fewest else (self.settings.workers_per_node, "CPU")

    def _inspect_nodes(self, nodes: list[Node], local: int) -> tuple[list[Node], list[Problem]]:
        """Inspects each node: which are fit, and the problems of the others. A node that does not answer is not fit."""
        prefix = f".{secrets.token_hex(4)}-"
        markers = {n: f"{prefix}{n.id[:8]}" for n in nodes}
        folder = str(self.spec.folder)
        wanted = (os.getcwd(), self._collect_environment(), preflight.list_required_paths(self.spec), folder)
        found = self._run_on_nodes({n: (node.inspect_node, (*wanted, markers[n])) for n in nodes})
        seen = self._run_on_nodes(dict.fromkeys(found, (node.list_markers, (folder, prefix))))
        self._run_on_nodes({n: (node.remove_marker, (folder, markers[n])) for n in found})
        here = node.inspect_installation(os.getcwd(), dict(os.environ))
        problems = [Problem(n.address, "does not answer", "`ray status`; start Ray there again") for n in nodes if n not in found]
        for n in found:
            problems += preflight.check_installation(n.address, found[n], here) + preflight.check_resources(
                n.address, found[n], self.spec, local
            )
        written = {n: markers[n] for n in seen if not found[n]["unwritable"]}
        problems += preflight.check_shared_folder(
            {n.address: seen[n] for n in written}, {n.address: written[n] for n in written}, self.spec.folder
        )
        bad = {problem.node for problem in problems}
        return [n for n in nodes if n in found and n.address not in bad], problems

    def _run_on_nodes(self, calls: dict[Node, tuple[Any, Sequence[Any]]]) -> dict[Node, Any]:
        """Runs a function on each node; returns the results of the nodes that answer in time."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        refs = {}
        for n, (function, arguments) in calls.items():
            there = NodeAffinitySchedulingStrategy(n.id, soft=False)
            refs[n] = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote(*arguments)
        ready, late = ray.wait(list(refs.values()), num_returns=len(refs), timeout=INSPECT_SECONDS) if refs else ([], [])
        for ref in late:
            ray.cancel(ref, force=True)
        results = {}
        for n, ref in refs.items():
            if ref in ready:
                try:
                    results[n] = ray.get(ref)
                except ray.exceptions.RaySystemError:
                    raise
                except ray.exceptions.RayError as error:
                    print_status(f"{n.address} could not be inspected: {' '.join(str(error).split())[-300:]}")
        return results

    def _place_supervisors(self, nodes: list[Node], local: int) -> None:
        """Starts a supervisor on each node and reserves the resources of its ranks. Raises NodeLost."""
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpu = self._count_ranks_per_node([n for n in ray.nodes() if n["Alive"]])[1] == "GPU"  # type: ignore[no-untyped-call]
        needs = {"CPU": 1.0, "GPU": float(local)} if gpu else {"CPU": float(local)}
        self._group = placement_group([{**needs, f"node:{n.address}": 0.001} for n in nodes], strategy="STRICT_SPREAD")
        if not self._group.wait(PLACE_SECONDS):
            raise NodeLost(
                f"{', '.join(n.address for n in nodes)} could not be reserved within {PLACE_SECONDS:g} s: another program uses them"
            )
        kind = ray.remote(node.Supervisor)
        for number, n in enumerate(nodes):
            bundle = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=number)
            self._supervisors[n.address] = kind.options(
                num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_concurrency=4, max_restarts=0, scheduling_strategy=bundle
            ).remote()

    # -- calls to supervisors --

    def _collect(self, refs: list[Any], patience: float) -> list[Any]:
        """The results of all supervisors. Raises NodeLost with the addresses of those that do not answer."""
        import ray

        _, late = ray.wait(refs, num_returns=len(refs), timeout=patience)
        answers, gone = [], []
        for address, ref in zip(self._supervisors, refs, strict=False):
            try:
                answers.append(ray.get(ref, timeout=0 if ref in late else patience))
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from error  # type: ignore[no-untyped-call]
            except (ray.exceptions.RayError, TimeoutError):
                gone.append(address)
        if gone:
            raise NodeLost(f"node {', '.join(gone)} is lost: its supervisor does not answer")
        return answers

    def _wait(self, refs: list[Any]) -> None:
        """Waits for the calls that can end; a node that is lost is left out."""
        import ray

        ray.wait(refs, num_returns=len(refs), timeout=END_TIMEOUT) if refs else None


def launch_ray(spec: LaunchSpec) -> int:
    """Runs on the nodes of a Ray cluster; returns the exit code."""
    signals = StopSignals()
    with open_cluster(spec.settings) as address:
        import ray

        for module in (worker_group, node, processes):
            ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
        signals.install()  # after ray.init, which installs a handler of its own for SIGTERM
        print_status(f"Ray cluster {address}")
        try:
            return Launcher(RayFleet(spec, signals), spec.settings, signals).run()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing may interrupt the cleanup


if __name__ == "__main__":
    run_launcher(launch_ray)
