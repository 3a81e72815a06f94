"""Which teachers and which rewards fit a recipe of distillation."""

from __future__ import annotations

import re

import pytest

from rlkit.errors import UserError
from tests.config.test_recipe import composed

TAUGHT = ("recipe=opd_math", "model.teacher.path=my_teacher")
SERVED = ("recipe=opd_math", "model.teacher.url=http://127.0.0.1:8000/v1")


def test_an_algorithm_that_needs_no_rewards_may_have_none() -> None:
    assert [reward.weight for reward in composed(*TAUGHT).all_rewards.values()] == [0.0] and composed(*TAUGHT).samples_per_prompt == 1
    assert composed(*TAUGHT, "~rewards.accuracy", "data.test=null").all_rewards == {}
    assert composed(*TAUGHT, "rewards.accuracy.weight=1", "samples_per_prompt=2").all_rewards["accuracy"].weight == 1
    assert composed(*SERVED).model.teacher.path is None
    with pytest.raises(UserError, match="rewards is not set, and algorithm=grpo samples and is rewarded; set rewards"):
        composed("recipe=grpo_math", "~rewards.accuracy")


UNFIT = {
    "none": (["recipe=opd_math"], "algorithm=opd learns from a teacher, and there is none; set model.teacher.path to a model with the"),
    "unused": (["recipe=grpo_math", "model.teacher.path=x"], "model.teacher.path is set, and algorithm=grpo learns from no teacher"),
    "no url": (
        ["recipe=opd_math", "model.teacher.url=10.0.0.7:80"],
        "model.teacher.url=10.0.0.7:80 is not valid: it should begin with http",
    ),
    "two": ([*SERVED, "model.teacher.path=x"], "model.teacher.path and model.teacher.url name two teachers"),
    "a key of nothing": ([*TAUGHT, "model.teacher.api_key=x"], "model.teacher.api_key is of a server, and model.teacher.url names none"),
    "warm": ([*SERVED, "sampling.temperature=0.7"], "a server returns log-probs at temperature 1, which are not comparable"),
    "far": ([*SERVED[:-1], "model.teacher.url=http://big.example/v1", "offline=true"], "model.teacher.url is a URL of big.example"),
    "one sample": (
        [*TAUGHT, "rewards.accuracy.weight=1"],
        "samples_per_prompt=1: algorithm=opd compares the rewards of a prompt's samples",
    ),
    "ungraded": ([*TAUGHT, "~rewards.accuracy"], "without rewards nothing grades what an evaluation samples; set data.test=null"),
    "offline": (["recipe=sft_math", "model.teacher.path=x"], "model.teacher.path is set, and algorithm=sft learns from no teacher"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_teacher_that_does_not_fit_is_refused(case: str) -> None:
    words, message = UNFIT[case]
    with pytest.raises(UserError, match=re.escape(message)):
        composed(*words)
