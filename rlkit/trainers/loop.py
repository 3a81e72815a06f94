"""What every run does, whatever it learns: go on where a checkpoint stopped, step after step; evaluate, report, save; export at the end.

What one step does is the matter of a trainer: online.py samples and scores, offline.py reads what others wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from rlkit.engines.base import Learner
from rlkit.errors import RunFailed, Stopped, UserError
from rlkit.profiling.memory_peak import GIB
from rlkit.report import Report
from rlkit.runtime.checkpoint import Checkpoints, build_read_error, discard_on_error, publish
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.updates.online_update import UpdateCount


@dataclass(frozen=True)
class StepResult:
    """What came of one step."""

    row: dict[str, float]  # of metrics
    count: UpdateCount
    tokens: int  # sampled or read, prompts included


class Trainer(Protocol):
    """What one step does. All that it remembers is in its state, plain JSON, and in the weights of the learners."""

    measure: str  # eval/<measure> says how good the model is: accuracy, or loss, of which less is better
    evaluates: bool  # whether there is anything held out

    @property
    def tokens_per_micro_batch(self) -> int: ...

    def step(self, number: int, count: UpdateCount) -> StepResult:
        """One batch and the updates on it. Raises Stopped where somebody asked for it before anything was learnt."""
        ...

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics on what is held out. Raises Stopped where somebody asked for it meanwhile."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any], step: int) -> None:
        """Goes on after `step`, where `state` was; the learners have their weights back."""
        ...


@dataclass(frozen=True)
class TrainState:
    """What a run remembers between steps; all of it is in the checkpoint."""

    step: int = 0
    count: UpdateCount = field(default_factory=UpdateCount)
    tokens: int = 0  # so far
    before: float | None = None  # how good the model was at first
    held_out: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    best: tuple[float, int] | None = None  # the best evaluation, and the step that had it
    wall_seconds: float = 0.0
    row: dict[str, float] | None = field(default_factory=dict)  # of the step, while its evaluation is still to come
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """Everything a run is made of, built once by assembly/build.py."""

    steps: int
    trainer: Trainer
    eval_every: int
    learners: Sequence[Learner]
    export: Callable[[Path], None]  # the trained model as a Hugging Face folder without tokenizer
    save_tokenizer: Callable[[Path], None]
    checkpoints: Checkpoints
    keep_best: bool
    report: Report
    clock: PhaseTimer
    ranks: Ranks
    stopping: StopRequest
    folder: Path
    training: Callable[[], AbstractContextManager[None]] = nullcontext  # inside it all that the learners hold is on the device


def train(run: Run) -> None:
    """Runs from where the checkpoint stopped to the last step. Raises Stopped, saved, where somebody asked for it."""
    progress = resumed(run)
    run.stopping.deferred = True
    run.clock.restart()
    try:
        if progress.row is not None:
            progress = concluded(run, progress)
        for step in range(progress.step + 1, run.steps + 1):
            progress = one_step(run, step, progress)
            progress = concluded(run, progress)
            if step < run.steps and run.ranks.any_rank(run.stopping.requested):
                raise Stopped
    except Stopped:
        save(run, progress)
        raise Stopped(f"stopped after step {progress.step} of {run.steps}, saved; go on with output_dir={run.folder}") from None
    finish(run, progress)


def one_step(run: Run, step: int, before: TrainState) -> TrainState:
    """The trainer's step, and what there is to remember of it."""
    run.clock.restart(step)
    done = run.trainer.step(step, before.count)
    tokens = before.tokens + done.tokens
    row = done.row | {"num_tokens": float(tokens)}
    return replace(before, step=step, count=done.count, tokens=tokens, row=row, trainer=run.trainer.state())


def concluded(run: Run, progress: TrainState) -> TrainState:
    """What follows a step, and what comes before the first: evaluation where it is due, the row of metrics, a checkpoint."""
    step, row = progress.step, dict(progress.row or {})
    if run.trainer.evaluates and (step in (0, run.steps) or (run.eval_every and step % run.eval_every == 0)):
        held_out = run.trainer.evaluate(step)
        row |= held_out
        progress = with_evaluation(progress, held_out, run.trainer.measure)
    if row:
        run.report.log_step(step, row | run.clock.metrics() | {"memory/process_gib": psutil.Process().memory_info().rss / GIB})
    progress = replace(progress, row=None, wall_seconds=progress.wall_seconds + run.clock.seconds)
    save_if_due(run, progress)
    return progress


def with_evaluation(progress: TrainState, held_out: dict[str, float], measure: str) -> TrainState:
    now, best = held_out[f"eval/{measure}"], progress.best
    if best is None or (now < best[0] if measure == "loss" else now > best[0]):
        best = (now, progress.step)
    return replace(progress, before=now if progress.step == 0 else progress.before, held_out=held_out, best=best)


def save_if_due(run: Run, progress: TrainState) -> None:
    if progress.step == 0:
        return  # nothing was learned yet
    new_best = run.keep_best and progress.best is not None and progress.best[1] == progress.step
    if run.checkpoints.is_due(progress.step) or progress.step == run.steps or new_best:
        save(run, progress)


def save(run: Run, progress: TrainState) -> None:
    """A checkpoint of this moment; nothing where there is one."""

    def write(folder: Path) -> None:
        with run.training():
            for learner in run.learners:
                learner.save(folder)

    with run.clock("checkpoint"):
        protect = progress.best[1] if run.keep_best and progress.best else None
        run.checkpoints.save(progress.step, asdict(progress), write, protect)


def resumed(run: Run) -> TrainState:
    """Where the last complete checkpoint stopped, with the weights put back; the beginning where there is none."""
    steps = run.checkpoints.list_steps()
    last = min(run.ranks.gather(steps[-1] if steps else -1))
    if last < 0:
        return TrainState(trainer=run.trainer.state())
    kept = run.checkpoints.read_state(last)
    if kept.keys() - {field.name for field in fields(TrainState)}:
        raise UserError(
            f"{run.checkpoints.get_folder(last)} was written by another version of rlkit, and this one does not read its checkpoints; "
            "go on with that version, or choose another output_dir"
        )
    try:
        best = tuple(kept.pop("best") or ()) or None
        progress = TrainState(**{**kept, "count": UpdateCount(**kept["count"]), "best": best})
        with run.training():
            for learner in run.learners:
                learner.load(run.checkpoints.get_folder(last))
    except (RunFailed, UserError, Stopped, RuntimeError):
        raise
    except Exception as error:  # a damaged file: each library that reads one has its own words for it
        raise build_read_error(run.checkpoints.get_folder(last), error) from error
    run.trainer.load(progress.trainer, last)
    run.report.note(f"goes on after step {last}")
    return progress


def finish(run: Run, progress: TrainState) -> None:
    """The trained model as a Hugging Face folder, and the summary."""
    run.report.show_phase("export")
    unfinished, final = run.folder / ".model.tmp", run.folder / "model"
    with discard_on_error(unfinished, run.folder):
        run.export(unfinished)
        if run.ranks.main:
            run.save_tokenizer(unfinished)
            publish(unfinished, final)
    run.ranks.barrier()
    measure = run.trainer.measure
    after = progress.held_out.get(f"eval/{measure}")
    run.report.finish("done", progress.before, after, progress.wall_seconds, progress.step, measure, progress.held_out)
