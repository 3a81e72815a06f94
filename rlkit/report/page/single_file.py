"""report.html: the page of one run with its data in one file, which opens without a server and asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from rlkit.report.bounded_read import ReadBudget
from rlkit.report.page.curves import Curves
from rlkit.report.page.runs import RunView, format_page_json

REPORT = "report.html"
STATIC = Path(__file__).with_name("static")
SCRIPTS = ("text.js", "charts.js", "samples.js", "app.js")  # in the order of index.html
ROWS, EVALUATED = 2000, "eval/"  # rows of curves that the file holds, evaluations beside them
SAMPLED_STEPS, SAMPLED_BYTES = 12, 150_000  # steps that the file holds samples of, evenly spread, and how much of each


def write_single_file(folder: Path, to: Path) -> None:
    """Writes the page of the run in a folder, completely or not at all. Raises OSError."""
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    temporary.write_text(build_single_file(folder), encoding="ascii", errors="xmlcharrefreplace")
    temporary.replace(to)


def build_single_file(folder: Path) -> str:
    """The page as text. Only its own script and style may run in it: the policy names their digests."""
    script = "\n".join((STATIC / name).read_text() for name in SCRIPTS)
    style = (STATIC / "app.css").read_text()
    script, style = (text.encode("ascii").decode() for text in (script, style))  # so that digests are of what the file holds
    policy = f"default-src 'none'; script-src '{format_digest(script)}'; style-src '{format_digest(style)}'; img-src data:; base-uri 'none'"
    page = (STATIC / "index.html").read_text()
    page = re.sub(r"<script src=[^>]*></script>\s*", "", page)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    data = format_page_json(collect_document(folder))
    page = page.replace('<link rel="stylesheet" href="app.css">', f"{meta}\n<style>{style}</style>")
    end = f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n</body>'
    return page.replace("</body>", end)


def format_digest(text: str) -> str:
    """As a content policy names an inline script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def collect_document(folder: Path) -> dict[str, Any]:
    """What the server would answer for this run, all of it at once, with some of its samples."""
    everything = ReadBudget(None)
    view = RunView(folder, "/".join(folder.absolute().parts[-2:]))
    run = view.describe(0, 0, everything)
    kept = select_rows(view.curves)
    columns = {name: [values[row] for row in kept] for name, values in run["columns"].items()}
    run |= {"steps": [run["steps"][row] for row in kept], "columns": columns}
    listed = view.list_steps(everything)
    samples = {step: read_some(view, step) for step in spread(listed["steps"], SAMPLED_STEPS)}
    counts = dict(zip(listed["steps"], listed["rows"], strict=True))
    return {"run": run, "steps": {"steps": list(samples), "rows": [counts[step] for step in samples]}, "samples": samples}


def read_some(view: RunView, step: int) -> dict[str, Any]:
    """The first samples of a step."""
    return {**view.read_samples(step, 0, ReadBudget(SAMPLED_BYTES)), "next": None}


def select_rows(curves: Curves) -> list[int]:
    """The rows that the file holds: some evenly spread, and all evaluations."""
    evaluated = [column for name, column in curves.columns.items() if name.startswith(EVALUATED)]
    rows = {row for column in evaluated for row, value in enumerate(column) if value is not None}
    return sorted(rows | set(spread(list(range(len(curves.steps))), ROWS)))


def spread(values: list[int], count: int) -> list[int]:
    """At most `count` of some values, evenly spread, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[i * (len(values) - 1) // (count - 1)] for i in range(count)]
