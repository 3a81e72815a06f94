"""The typed recipe: all settings of a run, with types and bounds. The defaults are in recipes/, with comments; there are none here.

Unknown keys are refused, with the nearest known ones. Checks across keys are in one place, `Recipe.check_keys`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError, model_validator

from rlkit.algorithms import ALGORITHMS, OFFLINE
from rlkit.algorithms.offline import COMPLETIONS_PER_ROW
from rlkit.config.algorithm_section import parse_algorithm
from rlkit.config.eval_section import EvalSection, find_eval_conflicts, find_selection_conflicts, list_selectable
from rlkit.config.network import check_host, find_remote_urls
from rlkit.config.renamed import answer_foreign_key, refuse_old_names
from rlkit.config.sections import (
    BlankValue,
    CheckpointSection,
    Count,
    CountOrZero,
    DataSection,
    EngineSection,
    EnvironmentSection,
    HardwareSection,
    LaunchSection,
    ModelSection,
    Name,
    OptimSection,
    ReportSection,
    RolloutSection,
    SamplingSection,
    Section,
    Seed,
)
from rlkit.config.suggestions import suggest
from rlkit.config.teacher_check import find_missing_rewards, find_teacher_conflicts
from rlkit.data.rows import show
from rlkit.errors import UserError
from rlkit.fields import describe_field
from rlkit.rewarding.spec import RewardSettings, RewardSpec
from rlkit.runtime.model_path import explain_no_home

ENVIRONMENT = "environment"  # name and path of the reward of an environment


class Recipe(Section):
    """All settings of a run."""

    recipe: str = describe_field("name of the file in recipes/recipe/, or in DIR/recipe/ with --config-dir DIR")
    seed: Seed = describe_field("of the order of the data, of sampling, and of weights that are drawn")
    steps: CountOrZero | None = describe_field("rollout batches; 0 only evaluates; null: set by data.epochs", unit="steps")
    prompts_per_step: Count = describe_field("rows of the data in a step", unit="prompts")
    samples_per_prompt: Count | None = describe_field("completions that are sampled for each prompt, a group", unit="samples")
    passes_per_step: Count = describe_field("of the update over the samples of a step")
    updates_per_step: Count = describe_field("optimizer steps, over all passes", unit="updates")
    tokens_per_micro_batch: Count = describe_field(
        "what fits into memory at once; no padding, and a prompt counts once for all its samples", unit="tokens"
    )
    max_prompt_tokens: Count = describe_field("longer prompts: data.on_long", unit="tokens")
    max_completion_tokens: Count = describe_field(
        "where sampling stops; in offline training, longer completions are left out", unit="tokens"
    )
    mask_truncated_completions: bool = describe_field("true: truncated completions are not trained on; their rewards count in a baseline")
    sampling: SamplingSection | None
    rollout: RolloutSection
    model: ModelSection
    hardware: HardwareSection
    data: DataSection
    rewards: dict[str, RewardSpec] | None
    rewarding: RewardSettings | None
    environment: EnvironmentSection
    algorithm: Annotated[Any, BeforeValidator(parse_algorithm)]
    optim: OptimSection
    engine: EngineSection
    eval: EvalSection
    checkpoint: CheckpointSection
    report: ReportSection
    launch: LaunchSection
    output_dir: Name | None = describe_field("folder of the run; null: runs/RECIPE/TIME")
    resume: Literal["auto", "never"] = describe_field("auto: go on from the last checkpoint of output_dir; never: refuse a folder in use")
    offline: bool = describe_field("true: nothing touches a network; a URL in the recipe is refused, unless it is of this machine")
    offline_hosts: tuple[Annotated[str, AfterValidator(check_host)], ...] = describe_field(
        "hosts that may be asked all the same, by name or address"
    )
    debug: bool = describe_field("true: tracebacks for every error")
    dry_run: bool = describe_field("true: check the recipe, data, rewards and model, print the plan, and stop")

    @model_validator(mode="after")
    def check_keys(self) -> Recipe:
        """Checks across keys. Raises ValueError."""
        for reason in self.find_conflicts():
            raise ValueError(reason)
        if self.offline and (remote := find_remote_urls(self.model_dump(), self.offline_hosts)):
            raise ValueError(
                f"offline=true, but {'; '.join(remote[:3])}; offline_hosts=[HOST, ...] lists the hosts that may be asked all the same "
                "(those of this machine need no entry)"
            )
        if self.updates_per_step % self.passes_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} counts the updates of all passes_per_step={self.passes_per_step} passes "
                "and must be a multiple of it"
            )
        if self.updates_per_step // self.passes_per_step > self.prompts_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} over passes_per_step={self.passes_per_step} needs more minibatches "
                f"than there are groups: prompts_per_step={self.prompts_per_step}"
            )
        for reason in [*self.find_lora_conflicts(), *find_eval_conflicts(self), *find_selection_conflicts(self)]:
            raise ValueError(reason)
        if self.engine.float32_gradients is True and self.engine.offload == "optimizer" and self.engine.zero_stage < 3:
            raise ValueError(
                "engine.float32_gradients=true with engine.offload=optimizer needs engine.zero_stage=3; set that, or float32_gradients=auto"
            )
        if self.engine.tensor_parallel > 1 and self.engine.rollout != "vllm":
            raise ValueError("engine.tensor_parallel above 1 needs engine.rollout=vllm")
        if self.engine.tensor_parallel > 1 and any(reward.path == "reward_model" for reward in (self.rewards or {}).values()):
            raise ValueError("a reward model with engine.tensor_parallel above 1 is not supported yet; set engine.tensor_parallel=1")
        if (self.steps is None) == (self.data.epochs is None):
            found = f"steps={self.steps} and data.epochs={self.data.epochs}"
            raise ValueError(f"{found}: set one of the two, and the other to null (steps=null or data.epochs=null)")
        if any(source.weight for source in (self.data.test or {}).values()):
            raise ValueError("data.test reads its sources one after the other: leave out their weights")
        longest = self.longest_unit
        if self.tokens_per_micro_batch < self.least_budget:
            what = "one pair, twice" if longest > self.max_prompt_tokens + self.max_completion_tokens else "one sample of"
            processes = self.engine.sequence_parallel
            shared = f", shared by engine.sequence_parallel={processes} processes" if processes > 1 else ""
            raise ValueError(
                f"tokens_per_micro_batch={self.tokens_per_micro_batch} does not hold {what} max_prompt_tokens + "
                f"max_completion_tokens = {longest}{shared}; set it to at least {self.least_budget}"
            )
        return self

    def find_conflicts(self) -> list[str]:
        """Why the rest of the recipe does not fit its algorithm; empty where it does."""
        name = self.algorithm.name
        own = {word: getattr(self, word) for word in ("samples_per_prompt", "sampling", "rewards", "rewarding")}
        if self.offline_algorithm:
            unused = ", ".join(word for word, value in own.items() if value is not None)
            reasons = (
                [f"{unused}: algorithm={name} learns from completions in the data and does not use it; leave it out"] if unused else []
            )
            return [*reasons, *self._find_offline_conflicts(), *find_teacher_conflicts(self, None)]
        unrewarded = self.environment.path or not self.algorithm.needs(self.updates_per_step).rewards
        missing = [word for word, value in own.items() if not value and not (word == "rewards" and unrewarded)]
        if missing:
            return [f"{missing[0]} is not set, and algorithm={name} samples and is rewarded; set {missing[0]}"]
        return self._find_online_conflicts()

    def _find_offline_conflicts(self) -> list[str]:
        name, reasons = self.algorithm.name, []
        if self.rollout.carries_over:
            reasons.append(f"rollout.over_ask={self.rollout.over_ask}: algorithm={name} samples nothing; set it to 1.0")
        if self.environment.path:
            reasons.append(f"environment.path={self.environment.path}: algorithm={name} samples nothing; set it to null")
        if self.mask_truncated_completions:
            reasons.append(f"mask_truncated_completions=true: algorithm={name} samples no completions; leave it out")
        if self.algorithm.baseline and self.prompts_per_step // self.minibatches < 2:
            reasons.append(f"algorithm={name} compares the rows of a minibatch; set prompts_per_step to at least 2 x updates_per_step")
        if self.algorithm.learner == "reward_model" and self.model.lora.rank is not None:
            reasons.append(f"model.lora.rank={self.model.lora.rank}: algorithm={name} trains all weights; set it to null")
        if self.algorithm.learner == "reward_model" and self.engine.sequence_parallel > 1:
            reasons.append(f"algorithm={name} does not support sequence parallelism yet; set engine.sequence_parallel=1")
        return reasons

    def _find_online_conflicts(self) -> list[str]:
        sampling, rewarding = self.sampling, self.rewarding
        assert sampling is not None and rewarding is not None and self.samples_per_prompt is not None
        truncated = sampling.top_p < 1.0 or sampling.top_k > 0 or sampling.min_p > 0.0
        needs = self.algorithm.needs(self.updates_per_step)
        reasons: list[str] = self.algorithm.find_conflicts(truncated, self.samples_per_prompt, self.max_lag)
        if self.rollout.carries_over and self.environment.path:
            reasons.append(
                f"rollout.over_ask={self.rollout.over_ask} carries begun samples to the next step, and a checkpoint cannot hold the open "
                "sessions of an environment; set rollout.over_ask=1.0"
            )
        reasons += find_environment_conflicts(self.rewards or {}, self.environment.path is not None)
        reasons += [*find_teacher_conflicts(self, needs), *find_missing_rewards(self, needs)]
        if self.environment.path and self.data.chat is False:
            reasons.append(
                "data.chat=false gives the model raw text, and an environment answers in messages; set data.chat to null or true"
            )
        if needs.values and self.steps:
            self.algorithm.count_critic_warmup_updates(self.steps, self.updates_per_step)  # raises where no step is left for the policy
        if rewarding.normalise != "none" and self.samples_per_prompt + needs.greedy < 2:
            reasons.append(
                f"rewarding.normalise={rewarding.normalise} sets the mean of a group to 0, and with samples_per_prompt=1 that is "
                "every reward; set samples_per_prompt to at least 2, or rewarding.normalise=none"
            )
        return reasons

    @property
    def max_lag(self) -> int:
        """The most steps that a token may be older than the policy that learns from it: carried over, or surplus of dynamic sampling."""
        surplus = self.algorithm.needs(self.updates_per_step).max_refills is not None
        return self.rollout.max_lag or 1 if self.rollout.carries_over else int(surplus)

    @property
    def all_rewards(self) -> dict[str, RewardSpec]:
        """The rewards, with that of the environment, which joins them by itself."""
        own = {ENVIRONMENT: RewardSpec(path=ENVIRONMENT)} if self.environment.path else {}
        return {**(self.rewards or {}), **({} if ENVIRONMENT in (self.rewards or {}) else own)}

    @property
    def offline_algorithm(self) -> bool:
        """Whether the algorithm learns from completions in the data and samples none."""
        return self.algorithm.name in OFFLINE

    def find_lora_conflicts(self) -> Iterator[str]:
        sent, lora = self.engine.lora_sync == "adapter", self.model.lora
        if lora.rank is None and (sent or self.checkpoint.export == "adapter"):
            key = "engine.lora_sync" if sent else "checkpoint.export"
            yield f"{key}=adapter needs an adapter, and this recipe trains all weights; set model.lora.rank, or {key}=merged"
        if sent and lora.dora:
            yield "engine.lora_sync=adapter with model.lora.dora=true: vLLM does not support DoRA adapters; set engine.lora_sync=merged"
        if sent and lora.modules_to_save:
            yield "engine.lora_sync=adapter with model.lora.modules_to_save: vLLM takes no whole modules in an adapter; set it to merged"
        if self.model.load_in_4bit and lora.rank is None:
            yield "model.load_in_4bit=true: weights in 4 bits cannot be trained, only adapters on them; set model.lora.rank"
        if self.model.load_in_4bit and lora.dora and self.engine.zero_stage == 3:
            yield "model.lora.dora=true on weights in 4 bits does not work under engine.zero_stage=3; set that to 2, or dora=false"
        if sent and self.engine.rollout != "vllm":
            yield f"engine.lora_sync=adapter needs engine.rollout=vllm; with {self.engine.rollout} set engine.lora_sync=merged"

    @property
    def selectable(self) -> tuple[str, ...]:
        """The metrics of an evaluation that a best one can be selected by, the default first."""
        if self.offline_algorithm:
            return ("loss",) if self.algorithm.measure == "loss" else ("accuracy", "loss")
        return list_selectable(self)

    @property
    def longest_unit(self) -> int:
        """Tokens of the longest unit that is never split: a sample, or both completions of a pair."""
        together = COMPLETIONS_PER_ROW[self.algorithm.reads] if self.offline_algorithm else 1
        return together * (self.max_prompt_tokens + self.max_completion_tokens)

    @property
    def least_budget(self) -> int:
        """The smallest tokens_per_micro_batch: the ranks of a sequence-parallel group share the longest unit."""
        return -(-self.longest_unit // self.engine.sequence_parallel)

    @property
    def samples_of_a_prompt(self) -> int:
        """Completions of a prompt: those that are sampled, or those of a row of the data."""
        return COMPLETIONS_PER_ROW[self.algorithm.reads] if self.offline_algorithm else self.samples_per_prompt or 0

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_of_a_prompt

    @property
    def minibatches(self) -> int:
        """Updates of one pass."""
        return self.updates_per_step // self.passes_per_step


def find_environment_conflicts(rewards: Mapping[str, RewardSpec], is_set: bool) -> Iterator[str]:
    """Why rewards do not fit an environment, or a run without one."""
    for name, reward in rewards.items():
        if (name == ENVIRONMENT) != (reward.path == ENVIRONMENT) and (is_set or reward.path == ENVIRONMENT):
            yield (
                f"rewards.{name}.path={reward.path}: the reward of the environment is {ENVIRONMENT}={{path: {ENVIRONMENT}}}, and no other "
                "has this name; rename yours"
            )
        elif reward.path == ENVIRONMENT and not is_set:
            yield f"rewards.{name} is the reward of an environment, and there is none; set environment.path"


PATH_KEYS = ("path", "output_dir", "model", "train", "test", "audit_key")  # ends of keys whose value can be a path, with ~ for a home


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a resolved configuration. Raises UserError naming each key, its value and what is valid."""
    refuse_old_names(config)
    refuse_odd_text(config)
    refuse_unknown_home(config)
    try:
        return Recipe.model_validate(dict(config))
    except ValidationError as error:
        found = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")  # a typo explains what is missing
        lines = [line for entry in found[:6] for line in describe_error(entry, config)]
        raise UserError("\n".join(lines)) from error


def refuse_odd_text(value: Any, key: str = "") -> None:
    """Raises UserError for a key or a value that no file name, no file and no environment can hold."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            refuse_odd_text(str(name), f"a key of {key or 'the recipe'}")
            refuse_odd_text(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            refuse_odd_text(part, f"{key}[{number}]")
    elif isinstance(value, str) and ("\0" in value or (not value.isascii() and value.encode(errors="ignore").decode() != value)):
        raise UserError(f"{key} holds a sign that is no text (NUL, or a byte that is not UTF-8): {show(value)}; write it without")


def refuse_unknown_home(value: Any, key: str = "") -> None:
    """Raises UserError for a path that begins with ~ where nobody of that name has a home folder here."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            refuse_unknown_home(part, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and value.startswith("~") and key.rpartition(".")[2] in PATH_KEYS:
        try:
            Path(value).expanduser()
        except RuntimeError as error:
            raise UserError(f"{key}={show(value)}: {explain_no_home(value)}") from error


def describe_error(error: Any, config: Mapping[str, Any]) -> list[str]:
    """One of pydantic's errors as lines about keys of the recipe."""
    key = ".".join(str(part) for part in error["loc"] if part != "")  # the only source has no name
    if error["type"] == "extra_forbidden":
        return describe_unknown_key(error["loc"], error["input"], config)
    if error["type"] == "value_error":
        cause = error["ctx"]["error"]
        return [f"{key}={show(error['input'])} is not valid: {cause}" if isinstance(cause, BlankValue) else str(cause)]
    if error["type"] == "missing":
        return [f"{key} is not set; it has no default"]
    message = error["msg"].removeprefix("Input ")
    return [f"{key}={show(error['input'])} is not valid: it {message}"]


def describe_unknown_key(place: tuple[Any, ...], value: Any, config: Mapping[str, Any]) -> list[str]:
    """A line for an unknown key, or one for each that it holds and that is a key of another toolkit."""
    *sections, name = place
    key, chosen = ".".join(str(part) for part in place if part != ""), str(get_at_path(config, ["algorithm", "name"]))
    answers = [answer_foreign_key(leaf, chosen in OFFLINE) for leaf in list_leaves(value, key)]
    if found := [answer for answer in answers if answer]:
        return found
    owners = [owner for owner, kind in {**ALGORITHMS, **OFFLINE}.items() if str(name) in kind.model_fields]
    if sections == ["algorithm"] and owners:
        answer = answer_foreign_key(str(name), chosen in OFFLINE)
        meant = "" if answer is None or key in answer else f"; {answer}"
        return [f"{key} belongs to {', '.join(owners)}, and this recipe has algorithm={chosen}{meant}"]
    if not sections and (homes := find_sections(str(name))):
        return [f"unknown key {key} (did you mean {', '.join(homes)}?)"]
    known = list(get_at_path(config, sections) or {})
    return [f"unknown key {key}{suggest(str(name), list_keys(sections) or [k for k in known if k != name])}"]


def list_leaves(value: Any, key: str) -> list[str]:
    """The dotted keys of all values in a section; the key itself for a value."""
    if not isinstance(value, Mapping) or not value:
        return [key]
    return [leaf for name, part in value.items() for leaf in list_leaves(part, f"{key}.{name}")]


def find_sections(name: str) -> list[str]:
    """The keys of this name in sections of the recipe: temperature -> sampling.temperature."""
    return [
        f"{section}.{name}"
        for section in Recipe.model_fields
        if section not in ("data", "hardware", "launch") and name in list_keys([section])
    ]


def list_keys(sections: list[Any]) -> list[str]:
    """The known keys of a section of the recipe, given by its path."""
    kind: Any = Recipe
    for section in sections:
        if section == "algorithm":
            return sorted({name for algorithm in [*ALGORITHMS.values(), *OFFLINE.values()] for name in algorithm.model_fields})
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]  # the name is the user's
            continue
        field = kind.model_fields.get(section) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if field is None:
            return []
        kind = field.annotation
        if get_origin(kind) is UnionType:  # X | None
            kind = next(part for part in get_args(kind) if part is not type(None))
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def get_at_path(config: Mapping[str, Any], path: list[Any]) -> Any:
    here: Any = config
    for part in path:
        here = here.get(part) if isinstance(here, Mapping) else None
    return here
