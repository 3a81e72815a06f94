"""The section `eval`: which reward grades which set, what is never trained on, and what is refused in words."""

from __future__ import annotations

import pytest

from rlkit.config.eval_section import find_grader, list_scored_rewards, list_second_opinions
from rlkit.errors import UserError
from tests.config.test_recipe import composed

SET = "eval.sets.aime={path: aime.jsonl, samples: 4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{SET}, pass_at: [1, 8]}}"], "pass@8 needs at least 8 samples of a problem, and eval.sets.aime.samples=4; set samples=8"),
        ([f"{SET}, grader: judge}}"], "eval.sets.aime.grader=judge is no reward of the recipe; valid: accuracy, or {path: judge}"),
        ([f"{SET}, sampling: {{temperature: 0.0}}}}"], "samples=4 with temperature 0 are all the same"),
        (["eval.sets.rewards={path: a.jsonl}"], "rewards is the name of a group of metrics"),
        ([f"{SET}}}", "eval.select=aime/pass@2"], "valid: accuracy, reward, aime/accuracy, aime/reward, aime/pass@4, aime/maj@4"),
        ([f"{SET}, weight: 2}}"], "unknown key eval.sets.aime.weight"),
        (["eval.second_opinion={accuracy: {path: length}}"], "accuracy is a reward of the recipe and of the section eval"),
        (["recipe=sft_math", f"{SET}}}"], "eval.sets: algorithm=sft samples nothing that could be graded"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        composed(*(["recipe=grpo_math"] if not words[0].startswith("recipe=") else []), *words)
    assert message in str(refused.value)


def test_a_set_has_its_own_grader_or_one_of_the_recipe() -> None:
    recipe = composed("recipe=grpo_math", f"{SET}, grader: {{path: exact_match}}}}", "eval.sets.other={path: b.jsonl}")
    assert (find_grader(recipe), find_grader(recipe, "aime"), find_grader(recipe, "other")) == ("accuracy", "aime_grader", "accuracy")
    assert list(list_scored_rewards(recipe)) == ["accuracy", "strict_accuracy", "aime_grader"]
    assert [one.pass_counts for one in recipe.eval.sets.values()] == [(4,), ()]


def test_a_second_opinion_is_never_trained_on() -> None:
    """By default it is a strict comparison, where `accuracy` grades."""
    assert list(list_second_opinions(composed("recipe=grpo_math"))) == ["strict_accuracy"]
    assert list_second_opinions(composed("recipe=grpo_math", "eval.second_opinion={}")) == {}
    assert list_second_opinions(composed("recipe=grpo_math", "rewards.accuracy.path=exact_match")) == {}
    assert list_second_opinions(composed("recipe=sft_math")) == {}
    (judge,) = list_second_opinions(composed("recipe=grpo_math", "eval.second_opinion={judge: {path: exact_match}}")).values()
    assert (judge.weight, judge.counts) == (0.0, False)
