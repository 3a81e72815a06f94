"""The evaluations of a run: data.test, and the sets of eval.sets, each with its own rows, sampling and grader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlkit.assembly.context import BuildContext, require
from rlkit.assembly.datasets import build_row_set
from rlkit.config.eval_section import EvalSetSection, find_grader, list_second_opinions
from rlkit.config.recipe import Recipe
from rlkit.data.columns import RowReader
from rlkit.data.renderer import Renderer
from rlkit.data.stream import Prompt
from rlkit.rewarding.spec import RewardSpec
from rlkit.rollout.evaluation import Evaluation, describe_few
from rlkit.rollout.records import name_split
from rlkit.rollout.sampler import Sampler
from rlkit.types import Sampling

TEST, TEST_PATH = "", "data.test"  # the name of data.test among the sets, and what stands for its path


def read_sets(
    recipe: Recipe, renderer: Renderer, sources: Mapping[str, list[RowReader[Any]]], note: Callable[[str], None]
) -> dict[str, list[Prompt]]:
    """The problems of data.test and of each set, by name. sources: what open_sources returned. note: gets a line on rows left out."""
    found: dict[str, list[Prompt]] = {}
    limits = {TEST: recipe.eval.problems, **{name: one.problems for name, one in recipe.eval.sets.items()}}
    for name, limit in limits.items():
        if not sources[name_split(name)]:  # there is no data.test
            continue
        rows = build_row_set(recipe, renderer, "prompts", sources[name_split(name)])
        found[name], counts = rows.read_all(limit)
        if skipped := rows.describe_skips(counts):
            note(skipped)
    return found


def build_evaluations(
    context: BuildContext, sampler: Sampler, held_out: Mapping[str, Sequence[Prompt]], warn: Callable[[str], None]
) -> list[Evaluation]:
    """An evaluation of each set that has problems. held_out: by name, TEST for data.test. warn: gets a line on each small set."""
    recipe, evaluations = context.recipe, []
    for name, prompts in held_out.items():
        if not prompts:
            continue
        one = describe_test(recipe) if name == TEST else recipe.eval.sets[name]
        grader = find_grader(recipe, name or None)
        assert grader is not None  # a set without one is refused with the recipe
        own = frozenset([grader]) if isinstance(one.grader, RewardSpec) else None
        evaluations.append(
            Evaluation(
                sampler,
                prompts,
                context.ranks,
                one.samples,
                choose_sampling(recipe, one),
                grader,
                name,
                every=recipe.eval.every if one.every is None else one.every,
                pass_counts=one.pass_counts,
                graders=own,
                opinions=() if own else tuple(list_second_opinions(recipe)),
            )
        )
        if few := describe_few(f"eval.sets.{name}" if name else "data.test", len(prompts)):
            warn(few)
    return evaluations


def describe_test(recipe: Recipe) -> EvalSetSection:
    """data.test as one of the sets, whose settings are keys of `eval`."""
    return EvalSetSection(path=TEST_PATH, problems=recipe.eval.problems, samples=recipe.eval.samples)


def choose_sampling(recipe: Recipe, one: EvalSetSection) -> Sampling:
    """How the completions of a set are sampled: as it asks, else greedily for one of each problem and as in training for several."""
    limit = one.max_completion_tokens or recipe.max_completion_tokens
    if one.sampling is not None:
        return Sampling(**one.sampling.model_dump(), max_tokens=limit)
    if one.samples == 1:
        return Sampling(temperature=0.0, max_tokens=limit)
    return Sampling(**require(recipe.sampling).model_dump(), max_tokens=limit)


def name_measure(recipe: Recipe) -> str:
    """The metric, without eval/, by which the model is judged: the accuracy on data.test, or on the first set."""
    return "accuracy" if recipe.data.test is not None or not recipe.eval.sets else f"{next(iter(recipe.eval.sets))}/accuracy"


def describe_sets(recipe: Recipe) -> list[tuple[str, str]]:
    """A line of the header on the sets; none where there are none."""

    def describe(name: str, one: EvalSetSection) -> str:
        parts = ["greedy" if choose_sampling(recipe, one).greedy else f"{one.samples} sample{'s' if one.samples > 1 else ''} each"]
        parts += [f"every {one.every} steps" if one.every else "before and after"] if one.every is not None else []
        return f"{name}: {one.path} ({', '.join(parts)}, graded by {find_grader(recipe, name)})"

    sets = recipe.eval.sets
    return [("eval sets", "; ".join(describe(name, one) for name, one in sets.items()))] if sets else []
