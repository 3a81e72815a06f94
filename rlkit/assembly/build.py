"""Builds a run from a typed recipe, once, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from rlkit.assembly import machine, plan
from rlkit.assembly.base_model import build_renderer, find_dtype, locate_model, replace_path
from rlkit.assembly.context import BuildContext, require
from rlkit.assembly.datasets import build_datasets, choose_kind, count_steps, open_sources
from rlkit.assembly.disk import DISK, describe_disk
from rlkit.assembly.environment import build_episodes, describe_environment, start_environment
from rlkit.assembly.eval_sets import TEST, describe_sets, read_sets
from rlkit.assembly.going_on import go_on
from rlkit.assembly.inputs import identify_inputs
from rlkit.assembly.model_record import RECORD, Record, record_models
from rlkit.assembly.offline import build_offline
from rlkit.assembly.online import build_online
from rlkit.assembly.overlap import describe_overlap
from rlkit.assembly.rewards import build_reward_settings, list_in_process_rewards
from rlkit.assembly.run_folder import choose_folder
from rlkit.assembly.teacher import check_files, open_teacher
from rlkit.config.eval_section import list_scored_rewards, list_set_graders
from rlkit.config.network import parse_address
from rlkit.config.recipe import Recipe
from rlkit.data.stream import Prompt, Stream
from rlkit.errors import RunFailed
from rlkit.report import EarlyHeader, Report
from rlkit.report.signing import load_signer
from rlkit.report.tracker import TrackerSettings
from rlkit.rewarding.client import RewardClient
from rlkit.rollout.episodes import EpisodeSettings
from rlkit.runtime import heartbeat
from rlkit.runtime.library_settings import map_large_blocks
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.redaction import redact_message
from rlkit.runtime.signals import StopRequest
from rlkit.runtime.timer import PhaseTimer
from rlkit.trainers.loop import Run
from rlkit.updates import micro_batch_fit


@contextmanager
def build_run(recipe: Recipe, text: str) -> Iterator[Run]:
    """The run of a recipe; `text`: the resolved recipe as it is written into the folder. On leaving, all that was started is closed."""
    if plan.is_large_on_host(recipe):
        map_large_blocks()
    machine.prepare_gpu(recipe)
    stopping = StopRequest()
    stopping.install()
    heartbeat.start_heartbeat()
    with ExitStack() as stack:
        check_files(recipe)
        plan.check_memory(recipe)  # before the processes meet: none has taken memory yet
        ranks = Ranks(recipe.engine.tensor_parallel, recipe.engine.sequence_parallel)
        plan.describe_sandbox(recipe)  # refused before anything is written or started
        folder = choose_folder(recipe, text, ranks)
        if ranks.main:
            load_signer(recipe.report.audit_key, folder)
        rewards = None if recipe.offline_algorithm else stack.enter_context(start_rewards(recipe, ranks, folder))
        environment = stack.enter_context(start_environment(recipe)) if recipe.environment.path and ranks.is_tp_leader else None
        sources = open_sources(recipe, choose_kind(recipe))  # a missing file is found before a model is made or downloaded
        header = stack.enter_context(EarlyHeader(recipe.recipe, describe_run(recipe, folder), main=ranks.main))
        header.show_phase("finding the model")
        model = locate_model(recipe, find_dtype(recipe, ranks.device), ranks.main)
        recipe, model_path = replace_path(recipe, model), model.path
        if model.origin:
            plan.check_memory(recipe)  # of a file in GGUF the shape is known now
        renderer = build_renderer(recipe, model_path)
        header.show_phase("reading the model's files")
        teacher = open_teacher(recipe, renderer, ranks)
        record = record_models(recipe, model, teacher, folder, ranks)
        header.show_phase("reading rows")
        train, test, note = build_datasets(recipe, renderer, choose_kind(recipe), sources)
        recipe = count_steps(recipe, len(train.rows))
        if rewards is not None:
            rewards.wait_until_ready()  # one that does not load is found before the folder of the run is made, and a model loaded
        more = [*describe_overlap(recipe, ranks, sources, header.show_phase), *go_on(recipe, folder, ranks)]
        report = stack.enter_context(create_report(recipe, folder, ranks, model.origin, more, text, header))
        begin_report(report, text, record, identify_inputs(recipe, text, sources, record) if ranks.main else {}, note)
        heartbeat.beat("loading")
        context = BuildContext(recipe, ranks, folder, model_path, renderer, report, PhaseTimer(report.show_phase), stopping, teacher)
        if rewards is None:
            run = build_offline(context, train, test)
        else:
            held_out = {TEST: test, **read_sets(recipe, renderer, {**sources, "test": []}, report.note)}
            run = build_with_rewards(context, rewards, build_episodes(recipe, renderer, environment, ranks), train, held_out, stack)
        try:
            yield run
        except (RuntimeError, MemoryError) as error:
            if not micro_batch_fit.is_out_of_memory(error):
                raise
            raise RunFailed(explain_memory(context, run, sampling=rewards is not None)) from error


def build_with_rewards(
    context: BuildContext,
    rewards: RewardClient,
    episodes: EpisodeSettings | None,
    train: Stream[Prompt],
    held_out: Mapping[str, Sequence[Prompt]],
    stack: ExitStack,
) -> Run:
    """An online run, with a warning for each column that a reward does not get. held_out: problems by set."""
    report = context.report
    rewards.warn, rewards.steps = report.warn, require(context.recipe.steps)
    run = build_online(context, rewards, episodes, train, held_out, stack)
    columns = train.rows.list_columns().union(*(prompt.columns for prompts in held_out.values() for prompt in prompts))
    for line in rewards.describe_ignored_columns(columns):
        report.warn(line)
    return run


def start_rewards(recipe: Recipe, ranks: Ranks, folder: Path) -> RewardClient:
    """Starts the reward workers, which import the reward files meanwhile."""
    settings, on_request = build_reward_settings(recipe, ranks), list_set_graders(recipe)
    return RewardClient(list_scored_rewards(recipe), settings, folder / "replay", list_in_process_rewards(recipe), on_request)


def begin_report(report: Report, text: str, record: Record, inputs: Mapping[str, Any], note: str | None) -> None:
    """Writes what the run begins with: the resolved recipe, its models, the header and the audit's inputs, and a note on its rows."""
    report.write_text("recipe.yaml", text)
    report.write_json(RECORD, record)
    report.print_header(inputs)
    if note:
        report.note(note)


def explain_memory(context: BuildContext, run: Run, sampling: bool) -> str:
    """The message when memory ran out in a phase of a run; halves the micro-batch of the next attempt where that helps."""
    phase = run.timer.phase
    if sampling and phase not in ("observe", "update"):
        return micro_batch_fit.explain_rollout_memory(phase)
    budget = run.trainer.tokens_per_micro_batch
    return micro_batch_fit.halve_budget(context.folder, phase, budget, context.recipe.least_budget)


def describe_run(recipe: Recipe, folder: Path, *more: tuple[str, str]) -> list[tuple[str, str]]:
    """The lines of the header, with what is known of the model and the rows so far."""
    facts = [*describe_sets(recipe), *describe_environment(recipe), *describe_disk(recipe)]
    return [*plan.describe_plan(recipe), *facts, *more, ("folder", str(folder))]


def create_report(
    recipe: Recipe, folder: Path, ranks: Ranks, origin: str | None, more: list[tuple[str, str]], text: str, header: EarlyHeader
) -> Report:
    """`origin`: what the folder of the model was made of, where it is not named by model.path; `more`: lines of the header."""
    free = {label: value for label, value in header.plan if label == DISK}  # less by now: shown once
    plan = describe_run(recipe, folder, *([("origin", origin)] if origin else []), *more)
    return Report(
        folder,
        plan=[(label, free.get(label, value)) for label, value in plan],
        title=recipe.recipe,
        steps=require(recipe.steps),
        main=ranks.main,
        trackers=build_tracker_settings(recipe, text),
        prometheus=parse_address(recipe.report.prometheus) if recipe.report.prometheus is not None else None,
        audit_key=recipe.report.audit_key,
        table_every=recipe.report.table_every,
        header=header,
    )


def build_tracker_settings(recipe: Recipe, text: str) -> TrackerSettings:
    """What trackers get of a recipe; `text`: as it is written into the folder, without credentials."""
    config = yaml.safe_load(text)
    data = ", ".join(redact_message(source.path) for source in recipe.data.train.values())
    return TrackerSettings(
        name=f"{recipe.recipe}-seed{recipe.seed}",
        group=f"{recipe.recipe} on {data}",
        tags=(recipe.algorithm.name, Path(config["model"]["path"]).name),
        config=config,
        offline=recipe.offline,
        projects=recipe.report.trackers,
        upload_samples=recipe.report.upload_samples,
    )
