"""From a typed recipe to a run: everything is built here, once, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from rlkit import plan
from rlkit.builtin.model import default_cache, ensure_model
from rlkit.checkpoint import Checkpoints
from rlkit.clock import Clock
from rlkit.collector import Collector, Desk
from rlkit.data.renderer import Renderer
from rlkit.data.stream import Prompt, Stream
from rlkit.engines.placement import Colocated
from rlkit.engines.probe import Probe
from rlkit.errors import UserError
from rlkit.evaluate import Evaluation
from rlkit.model_reward import ModelReward
from rlkit.ranks import Ranks
from rlkit.recipe import Recipe, changed
from rlkit.report import Report
from rlkit.rewarding.judge import Judge
from rlkit.rewarding.spec import RewardSettings, RewardSpec
from rlkit.schedule import Schedule
from rlkit.sourcing import sourced, with_steps
from rlkit.stopping import Stopping
from rlkit.trainer import Run
from rlkit.types import Sampling
from rlkit.update import Learning

MISMATCH_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # mean |difference of log-probs|, nats


@contextmanager
def assembled(recipe: Recipe, text: str) -> Iterator[Run]:
    """The run of a recipe; `text` is the resolved recipe as it is written into the folder. On leaving, all that was started ends."""
    stopping = Stopping()
    stopping.install()
    with ExitStack() as stack:
        ranks = Ranks()
        folder = open_folder(recipe, text, ranks)
        judge = stack.enter_context(Judge(specs(recipe), settings(recipe, ranks), folder / "replay", seated(recipe)))
        model_path = made_model(recipe, ranks)
        renderer = Renderer(model_path, chat_template_kwargs=recipe.model.chat_template_kwargs, offline=recipe.offline)
        check_length(recipe, model_path)
        train, test, told = sourced(recipe, renderer)
        recipe = with_steps(recipe, len(train.rows))
        report = stack.enter_context(open_report(recipe, folder, ranks))
        if ranks.main:
            report.write_text("recipe.yaml", text)
        report.header()
        if told:
            report.note(told)
        run = build(recipe, ranks, folder, judge, model_path, renderer, train, test, report, stopping)
        stack.callback(run.collector.desk.engine.close)
        seat_models(recipe, judge, run.placement, ranks)
        judge.ready()
        yield run


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
) -> Run:
    """Loads the engines and puts the parts together."""
    clock = Clock(report.phase)
    dtype = dtype_of(recipe, ranks.device)
    report.phase("loading")
    policy = make_policy(recipe, model_path, dtype, ranks)
    engine = make_engine(recipe, model_path, dtype, policy.names, renderer, ranks)
    needs = recipe.algorithm.needs(recipe.updates_per_step)
    reference = make_reference(recipe, model_path, dtype, ranks) if needs.reference else None
    sampling = Sampling(**recipe.sampling.model_dump(), max_tokens=recipe.max_completion_tokens)
    desk = Desk(engine, judge, renderer, stopping, recipe.seed)
    limit = MISMATCH_LIMIT[dtype] if recipe.engine.mismatch_limit == "auto" else recipe.engine.mismatch_limit
    critic = make_critic(recipe, model_path, dtype, ranks) if needs.values else None
    learning = Learning(
        policy=policy,
        reference=reference,
        critic=critic,
        critic_schedule=schedule(recipe, recipe.algorithm.critic_lr) if needs.values else None,
        policy_waits=recipe.algorithm.critic_warmup_steps * recipe.updates_per_step if needs.values else 0,
        algorithm=recipe.algorithm,
        schedule=schedule(recipe),
        probe=Probe(engine, policy.weights, None if sampling.truncated else limit),
        ranks=ranks,
        passes=recipe.passes_per_step,
        minibatches=recipe.minibatches,
        tokens_per_micro_batch=recipe.tokens_per_micro_batch,
        fixed_length=recipe.max_completion_tokens,
        max_skipped_updates=recipe.engine.max_skipped_updates,
    )
    every = recipe.checkpoint.every
    return Run(
        steps=recipe.steps,
        samples_per_step=recipe.samples_per_step,
        placement=Colocated(policy, engine, tuple(movable for movable in (reference, critic) if movable), clock),
        collector=Collector(desk, train, ranks, recipe.prompts_per_step, recipe.samples_per_prompt, sampling, needs.greedy),
        evaluation=evaluation(recipe, desk, test, ranks, sampling) if test else None,
        eval_every=recipe.eval.every,
        learning=learning,
        state=recipe.algorithm.start(),
        checkpoints=Checkpoints(folder / "checkpoints", every=every, keep=recipe.checkpoint.keep, main=ranks.main, barrier=ranks.barrier),
        keep_best=recipe.checkpoint.best,
        report=report,
        clock=clock,
        ranks=ranks,
        stopping=stopping,
        folder=folder,
        decode=renderer.decode,
        save_tokenizer=renderer.save,
    )


# -- the folder ---------------------------------------------------------------------------------------------------------------------


def open_folder(recipe: Recipe, text: str, ranks: Ranks) -> Path:
    """The run's folder, the same on all ranks. Raises UserError where it holds a finished run or one of another recipe."""
    started = ranks.gather(time.strftime("%Y-%m-%d_%H-%M-%S"))[0]
    folder = Path(recipe.output_dir or f"runs/{recipe.recipe}/{started}").absolute()
    why = ranks.gather(occupied(folder, text, recipe.resume) if ranks.main else None)[0]
    if why:
        raise UserError(why)
    return folder


def occupied(folder: Path, text: str, resume: str) -> str | None:
    """Why this recipe cannot go on in a folder; None where it can, or where it is the first there."""
    kept = folder / "recipe.yaml"
    if not kept.is_file():
        return None
    if resume == "never":
        return f"output_dir {folder} holds a run already, and resume=never; choose another output_dir"
    if status(folder) == "done":
        return f"output_dir {folder} holds a finished run; choose another output_dir, or delete it to run again"
    import yaml

    differences = changed(yaml.safe_load(kept.read_text()), yaml.safe_load(text))
    if not differences:
        return None
    shown = "\n".join(f"  {line}" for line in differences[:6])
    return f"output_dir {folder} holds a run of another recipe; what changed:\n{shown}\nchoose another output_dir, or put these back"


def status(folder: Path) -> str | None:
    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return found.get("status")


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
    workers = recipe.rewarding.workers or max(1, (os.cpu_count() or 1) // ranks.local_world)
    return RewardSettings(**{**recipe.rewarding.model_dump(), "workers": workers})


def evaluation(recipe: Recipe, desk: Desk, test: list[Any], ranks: Ranks, sampling: Sampling) -> Evaluation:
    greedy = Sampling(temperature=0.0, max_tokens=sampling.max_tokens)
    graded_by = "accuracy" if "accuracy" in recipe.rewards else next(iter(recipe.rewards))
    samples = recipe.eval.samples
    return Evaluation(desk, test, ranks, samples, sampling if samples > 1 else greedy, graded_by)


# -- engines ------------------------------------------------------------------------------------------------------------------------


def made_model(recipe: Recipe, ranks: Ranks) -> str:
    """The path of the model; the built-in one is made here if this machine has not made it yet."""
    if recipe.model.path != "builtin":
        return recipe.model.path

    def progress(done: int, total: int, loss: float) -> None:
        if ranks.main and (done % 100 == 0 or done <= 10 or done == total):
            print(f"making the built-in model, once on this machine: {done}/{total}  loss {loss:.3f}", flush=True)

    return str(ensure_model(default_cache(), progress))


def dtype_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    if recipe.model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[recipe.model.dtype]


def check_length(recipe: Recipe, path: str) -> None:
    """The longest sample fits into the model's context. Raises UserError where it does not."""
    config = Path(path) / "config.json"
    context = json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None
    if context and plan.longest(recipe) > context:
        raise UserError(
            f"max_prompt_tokens + max_completion_tokens = {plan.longest(recipe)} is more than the {context} tokens that model.path {path} "
            "can hold; lower one of them"
        )


def make_policy(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.deepspeed import DeepSpeedPolicy

    return DeepSpeedPolicy(path, dtype, temperature=recipe.sampling.temperature, **learner_settings(recipe, ranks))


def make_critic(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.deepspeed import DeepSpeedCritic

    return DeepSpeedCritic(path, dtype, **learner_settings(recipe, ranks))


def learner_settings(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    from rlkit.engines.deepspeed import OptimizerSettings

    optim = recipe.optim
    return {
        "zero_stage": recipe.engine.zero_stage,
        "optimizer": OptimizerSettings(optim.betas, optim.eps, optim.weight_decay, optim.max_grad_norm),
        "device": ranks.device,
        "offline": recipe.offline,
        "extra": recipe.engine.deepspeed,
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
        sleeps=ranks.device.type == "cuda",
        extra=recipe.engine.vllm,
    )


def make_reference(recipe: Recipe, path: str, dtype: torch.dtype, ranks: Ranks) -> Any:
    from rlkit.engines.hf import Reference

    return Reference(path, dtype, temperature=recipe.sampling.temperature, device=ranks.device, offline=recipe.offline)


def schedule(recipe: Recipe, lr: float | None = None) -> Schedule:
    updates = recipe.updates_per_step
    return Schedule(
        recipe.optim.lr if lr is None else lr, recipe.optim.schedule, recipe.optim.warmup_steps * updates, recipe.steps * updates
    )
