"""Keys that people bring from other toolkits are answered with ours; a key of another algorithm is named as that."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit import run
from rlkit.algorithms import ALGORITHMS, OFFLINE
from rlkit.config.compose import compose_config
from rlkit.config.foreign_keys import FOREIGN_KEYS, FOREIGN_KEYS_OFFLINE
from rlkit.config.keys import list_entries
from rlkit.config.migration import format_migration_page
from rlkit.config.recipe import read_recipe
from rlkit.config.renamed import split_answer
from rlkit.errors import UserError
from tests.conftest import ROOT

ANSWERS = {  # a key as it is written, and what it is called here
    "num_generations": "samples_per_prompt",
    "learning_rate": "optim.lr",
    "lr": "optim.lr",
    "per_device_train_batch_size": "prompts_per_step",
    "gradient_accumulation_steps": "tokens_per_micro_batch",
    "max_prompt_length": "max_prompt_tokens",
    "max_completion_length": "max_completion_tokens",
    "num_train_epochs": "data.epochs",
    "max_steps": "steps",
    "warmup_ratio": "optim.warmup_steps",
    "lr_scheduler_kwargs": "optim.min_lr_ratio",
    "load_best_model_at_end": "checkpoint.best=export",
    "metric_for_best_model": "eval.select",
    "early_stopping_patience": "eval.patience",
    "actor.optim.min_lr_ratio": "optim.min_lr_ratio",
    "cast_lm_head_to_fp32": "model.float32_head",
    "lr_scheduler_type": "optim.schedule",
    "beta": "algorithm.kl_coef",
    "algorithm.beta": "algorithm.kl_coef",
    "kl_coef": "algorithm.kl_coef",
    "epsilon_high": "algorithm.clip_high",
    "num_iterations": "passes_per_step",
    "temperature": "sampling.temperature",
    "reward_funcs": "rewards.NAME.path",
    "model_name_or_path": "model.path",
    "lora_r": "model.lora.rank",
    "save_steps": "checkpoint.every",
    "report_to": "report.wandb",
    "use_vllm": "engine.rollout",
    "clip_high": "algorithm.clip_high",
    "rollout.n": "samples_per_prompt",
    "actor_rollout_ref.rollout.n": "samples_per_prompt",
    "worker.rollout.n": "samples_per_prompt",
    "trainer.total_epochs": "data.epochs",
    "total_epochs": "data.epochs",
    "actor.optim.lr": "optim.lr",
    "actor_rollout_ref.actor.optim.lr": "optim.lr",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "updates_per_step",
    "data.train_files": "data.train",
    "data.max_response_length": "max_completion_tokens",
    "algorithm.adv_estimator": "algorithm",
    "algorithm.kl_ctrl.kl_coef": "algorithm.kl_coef",
    "trainer.n_gpus_per_node": "launch.gpus_per_node",
    "custom_reward_function.path": "rewards.NAME.path",
    "data.rollout_batch_size": "prompts_per_step",
    "worker.reward.reward_function": "rewards.NAME.path",
    "pretrain": "model.path",
    "n_samples_per_prompt": "samples_per_prompt",
    "init_kl_coef": "algorithm.kl_coef",
    "micro_train_batch_size": "tokens_per_micro_batch",
    "adam_offload": "engine.offload=optimizer",
    "lora_target": "model.lora.targets",
    "quantization_bit": "model.load_in_4bit",
    "tools": "environment.path",
    "environment_factory": "environment.path",
    "max_tool_calling_iterations": "environment.max_turns",
    "actor_rollout_ref.rollout.multi_turn.max_user_turns": "environment.max_turns",
    "rollout.multi_turn.max_assistant_turns": "environment.max_turns",
    "multi_turn.tool_config_path": "environment.path",
    "actor_rollout_ref.rollout.multi_turn.format": "environment.parser",
    "agent_func_path": "environment.path",
}


@cache
def config_of(recipe: str) -> dict[str, Any]:
    return compose_config([f"recipe={recipe}"], None)


def refuse(key: str, value: Any = 8, recipe: str = "grpo_math") -> str:
    """The message for a resolved recipe with one more key."""
    config = yaml.safe_load(yaml.safe_dump(config_of(recipe)))
    *sections, name = key.split(".")
    here = config
    for section in sections:
        here = here.setdefault(section, {})
    here[name] = value
    with pytest.raises(UserError) as refused:
        read_recipe(config)
    return str(refused.value)


@pytest.mark.parametrize("key", ANSWERS)
def test_a_key_of_another_toolkit_is_answered_with_ours(key: str) -> None:
    message = refuse(key)
    assert re.search(rf"(is {re.escape(ANSWERS[key])} here|did you mean {re.escape(ANSWERS[key])}\?)(: |$|\))", message), message
    assert len(message.splitlines()) == 1


def test_one_needs_no_key_where_it_is_always_so() -> None:
    assert refuse("colocate_all_models", True) == "colocate_all_models (OpenRLHF) needs no key here: always"


def test_the_algorithm_decides_what_a_key_means() -> None:
    assert refuse("beta", 0.1, "dpo_math") == "beta (TRL) is algorithm.beta here"
    assert refuse("loss_type", "ipo", "dpo_math") == "loss_type (TRL) is algorithm.loss here"


def test_a_key_of_another_algorithm_is_named_as_that() -> None:
    assert refuse("algorithm.gae_lambda", 0.9) == "algorithm.gae_lambda belongs to ppo, and this recipe has algorithm=grpo"
    assert refuse("algorithm.clip_high", 0.28, "dpo_math").endswith("reinforce_pp_baseline, ppo, opd, and this recipe has algorithm=dpo")
    assert refuse("algorithm.beta", 0.1) == (
        "algorithm.beta belongs to dpo, kto, and this recipe has algorithm=grpo; beta (TRL) is algorithm.kl_coef here"
    )


def test_a_whole_section_of_another_toolkit_is_answered_key_by_key() -> None:
    assert refuse("trainer", {"total_epochs": 3, "nnodes": 2, "xyz": 1}).splitlines() == [
        "trainer.total_epochs (verl) is data.epochs here: with steps=null",
        "trainer.nnodes (verl) is launch.nodes here",
    ]


def test_every_answer_names_keys_that_there_are() -> None:
    known = {entry.key for entry in list_entries()} | {"data.train", "data.test"}
    for project, table in [*FOREIGN_KEYS.items(), *FOREIGN_KEYS_OFFLINE.items()]:
        for theirs, ours in table.items():
            names, note = split_answer(ours)
            assert names or note, (project, theirs)
            for name in filter(None, names.split(" and ")):
                key = name.partition("=")[0]
                assert key in known or key == "rewards.NAME" or key.startswith("engine.vllm."), (project, theirs, ours)
    assert sum(map(len, FOREIGN_KEYS.values())) > 200 and set(ALGORITHMS) & set(OFFLINE) == set()


def test_a_flag_of_another_toolkit_is_answered_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=grpo_math", "--num-generations=8"]) == 2
    told = capsys.readouterr().err
    assert told == "rlkit: unknown flag --num-generations=8; num_generations (TRL) is samples_per_prompt here; write key=value\n"


# -- how a recipe may be named ---------------------------------------------------------------------------------------------------


def test_the_bare_name_of_a_recipe_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert compose_config(["grpo_math", "seed=3"], None) == compose_config(["recipe=grpo_math", "seed=3"], None)
    assert run.main(["grpo_mat", "steps=1"]) == 2
    assert "'grpo_mat' is not an override; write key=value (did you mean grpo_math" in capsys.readouterr().err


def test_a_model_where_a_file_of_recipes_is_expected(capsys: pytest.CaptureFixture[str]) -> None:
    for word, meant in (("model=Qwen/Qwen3-0.6B", "model.path=Qwen/Qwen3-0.6B"), ("data=mine.jsonl", "data.train=mine.jsonl")):
        assert run.main(["recipe=grpo_math", word]) == 2
        assert f"or did you mean {meant}?" in capsys.readouterr().err


def test_the_recipe_of_a_run_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It resolves to itself, and keys are set on it; what is chosen by files of recipes/ is settled."""
    first = compose_config(["recipe=ppo_math", "seed=5", "data.answer_pattern='(\\d+)'", "rewards.b.path=length"], None)
    file = tmp_path / "a run" / "recipe.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(first))
    assert compose_config([str(file)], None) == first
    again = compose_config([str(file), "steps=3", "data.train=other.jsonl"], None)
    assert (again["steps"], again["data"]["test"], again["recipe"]) == (3, None, "ppo_math")
    for words, message in (
        ([str(file), "algorithm=grpo"], "algorithm=grpo chooses a file of recipes/algorithm, and a run's own recipe is resolved already"),
        ([str(file), "recipe=grpo_math"], "is a recipe, and so is recipe=grpo_math; name one"),
        ([str(tmp_path / "no.yaml")], "cannot be read as a recipe"),
        ([str(Path("recipes/recipe/grpo_math.yaml").absolute())], "is not the resolved recipe of a run"),
    ):
        assert run.main(words) == 2
        assert message in capsys.readouterr().err
    assert run.main([str(file), "steps=x", "-m"]) == 2
    assert "steps='x' is not valid" in capsys.readouterr().err


def test_cfg_job_checks_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=grpo_math", "sampels_per_prompt=3", "--cfg", "job"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "did you mean samples_per_prompt" in told.err


def test_the_page_for_those_who_come_from_elsewhere_is_the_one_that_the_tables_make() -> None:
    page = (ROOT / "rlkit" / "docs" / "migrate.md").read_text()
    assert page == format_migration_page(), "python -m rlkit.config.migration > rlkit/docs/migrate.md"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(map(len, [*FOREIGN_KEYS.values(), *FOREIGN_KEYS_OFFLINE.values()]))
