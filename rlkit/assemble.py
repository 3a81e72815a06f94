"""From a typed recipe to a run: everything is built here, once, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlkit import heartbeat, plan, room
from rlkit.base_model import check_length, dtype_of, lora_of, made_model
from rlkit.checkpoint import Checkpoints
from rlkit.clock import Clock
from rlkit.collector import Collector, Desk
from rlkit.data.renderer import Renderer
from rlkit.data.stream import Prompt, Stream
from rlkit.engines.base import Learner
from rlkit.engines.lora import BaseOfPolicy, send_adapter, send_merged
from rlkit.engines.placement import Colocated
from rlkit.engines.probe import Probe
from rlkit.errors import RunFailed
from rlkit.evaluate import Evaluation
from rlkit.floors import Floors, machine
from rlkit.model_reward import ModelReward
from rlkit.online import Online
from rlkit.ranks import Ranks
from rlkit.recipe import Recipe
from rlkit.report import Report
from rlkit.rewarding.judge import Judge
from rlkit.rewarding.spec import RewardSettings, RewardSpec
from rlkit.run_folder import open_folder
from rlkit.schedule import Schedule
from rlkit.sourcing import sourced, with_steps
from rlkit.stopping import Stopping
from rlkit.trainer import Run, Story
from rlkit.types import Sampling
from rlkit.update import Learning

SENDS = {"merged": send_merged, "adapter": send_adapter}
MISMATCH_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # mean |difference of log-probs|, nats


@contextmanager
def assembled(recipe: Recipe, text: str) -> Iterator[Run]:
    """The run of a recipe; `text` is the resolved recipe as it is written into the folder. On leaving, all that was started ends."""
    stopping = Stopping()
    stopping.install()
    heartbeat.start()
    with ExitStack() as stack:
        ranks = Ranks(recipe.engine.tensor_parallel, recipe.engine.sequence_parallel)
        folder = open_folder(recipe, text, ranks)
        offline = recipe.offline_algorithm
        judge = None if offline else stack.enter_context(Judge(specs(recipe), settings(recipe, ranks), folder / "replay", seated(recipe)))
        model_path = made_model(recipe, ranks.main)
        renderer = Renderer(model_path, chat_template_kwargs=recipe.model.chat_template_kwargs, offline=recipe.offline)
        check_length(recipe, model_path)
        train, test, told = sourced(recipe, renderer, recipe.algorithm.reads if offline else "prompts")
        recipe = with_steps(recipe, len(train.rows))
        report = stack.enter_context(open_report(recipe, folder, ranks))
        if ranks.main:
            report.write_text("recipe.yaml", text)
        report.header()
        if told:
            report.note(told)
        heartbeat.beat("loading")
        if judge is None:
            from rlkit import assemble_offline  # which takes its engines from here

            run = assemble_offline.build(recipe, ranks, folder, model_path, renderer, (train, test), report, stopping)
        else:
            run, close = build(recipe, ranks, folder, judge, model_path, renderer, train, test, report, stopping)
            stack.callback(close)
            seat_models(recipe, judge, run.story.placement, ranks)
            judge.ready()
            for line in judge.ignored(train.rows.columns().union(*(prompt.columns for prompt in test))):
                report.warn(line)
        try:
            yield run
        except (RuntimeError, MemoryError) as error:
            if not room.out_of_memory(error):
                raise
            engine = not offline and run.clock.phase not in ("observe", "update")
            told = room.engine_ended(run.clock.phase) if engine else None
            budget, least = run.story.tokens_per_micro_batch, recipe.least_budget
            raise RunFailed(told or room.ended(folder, run.clock.phase, budget, least)) from error


def build(
    recipe: Recipe,
    ranks: Ranks,
    folder: Path,
    judge: Judge,
    model_path: str,
    renderer: Renderer,
    train: Stream[Prompt],
    test: list[Prompt],
    report: Report,
    stopping: Stopping,
) -> tuple[Run, Callable[[], None]]:
    """Loads the engines and puts the parts together; the second part ends the rollout engine."""
    clock, dtype = Clock(report.phase), dtype_of(recipe, ranks.device)
    needs = recipe.algorithm.needs(recipe.updates_per_step)
    waits = recipe.algorithm.policy_waits(recipe.steps, recipe.updates_per_step) if needs.values else 0
    report.phase("loading")
    policy = make_policy(recipe, model_path, dtype, ranks)
    if plan.mode(recipe) == "swapped":
        policy.park()  # the rollout engine looks at what is free
    engine = make_engine(recipe, model_path, dtype, policy.names, renderer, ranks)
    reference = make_reference(recipe, policy, model_path, dtype, ranks) if needs.reference else None
    sampling = Sampling(**recipe.sampling.model_dump(), max_tokens=recipe.max_completion_tokens)
    desk = Desk(engine, judge, renderer, stopping, recipe.seed, ranks)
    critic = make_critic(recipe, model_path, dtype, ranks) if needs.values else None
    learning = Learning(
        policy=policy,
        reference=reference,
        critic=critic,
        critic_schedule=schedule(recipe, recipe.algorithm.critic_lr) if needs.values else None,
        policy_waits=waits,
        algorithm=recipe.algorithm,
        schedule=schedule(recipe, waits=waits),
        probe=make_probe(recipe, policy, engine, dtype, sampling),
        ranks=ranks,
        passes=recipe.passes_per_step,
        minibatches=recipe.minibatches,
        tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        fixed_length=recipe.max_completion_tokens,
        max_skipped_updates=recipe.engine.max_skipped_updates,
    )
    placement = make_placement(recipe, policy, engine, (reference, critic), clock)
    learners = [policy, *([critic] if critic else [])]
    with placement.train():
        learning = replace(learning, tokens_per_micro_batch=fitting(recipe, learners, ranks, folder, report))
    story = Online(
        placement=placement,
        collector=collector(recipe, desk, train, ranks, sampling),
        evaluation=evaluation(recipe, desk, test, ranks, sampling) if test else None,
        learning=learning,
        remembered=recipe.algorithm.start(),
        report=report,
        clock=clock,
        ranks=ranks,
        decode=renderer.decode,
        floors=made_floors(recipe, ranks),
    )
    export = partial(policy.export, adapter=recipe.checkpoint.export == "adapter")
    run = made_run(recipe, story, learners, export, renderer, folder, ranks, report, clock, stopping)
    return replace(run, training=story.placement.train), engine.close


def fitting(recipe: Recipe, learners: Sequence[Learner], ranks: Ranks, folder: Path, report: Report) -> int:
    """Tokens of a micro-batch that fits into memory."""
    report.phase("trying the largest micro-batch")
    budget = room.remembered(folder, recipe.tokens_per_micro_batch)
    crews = ranks.world // ranks.crew_size
    mine, together = -(-recipe.samples_per_step // crews), recipe.samples_of_a_prompt
    prompts = min(mine, -(-mine // together) + (crews > 1))  # of several crews, some share a prompt
    share = (prompts * recipe.max_prompt_tokens + mine * recipe.max_completion_tokens) // ranks.crew_size
    sizes = (recipe.max_prompt_tokens, recipe.max_completion_tokens, together)
    least, crew = recipe.least_budget, (ranks.crew_size, ranks.rank % ranks.crew_size)
    anyone = room.asked_together(ranks.meet, ranks.any, folder, budget, least)
    fits, failed = room.fitted(learners, budget, *sizes, share, anyone, least, crew)
    if failed:
        report.note(f"tokens_per_micro_batch={failed} does not fit into memory; {fits} does and is used")
    elif budget < recipe.tokens_per_micro_batch:
        report.note(f"tokens_per_micro_batch={recipe.tokens_per_micro_batch} ran out of memory before; {budget} is used")
    return fits


def made_floors(recipe: Recipe, ranks: Ranks) -> Floors | None:
    """On the rank that reports, where the shape of the model is known. In a crew, whose ranks compute each other's samples, by its own:
    all have about as many tokens."""
    job = plan.job_of(recipe)
    if job is None or not (ranks.main and recipe.report.floors):
        return None
    if recipe.offline_algorithm and recipe.algorithm.learner == "reward_model":
        job = replace(job, shape=replace(job.shape, vocab=1))  # its head says one number
    adapter = recipe.engine.lora_sync == "adapter" and job.rank is not None
    return Floors(job, machine(ranks.device, dtype_of(recipe, ranks.device)), adapter, swaps=plan.mode(recipe) == "swapped")


def made_run(
    recipe: Recipe,
    story: Story,
    learners: Sequence[Learner],
    export: Callable[[Path], None],
    renderer: Renderer,
    folder: Path,
    ranks: Ranks,
    report: Report,
    clock: Clock,
    stopping: Stopping,
) -> Run:
    """A story with what is around it in every run."""
    every, keep = recipe.checkpoint.every, recipe.checkpoint.keep
    return Run(
        steps=recipe.steps,
        story=story,
        eval_every=recipe.eval.every,
        learners=learners,
        export=export,
        save_tokenizer=renderer.save,
        checkpoints=Checkpoints(folder / "checkpoints", every=every, keep=keep, main=ranks.main, barrier=ranks.barrier),
        keep_best=recipe.checkpoint.best,
        report=report,
        clock=clock,
        ranks=ranks,
        stopping=stopping,
        folder=folder,
    )


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


# -- rewards ------------------------------------------------------------------------------------------------------------------------


def specs(recipe: Recipe) -> list[RewardSpec]:
    return [RewardSpec(name=name, **reward.model_dump()) for name, reward in recipe.rewards.items()]


def seated(recipe: Recipe) -> list[str]:
    """Names of the rewards that run in this process."""
    return [name for name, reward in recipe.rewards.items() if reward.path == "reward_model"]


def seat_models(recipe: Recipe, judge: Judge, placement: Colocated, ranks: Ranks) -> None:
    """Loads the reward models, each with a phase of its own on the device."""
    from rlkit.engines.classifier import Classifier

    for name in seated(recipe):
        path = str(recipe.rewards[name].args["model"])
        scorer = Classifier(
            path,
            dtype_of(recipe, ranks.device),
            device=ranks.device,
            offline=recipe.offline,
            tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        )
        judge.seats[name] = ModelReward(Renderer(path, offline=recipe.offline), scorer, placement.judging).judge


def settings(recipe: Recipe, ranks: Ranks) -> RewardSettings:
    workers = recipe.rewarding.workers or max(1, (os.cpu_count() or 1) * ranks.team_size // ranks.local_world)
    return RewardSettings(**{**recipe.rewarding.model_dump(), "workers": workers})


def collector(recipe: Recipe, desk: Desk, train: Stream[Prompt], ranks: Ranks, sampling: Sampling) -> Collector:
    needs, cut = recipe.algorithm.needs(recipe.updates_per_step), recipe.mask_truncated_completions
    grade = "accuracy" if "accuracy" in recipe.rewards and recipe.rewards["accuracy"].weight else None
    sizes = (recipe.prompts_per_step, recipe.samples_per_prompt)
    return Collector(desk, train, ranks, *sizes, sampling, needs.greedy, needs.max_refills, grade, cut)


def evaluation(recipe: Recipe, desk: Desk, test: list[Any], ranks: Ranks, sampling: Sampling) -> Evaluation:
    greedy = Sampling(temperature=0.0, max_tokens=sampling.max_tokens)
    graded_by = "accuracy" if "accuracy" in recipe.rewards else next(iter(recipe.rewards))
    samples = recipe.eval.samples
    return Evaluation(desk, test, ranks, samples, sampling if samples > 1 else greedy, graded_by)


# -- engines ------------------------------------------------------------------------------------------------------------------------


def crew_of(ranks: Ranks) -> Any:
    """Whom this rank's models share their rows with; None: nobody."""
    from rlkit.engines.ulysses import Crew

    return Crew(ranks.crew) if ranks.crew else None


def make_policy(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.deepspeed import DeepSpeedPolicy

    temperature = recipe.sampling.temperature if recipe.sampling else 1.0
    return DeepSpeedPolicy(
        path,
        dtype,
        temperature=temperature,
        lora=lora_of(recipe),
        four_bits=recipe.model.load_in_4bit,
        crew=crew_of(ranks),
        **learner_settings(recipe, ranks),
    )


def make_critic(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.deepspeed import DeepSpeedCritic

    return DeepSpeedCritic(path, dtype, crew=crew_of(ranks), **learner_settings(recipe, ranks))


def learner_settings(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    from rlkit.engines.zero import OptimizerSettings

    optim = recipe.optim
    return {
        "zero_stage": recipe.engine.zero_stage,
        "optimizer": OptimizerSettings(
            optim.betas, optim.eps, optim.weight_decay, optim.max_grad_norm, recipe.engine.offload == "optimizer"
        ),
        "device": ranks.device,
        "offline": recipe.offline,
        "extra": recipe.engine.deepspeed,
        "recompute": recipe.engine.checkpointing,
    }


def make_engine(recipe: Recipe, path: str, dtype: torch.dtype, names: list[str], renderer: Renderer, ranks: Ranks) -> Any:
    if recipe.engine.rollout == "hf":
        from rlkit.engines.hf import HFEngine

        return HFEngine(path, dtype, device=ranks.device, eos=renderer.eos_ids, pad=renderer.pad_id, offline=recipe.offline)
    from rlkit.engines.vllm import VLLMEngine

    return VLLMEngine(
        path,
        str(dtype).removeprefix("torch."),
        names=names,
        max_model_len=plan.longest(recipe),
        eos=renderer.eos_ids,
        world=ranks.world,
        tensor_parallel=recipe.engine.tensor_parallel,
        gpu=ranks.device.type == "cuda",
        sleeps=ranks.device.type == "cuda" and plan.mode(recipe) != "resident",
        extra={**plan.share(recipe), **recipe.engine.vllm},
        adapter_rank=recipe.model.lora.rank if recipe.engine.lora_sync == "adapter" else None,
    )


def make_reference(recipe: Recipe, policy: Any, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.hf import Reference

    if policy.adapters is not None:
        return BaseOfPolicy(policy)

    temperature = recipe.sampling.temperature
    return Reference(path, dtype, temperature=temperature, device=ranks.device, offline=recipe.offline, crew=crew_of(ranks))


def make_probe(recipe: Recipe, policy: Any, engine: Any, dtype: torch.dtype, sampling: Sampling) -> Probe:
    limit = MISMATCH_LIMIT[dtype] if recipe.engine.mismatch_limit == "auto" else recipe.engine.mismatch_limit
    sent = policy.parts_sent if recipe.engine.lora_sync == "adapter" else policy.weights
    return Probe(engine, sent, None if sampling.truncated else limit)


def make_placement(recipe: Recipe, policy: Any, engine: Any, others: tuple[Any, ...], clock: Clock) -> Colocated:
    movables = tuple(other for other in others if other)
    send, mode = SENDS[recipe.engine.lora_sync], plan.mode(recipe)
    return Colocated(policy, engine, movables, clock, send, mode, predicted=plan.predicted(recipe))


def schedule(recipe: Recipe, lr: float | None = None, waits: int = 0) -> Schedule:
    updates, peak = recipe.updates_per_step, recipe.optim.lr if lr is None else lr
    return Schedule(peak, recipe.optim.schedule, recipe.optim.warmup_steps * updates, recipe.steps * updates - waits)
