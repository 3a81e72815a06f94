"""The server of `rlkit watch`: who may ask, and what is answered. The only file that imports fastapi and uvicorn.

An answer reads at most 2 MB of files, however large the runs are; a page asks again for what is left.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse

from rlkit.cli.compare import find_differences
from rlkit.report.bounded_read import ReadBudget
from rlkit.report.page.runs import RunBoard, RunView, format_page_json
from rlkit.report.page.single_file import SCRIPTS, STATIC

FILES = {name: STATIC / name for name in (*SCRIPTS, "app.css")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REFUSED = "Open the link that rlkit watch printed. If you have just followed it from another page, reload this one.\n"
LOCAL = ("localhost", "127.0.0.1", "::1")


def serve_page(board: RunBoard, listener: socket.socket, host: str, token: str) -> None:
    """Serves until SIGINT or SIGTERM. token: of the link; listener: bound already."""
    app = build_app(board, host, token, listener.getsockname()[1])
    settings = {"log_level": "warning", "access_log": False, "server_header": False, "proxy_headers": False}  # no log of tokens
    uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", **settings)).run(sockets=[listener])  # type: ignore[arg-type]


def build_app(board: RunBoard, host: str, token: str, port: int) -> FastAPI:
    """The application. A cookie has no port, so that its name holds one: two servers on one machine must not share it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    cookie, session = f"rlkit_watch_{port}", secrets.token_urlsafe(32)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.query_params.get("token")
        if not is_known_host(request.headers.get("host", ""), host):
            answer: Response = PlainTextResponse("This Host is not served here.\n", status_code=421)
        elif request.url.path == "/" and given is not None and matches_secret(given, token):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(cookie, session, httponly=True, samesite="strict", path="/")
        elif not matches_secret(request.cookies.get(cookie, ""), session):
            answer = PlainTextResponse(REFUSED, status_code=403)
        else:
            answer = await call_next(request)
        answer.headers.update(HEADERS)
        return answer

    add_routes(app, board)
    return app


def add_routes(app: FastAPI, board: RunBoard) -> None:
    """The page, its files, and the data that it asks for."""
    lock = threading.Lock()  # what was read so far is shared by all answers

    def answer(view: RunView | None, make: Callable[[RunView], object]) -> Response:
        return json_response(make(view)) if view else PlainTextResponse("There is no such run.\n", status_code=404)

    @app.get("/")
    def get_page() -> Response:
        return FileResponse(STATIC / "index.html")

    @app.get("/{name}")
    def get_file(name: str) -> Response:
        return FileResponse(FILES[name]) if name in FILES else PlainTextResponse("There is no such file.\n", status_code=404)

    @app.get("/api/runs")
    def get_runs() -> Response:
        with lock:
            budget = ReadBudget()
            return json_response({"runs": [view.summarize(budget) for view in board.refresh()]})

    @app.get("/api/run/{name}")
    def get_run(name: str, rows: int = 0, revision: int = 0) -> Response:
        with lock:
            return answer(board.find(name), lambda view: view.describe(max(rows, 0), revision, ReadBudget()))

    @app.get("/api/run/{name}/steps")
    def get_steps(name: str) -> Response:
        with lock:
            return answer(board.find(name), lambda view: view.list_steps(ReadBudget()))

    @app.get("/api/run/{name}/samples")
    def get_samples(name: str, step: int, cursor: int = 0) -> Response:
        with lock:
            return answer(board.find(name), lambda view: view.read_samples(step, max(cursor, 0), ReadBudget()))

    @app.get("/api/differences")
    def get_differences(a: str, b: str) -> Response:
        with lock:
            budget, views = ReadBudget(), [board.find(a), board.find(b)]
            recipes = [view.read_recipe(budget) for view in views if view]
            return json_response({"differences": list(find_differences(recipes).items())})


def json_response(value: object) -> Response:
    return Response(format_page_json(value), media_type="application/json")


def matches_secret(given: str, expected: str) -> bool:
    """In a time that does not depend on where they differ."""
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def is_known_host(header: str, host: str) -> bool:
    """Whether a Host header names this server, with any port: a page elsewhere whose name leads here (DNS rebinding) is refused.

    With host=0.0.0.0 every address of the machine and its own name pass.
    """
    named = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    named = named.removeprefix("[").removesuffix("]").lower()
    if named in (*LOCAL, host.lower()):
        return True
    return host in ("0.0.0.0", "::") and (is_address(named) or named == socket.gethostname().lower())


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
