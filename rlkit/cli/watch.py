"""`rlkit watch [RUNS]`: a page on this machine that shows runs while they run. Nothing of it leaves the machine."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path

from rlkit.cli.output import print_text
from rlkit.cli.words import LOOPBACK, read_port, split_own_keys
from rlkit.errors import EXIT_DONE, UserError
from rlkit.report.page.runs import RunBoard
from rlkit.run import handle_errors

RUNS, PORT = "runs", "8790"
TOKEN_BYTES = 32


def run_watch(words: list[str]) -> int:
    """Serves until Ctrl-C. Returns the exit code, as rlkit.run."""
    return handle_errors(lambda: serve_runs(words), [])


def serve_runs(words: list[str]) -> int:
    """As run_watch. Raises UserError for a folder that is not there, and an address that cannot be listened on."""
    own, folders = split_own_keys(words, ("port", "host"))
    roots = [Path(word).expanduser() for word in folders or [RUNS]]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; name folders of runs: rlkit watch [RUNS ...] [port={PORT}] [host=ADDRESS]")
    host = own.get("host", LOOPBACK)
    listener = open_listener(host, own.get("port"))
    from rlkit.cli.watch_app import serve_page

    token, port = secrets.token_urlsafe(TOKEN_BYTES), listener.getsockname()[1]
    print_text(f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}")
    print_text("The link lets in whoever has it. Ctrl-C ends it; from another machine: ssh -L, see rlkit/docs/watch.md")
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has ended
        serve_page(RunBoard(roots), listener, host, token)
    return EXIT_DONE


def open_listener(host: str, port: str | None) -> socket.socket:
    """A socket that is bound; without a port the usual one, or any where that is taken. Raises UserError."""
    tries = [read_port(port)] if port else [int(PORT), 0]
    for number in tries:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()  # from now on a browser waits where the server is not up yet
            return listener
        except OSError as error:
            failed = error
    raise UserError(f"host={host} port={tries[-1]} cannot be listened on: {failed.strerror}; choose another port=") from failed
