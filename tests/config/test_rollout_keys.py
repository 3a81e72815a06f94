"""The section `rollout`: what recipes choose, and what does not fit beside samples that are carried to the next step."""

from __future__ import annotations

import pytest

from rlkit.errors import UserError
from tests.config.test_recipe import composed


def test_long_answers_are_carried_over_with_a_correction_of_whole_samples() -> None:
    for words in (["recipe=grpo_qwen2_5_7b"], ["recipe=dapo_math", "rollout=carry_over"]):
        recipe = composed(*words)
        assert (recipe.rollout.over_ask, recipe.max_lag) == (1.25, 2)
        correction = recipe.algorithm
        assert (correction.correction, correction.correction_level, correction.correction_floor) == ("mask", "sequence", 0.5)
    lags = {"recipe=grpo_math": 0, "recipe=dapo_math": 1}
    assert {word: composed(word).max_lag for word in lags} == lags and composed("recipe=grpo_math", "rollout.over_ask=2").max_lag == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=sft_math", "rollout.over_ask=1.5"], "rollout.over_ask=1.5: algorithm=sft samples nothing; set it to 1.0"),
        (["recipe=grpo_math", "rollout=carry_over", "environment.path=wordle"], "cannot hold the open sessions of an environment"),
        (["recipe=grpo_math", "rollout.over_ask=2.1"], "rollout.over_ask=2.1 is not valid"),
        (["recipe=grpo_math", "rollout.over_ask=1.5", "algorithm.correction=none"], "up to 1 step older than the policy"),
        (["recipe=grpo_math", "rollout=carry_over", "algorithm.correction=none", "algorithm.correction_floor=0"], "up to 2 steps older"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        composed(*words)
    assert message in str(refused.value)
