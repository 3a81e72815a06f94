"""From a typed recipe to a run: everything is built here, once, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rlkit.assembly import offline, online, plan
from rlkit.assembly.base_model import check_length, make_base_model
from rlkit.assembly.datasets import build_datasets, with_steps
from rlkit.assembly.rewards import in_process_rewards, load_reward_models, reward_settings
from rlkit.assembly.run_folder import open_folder
from rlkit.config.recipe import Recipe
from rlkit.data.renderer import Renderer
from rlkit.errors import RunFailed
from rlkit.report import Report
from rlkit.rewarding.client import RewardClient
from rlkit.runtime import heartbeat
from rlkit.runtime.ranks import Ranks
from rlkit.runtime.signals import StopRequest
from rlkit.trainers.loop import Run
from rlkit.updates import micro_batch_fit


@contextmanager
def build_run(recipe: Recipe, text: str) -> Iterator[Run]:
    """The run of a recipe; `text` is the resolved recipe as it is written into the folder. On leaving, all that was started ends."""
    stopping = StopRequest()
    stopping.install()
    heartbeat.start_heartbeat()
    with ExitStack() as stack:
        ranks = Ranks(recipe.engine.tensor_parallel, recipe.engine.sequence_parallel)
        folder = open_folder(recipe, text, ranks)
        judge = (
            None
            if recipe.offline_algorithm
            else stack.enter_context(
                RewardClient(recipe.rewards, reward_settings(recipe, ranks), folder / "replay", in_process_rewards(recipe))
            )
        )
        model_path = make_base_model(recipe, ranks.main)
        renderer = Renderer(model_path, chat_template_kwargs=recipe.model.chat_template_kwargs, offline=recipe.offline)
        check_length(recipe, model_path)
        train, test, told = build_datasets(recipe, renderer, "prompts" if judge else recipe.algorithm.reads)
        recipe = with_steps(recipe, len(train.rows))
        report = stack.enter_context(open_report(recipe, folder, ranks))
        if ranks.main:
            report.write_text("recipe.yaml", text)
        report.print_header()
        if told:
            report.note(told)
        heartbeat.beat("loading")
        if judge is None:
            run = offline.build_offline(recipe, ranks, folder, model_path, renderer, (train, test), report, stopping)
        else:
            run, close = online.build_online(recipe, ranks, folder, judge, model_path, renderer, train, test, report, stopping)
            stack.callback(close)
            load_reward_models(recipe, judge, run.trainer.placement, ranks)
            judge.wait_until_ready()
            for line in judge.describe_ignored_columns(train.rows.list_columns().union(*(prompt.columns for prompt in test))):
                report.warn(line)
        try:
            yield run
        except (RuntimeError, MemoryError) as error:
            if not micro_batch_fit.out_of_memory(error):
                raise
            engine = judge is not None and run.clock.phase not in ("observe", "update")
            told = micro_batch_fit.engine_ended(run.clock.phase) if engine else None
            budget, least = run.trainer.tokens_per_micro_batch, recipe.least_budget
            raise RunFailed(told or micro_batch_fit.ended(folder, run.clock.phase, budget, least)) from error


def open_report(recipe: Recipe, folder: Path, ranks: Ranks) -> Report:
    return Report(
        folder,
        plan=[*plan.lines(recipe), ("folder", str(folder))],
        title=recipe.recipe,
        steps=recipe.steps,
        main=ranks.main,
        wandb=recipe.report.wandb,
        offline=recipe.offline,
        table_every=recipe.report.table_every,
    )
