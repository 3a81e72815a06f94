"""The typed recipe and the door in front of it: what is composed, what is refused and in which words, what a dry run touches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit import run
from rlkit.assembly.datasets import count_steps
from rlkit.config import recipe as recipes
from rlkit.config.compose import compose_config
from rlkit.config.identity import list_changes
from rlkit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SIZES = ["prompts_per_step=48", "samples_per_prompt=8", "max_prompt_tokens=48", "max_completion_tokens=64", "tokens_per_micro_batch=4096"]
PAIRS = ["data.train=pairs/train.jsonl", "data.test=pairs/test.jsonl"]  # what no recipe can know
GIVEN = dict.fromkeys(("dpo_gsm8k", "dpo_qwen2_5_7b", "dpo_llama3_1_8b_lora"), PAIRS)
OWN = ["model.path=my_model", "data.train=my_train.jsonl", "data.test=my_test.jsonl"]
GIVEN["opd_math"] = ["model.teacher.path=my_teacher"]
GIVEN |= dict.fromkeys(("grpo", "ppo", "dpo", "kto", "sft"), OWN)
GIVEN |= {"grpo_search": [*OWN, "environment.args.file=documents.jsonl"]}
RECIPES = sorted(path.stem for path in (ROOT / "recipes" / "recipe").glob("*.yaml"))


def composed(*overrides: str) -> recipes.Recipe:
    return recipes.read_recipe(compose_config(list(overrides), None))


def door(*arguments: str, cwd: Path, code: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The real door in a process of its own, in an empty folder."""
    start = ["-m", "rlkit.run"] if code is None else ["-c", code]
    full = {**os.environ, "PYTHONPATH": str(ROOT), "RLKIT_CACHE": str(cwd / "cache"), **env}
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, cwd=cwd, env=full, timeout=120, check=False)


# -- what is shipped ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_loads(name: str) -> None:
    recipe = composed(f"recipe={name}", *GIVEN.get(name, []))
    assert recipe.recipe == name and (recipe.samples_per_prompt is None) == recipe.offline_algorithm
    assert len((ROOT / "recipes" / "recipe" / f"{name}.yaml").read_text().splitlines()) < 40


def test_the_recipes_that_people_are_told_of() -> None:
    assert {"grpo_math", "grpo_gsm8k"} <= set(RECIPES)
    math, gsm8k = composed("recipe=grpo_math"), composed("recipe=grpo_gsm8k")
    assert (math.model.path, math.engine.rollout, math.engine.zero_stage) == ("builtin", "vllm", 2)
    assert gsm8k.model.path == "Qwen/Qwen2.5-1.5B-Instruct" and gsm8k.data.answer_pattern == r"####\s*(.+)"
    assert math.algorithm.model_dump() == {
        "name": "grpo",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "kl_coef": 0.0,
        "dynamic_sampling": False,
        "max_refills": 4,
        "entropy_coef": 0.0,
        "scale": "group_std",
        "reduction": "sequence_mean",
        "loss": "clipped",
        "dual_clip": 3.0,
        "sapo_positive": 1.0,
        "sapo_negative": 1.05,
        "kl_in": "loss",
        "kl_estimator": "k3",
        "kl_target": None,
        "correction": "truncate",
        "correction_level": "token",
        "correction_cap": 2.0,
        "correction_floor": 0.0,
    }


def test_any_key_can_be_overridden() -> None:
    recipe = composed(
        "recipe=grpo_math",
        "seed=3",
        "algorithm.scale=none",  # Dr. GRPO
        "algorithm.reduction=fixed_length",
        "rewards.accuracy.weight=0.5",
        "rewards.brevity.path=length",
        "rewards.brevity.args={limit: 9}",
        "optim.betas=[0.9,0.99]",
        "updates_per_step=6",
        "passes_per_step=2",
        "model.chat_template_kwargs.enable_thinking=false",
    )
    assert recipe.seed == 3 and recipe.algorithm.scale == "none" and recipe.algorithm.reduction == "fixed_length"
    assert {name: (r.path, r.weight) for name, r in recipe.rewards.items()} == {"accuracy": ("accuracy", 0.5), "brevity": ("length", 1.0)}
    assert recipe.rewards["brevity"].args == {"limit": 9} and recipe.optim.betas == (0.9, 0.99)
    assert recipe.minibatches == 3 and recipe.model.chat_template_kwargs == {"enable_thinking": False}


def test_a_recipe_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\nsteps: 7\nprompts_per_step: 5\n")
    assert run.main(["--config-dir", str(tmp_path), "recipe=mine", "dry_run=true"]) == 0
    assert "recipe:        mine, seed 0" in capsys.readouterr().out
    assert run.main(["--config-dir", str(tmp_path / "nowhere"), "recipe=mine", "dry_run=true"]) == 2


# -- what is refused ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    "recipe=grpo_mat": "there is no recipe 'grpo_mat' (did you mean grpo_math",
    "sampels_per_prompt=8": "unknown key sampels_per_prompt (did you mean samples_per_prompt",
    "algorithm.cliplow=0.1": "unknown key algorithm.cliplow (did you mean clip_low",
    "engine.rolout=hf": "unknown key engine.rolout (did you mean rollout",
    "rewards.accuracy.wight=1": "unknown key rewards.accuracy.wight (did you mean weight",
    "samplin.top_p=0.9": "unknown key samplin (did you mean sampling",
    "+sead=1": "unknown key sead (did you mean seed",
    "samples_per_prompt=many": "samples_per_prompt='many' is not valid: it should be a valid integer",
    "steps=2.5": "steps=2.5 is not valid: it should be a valid integer",
    "steps=true": "steps=True is not valid: it should be a valid integer",
    "optim.lr=true": "optim.lr=True is not valid: it should be a valid number",
    "seed=null": "seed=None is not valid: it should be a valid integer",
    "dry_run=perhaps": "dry_run='perhaps' is not valid: it should be a valid boolean",
    "optim.lr=-1": "optim.lr=-1 is not valid: it should be greater than or equal to 0",
    "optim.lr=.inf": "optim.lr",
    "optim.lr=nan": "optim.lr",
    "sampling.temperature=0": "sampling.temperature=0 is not valid: it should be greater than 0",
    "sampling.top_p=1.5": "sampling.top_p=1.5 is not valid: it should be less than or equal to 1",
    "steps=-1": "steps=-1 is not valid: it should be greater than or equal to 0",
    "engine.zero_stage=4": "engine.zero_stage=4 is not valid: it should be 0, 1, 2 or 3",
    "eval.select=bleu": "eval.select=bleu is no metric that the evaluations of algorithm=grpo select by; valid: accuracy, reward",
    "eval={every: 0, patience: 2}": "eval.patience=2 counts evaluations during training, and eval.every=0 does none; set eval.every",
    "model.path=~nouser/x": "model.path='~nouser/x': there is no user nouser here, so ~nouser stands for no folder; write the path in full",
    "output_dir=~nouser/x": "output_dir='~nouser/x': there is no user nouser here",
    "data.train=~nouser/x.jsonl": "data.train='~nouser/x.jsonl': there is no user nouser here",
    "rewards.accuracy.path=~nouser/x.py:f": "rewards.accuracy.path='~nouser/x.py:f': there is no user nouser here",
    "optim.warmup_steps=1.5": "optim.warmup_steps=1.5 is not valid: it should be a whole number of steps, or a share of them below 1",
    "optim={schedule: constant, min_lr_ratio: 0.1}": "optim.min_lr_ratio=0.1: with optim.schedule=constant the learning rate does not fall",
    "optim.schedule=exp": "optim.schedule='exp' is not valid: it should be 'constant', 'linear' or 'cosine'",
    "algorithm.reduction=mean": "it should be 'token_mean', 'sequence_mean' or 'fixed_length'",
    "algorithm.clip_low=1": "algorithm.clip_low=1 is not valid: it should be less than 1",
    "samples_per_prompt=1": "samples_per_prompt=1 is too few for algorithm=grpo, whose baseline is the group; set it to at least 2",
    "mask_truncated_completions=often": "mask_truncated_completions='often' is not valid: it should be a valid boolean",
    "passes_per_step=2": "updates_per_step=1 counts the updates of all passes_per_step=2 passes and must be a multiple of it",
    "updates_per_step=49": "needs more minibatches than there are groups: prompts_per_step=48",
    "tokens_per_micro_batch=100": "does not hold one sample of max_prompt_tokens + max_completion_tokens = 112; set it to at least 112",
    "model.load_in_4bit=true": "weights in 4 bits cannot be trained, only adapters on them; set model.lora.rank",
    "engine.sequence_parallel=0": "engine.sequence_parallel=0 is not valid: it should be greater than or equal to 1",
    "algorithm=grop": "there is no algorithm 'grop' (did you mean grpo",
    "model=gpt": "there is no model 'gpt'; valid: builtin, hf",
    "data=gsm8": "there is no data 'gsm8' (did you mean gsm8k",
    "algorithm.name=grop": "there is no algorithm 'grop' (did you mean grpo",
    "model=hf": "model.path is not set; it has no default: model.path=...",
    "rewards.mine.weight=1": "rewards.mine.path is not set",
    "data.train={a: {path: x, wieght: 3}}": "unknown key data.train.a.wieght (did you mean weight?)",
    "data.train={a: {path: x, weight: 0}}": "data.train.a.weight=0 is not valid: it should be greater than 0",
    "data.train={path: x, spilt: y}": "unknown key data.train.spilt (did you mean split?)",
    "data.train={pth: x}": "take one source, {path: ...}, or several, {a: {path: ...}}; not {'pth': 'x'}",
    "data.test={a: {path: x, weight: 3}}": "data.test reads its sources one after the other: leave out their weights",
    "data.epochs=2": "steps=24 and data.epochs=2.0: set one of the two, and the other to null",
    "steps=null": "steps=None and data.epochs=None: set one of the two",
    "optim=fast": "optim='fast' is not valid",
    "steps": "'steps' is not an override; write key=value",
    "seed=0,1": "To sweep over it, add --multirun",
    "seed=[1": "no viable alternative at input '[1'",
    "seed=]": "seed=']' is not valid: it should be a valid integer",
    "--verbose": "unknown flag --verbose; valid: --cfg job, --multirun",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_a_mistake_is_told_in_few_lines_with_the_mend(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [] if argument.startswith("recipe=") else ["recipe=grpo_math"]
    assert run.main([*recipe, *SIZES, "dry_run=true", argument]) == 2
    told = capsys.readouterr()
    assert REFUSED[argument] in told.err and told.out == ""
    assert len(told.err.splitlines()) <= 10 and "Traceback" not in told.err and told.err.startswith("rlkit: ")


def test_processes_that_share_rows_hold_a_sample_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=grpo_math", *SIZES, "dry_run=true", "engine.sequence_parallel=4"]
    assert run.main([*words, "tokens_per_micro_batch=28"]) == 0
    assert "28 a micro-batch and process, 4 of which share a row" in capsys.readouterr().out
    assert run.main([*words, "tokens_per_micro_batch=27"]) == 2
    assert "= 112, shared by engine.sequence_parallel=4 processes; set it to at least 28" in capsys.readouterr().err
    assert run.main(["recipe=reward_model", "dry_run=true", "engine.sequence_parallel=4"]) == 2
    assert "does not support sequence parallelism yet; set engine.sequence_parallel=1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ppo_math", "reinforce_pp_math"])
@pytest.mark.parametrize("normalise", ["each", "sum"])
def test_a_reward_is_not_normalised_alone(name: str, normalise: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"recipe={name}", "dry_run=true", f"rewarding.normalise={normalise}"]
    assert run.main([*words, "samples_per_prompt=1"]) == 2
    told = capsys.readouterr().err
    assert told == (
        f"rlkit: rewarding.normalise={normalise} sets the mean of a group to 0, and with samples_per_prompt=1 that is every reward; "
        "set samples_per_prompt to at least 2, or rewarding.normalise=none\n"
    )
    assert composed(f"recipe={name}", "samples_per_prompt=1").rewarding.normalise == "none"
    assert composed(*words, "samples_per_prompt=2").rewarding.normalise == normalise
    beside_greedy = composed("recipe=remax_math", *words[2:], "samples_per_prompt=1")  # whose group has two
    assert beside_greedy.rewarding.normalise == normalise


REFUSED_OFFLINE = {
    "samples_per_prompt=4": "samples_per_prompt: algorithm=dpo learns from completions in the data and does not use it; leave it out",
    "sampling={temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0}": "sampling: algorithm=dpo learns from completions in the data",
    "rewards.accuracy.path=accuracy": "rewards: algorithm=dpo learns from completions in the data",
    "algorithm.loss=dpo": "it should be 'sigmoid', 'smoothed', 'hinge', 'ipo', 'robust', 'simpo' or 'orpo'",
    "algorithm={loss: robust, label_smoothing: 0.5}": "algorithm.label_smoothing=0.5 means that labels are wrong at least as often",
    "algorithm.label_smoothing=0.1": "algorithm.label_smoothing has no effect with algorithm.loss=sigmoid; set loss=smoothed, robust",
    "algorithm.simpo_gamma=1.0": "algorithm.simpo_gamma has no effect with algorithm.loss=sigmoid",
    "algorithm.bta=1": "unknown key algorithm.bta (did you mean beta",
    "tokens_per_micro_batch=100": "does not hold one pair, twice max_prompt_tokens + max_completion_tokens = 160; set it to at least 160",
    "updates_per_step=33": "needs more minibatches than there are groups: prompts_per_step=32",
    "mask_truncated_completions=true": "mask_truncated_completions=true: algorithm=dpo samples no completions; leave it out",
}


@pytest.mark.parametrize("argument", REFUSED_OFFLINE)
def test_a_mistake_in_an_offline_recipe_is_told(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=dpo_math", "dry_run=true", argument]) == 2
    told = capsys.readouterr()
    assert REFUSED_OFFLINE[argument] in told.err and told.out == "" and len(told.err.splitlines()) <= 3


def test_an_offline_algorithm_takes_away_what_it_does_not_use(capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe of one's own needs no more than its name; an online one has rewards and samples again."""
    recipe = composed("recipe=grpo_math", "algorithm=kto", "samples_per_prompt=null")
    assert (recipe.samples_per_prompt, recipe.sampling, recipe.rewards, recipe.rewarding) == (None, None, None, None)
    assert composed("recipe=dpo_math", "algorithm=grpo").samples_per_step == 32 * 8
    assert composed("recipe=dpo_math").samples_per_step == 64 and composed("recipe=sft_math").samples_per_step == 64
    assert run.main(["recipe=dpo_math", "dry_run=true"]) == 0
    told = capsys.readouterr().out
    assert "32 pairs = 64 completions" in told and "rewards" not in told and "vllm" not in told and "rollout" not in told
    assert run.main(["recipe=kto_math", "dry_run=true", "updates_per_step=33"]) == 2
    assert "algorithm=kto compares the rows of a minibatch" in capsys.readouterr().err
    assert run.main(["recipe=grpo_math", "dry_run=true", "sampling=null"]) == 2
    assert "sampling is not set, and algorithm=grpo samples and is rewarded" in capsys.readouterr().err


def test_several_mistakes_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=grpo_math", "sampels_per_prompt=8", "optim.lr=-1", "engine.zero_stage=9", "dry_run=true"]) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in ("sampels_per_prompt", "optim.lr=-1", "engine.zero_stage=9")) and len(told.splitlines()) == 3


def test_without_a_recipe_the_shipped_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["steps=3"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in RECIPES)


def test_where_tokens_can_be_older_than_the_policy_a_correction_is_needed() -> None:
    with pytest.raises(UserError, match=r"tokens may be up to 1 step older .*, and algorithm\.correction=none leaves that uncorrected"):
        composed("recipe=dapo_math", "algorithm.correction=none")
    assert composed("recipe=grpo_math", "algorithm.correction=none").algorithm.correction == "none"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError, match="samples_per_prompt=1 is too few"):
        run.main(["recipe=grpo_math", "samples_per_prompt=1", "debug=true", "dry_run=true"])


# -- what is shown -----------------------------------------------------------------------------------------------------------------


def test_cfg_job_prints_the_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed is YAML, whole, and reads back as the very same recipe."""
    assert run.main(["recipe=grpo_math", "seed=4", "optim.lr=3e-5", "--cfg", "job"]) == 0
    printed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    assert printed["recipe"] == "grpo_math" and printed["seed"] == 4 and set(printed) == set(recipes.Recipe.model_fields)
    assert recipes.read_recipe(printed) == composed("recipe=grpo_math", "seed=4", "optim.lr=3e-5")


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from rlkit import run; code = run.main(sys.argv[1:]); "
        "heavy = ['vllm', 'deepspeed', 'datasets', 'matplotlib', 'ray', 'math_verify', 'wandb', 'tensorboard']; "
        "print('heavy', [name for name in heavy if name in sys.modules]); "
        "import torch; print('cuda', torch.cuda.is_initialized()); sys.exit(code)"
    )
    arguments = [
        "recipe=grpo_math",
        "dry_run=true",
        *SIZES,
        "prompts_per_step=10",
        "updates_per_step=4",
        "passes_per_step=2",
        "engine.zero_stage=3",
    ]
    done = door(*arguments, cwd=tmp_path, code=code)
    assert done.returncode == 0 and done.stderr == ""
    for line in (
        "step:          10 prompts x 8 = 80 samples",
        "tokens:        at most 112 a sample, 8,960 a step, 4,096 a micro-batch",
        "update:        4 a step in 2 passes, on 5 prompts each",
        "DeepSpeed ZeRO 3, one process",
        "first prompt:  (35 tokens) '<|im_start|>user\\nWhat is 91 + 48?<|im_end|>\\n<|im_start|>assistant\\n'",  # transformers' tokenizer
        "heavy []",
        "cuda False",
    ):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_each_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    site.mkdir(), empty.mkdir()
    (site / "sitecustomize.py").write_text(
        f"import os, sys\nwith open({str(tmp_path / 'pids')!r}, 'a') as f: f.write(f'{{os.getpid()}}\\n')\n"
    )
    done = door("recipe=grpo_math", "-m", "seed=0,1", "dry_run=true", cwd=empty, PYTHONPATH=f"{site}:{ROOT}")
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split(", ")[1] for line in done.stdout.splitlines() if line.startswith("recipe:")] == ["seed 0", "seed 1"]
    assert done.stdout.index("job 1/2") < done.stdout.index("seed 0") < done.stdout.index("job 2/2") < done.stdout.index("seed 1")
    assert len(set((tmp_path / "pids").read_text().split())) == 3  # the door and two jobs
    assert list(empty.iterdir()) == []


def test_a_mistake_in_any_job_is_found_before_the_first_starts(tmp_path: Path) -> None:
    for wrong in ("samples_per_prompt=4,1", "algorithm=grpo,grop", "seed=0,x"):
        done = door("recipe=grpo_math", "-m", wrong, "dry_run=true", cwd=tmp_path)
        assert done.returncode == 2 and "job 1" not in done.stdout and len(done.stderr.splitlines()) <= 10


def test_the_door_itself_exits_with_two(tmp_path: Path) -> None:
    done = door("recipe=grpo_math", "sampels_per_prompt=8", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "did you mean samples_per_prompt" in done.stderr
    assert list(tmp_path.iterdir()) == []


# -- what makes two recipes one run ------------------------------------------------------------------------------------------------


def test_changes_that_would_change_the_run_are_named() -> None:
    before = compose_config(["recipe=grpo_math", "output_dir=a"], None)
    same = compose_config(["recipe=grpo_math", "output_dir=b", "debug=true", "report.table_every=1", "offline=true"], None)
    assert list_changes(before, same) == []
    roomier = [
        "engine.gradient_checkpointing=1",
        "engine.vllm.gpu_memory_utilization=0.3",
        "checkpoint.every=3",
        "eval.every=2",
        "hardware.gpus=2",
        "steps=99",
        "eval.patience=2",
    ]
    assert list_changes(before, compose_config(["recipe=grpo_math", *roomier], None)) == []
    other = compose_config(["recipe=grpo_math", "optim.lr=1e-3", "rewards.brevity.path=length"], None)
    assert list_changes(before, other) == [
        f"optim.lr: {before['optim']['lr']} then, 0.001 now",
        "rewards.brevity: None then, {'path': 'length'} now",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=sft_math", "environment.path=wordle"], "environment.path=wordle: algorithm=sft samples nothing; set it to null"),
        (["recipe=grpo_math", "rewards=environment"], "rewards.environment is the reward of an environment, and there is none"),
        (["recipe=grpo_math", "rewards.mine={path: environment}", "environment.path=wordle"], "rewards.mine.path=environment: the reward"),
        (["recipe=grpo_math", "rewards.environment={path: length}", "environment.path=wordle"], "and no other has this name; rename yours"),
        (["recipe=grpo_math", "data.chat=false", "environment.path=wordle"], "and an environment answers in messages"),
        (["recipe=grpo_math", "environment.path=wordle", "environment.max_turns=0"], "environment.max_turns=0 is not valid"),
    ],
)
def test_what_does_not_fit_an_environment_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        composed(*words)
    assert message in str(refused.value)


def test_the_reward_of_an_environment_joins_those_of_the_recipe() -> None:
    def weights(*words: str) -> dict[str, float]:
        return {name: reward.weight for name, reward in composed("recipe=grpo_math", "environment.path=wordle", *words).all_rewards.items()}

    assert weights() == {"accuracy": 1.0, "environment": 1.0} and weights("rewards=environment") == {"environment": 1.0}
    assert weights("rewards.environment={path: environment, weight: 0.5}") == {"accuracy": 1.0, "environment": 0.5}
    assert set(composed("recipe=grpo_math").all_rewards) == {"accuracy"}


def test_a_policy_that_would_learn_in_no_step_is_refused_by_the_recipe_alone() -> None:
    told = r"critic_warmup_steps=2: in them only the critic learns, and of steps=2 none is left for the policy"
    with pytest.raises(UserError, match=told):
        composed("recipe=ppo_math", "steps=2", "algorithm.critic_warmup_steps=2")
    assert composed("recipe=ppo_math", "steps=0", "algorithm.critic_warmup_steps=2").steps == 0  # which only evaluates
    by_epochs = composed("recipe=ppo_math", "steps=null", "data.epochs=1", "prompts_per_step=10", "algorithm.critic_warmup_steps=2")
    with pytest.raises(UserError, match=told):
        count_steps(by_epochs, rows=20)
    assert count_steps(by_epochs, rows=30).steps == 3


@pytest.mark.parametrize("word", ["eval.patience=2", "eval.select=accuracy", "checkpoint.best=true", "checkpoint.best=export"])
def test_nothing_is_selected_by_evaluations_that_are_off(word: str) -> None:
    with pytest.raises(UserError, match=f"{word} selects by evaluations, and data.test=null turns them off; set data.test"):
        composed("recipe=grpo_math", "data.test=null", word)
