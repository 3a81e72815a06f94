"""What a person sees of a run: console, logs, trackers, picture, summary. It takes plain values and never steers the run."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.report.audit import AUDIT, Sealed, append_event, seal_checkpoints, seal_run
from rlkit.report.console import Console, escape_control, format_duration, format_number
from rlkit.report.folder import METRICS, SUMMARY, RunFolder, read_metrics
from rlkit.report.model_card import MODEL_CARD, build_model_card
from rlkit.report.names import CLOCK, format_roofline
from rlkit.report.progress import Phase, Ticker
from rlkit.report.prometheus import Endpoint
from rlkit.report.provenance import collect_environment, read_user
from rlkit.report.run_log import RunLog
from rlkit.report.signing import load_signer
from rlkit.report.status import BEAT_SECONDS, RunStatus, describe_process, write_run_status
from rlkit.report.summary import RunSummary
from rlkit.report.tracker import Tracker, TrackerSettings
from rlkit.report.trackers import TRACKERS, TrackerKind, choose_trackers
from rlkit.runtime import heartbeat
from rlkit.runtime.redaction import redact_message

__all__ = ["EarlyHeader", "Report"]

_SAMPLES_SHOWN = 3  # samples in a table: the best, one between, the worst


class EarlyHeader:
    """Title and plan of a run before its folder exists, and how far the work before that is; a Report takes it over.

    plan: (label, value) pairs, as far as they are known: what a download or the rows will tell is printed by the Report.
    """

    def __init__(self, title: str, plan: Sequence[tuple[str, str]], *, main: bool) -> None:
        self.plan = redact_plan(plan)
        self.console = open_console(0, quiet=not main)
        self.console.print_header(title, self.plan)
        self.show_phase("starting")
        self._ticker = Ticker(self._tick) if main else None

    def show_phase(self, name: str) -> None:
        """Some work begins: how far it is, is shown as that of a Report is."""
        self._phase = Phase(name, time.monotonic())

    def hand_over(self, steps: int) -> Console:
        """The console, from here on another's."""
        self.close()
        self.console.steps = steps
        return self.console

    def close(self) -> None:
        """Show no progress any more; a second call does nothing."""
        if self._ticker is not None:
            self._ticker.stop()
            self.console.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _tick(self) -> None:
        step, progress = heartbeat.read_progress()
        self.console.show_progress(step, self._phase.format(progress))


class Report:
    """The report of one run, on rank 0; with `main=False` every method does nothing.

    folder: created if missing, continued if it holds logs. plan: (label, value) pairs of the header. header: the part of the plan that the
    console has already. table_every: steps between two tables of samples. prometheus: host and port, None without. audit_key: the file of
    the private key that signs the audit. Raises UserError where the folder cannot be written, the package of a tracker is missing, the port
    is taken, or the key cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plan: Sequence[tuple[str, str]],
        title: str,
        steps: int,
        main: bool,
        trackers: TrackerSettings | None = None,
        prometheus: tuple[str, int] | None = None,
        audit_key: str | None = None,
        table_every: int = 5,
        header: EarlyHeader | None = None,
    ) -> None:
        self._plan = redact_plan(plan)
        self._printed = header.plan if header else []
        self._title = title
        self._table_every = table_every
        self._consoles = [header.hand_over(steps) if header else open_console(steps, quiet=not main)]
        self._trackers: dict[str, Tracker] = {}
        self._shown: Sequence[Mapping[str, Any]] = []
        wanted = trackers or TrackerSettings()
        self._upload_samples = wanted.upload_samples
        if main:  # before the folder is created: the run could not start
            projects, self._sign = choose_trackers(wanted), load_signer(audit_key, folder)
            endpoint = Endpoint(*prometheus) if prometheus else None
        self._phase = Phase("starting", time.monotonic())
        self._lock = threading.RLock()  # around consoles and status.json, which the ticker's thread writes too
        self._folder = RunFolder(folder) if main else None
        if self._folder is not None:
            self._consoles.append(RunLog(steps, folder))
            now, attempt = time.time(), self._folder.attempt
            self._status = RunStatus("running", steps, attempt=attempt, started=now, updated=now, **describe_process())
            self._write_status()
            self._open_trackers(replace(wanted, folder=folder, attempt=attempt), projects)
            if endpoint:
                self._trackers["Prometheus"] = endpoint.follow(title, folder, lambda: self._status)
            self._ticker = Ticker(self._tick)

    @property
    def attempt(self) -> int:
        """1 in a new folder, and one more at each resume; 0 where `main` is False."""
        return self._folder.attempt if self._folder else 0

    def print_header(self, inputs: Mapping[str, Any] | None = None) -> None:
        """Print the plan (below an early header what that did not say), write environment.json, and begin the audit.

        inputs: digests of what the run is made of.
        """
        if self._folder is None:
            return
        with self._lock:
            first, *others = self._consoles
            for console in others if self._printed else self._consoles:
                console.print_header(self._title, self._plan)
            for label, value in self._plan if self._printed else ():
                if (label, value) not in self._printed:
                    first.note(f"  {label}  {value}")
        environment = collect_environment()
        self.write_json("environment.json", environment)
        facts = {"attempt": self.attempt, "user": read_user(), "host": socket.gethostname(), "inputs": inputs or {}}
        facts |= {key: environment[key] for key in ("command", "git", "packages_digest", "container")}
        self._audit("started" if self.attempt == 1 else "resumed", facts, seal_run(self._folder.path))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file into the folder, completely or not at all."""
        if self._folder is not None:
            self._folder.write_json(name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder, completely or not at all."""
        if self._folder is not None:
            self._folder.write_text(name, text)

    def record_checkpoint(self, step: int) -> None:
        """Seal the checkpoints that there are after one of this step was written, and old ones were deleted."""
        if self._folder is not None:
            self._audit("saved", {"step": step}, seal_checkpoints(self._folder.path))

    def write_model_card(self, folder: Path, step: int) -> None:
        """Write the card of the model after a step into the folder of that model."""
        if self._folder is not None:
            (folder / MODEL_CARD).write_text(build_model_card(self._folder.path, step))

    def show_phase(self, name: str) -> None:
        """A phase begins: the live line of a terminal shows it at once, and how far it is from then on."""
        self._phase = Phase(name, time.monotonic())
        if self._folder is not None:
            self._show_progress()

    def note(self, text: str) -> None:
        """Print a line of information."""
        self._show(lambda console: console.note(redact_message(text)))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._show(lambda console: console.warn(redact_message(text)))

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write samples of this step to samples.jsonl. Some of those with an advantage are shown when the step is reported.

        Keys: prompt, completion, reward, rewards, advantage, stop, version. The samples of an evaluation have no advantage.
        """
        if self._folder is None:
            return
        self._folder.append_samples(step, samples)
        if self._upload_samples and samples and step % self._table_every == 0:
            columns = [name for name in samples[0] if all(name in sample for sample in samples)]  # some have more: their tokens
            table = [{name: sample[name] for name in columns} for sample in samples]
            self._send(lambda tracker: tracker.log_samples(step, table))
        self._shown = _select_spread([s for s in samples if s.get("advantage") is not None]) or self._shown

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report one finished step, once. The metrics of an evaluation after it (eval/) are in the same call: one row for each step.

        Step 0 is the evaluation before training. Every `table_every` steps some of its samples and its roofline are shown.
        """
        if self._folder is None:
            return
        self._folder.append_metrics(step, {**metrics, CLOCK: round(time.time(), 3)})  # after the samples: it marks the step as reported
        self._write_status(step=step)
        if held_out := {name: value for name, value in metrics.items() if name.startswith("eval/") and isfinite(value)}:
            self._audit("evaluated", {"step": step, "held_out": held_out}, {})
        self._send(lambda tracker: tracker.log(step, metrics))
        self._show(lambda console: console.print_step(step, metrics))
        if self._shown and step % self._table_every == 0:
            self._show(lambda console: console.print_samples(step, self._shown))
        if step % self._table_every == 0:
            self._print_roofline(f"  roofline of step {step}", [metrics])
        self._shown = []

    def finish(self, summary: RunSummary) -> None:
        """Write summary.json, report.png and report.html, and print the held-out measure before and after, and the folder."""
        if self._folder is None:
            return
        self._folder.write_json(SUMMARY, summary.to_json())
        self._try("report.png", partial(self._draw, summary))
        self._print_roofline("roofline", read_metrics(self._folder.path / METRICS))
        self._ticker.stop()  # a live line would come back below the end
        folder = self._folder.path
        if head := self._audit("finished", {"step": summary.steps}, seal_run(folder, checkpoints=True, model=True)):
            self.note(f"audit {head}")
        self._show(lambda console: console.finish(summary, folder))
        self._write_status(state=summary.status, step=summary.steps)
        self._try("report.html", self._write_page)

    def close(self, error: BaseException | None = None) -> None:
        """Close the display, the trackers and the logs; error: what ended the run. A second call does nothing."""
        if self._folder is not None:
            self._ticker.stop()
            if self._status.state == "running":
                end = describe_end(error)
                self._write_status(**end)
                self._try("report.html", self._write_page)
                with suppress(OSError):  # a removed folder has ended the run already
                    self._audit(end["state"], {"why": end["why"]}, seal_run(self._folder.path, checkpoints=True))
            if error is not None and isinstance(self._consoles[-1], RunLog):
                self._consoles[-1].log_error(error, trace=not isinstance(error, UserError | RunFailed | Stopped))
        self._show(lambda console: console.close())
        while self._trackers:
            name, tracker = self._trackers.popitem()
            self._try(name, partial(tracker.close, self._status.state))
        if self._folder is not None:
            self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(error)

    def _tick(self) -> None:
        self._show_progress()
        if self._status.phase != self._phase.name or time.time() - self._status.updated >= BEAT_SECONDS:
            self._write_status()

    def _show_progress(self) -> None:
        step, progress = heartbeat.read_progress()
        text = self._phase.format(progress)
        self._show(lambda console: console.show_progress(step, text))

    def _show(self, action: Callable[[Console], None]) -> None:
        with self._lock:
            for console in self._consoles:
                action(console)

    def _write_status(self, **changes: Any) -> None:
        assert self._folder is not None
        with self._lock, suppress(OSError):  # a removed folder or a full disk ends the run at its next row, in words
            self._status = replace(self._status, **{"phase": self._phase.name, "updated": time.time(), **changes})
            write_run_status(self._folder.path, self._status)

    def _open_trackers(self, settings: TrackerSettings, projects: Mapping[str, str]) -> None:
        def open_tracker(kind: TrackerKind, project: str) -> None:
            self._trackers[kind.label] = kind.open(settings, project)

        for key, project in projects.items():
            self._try(TRACKERS[key].label, partial(open_tracker, TRACKERS[key], project))

    def _send(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            if not self._try(name, partial(action, tracker)):
                del self._trackers[name]

    def _audit(self, event: str, facts: Mapping[str, Any], sealed: Sealed) -> str | None:
        """The new head of the audit; None where it cannot be written."""
        assert self._folder is not None
        try:
            return append_event(self._folder.path, event, facts, sealed, self._sign)
        except OSError as error:
            if self._folder.path.is_dir():  # a removed folder ends the run in words
                self.warn(f"{AUDIT} cannot be written ({error.strerror}), so that it lacks: {event}")
            return None

    def _print_roofline(self, label: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if line := format_roofline(rows):
            self.note(f"{label}  {line}")

    def _draw(self, summary: RunSummary) -> None:
        from rlkit.report.picture import draw_report

        assert self._folder is not None
        folder, model = self._folder.path, dict(self._plan).get("model")
        parts = [time.strftime("%Y-%m-%d", time.gmtime()), f"{summary.steps} steps in {format_duration(summary.wall_seconds)}"]
        if summary.before is not None or summary.after is not None:
            label = f" ({summary.label})" if summary.label else ""
            before, after = format_number(summary.before), format_number(summary.after)
            parts.append(f"held-out {summary.measure} {before} before, {after} after{label}")
        title, subtitle = (escape_control(" \N{MIDDLE DOT} ".join(filter(None, texts))) for texts in ([self._title, model], parts))
        draw_report(read_metrics(folder / METRICS), folder / "report.png", title, subtitle)

    def _write_page(self) -> None:
        from rlkit.report.page.single_file import REPORT, build_single_file

        assert self._folder is not None
        self._folder.write_text(REPORT, build_single_file(self._folder.path))

    def _try(self, name: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - pictures and trackers can raise anything, and must not end the training
            self.warn(f"{name} failed and is not used any more: {type(error).__name__}: {error}")
            return False
        return True


def _select_spread(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best, the middle and the worst by reward. Samples without a reward (it failed) come last."""
    ranked = sorted(samples, key=lambda sample: -sample["reward"] if sample["reward"] is not None else float("inf"))
    if len(ranked) <= _SAMPLES_SHOWN:
        return ranked
    return [ranked[i * (len(ranked) - 1) // (_SAMPLES_SHOWN - 1)] for i in range(_SAMPLES_SHOWN)]


def redact_plan(plan: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines of a header without secrets."""
    return [(label, redact_message(value)) for label, value in plan]


def describe_end(error: BaseException | None) -> dict[str, str]:
    """The fields of a RunStatus for a run that an error ended."""
    if error is None or isinstance(error, Stopped):
        return {"state": "stopped", "why": redact_message(str(error or "")).partition("\n")[0]}
    return {"state": "failed", "why": redact_message(f"{type(error).__name__}: {error}").partition("\n")[0]}


def open_console(steps: int, *, quiet: bool = False) -> Console:
    """The console for stdout: live on a terminal, plain lines elsewhere, silent if `quiet` (all ranks but 0)."""
    if quiet or not _is_live(sys.stdout):
        return Console(steps, quiet=quiet)
    from rlkit.report.terminal import Terminal

    return Terminal(steps)


def _is_live(stream: TextIO) -> bool:
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    no_color = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"
    return stream.isatty() and stream.encoding.lower().startswith("utf") and not in_ci and not no_color
