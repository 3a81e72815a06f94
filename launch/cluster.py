"""The Ray cluster of a run: the one whose address is given, the one on this machine, or one started for the run."""

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

ANSWER_SECONDS = 5.0
STORE_BYTES = 100_000_000  # of a cluster of our own: nothing but small messages goes through Ray
FOUND = Path("/tmp/ray/ray_current_cluster")  # where `ray start --head` says what it started
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Read by Ray as it is imported: a port that is no Ray head, or a wrong token, is told within 20 s instead of minutes.
IMPATIENT = {"RAY_py_gcs_connect_timeout_s": "3", "RAY_gcs_rpc_server_connect_timeout_s": "2", "RAY_NUM_REDIS_GET_RETRIES": "2"}


@contextmanager
def joined(settings: LaunchSection) -> Iterator[str]:
    """Ray, initialised; its address, or "local" for a cluster of our own, which ends with the block. Raises UserError."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = where(settings)
    own = None if address else Path(tempfile.mkdtemp(prefix="rlkit-ray-"))
    try:
        if own:
            start(settings, own)
        else:
            join(str(address))
        yield address or "local"
    finally:
        import ray

        ray.shutdown()
        if own:
            shutil.rmtree(own, ignore_errors=True)


def where(settings: LaunchSection) -> str | None:
    """The address of a cluster that answers; None: none is named and none is here, and one node is all that is asked for."""
    chosen = settings.address or os.environ.get("RAY_ADDRESS") or "auto"
    if chosen == "auto":
        here = FOUND.read_text().strip() if FOUND.is_file() else ""
        if here and answers(here):
            return here
    elif chosen != "local":
        if answers(chosen):
            return chosen
        raise UserError(
            f"launch.address={chosen}: nothing answers there. Is the head node up (`ray start --head --port=6379` on it), "
            "and does a firewall stand between?"
        )
    if settings.nodes > 1:
        raise UserError(
            f"launch.nodes={settings.nodes} needs a Ray cluster and none is named: `ray start --head --port=6379` on the first machine, "
            "`ray start --address=FIRST:6379` on the others, then address=FIRST:6379 here"
        )
    return None


def answers(address: str) -> bool:
    """Whether something listens at host:port. Raises UserError for what is no such thing."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise UserError(f"launch.address={address} is not valid: write host:port of the head node, 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def join(address: str) -> None:
    for name, value in IMPATIENT.items():
        os.environ.setdefault(name, value)
    try:
        connect(f"joining the Ray cluster at {address}", address=address)
    except UserError as error:
        hint = "is that port its head's, and does RAY_AUTH_TOKEN_PATH (with RAY_AUTH_MODE=token) name the token it was started with?"
        raise UserError(f"{error}; {hint}") from error


def start(settings: LaunchSection, folder: Path) -> None:
    """A cluster of one node for this run alone. What Ray starts listens on all interfaces, so it asks for a token that only we have."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    connect(
        "starting a Ray cluster on this machine",
        address="local",
        num_cpus=max(settings.workers_per_node, os.cpu_count() or 1),
        num_gpus=count_gpus(),
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


def connect(doing: str, **words: Any) -> None:
    import logging

    import ray

    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **words)
    except Exception as error:  # Ray has no class for what can go wrong here: versions, tokens, ports, rights
        told = " ".join(str(error).split())[:400]
        raise UserError(f"{doing} failed: {told}") from error
