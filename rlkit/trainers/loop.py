"""The loop of every run: resume from a checkpoint, step after step; evaluate, report, save; export at the end.

What one step does is defined by a trainer: online.py samples and scores, offline.py reads completions from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from rlkit.engines.base import FileFactory, Learner
from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.profiling.memory_peak import GIB
from rlkit.report import Report
from rlkit.report.summary import RunSummary
from rlkit.runtime.checkpoint import Checkpoints, build_read_error, discard_on_error, publish
from rlkit.runtime.manifest import build_version_error
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.selection import (
    STOPPED_ON,
    Evaluations,
    Selection,
    describe_best,
    describe_early_stop,
    load_evaluations,
)
from rlkit.updates.optimizer_step import UpdateCount


@dataclass(frozen=True)
class StepResult:
    """The result of one step."""

    row: dict[str, float]  # of metrics
    count: UpdateCount
    tokens: int  # sampled or read, prompts included


class Trainer(Protocol):
    """What one step does. All that it needs for the next step is in its state, plain JSON, and in the weights of the learners."""

    @property
    def measure(self) -> str:
        """eval/<measure> is how good the model is: accuracy, or loss, where less is better."""
        ...

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out rows."""
        ...

    @property
    def tokens_per_micro_batch(self) -> int: ...

    def step(self, number: int, count: UpdateCount) -> StepResult:
        """One batch and the updates on it. Raises Stopped where a stop was requested before the first update."""
        ...

    def evaluate(self, step: int, every_set: bool) -> dict[str, float]:
        """Metrics on held-out rows: of every set, or of those whose interval ends. Raises Stopped where a stop was requested meanwhile."""
        ...

    @property
    def asks_to_stop(self) -> bool:
        """Whether something was seen on which the recipe asks that the run stops."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any], step: int) -> None:
        """Continues after `step`, whose state this is; the learners have their weights back."""
        ...


@dataclass(frozen=True)
class TrainState:
    """The state of a run between steps; all of it is in the checkpoint."""

    step: int = 0
    count: UpdateCount = field(default_factory=UpdateCount)
    tokens: int = 0  # so far
    steps: int = 0  # that the run was to have; more of them may be asked for later
    evaluations: Evaluations = field(default_factory=Evaluations)
    wall_seconds: float = 0.0
    row: dict[str, float] | None = field(default_factory=dict)  # metrics of the step, until its evaluation is done
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """All parts of a run, built once by assembly/build.py."""

    steps: int
    trainer: Trainer
    eval_every: Sequence[int]  # steps between evaluations of each set; 0: only before and after
    learners: Sequence[Learner]
    export: Callable[[Path], None]  # the trained model as a Hugging Face folder without tokenizer
    save_tokenizer: Callable[[Path], None]
    checkpoints: Checkpoints
    selection: Selection
    report: Report
    timer: PhaseTimer
    ranks: Ranks
    stopping: StopRequest
    folder: Path
    training: Callable[[], AbstractContextManager[None]] = nullcontext  # inside it the state of the learners is on the device


def run_loop(run: Run) -> None:
    """Runs from the last checkpoint to the last step, or stops early. Raises Stopped, after saving, where a stop was requested."""
    state = replace(resume(run), steps=run.steps)
    run.stopping.deferred = True
    run.timer.restart()
    try:
        if state.row is not None:
            state = conclude_step(run, state)
        while not is_last(run, state):
            state = run_step(run, state.step + 1, state)
            state = conclude_step(run, state)
            if not is_last(run, state) and run.ranks.any_rank(run.stopping.requested or run.trainer.asks_to_stop):
                raise Stopped
    except Stopped:
        save(run, state)
        raise Stopped(f"stopped after step {state.step} of {run.steps}, saved; go on with output_dir={run.folder}") from None
    finish(run, state)


def is_last(run: Run, state: TrainState) -> bool:
    """Whether no step follows. The same on every rank: an evaluation's metrics are."""
    return state.step >= run.steps or state.evaluations.is_exhausted(state.step, run.selection.patience)


def run_step(run: Run, step: int, before: TrainState) -> TrainState:
    """The trainer's step, and the state after it."""
    run.timer.restart(step)
    done = run.trainer.step(step, before.count)
    tokens = before.tokens + done.tokens
    row = done.row | {"num_tokens": float(tokens)}
    return replace(before, step=step, count=done.count, tokens=tokens, row=row, trainer=run.trainer.state())


def conclude_step(run: Run, state: TrainState) -> TrainState:
    """What follows each step, and precedes the first: evaluation where it is due, the row of metrics, a checkpoint."""
    step, row = state.step, dict(state.row or {})
    ends = step in (0, run.steps)
    if run.trainer.evaluates and (ends or any(every and step % every == 0 for every in run.eval_every)):
        held_out = run.trainer.evaluate(step, ends)
        evaluations = state.evaluations.add(step, held_out, run.selection)
        row |= held_out | evaluations.metrics(run.selection)
        state = replace(state, evaluations=evaluations, trainer=run.trainer.state())
    if row:
        run.report.log_step(step, row | run.timer.metrics() | {"memory/process_gib": psutil.Process().memory_info().rss / GIB})
    state = replace(state, row=None, wall_seconds=state.wall_seconds + run.timer.seconds)
    save_if_due(run, state)
    return state


def save_if_due(run: Run, state: TrainState) -> None:
    best = find_protected(run, state)
    if best == state.step or run.checkpoints.is_due(state.step) or (state.step and is_last(run, state)):
        save(run, state)


def find_protected(run: Run, state: TrainState) -> int | None:
    """The step of the best evaluation, where its checkpoint is to be kept. Before the first step it is of the model that the run got."""
    best = state.evaluations.best
    return best.step if run.selection.best and best else None


def save(run: Run, state: TrainState) -> None:
    """Saves a checkpoint; does nothing where there is one of this step."""

    def write(files: FileFactory) -> None:
        with run.training():
            for learner in run.learners:
                learner.save(files)

    with run.timer("checkpoint"):
        is_new = run.checkpoints.save(state.step, asdict(state), write, find_protected(run, state))
    if is_new:
        run.report.record_checkpoint(state.step)


def resume(run: Run) -> TrainState:
    """The state of the last checkpoint, with the weights loaded; the first state where there is none.

    assembly/run_folder.py has compared its files with their digests, before any model was loaded.
    """
    last = run.checkpoints.find_last()
    if last is None:
        return TrainState(trainer=run.trainer.state())
    saved = run.checkpoints.read_state(last)
    if saved.keys() - {field.name for field in fields(TrainState)}:
        raise build_version_error(run.checkpoints.get_folder(last))
    try:
        state = TrainState(**{**saved, "count": UpdateCount(**saved["count"]), "evaluations": load_evaluations(saved["evaluations"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise build_read_error(run.checkpoints.get_folder(last), error) from error
    load_learners(run, last)
    run.trainer.load(state.trainer, last)
    run.report.note(f"goes on after step {last}")
    return state


def load_learners(run: Run, step: int) -> None:
    """Loads the weights and optimizers of a checkpoint."""
    try:
        with run.training():
            for learner in run.learners:
                learner.load(run.checkpoints.get_folder(step))
    except (RunFailed, UserError, Stopped, RuntimeError):
        raise
    except Exception as error:  # each library that reads a file raises its own error
        raise build_read_error(run.checkpoints.get_folder(step), error) from error


def finish(run: Run, state: TrainState) -> None:
    """Exports the trained model as a Hugging Face folder, and writes the summary."""
    exported = choose_exported(run, state)
    run.report.show_phase("export")
    if exported != state.step:
        run.checkpoints.check(exported)
        load_learners(run, exported)
    unfinished, final = run.folder / ".model.tmp", run.folder / "model"
    with discard_on_error(unfinished, run.folder):
        run.export(unfinished)
        if run.ranks.main:
            run.save_tokenizer(unfinished)
            run.report.write_model_card(unfinished, exported)
            publish(unfinished, final)
    run.ranks.barrier()
    run.report.finish(summarize(run, state, exported))


def choose_exported(run: Run, state: TrainState) -> int:
    """The step whose weights model/ gets."""
    best = state.evaluations.best
    return best.step if run.selection.best == "export" and best else state.step


def summarize(run: Run, state: TrainState, exported: int) -> RunSummary:
    """What the report says of the whole run; `exported`: the step of the model at the end."""
    evaluations, selection, measure = state.evaluations, run.selection, f"eval/{run.trainer.measure}"
    best = evaluations.best
    of_best = selection.best == "export" and best is not None
    held_out = best.held_out if best and of_best else evaluations.last
    exhausted = evaluations.is_exhausted(state.step, selection.patience)
    return RunSummary(
        status="done",
        steps=state.step,
        wall_seconds=state.wall_seconds,
        measure=run.trainer.measure,
        before=evaluations.first.get(measure),
        after=held_out.get(measure),
        held_out=held_out,
        label=describe_best(evaluations) if of_best else STOPPED_ON if exhausted else "",
        model_step=exported,
        best=(selection.metric, best.value, best.step, describe_best(evaluations)) if selection.is_asked_for and best else None,
        stopped_early=describe_early_stop(evaluations, selection, state.step, run.steps) if exhausted else None,
    )
