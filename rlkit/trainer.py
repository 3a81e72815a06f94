"""The story that every online algorithm runs: sample, judge, give credit, learn, report, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rlkit import rows
from rlkit.algorithms import State
from rlkit.checkpoint import Checkpoints, publish
from rlkit.clock import Clock
from rlkit.collate import collate
from rlkit.collector import Collector
from rlkit.engines.placement import Colocated
from rlkit.errors import Stopped
from rlkit.evaluate import Evaluation
from rlkit.metrics import values
from rlkit.ranks import Ranks
from rlkit.report import Report
from rlkit.stopping import Stopping
from rlkit.types import Batch, Credit, Group
from rlkit.update import Count, Learning, observe, update


@dataclass(frozen=True)
class Progress:
    """What a run remembers between steps; all of it is in the checkpoint."""

    step: int = 0
    count: Count = field(default_factory=Count)
    tokens: int = 0  # sampled and read so far
    accuracy_before: float | None = None
    accuracy: float | None = None  # of the last evaluation
    best: tuple[float, int] | None = None  # accuracy, and the step that had it
    wall_seconds: float = 0.0
    row: dict[str, float] | None = field(default_factory=dict)  # of the step, while its evaluation is still to come
    stream: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """Everything a run is made of, built once by assemble.py."""

    steps: int
    samples_per_step: int
    placement: Colocated
    collector: Collector
    evaluation: Evaluation | None
    eval_every: int
    learning: Learning
    state: State
    checkpoints: Checkpoints
    keep_best: bool
    report: Report
    clock: Clock
    ranks: Ranks
    stopping: Stopping
    folder: Path
    decode: Callable[[Sequence[int]], str]
    save_tokenizer: Callable[[Path], None]


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
            if step < run.steps and run.ranks.any(run.stopping.requested):
                raise Stopped
    except Stopped:
        save(run, progress)
        raise Stopped(f"stopped after step {progress.step} of {run.steps}, saved; go on with output_dir={run.folder}") from None
    finish(run, progress)


def one_step(run: Run, step: int, before: Progress) -> Progress:
    """One rollout batch and the updates on it."""
    run.clock.restart()
    with run.placement.rollout(), run.clock("rollout"):
        mine = run.collector.take()
    if run.ranks.any(mine is None) or mine is None:
        raise Stopped  # before the first optimizer step: this step is abandoned
    with run.placement.train():
        with run.clock("observe"):
            groups, batch = collate(mine, run.ranks, run.learning.minibatches, run.placement.version)
            signals, seen = observe(run.learning, batch)
            credit, run.state, given = run.learning.algorithm.assign(batch, signals, run.state, run.ranks)
        with run.clock("update"):
            learned, count = update(run.learning, batch, signals, credit, before.count)
    run.placement.version = step
    write_samples(run, step, groups, batch, credit)
    tokens = before.tokens + sum(len(s.sample.prompt) + len(s.sample.tokens) for g in groups for s in g.samples)
    row = {
        **values(run.ranks.merged(run.collector.desk.judge.stats())),
        **rows.of_groups(groups),
        **values({**seen, **given, **learned}),
        "num_tokens": float(tokens),
        **left_out(run.collector.prompts.state()),
    }
    kept = {"stream": run.collector.prompts.state(), "judge": run.collector.desk.judge.state()}
    return replace(before, step=step, count=count, tokens=tokens, row=row, **kept)


def concluded(run: Run, progress: Progress) -> Progress:
    """What follows a step, and what comes before the first: evaluation where it is due, the row of metrics, a checkpoint."""
    step, row = progress.step, dict(progress.row or {})
    if run.evaluation and (step in (0, run.steps) or (run.eval_every and step % run.eval_every == 0)):
        row |= evaluated(run, step)
        progress = with_accuracy(progress, row["eval/accuracy"])
    if row:
        if "reward" in row:
            row["throughput/tokens_per_second"] = row["completions/mean_length"] * run.samples_per_step / run.clock.seconds
        run.report.step(step, row | run.clock.metrics() | memory(run.ranks.device))
    progress = replace(progress, row=None, wall_seconds=progress.wall_seconds + run.clock.seconds)
    save_if_due(run, progress)
    return progress


def write_samples(run: Run, step: int, groups: list[Group], batch: Batch, credit: Credit) -> None:
    """The step's samples with their advantages."""
    counts = batch.mask.sum(-1).clamp(min=1)
    mine = (credit.advantages.sum(-1) / counts).double()  # [B], the mean over a sample's tokens
    advantages = run.ranks.everywhere(mine, batch.index, batch.size).tolist()
    scored = [s for g in groups for s in g.samples]
    run.report.samples(step, [rows.of_sample(s, a, run.decode, "train") for s, a in zip(scored, advantages, strict=True)])


def left_out(stream: dict[str, Any]) -> dict[str, float]:
    """Prompts so far that gave no sample, or were cut."""
    return {f"prompts/{name}": float(stream[name]) for name in ("too_long", "bad_row", "cut")}


def evaluated(run: Run, step: int) -> dict[str, float]:
    """Accuracy on held-out problems; their completions go into samples.jsonl. Raises Stopped where somebody asked for it meanwhile."""
    assert run.evaluation is not None
    with run.placement.rollout(), run.clock("evaluation"):
        result = run.evaluation.run()
    if result is None:
        raise Stopped
    row, mine = result
    everyone = sorted((g for part in run.ranks.gather(mine) for g in part), key=lambda g: g.number)
    run.report.samples(step, [rows.of_sample(s, None, run.decode, "test") for g in everyone for s in g.samples])
    run.collector.desk.judge.stats()  # the reward statistics of a step are of its own samples
    return row


def with_accuracy(progress: Progress, accuracy: float) -> Progress:
    best = progress.best
    if best is None or accuracy > best[0]:
        best = (accuracy, progress.step)
    before = accuracy if progress.step == 0 else progress.accuracy_before
    return replace(progress, accuracy_before=before, accuracy=accuracy, best=best)


def memory(device: torch.device) -> dict[str, float]:
    """Of this process, GiB."""
    import psutil

    numbers = {"memory/process_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        numbers["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return numbers


def save_if_due(run: Run, progress: Progress) -> None:
    if progress.step == 0:
        return  # nothing was learned yet
    new_best = run.keep_best and progress.best is not None and progress.best[1] == progress.step
    if run.checkpoints.due(progress.step) or progress.step == run.steps or new_best:
        save(run, progress)


def save(run: Run, progress: Progress) -> None:
    """A checkpoint of this moment; nothing where there is one."""
    with run.clock("checkpoint"):
        kept = {**asdict(progress), "algorithm": asdict(run.state)}
        protect = progress.best[1] if run.keep_best and progress.best else None
        run.checkpoints.save(progress.step, kept, run.learning.save, protect)


def resumed(run: Run) -> Progress:
    """Where the last complete checkpoint stopped, with the policy put back; the beginning where there is none."""
    steps = run.checkpoints.steps()
    last = min(run.ranks.gather(steps[-1] if steps else -1))
    if last < 0:
        return Progress(stream=run.collector.prompts.state())
    kept = run.checkpoints.state(last)
    run.state = type(run.state)(**kept.pop("algorithm"))
    best = tuple(kept.pop("best") or ()) or None
    progress = Progress(**{**kept, "count": Count(**kept["count"]), "best": best})
    run.learning.load(run.checkpoints.path(last))
    run.placement.version = last
    run.collector.prompts.load(progress.stream)
    run.collector.desk.judge.restore(progress.judge)
    run.report.note(f"goes on after step {last}")
    return progress


def finish(run: Run, progress: Progress) -> None:
    """The trained model as a Hugging Face folder, and the summary."""
    run.report.phase("export")
    unfinished, final = run.folder / ".model.tmp", run.folder / "model"
    run.learning.policy.export(unfinished)
    if run.ranks.main:
        run.save_tokenizer(unfinished)
        publish(unfinished, final)
    run.ranks.barrier()
    run.report.finish("done", progress.accuracy_before, progress.accuracy, progress.wall_seconds, progress.step)
