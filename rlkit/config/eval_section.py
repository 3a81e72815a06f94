"""The section `eval` of a recipe: on what and how often a run is evaluated, and who else looks at its reward.

`data.test` is the short form of one set; `eval.sets` holds several by name. A `recipe` is that of recipe.py, which imports this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from rlkit.config.sections import Count, CountOrZero, Fraction, Name, RowsSection, Section
from rlkit.fields import describe_field
from rlkit.rewarding.spec import RewardSpec

RESERVED = ("completions", "rewards", "logps", "second_opinion")  # groups of metrics under eval/
STRICT = "strict_accuracy"  # the shipped reward that is the default second opinion on `accuracy`
SET_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


class EvalSamplingSection(Section):
    """How the completions of a set are sampled."""

    temperature: Annotated[float, Field(strict=True, ge=0.0, le=2.0)] = 1.0  # 0: greedy
    top_p: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 1.0
    top_k: CountOrZero = 0
    min_p: Fraction = 0.0


class EvalSetSection(RowsSection):
    """One set of held-out problems. The user names it, so no file can hold its defaults."""

    every: CountOrZero | None = describe_field(
        "between evaluations on this set; 0: only before and after; null: eval.every", unit="steps", default=None
    )
    problems: Count | None = describe_field("of this set, from its beginning; null: all", unit="rows", default=None)
    samples: Count = describe_field("completions of each problem", unit="samples", default=1)
    pass_at: tuple[Count, ...] | None = describe_field(
        "each k of pass@k, at most `samples`: [1, 4, 16]; null: k = samples, where that is above 1", default=None
    )
    sampling: EvalSamplingSection | None = describe_field(
        "{temperature: 0.6, top_p: 0.95}, also top_k and min_p; null: greedy for one sample, else as `sampling`", default=None
    )
    max_completion_tokens: Count | None = describe_field(
        "where sampling stops on this set; null: max_completion_tokens", unit="tokens", default=None
    )
    grader: Name | RewardSpec | None = describe_field(
        "a reward of the recipe by name, or one that scores this set alone: {path: multiple_choice}; null: accuracy, else the first reward",
        default=None,
    )

    @property
    def pass_counts(self) -> tuple[int, ...]:
        """The k of pass@k, ascending."""
        return tuple(sorted(set(self.pass_at))) if self.pass_at is not None else (self.samples,) if self.samples > 1 else ()


class EvalSection(Section):
    every: CountOrZero = describe_field("between evaluations; 0: only before and after", unit="steps")
    problems: Count | None = describe_field("of the test set, from its beginning; null: all", unit="rows")
    samples: Count = describe_field(
        "1: greedy; k: k samples with the settings of `sampling`, for pass@k, of the problems whose k are all graded", unit="samples"
    )
    sets: dict[str, EvalSetSection] = describe_field(
        "held-out sets by name, beside data.test: {gsm8k: {path: openai/gsm8k:main@test}, aime: {path: aime.jsonl, samples: 16}}"
    )
    select: Name | None = describe_field(
        "the metric of an evaluation, without eval/, by which the best is selected: accuracy, reward, pass@K, or loss; of a set "
        "NAME/accuracy, NAME/reward, NAME/pass@K, NAME/maj@K; null: accuracy, of sft loss"
    )
    patience: Count | None = describe_field(
        "evaluations in a row without a better eval.select, after which the run stops early and is done; null: never", unit="evaluations"
    )
    second_opinion: dict[str, RewardSpec] | None = describe_field(
        "rewards that score the same completions and are never trained on, to see whether the reward is gamed: {judge: {path: llm_judge}}; "
        "null: strict_accuracy where `accuracy` grades; {}: none"
    )
    drift: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = describe_field(
        "share of completions that the grader calls right and the second opinion does not, above what it was at first, that raises an alarm"
    )
    on_drift: Literal["warn", "stop"] = describe_field("what follows an alarm: a warning with samples, or the run also stops, saved")


def find_grader(recipe: Any, name: str | None = None) -> str | None:
    """The name of the reward that grades a set (None: data.test, and the samples of a step); None where there is none."""
    asked = recipe.eval.sets[name].grader if name is not None else None
    if isinstance(asked, RewardSpec):
        return f"{name}_grader"
    rewards = recipe.all_rewards
    return asked or ("accuracy" if "accuracy" in rewards else next(iter(rewards), None))


def list_set_graders(recipe: Any) -> dict[str, RewardSpec]:
    """The rewards that score the samples of one set alone, by name."""
    return {f"{name}_grader": one.grader for name, one in recipe.eval.sets.items() if isinstance(one.grader, RewardSpec)}


def list_second_opinions(recipe: Any) -> dict[str, RewardSpec]:
    """The rewards that are watched and never trained on, by name."""
    if recipe.offline_algorithm:
        return {}
    asked, rewards, grader = recipe.eval.second_opinion, recipe.all_rewards, find_grader(recipe)
    if asked is None:
        asked = {STRICT: RewardSpec(path=STRICT)} if grader and rewards[grader].path == "accuracy" and STRICT not in rewards else {}
    return {name: reward.model_copy(update={"weight": 0.0, "gate": False}) for name, reward in asked.items()}


def list_scored_rewards(recipe: Any) -> dict[str, RewardSpec]:
    """All rewards that run, by name: those of the recipe, second opinions, and graders of single sets."""
    return {**recipe.all_rewards, **list_second_opinions(recipe), **list_set_graders(recipe)}


def find_eval_conflicts(recipe: Any) -> Iterator[str]:
    """Why the section `eval` does not fit itself or the rest of the recipe."""
    own = recipe.eval
    if recipe.offline_algorithm and (own.sets or own.second_opinion):
        key = "eval.sets" if own.sets else "eval.second_opinion"
        yield f"{key}: algorithm={recipe.algorithm.name} samples nothing that could be graded; set data.test for its held-out rows"
        return
    for name in own.sets:
        yield from find_set_conflicts(recipe, name)
    if names := [name for name in own.second_opinion or {} if name in ("drift", "alarms")]:
        yield f"eval.second_opinion.{names[0]}: {names[0]} is the name of a metric (second_opinion/{names[0]}); give it another one"
    rewards = set(recipe.all_rewards)
    if taken := sorted(rewards & set(list_second_opinions(recipe)) or rewards & set(list_set_graders(recipe))):
        yield f"{taken[0]} is a reward of the recipe and of the section eval; give one of the two another name"


def find_set_conflicts(recipe: Any, name: str) -> Iterator[str]:
    """Why a set cannot be evaluated as it asks."""
    one, key, rewards = recipe.eval.sets[name], f"eval.sets.{name}", recipe.all_rewards
    if not SET_NAME.fullmatch(name):
        yield f"{key}: {name!r} cannot be the name of a set; write letters, digits, _ and -, as in math-500"
    if name in RESERVED:
        yield f"{key}: {name} is the name of a group of metrics (eval/{name}/...); give the set another one"
    if above := [k for k in one.pass_counts if k > one.samples]:
        yield (
            f"{key}.pass_at={list(one.pass_at or ())}: pass@{above[0]} needs at least {above[0]} samples of a problem, and "
            f"{key}.samples={one.samples}; set samples={max(above)}, or leave {above[0]} out"
        )
    if one.samples > 1 and one.sampling is not None and one.sampling.temperature == 0:
        yield f"{key}: samples={one.samples} with temperature 0 are all the same; set samples=1, or a temperature"
    if isinstance(one.grader, RewardSpec):
        if one.grader.path == "environment":
            yield f"{key}.grader.path=environment: the environment's reward is that of the whole run; set grader=environment"
        return
    if find_grader(recipe, name) is None:
        yield f"{key} has no grader, and the recipe has no rewards; set {key}.grader, such as {{path: accuracy}}"
    elif one.grader is not None and one.grader not in rewards:
        valid = f"valid: {', '.join(rewards)}, or " if rewards else ""
        yield f"{key}.grader={one.grader} is no reward of the recipe; {valid}{{path: {one.grader}}} for one that scores this set alone"


def find_selection_conflicts(recipe: Any) -> Iterator[str]:
    """Why no evaluation can be selected as the best, where the recipe asks for it."""
    asked = {"eval.select": recipe.eval.select, "eval.patience": recipe.eval.patience, "checkpoint.best": recipe.checkpoint.best}
    asking = [f"{key}={str(value).lower()}" for key, value in asked.items() if value]
    if asking and recipe.data.test is None and not recipe.eval.sets:
        yield f"{asking[0]} selects by evaluations, and data.test=null turns them off; set data.test, or leave it out"
    own = {name: one.every for name, one in recipe.eval.sets.items() if (recipe.eval.select or "").startswith(f"{name}/")}
    if recipe.eval.patience and not recipe.eval.every and not any(own.values()):
        yield f"eval.patience={recipe.eval.patience} counts evaluations during training, and eval.every=0 does none; set eval.every"
    if recipe.eval.select not in (None, *recipe.selectable):
        yield (
            f"eval.select={recipe.eval.select} is no metric that the evaluations of algorithm={recipe.algorithm.name} select by; "
            f"valid: {', '.join(recipe.selectable)}"
        )


def list_selectable(recipe: Any) -> tuple[str, ...]:
    """The metrics of evaluations by which a best one can be selected, the default first."""
    test, own = recipe.data.test is not None, recipe.eval
    found = ["accuracy", "reward", *([f"pass@{own.samples}", f"maj@{own.samples}"] if own.samples > 1 else [])] if test else []
    for name, one in own.sets.items():
        names = ["accuracy", "reward", *(f"pass@{k}" for k in one.pass_counts), *([f"maj@{one.samples}"] if one.samples > 1 else [])]
        found += [f"{name}/{metric}" for metric in names]
    return tuple(found) or ("accuracy", "reward")
