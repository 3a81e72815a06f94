"""rlkit watch over real HTTP: who is let in, what an answer reads, what the page shows in a browser's DOM; rlkit report."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rlkit.cli import watch_app
from rlkit.report.folder import METRICS, SAMPLES, SAMPLES_INDEX
from rlkit.report.status import RunStatus, write_run_status
from tests.cli.conftest import call
from tests.conftest import ROOT
from tests.report.page.demo_runs import HOSTILE, build_row, build_samples, write_demo_run, write_demo_runs

MOST_BYTES = 2_000_000
BROWSER = ROOT / "tests" / "report" / "page" / "browser"


@dataclass
class Watched:
    """A server, as a user has started it."""

    link: str
    process: psutil.Process
    folder: Path

    @property
    def address(self) -> str:
        return self.link.partition("/?")[0]

    @contextmanager
    def open(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.address, follow_redirects=True, trust_env=False) as client:
            assert client.get(self.link).status_code == 200
            yield client

    def find(self, client: httpx.Client, name: str) -> dict[str, Any]:
        (row,) = [row for row in client.get("/api/runs").json()["runs"] if row["name"].startswith(name)]
        return dict(row)


def start_watching(folder: Path) -> Watched:
    command = [sys.executable, "-m", "rlkit.cli.main", "watch", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    link = process.stdout.readline().strip()
    return Watched(link, psutil.Process(process.pid), folder)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    server = start_watching(write_demo_runs(tmp_path_factory.mktemp("runs")))
    yield server
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(10) == 0


def test_only_the_link_lets_in_and_its_token_becomes_a_cookie(watched: Watched) -> None:
    token = watched.link.partition("?token=")[2]
    assert len(token) == 43 and re.fullmatch(r"[\w-]+", token)  # 32 bytes in base64
    with httpx.Client(base_url=watched.address, trust_env=False) as client:
        for path in ("/", "/api/runs", "/app.js", "/nothing", f"/?token={token[:-1]}", "/?token=", f"/api/runs?token={token}"):
            assert client.get(path).status_code == 403, path
        answer = client.get(watched.link)
        assert answer.status_code == 303 and answer.headers["location"] == "/"  # the address bar has no token
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and token not in cookie
        assert client.get("/").status_code == client.get("/api/runs").status_code == 200
        assert client.get("/api/run/nothing").status_code == client.get("/../cli/watch.py").status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:9", 200), ("127.0.0.1", 200), ("[::1]:5000", 200), ("evil.example:8790", 421), ("127.0.0.1.evil.example", 421), ("", 421)],
)
def test_another_host_is_refused(watched: Watched, host: str, status: int) -> None:
    with watched.open() as client:
        assert client.get("/api/runs", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("header", "host", "known"),
    [
        ("node7:8790", "node7", True),
        ("node8:8790", "node7", False),
        ("10.0.0.7:8790", "0.0.0.0", True),
        ("evil.example", "0.0.0.0", False),
        ("[fe80::1]:8790", "::", True),
    ],
)
def test_the_given_host_is_known(header: str, host: str, known: bool) -> None:
    assert watch_app.is_known_host(header, host) is known


def test_every_answer_has_the_policy_and_only_loopback_listens(watched: Watched) -> None:
    with watched.open() as client:
        for path, headers in (
            ("/", {}),
            ("/app.js", {}),
            ("/api/runs", {}),
            ("/nothing", {}),
            ("/", {"Host": "evil"}),
            ("/", {"Cookie": "a=b"}),
        ):
            got = client.get(path, headers=headers).headers
            policy = dict(part.strip().split(" ", 1) for part in got["content-security-policy"].split(";"))
            assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
            assert "unsafe" not in str(policy)
            assert (got["x-content-type-options"], got["referrer-policy"], got["cache-control"]) == ("nosniff", "no-referrer", "no-store")
            assert "server" not in got
    connections = watched.process.net_connections(kind="inet")
    assert {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN} == {
        ("127.0.0.1", int(watched.address.rpartition(":")[2]))
    }


def test_the_page_names_nothing_of_a_network() -> None:
    for file in watch_app.STATIC.iterdir():
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"//\s.*", "", file.read_text())))
        assert addresses <= {"http://www.w3.org"}, file  # the name of SVG, which nobody asks for
        assert "innerHTML" not in file.read_text() and "eval(" not in file.read_text()


def test_the_list_and_the_page_of_a_run_say_how_it_ended(watched: Watched) -> None:
    with watched.open() as client:
        found = {row["name"]: (row["state"], row["why"]) for row in client.get("/api/runs").json()["runs"]}
    states = {name: state for name, (state, _) in found.items() if not name.startswith("hostile")}
    assert states == {
        "grpo_gsm8k/2026-11-26_18-04-11": "running",
        "grpo_gsm8k/2026-11-25_09-30-52": "done",
        "grpo_gsm8k/2026-11-24_22-10-03": "failed",
        "sweep/seed=0": "stopped",
        "sweep/seed=1": "lost",
    }
    assert "max_failure_rate" in found["grpo_gsm8k/2026-11-24_22-10-03"][1] and "is gone" in found["sweep/seed=1"][1]


def write_large_runs(folder: Path) -> None:
    """50 runs of 1,000 steps, one with 1 GB of samples, of which three steps are on the disk: the rest of the file is a hole."""
    import random

    rng = random.Random(0)
    rows = [json.dumps({"step": step, "attempt": 1, **build_row(step, rng, 3.0, 1000)}) for step in range(1, 1001)]
    first = folder / "run0"
    write_demo_run(first, steps=1)
    (first / METRICS).write_text("\n".join(rows) + "\n")
    for number in range(1, 50):
        shutil.copytree(first, folder / f"run{number}")
    block = 1 << 20
    with (first / SAMPLES).open("wb") as file, (first / SAMPLES_INDEX).open("w") as index:
        file.truncate(1000 * block)
        for step in (1, 500, 1000):
            lines = b"".join(
                json.dumps({"step": step, "attempt": 1, **row}).encode() + b"\n" for row in build_samples(step, rng, prompts=80)
            )
            last = json.dumps({"step": step, "attempt": 1, "completion": ""}).encode()
            filler = last[:-2] + b"x" * (block - len(lines) - len(last) - 1) + last[-2:] + b"\n"
            file.seek((step - 1) * block)
            file.write(lines + filler)
        for step in range(1, 1001):
            index.write(json.dumps({"step": step, "attempt": 1, "offset": (step - 1) * block, "bytes": block, "rows": 321}) + "\n")


def count_read(server: Watched, ask: Any) -> tuple[int, Any]:
    """Bytes that the server's process has read from files for an answer (sockets are received from, which does not count)."""
    before = server.process.io_counters().read_chars
    answer = ask()
    return server.process.io_counters().read_chars - before, answer.json()


def test_no_answer_reads_more_than_two_megabytes(tmp_path: Path) -> None:
    write_large_runs(tmp_path)
    server = start_watching(tmp_path)
    try:
        with server.open() as client:
            read, listed = count_read(server, lambda: client.get("/api/runs"))
            assert read < MOST_BYTES and len(listed["runs"]) == 50 and all(row["step"] == 1000 for row in listed["runs"])
            assert all(row["reward"] > 1 for row in listed["runs"])  # of the last row
            run = server.find(client, "run0")["id"]
            steps: list[int] = []
            more, revision = True, 0
            while more:
                url = f"/api/run/{run}?rows={len(steps)}&revision={revision}"
                read, found = count_read(server, partial(client.get, url))
                assert read < MOST_BYTES
                steps, more, revision = steps[: found["start"]] + found["steps"], found["more"], found["revision"]
            assert steps == list(range(1, 1001))
            assert count_read(server, lambda: client.get(f"/api/run/{run}", params={"rows": 1000, "revision": revision}))[0] < 50_000
            read, index = count_read(server, lambda: client.get(f"/api/run/{run}/steps"))
            assert read < MOST_BYTES and index["steps"] == steps
            read, page = count_read(server, lambda: client.get(f"/api/run/{run}/samples", params={"step": 500}))
            assert read < MOST_BYTES and len(page["samples"]) == 256 and {row["step"] for row in page["samples"]} == {500}
            (tmp_path / "run0" / SAMPLES_INDEX).unlink()
            other = start_watching(tmp_path / "run0")  # without an index it is looked through, a piece an answer
            with other.open() as second:
                run = other.find(second, "")["id"]
                read, found = count_read(other, lambda: second.get(f"/api/run/{run}/steps"))
                assert read < MOST_BYTES and found["more"] and found["steps"] == [1]
            other.process.terminate()
    finally:
        server.process.terminate()


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with jsdom, axe-core and look.cjs; the test is skipped where there is no node, or no registry."""
    if shutil.which("npm") is None:
        pytest.skip("the page is not looked at: node and npm are not installed")
    folder = shutil.copytree(BROWSER, tmp_path_factory.mktemp("browser"), dirs_exist_ok=True)
    fetched = subprocess.run(
        ["npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True
    )
    if fetched.returncode:
        pytest.skip(f"the page is not looked at: npm gives no jsdom and axe-core ({fetched.stderr.strip()[-200:]})")
    return folder


def look(node_modules: Path, url: str, **views: dict[str, Any]) -> dict[str, Any]:
    question = json.dumps({"url": url, "views": views})
    done = subprocess.run(["node", "look.cjs", question], cwd=node_modules, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["errors"] == []
    for view in found["seen"].values():
        assert view["violations"] == [] and view["hacked"] is None and view["images"] == 0
    return found


def test_the_page_shows_runs_and_what_they_wrote_is_text(watched: Watched, node_modules: Path) -> None:
    with watched.open() as client:
        ids = {row["name"][:12] + row["state"]: row["id"] for row in client.get("/api/runs").json()["runs"]}
    running, done, hostile = ids["grpo_gsm8k/2running"], ids["grpo_gsm8k/2done"], ids["hostile <scrfailed"]
    seen = look(
        node_modules,
        watched.link,
        list={},
        run={"hash": f"#/run/{running}"},
        compare={"hash": f"#/compare/{running}/{done}", "axe": False},  # the same charts
        hostile={"hash": f"#/run/{hostile}", "axe": False},
        samples={"hash": f"#/run/{hostile}/samples/2", "click": ".chips button"},
    )["seen"]
    wanted = {"Reward", "Reward components", "Accuracy", "KL to the start", "Entropy", "Gradient norm", "Clipped tokens"}
    wanted |= {"Groups with a signal", "Completion length", "Time by phase", "Memory by phase"}
    assert wanted <= set(seen["run"]["charts"]) and wanted <= set(seen["compare"]["charts"])
    assert "120 of 200" in seen["run"]["text"] and "[0.740, 0.820]" in seen["run"]["text"]
    assert "rollout 12" in seen["run"]["text"] and "reward_p99" not in seen["run"]["text"]  # a percentile is no phase
    assert re.search(r"optim\.lr.{0,20}5e-7", seen["compare"]["text"]) and "model.path" not in seen["compare"]["text"]
    shown = (
        r"<script>window.hacked=1</script></script><img src=x onerror=window.hacked=2> \x1b]52;c;aGk=\x07 \u202egnp.exe\u2066 a\u200bb \x00"
    )
    for view, times in (("list", 2), ("hostile", 3), ("samples", 8)):
        assert seen[view]["text"].count(shown) >= times and "\u202e" not in seen[view]["html"], view
        assert seen[view]["scripts"] == 4
    tokens = seen["samples"]["html"]
    assert 'class="t-' in tokens and "trainer's log-prob" in tokens and "sampler's log-prob" in tokens and "entropy" in tokens


def test_one_file_shows_the_same_and_asks_nobody(tmp_path: Path, node_modules: Path) -> None:
    folder = write_demo_run(tmp_path / "run", steps=30, state="failed", why=HOSTILE, note=HOSTILE)
    code, out, err = call("report", str(folder), f"to={tmp_path / 'mine.html'}")
    assert (code, err, out) == (0, "", f"{tmp_path / 'mine.html'}\n")
    text = (tmp_path / "mine.html").read_text()
    assert text.count("<script") == 2 and "src=" not in text.partition("<style>")[0] and "unsafe" not in text
    found = look(node_modules, str(tmp_path / "mine.html"), run={"axe": False}, samples={"hash": "#/run/x/samples/20", "axe": False})
    assert found["asked"] == [] and {"Reward", "Time by phase"} <= set(found["seen"]["run"]["charts"])
    assert r"\x1b]52;c;aGk=\x07 \u202egnp.exe" in found["seen"]["run"]["text"] and "30 of 30" in found["seen"]["run"]["text"]
    assert "A hen lays" in found["seen"]["samples"]["text"] and found["seen"]["samples"]["scripts"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("watch", "/nowhere"), "/nowhere is not a folder"),
        (("watch", ".", "port=x"), "port=x is not valid"),
        (("watch", ".", "host=203.0.113.9"), "host=203.0.113.9 port=0 cannot be listened on"),
        (("report",), "name one run"),
        (("report", "."), ". is not the folder of a run"),
    ],
)
def test_what_cannot_be_shown_is_refused(words: tuple[str, ...], message: str) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "") and message in err


def test_a_run_that_begins_while_watched_is_found(watched: Watched) -> None:
    with watched.open() as client:
        write_run_status(write_demo_run(watched.folder / "late", steps=1), RunStatus("stopped", 1, updated=time.time()))
        assert watched.find(client, "late")["state"] == "stopped"
