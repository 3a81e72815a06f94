"""The Ray cluster of a run: at the given address, the one that runs on this machine, or a new one for this run."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlkit.config.sections import LaunchSection
from rlkit.errors import UserError
from rlkit.runtime.hardware import count_gpus

CONNECT_SECONDS = 5.0
STORE_BYTES = 100_000_000  # of a new cluster: only small messages go through Ray
ADDRESS_FILE = Path("/tmp/ray/ray_current_cluster")  # `ray start --head` writes the address of its cluster there
RAY_DEFAULTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Ray reads these at import: it reports a port that is no Ray head, or a wrong token, within 20 s instead of minutes.
RAY_TIMEOUTS = {"RAY_py_gcs_connect_timeout_s": "3", "RAY_gcs_rpc_server_connect_timeout_s": "2", "RAY_NUM_REDIS_GET_RETRIES": "2"}


@contextmanager
def open_cluster(settings: LaunchSection) -> Iterator[str]:
    """Initialises Ray; yields the address, or "local" for a new cluster, which ends with the block. Raises UserError."""
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    address = find_address(settings)
    temporary = None if address else Path(tempfile.mkdtemp(prefix="rlkit-ray-"))
    try:
        if temporary:
            start_cluster(settings, temporary)
        else:
            join_cluster(str(address))
        yield address or "local"
    finally:
        import ray

        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def find_address(settings: LaunchSection) -> str | None:
    """The address of a running cluster. None where no address is given, none runs here, and one node is enough. Raises UserError."""
    chosen = settings.address or os.environ.get("RAY_ADDRESS") or "auto"
    if chosen == "auto":
        here = ADDRESS_FILE.read_text().strip() if ADDRESS_FILE.is_file() else ""
        if here and is_reachable(here):
            return here
    elif chosen != "local":
        if is_reachable(chosen):
            return chosen
        raise UserError(
            f"launch.address={chosen}: nothing answers there. Check that the head node runs (`ray start --head --port=6379` on it) "
            "and that no firewall blocks the port"
        )
    if settings.nodes > 1:
        raise UserError(
            f"launch.nodes={settings.nodes} needs a Ray cluster, and no address is set: run `ray start --head --port=6379` on the "
            "first machine, `ray start --address=FIRST:6379` on the others, then set address=FIRST:6379 here"
        )
    return None


def is_reachable(address: str) -> bool:
    """Whether a process listens at host:port. Raises UserError where the address has another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"launch.address={address} is not valid: write host:port of the head node, 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def join_cluster(address: str) -> None:
    """Connects to a running cluster. Raises UserError."""
    for name, value in RAY_TIMEOUTS.items():
        os.environ.setdefault(name, value)
    try:
        init_ray(f"joining the Ray cluster at {address}", address=address)
    except UserError as error:
        hint = "check that this is the port of the head node, and that RAY_AUTH_TOKEN_PATH (with RAY_AUTH_MODE=token) names its token"
        raise UserError(f"{error}; {hint}") from error


def start_cluster(settings: LaunchSection, folder: Path) -> None:
    """Starts a cluster of one node for this run. Ray listens on all network interfaces, so it gets a token that only this user has."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    init_ray(
        "starting a Ray cluster on this machine",
        address="local",
        num_cpus=max(settings.workers_per_node, os.cpu_count() or 1),
        num_gpus=count_gpus(),
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


def init_ray(action: str, **arguments: Any) -> None:
    """Calls ray.init. Raises UserError that names the `action` which failed."""
    import logging

    import ray

    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **arguments)
    except Exception as error:  # Ray has no common class for wrong versions, tokens, ports and permissions
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{action} failed: {reason}") from error
