"""The console on a terminal: a live line at the bottom and tables above it. The only file that imports rich."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich.console
from rich import box
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlkit.report.console import Console, escape_control, format_change, format_duration, format_number, join_turns, shorten
from rlkit.report.names import HELD_OUT, HELD_OUT_LOSS, find_set_accuracies
from rlkit.report.summary import RunSummary

_SAMPLE_LINES = 3  # of a cell in the table of samples


class _Screen(rich.console.Console):
    def on_broken_pipe(self) -> None:
        self.quiet = True  # rich would raise SystemExit; a run outlives its terminal


class Terminal(Console):
    """The live display. The text of a model is never read as markup, and its control codes never reach the terminal."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self._screen = _Screen(highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._line = ""

    def print_header(self, title: str, plan: Sequence[tuple[str, str]]) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in plan:
            grid.add_row(_escape_text(label), _escape_text(value))
        self._show(Panel(grid, title=_escape_text(title, "bold"), title_align="left", border_style="dim", expand=False))

    def show_progress(self, step: int, phase: str) -> None:
        self._refresh(phase)

    def print_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._line = self._format_step(step, metrics)
        if metrics.get(HELD_OUT, metrics.get(HELD_OUT_LOSS)) is not None or find_set_accuracies(metrics):
            self._show(_escape_text(self._line))  # the line of an evaluation stays visible
        self._refresh("")

    def print_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        table = Table(title=f"step {step}", title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, expand=True)
        table.add_column("reward", justify="right", no_wrap=True)
        table.add_column("prompt", ratio=2, overflow="fold")
        table.add_column("completion", ratio=3, overflow="fold")
        limit = max(20, self._screen.width - 14) * _SAMPLE_LINES  # characters of a row without borders and the reward
        for sample in samples:
            prompt, completion = shorten(sample["prompt"], limit * 2 // 5), shorten(join_turns(sample), limit * 3 // 5)
            table.add_row(format_number(sample["reward"]), _escape_text(prompt), _escape_text(completion))
        self._show(table)

    def finish(self, summary: RunSummary, folder: Path) -> None:
        self.close()
        before, after = summary.before, summary.after
        label = f" ({summary.label})" if summary.label else ""
        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("", "before", "after", "change"):
            table.add_column(heading, justify="right")
        table.add_row(
            f"held-out {summary.measure}{label}",
            format_number(before),
            _escape_text(format_number(after), "bold"),
            format_change(before, after),
        )
        self._show(table)
        for line in summary.describe_selection():
            self._show(_escape_text(line))
        self._show(_escape_text(f"{summary.status}: {summary.steps} steps in {format_duration(summary.wall_seconds)}"))
        self._show(_escape_text(f"folder {folder}"))

    def note(self, text: str) -> None:
        self._show(_escape_text(text))

    def warn(self, text: str) -> None:
        self._show(_escape_text(f"warning: {text}", "yellow"))

    def close(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            with self._ignore_closed_terminal():
                live.stop()

    def _refresh(self, phase: str) -> None:
        text = _escape_text(self._line)
        text.append(("  " if self._line and phase else "") + escape_control(phase), "dim")
        text.no_wrap, text.overflow = True, "ellipsis"
        with self._ignore_closed_terminal():
            if self._live is None:
                # No refresh thread of its own: the report has one. Other output appears above the line.
                self._live = Live(console=self._screen, auto_refresh=False, transient=True)
                self._live.start()
                self._screen.show_cursor(True)  # after a SIGKILL the shell must still have one
            self._live.update(text, refresh=True)

    def _show(self, content: rich.console.RenderableType) -> None:
        with self._ignore_closed_terminal():
            self._screen.print(content, soft_wrap=isinstance(content, Text))

    @contextmanager
    def _ignore_closed_terminal(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the terminal is closed: the console is silent and the run continues
            self._screen.quiet = True


def _escape_text(text: str, style: str = "") -> Text:
    return Text(escape_control(text), style=style)
