"""What a person reads during a run: plain lines here; terminal.py shows the same as a live display.

Plain lines go to pipes and CI logs, and where NO_COLOR is set (https://no-color.org). They have no escape codes. One step is one line:
    step 12/32  reward 0.713  accuracy 0.713  tokens/s 9,120  eta 0:41
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rlkit.report.names import BEST, HELD_OUT, HELD_OUT_LOSS, LOSS, REWARD, SPEED, find_set_accuracies, find_train_accuracy
from rlkit.report.summary import RunSummary

_PACE_STEPS = 8  # the ETA uses the last steps only: the length of completions changes in training
_PROGRESS_SECONDS = 30.0  # between two lines of progress
_PROMPT_CHARS, _COMPLETION_CHARS = 60, 100  # of a sample, in a plain line


class Console:
    """Plain lines on a stream (default: stdout). If the reader goes away, the console is silent and the run continues."""

    def __init__(self, steps: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.steps = steps
        self.quiet = quiet
        self._stream = stream
        self._marks: deque[float] = deque(maxlen=_PACE_STEPS + 1)
        self._last_line_at = time.monotonic()

    def print_header(self, title: str, plan: Sequence[tuple[str, str]]) -> None:
        """The title, and the plan with one (label, value) on each line."""
        width = max((len(label) for label, _ in plan), default=0)
        self._print(title)
        for label, value in plan:
            self._print(f"  {label:<{width}}  {value}")

    def show_progress(self, step: int, phase: str) -> None:
        """How far the phase of a step is: a line where none was printed for 30 s; a live display shows it at once."""
        if time.monotonic() - self._last_line_at >= _PROGRESS_SECONDS:
            self._print(f"step {step}/{self.steps}  {phase}" if self.steps else phase)

    def print_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One finished step; step 0 is the evaluation before training."""
        self._print(self._format_step(step, metrics))

    def print_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """A few samples, one on each line; keys reward, prompt, completion, turns."""
        for sample in samples:
            prompt, completion = shorten(sample["prompt"], _PROMPT_CHARS), shorten(join_turns(sample), _COMPLETION_CHARS)
            self._print(f"  sample of step {step}  reward {format_number(sample['reward'])}  prompt: {prompt}  completion: {completion}")

    def finish(self, summary: RunSummary, folder: Path) -> None:
        """The held-out measure before and after, what was selected by it, and the folder of the run."""
        before, after = summary.before, summary.after
        label = f" ({summary.label})" if summary.label else ""
        change = format_change(before, after)
        low, high = (summary.held_out.get(f"eval/{summary.measure}_{end}") for end in ("low", "high"))
        interval = f"  95 % interval {format_number(low)} to {format_number(high)}" if low is not None and high is not None else ""
        if before is None and after is None:
            self._print("no held-out rows, so nothing was measured on them (data.test=FILE)")
        else:
            measured = f"{summary.measure} before {format_number(before)}  after {format_number(after)}{label}"
            self._print(f"{measured}  change {change}{interval}")
        for line in summary.describe_selection():
            self._print(line)
        self._print(f"{summary.status}: {summary.steps} steps in {format_duration(summary.wall_seconds)}")
        self._print(f"folder {folder}")

    def note(self, text: str) -> None:
        """A line of information."""
        self._print(text)

    def warn(self, text: str) -> None:
        """A warning."""
        self._print(f"warning: {text}")

    def close(self) -> None:
        """Close the display; a second call does nothing."""

    def _format_step(self, step: int, metrics: Mapping[str, Any]) -> str:
        self._marks.append(time.monotonic())
        fields = [f"step {step}/{self.steps}"]
        values = [("accuracy", find_train_accuracy(metrics)), ("held-out", metrics.get(HELD_OUT))]
        values.insert(0, ("reward", metrics[REWARD]) if REWARD in metrics else ("loss", metrics.get(LOSS)))
        values += find_set_accuracies(metrics).items()
        if HELD_OUT not in metrics:
            values.append(("held-out loss", metrics.get(HELD_OUT_LOSS)))
        values.append(("best so far", metrics.get(BEST)))
        fields += [f"{label} {format_number(value)}" for label, value in values if value is not None]
        if (speed := metrics.get(SPEED)) is not None:
            fields.append(f"tokens/s {speed:,.0f}")
        if len(self._marks) > 1 and step < self.steps:
            pace = (self._marks[-1] - self._marks[0]) / (len(self._marks) - 1)  # seconds a step
            fields.append(f"eta {format_duration(pace * (self.steps - step))}")
        return "  ".join(fields)

    def _print(self, text: str) -> None:
        self._last_line_at = time.monotonic()
        if not self.quiet:
            self._write_line(text)

    def _write_line(self, text: str) -> None:
        stream = self._stream or sys.stdout
        try:
            stream.write(escape_control(text, stream.encoding or "utf-8") + "\n")
            stream.flush()
        except OSError:  # the reader is gone (`| head`, a closed terminal)
            self._silence(stream)

    def _silence(self, stream: TextIO) -> None:
        self.quiet = True
        if stream is sys.stdout:  # otherwise the last flush of Python fails at exit, and exit code 0 becomes 120
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def escape_control(text: str, encoding: str = "utf-8") -> str:
    """The text with escapes for control characters (but line ends) and for characters that the encoding lacks: safe for a terminal."""
    shown = "".join(
        char if char == "\n" or char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def join_turns(sample: Mapping[str, Any]) -> str:
    """The completion of a sample; of an episode with what its environment wrote in brackets."""
    turns = sample.get("turns")
    if not turns:
        return str(sample["completion"])
    return " ".join(turn["text"] if turn["by"] == "policy" else f"[{turn['text'].strip()}]" for turn in turns)


def shorten(text: str, limit: int) -> str:
    """The printable text in one line of at most `limit` characters. It cuts out the middle, because answers are at the end."""
    text = escape_control(text).replace("\n", "\\n")
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return text[:head] + "…" + text[head + 1 - limit :]


def format_number(value: float | None) -> str:
    """Three decimals, or - for None."""
    return "-" if value is None else f"{value:.3f}"


def format_change(before: float | None, after: float | None) -> str:
    """The signed difference, or - where one is None."""
    return "-" if before is None or after is None else f"{after - before:+.3f}"


def format_duration(seconds: float) -> str:
    """0:41, 12:05, 1:02:03."""
    minutes, rest = divmod(max(0, math.ceil(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
