"""The typed recipe: what a run is told, with types and bounds. Defaults stand in recipes/, with comments; none stand here.

Unknown keys are refused with the nearest known ones; checks across keys stand in one place, `Recipe.consistent`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlkit.algorithms import ALGORITHMS, OFFLINE, Objective
from rlkit.algorithms.offline import COMPLETIONS
from rlkit.errors import UserError
from rlkit.plugins import module_of_file

Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
NonNegative = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SamplingSection(Section):
    temperature: Annotated[float, Field(strict=True, gt=0.0, le=2.0)]  # vLLM takes no more than 2
    top_p: Annotated[float, Field(strict=True, gt=0.0, le=1.0)]
    top_k: CountOrZero
    min_p: Fraction


class LoraSection(Section):
    rank: Count | None
    alpha: Positive
    targets: str | Annotated[tuple[str, ...], Field(min_length=1)]
    dora: bool


class ModelSection(Section):
    path: str
    dtype: Literal["auto", "float32", "bfloat16"]
    lora: LoraSection
    shape: dict[str, int | bool] | None
    chat_template_kwargs: dict[str, Any]


class ColumnsSection(Section):
    prompt: str | None = None
    answer: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    completion: str | None = None
    label: str | None = None


class SourceSection(Section):
    """A place of rows; what it does not say of them, the section `data` does. Named by the user, so no file can hold its defaults."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    weight: Positive | None = None
    columns: ColumnsSection | None = None
    chat: bool | None = None
    system: str | None = None
    template: str | None = None
    answer_pattern: str | None = None


def named_sources(value: Any) -> Any:
    """One place, which needs no name, or several under names -> by name."""
    if isinstance(value, str):
        return {"": {"path": value}}
    if not isinstance(value, Mapping) or ("path" not in value and not all(isinstance(part, Mapping) for part in value.values())):
        raise ValueError(f"data.train and data.test are a place, {{path: ...}}, or several, {{a: {{path: ...}}}}; this is none: {value}")
    return {"": value} if isinstance(value.get("path"), str) else value


Sources = Annotated[dict[str, SourceSection], Field(min_length=1), BeforeValidator(named_sources)]


class HardwareSection(Section):
    gpus: Count | None
    gpu_gib: Positive | None


class DataSection(Section):
    train: Sources
    test: Sources | None
    curriculum: str | None
    epochs: Positive | None
    columns: ColumnsSection
    chat: bool | None
    system: str | None
    template: str | None
    answer_pattern: str | None
    on_long: Literal["drop", "cut"]
    on_bad_row: Literal["stop", "skip"]


class RewardSection(Section):
    """The one section with defaults of its own: its entries are the user's to name, so no file can hold them."""

    path: str
    weight: Annotated[float, Field(strict=True)] = 1.0
    args: dict[str, Any] = Field(default_factory=dict)
    deadline: Positive | None = None
    gate: bool = False
    concurrency: Count = 32

    @model_validator(mode="after")
    def has_model(self) -> RewardSection:
        if self.path == "reward_model" and set(self.args) != {"model"}:
            raise ValueError(f"path=reward_model takes args={{model: FOLDER}}, a folder or hub name of a classifier; here args={self.args}")
        return self


class RewardingSection(Section):
    workers: Count | None
    deadline: Positive
    load_deadline: Positive
    cpu_seconds: Positive | None
    memory_gib: Positive
    max_failure_rate: Fraction
    combine: Literal["sum", "product", "gate"]
    normalise: Literal["none", "each", "sum"]
    env: tuple[str, ...]


class OptimSection(Section):
    lr: NonNegative
    betas: tuple[Annotated[float, Field(strict=True, ge=0.0, lt=1.0)], Annotated[float, Field(strict=True, ge=0.0, lt=1.0)]]
    eps: Positive
    weight_decay: NonNegative
    warmup_steps: CountOrZero
    schedule: Literal["constant", "linear", "cosine"]
    max_grad_norm: Positive


class EngineSection(Section):
    rollout: Literal["vllm", "hf"]
    zero_stage: Literal[0, 1, 2, 3]
    checkpointing: CountOrZero
    tensor_parallel: Count
    memory: Literal["auto", "resident", "slept", "swapped"]
    offload: Literal["none", "optimizer"]
    lora_sync: Literal["merged", "adapter"]
    mismatch_limit: Literal["auto"] | Positive
    max_skipped_updates: Count
    vllm: dict[str, Any]
    deepspeed: dict[str, Any]


class EvalSection(Section):
    every: CountOrZero
    problems: Count | None
    samples: Count


class CheckpointSection(Section):
    every: CountOrZero
    keep: Count
    best: bool
    export: Literal["merged", "adapter"]


class ReportSection(Section):
    table_every: Count
    wandb: str | None


class LaunchSection(Section):
    address: str | None
    nodes: Count
    gpus_per_node: Count | None
    workers_per_node: Count
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None
    interface: str | None
    env: tuple[str, ...]
    watchdog_minutes: Positive
    max_restarts: CountOrZero
    wait_minutes: Positive
    elastic: bool


def typed_algorithm(value: Any) -> Any:
    """The section `algorithm` as the class that its `name` stands for, or the class in the user's file that `path` names."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if name == "custom":
        keys = dict(value)
        return custom_algorithm(str(keys.pop("path", None))).model_validate(keys)
    known: dict[str, type[BaseModel]] = {**ALGORITHMS, **OFFLINE}
    if name not in known:
        raise ValueError(f"there is no algorithm {name!r}{nearest(str(name), [*known, 'custom'])}")
    return known[name].model_validate(dict(value))


def custom_algorithm(path: str) -> type[Objective]:
    """The class of a path FILE.py:Class, relative to the working directory. Raises ValueError where it is not there."""
    file, colon, name = path.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ValueError(f"algorithm.path={path} names no class in a file; write my_algorithm.py:MyAlgorithm")
    place = Path(file).absolute()
    if not place.is_file():
        raise ValueError(f"algorithm.path={path}: there is no file {place}; a path is relative to the working directory")
    try:
        module = module_of_file(place)
    except Exception as error:  # a user's file may raise anything, and its own words say what
        raise ValueError(f"algorithm.path={path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Objective):
        return found
    known = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, Objective) and c.__module__ == module.__name__]
    what = "is no rlkit.algorithms.Objective" if found is not None else "is not in that file"
    raise ValueError(f"algorithm.path={path}: {name} {what}{nearest(name, known, 'it has')}")


class Recipe(Section):
    """All that a run is told."""

    recipe: str
    seed: CountOrZero
    steps: CountOrZero | None
    prompts_per_step: Count
    samples_per_prompt: Count | None  # None where nothing is sampled, as the next ones
    passes_per_step: Count
    updates_per_step: Count
    tokens_per_micro_batch: Count
    max_prompt_tokens: Count
    max_completion_tokens: Count
    sampling: SamplingSection | None
    model: ModelSection
    hardware: HardwareSection
    data: DataSection
    rewards: dict[str, RewardSection] | None
    rewarding: RewardingSection | None
    algorithm: Annotated[Any, BeforeValidator(typed_algorithm)]
    optim: OptimSection
    engine: EngineSection
    eval: EvalSection
    checkpoint: CheckpointSection
    report: ReportSection
    launch: LaunchSection
    output_dir: str | None
    resume: Literal["auto", "never"]
    offline: bool
    debug: bool
    dry_run: bool

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        """The checks across keys."""
        for reason in self.refusals():
            raise ValueError(reason)
        if self.updates_per_step % self.passes_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} counts the updates of all passes_per_step={self.passes_per_step} passes "
                "and must be a multiple of it"
            )
        if self.updates_per_step // self.passes_per_step > self.prompts_per_step:
            raise ValueError(
                f"updates_per_step={self.updates_per_step} over passes_per_step={self.passes_per_step} asks for more minibatches "
                f"than there are groups: prompts_per_step={self.prompts_per_step}"
            )
        for reason in self.lora_refusals():
            raise ValueError(reason)
        if self.engine.tensor_parallel > 1 and self.engine.rollout != "vllm":
            raise ValueError("engine.tensor_parallel above 1 needs engine.rollout=vllm")
        if self.engine.tensor_parallel > 1 and any(reward.path == "reward_model" for reward in (self.rewards or {}).values()):
            raise ValueError("a reward model and engine.tensor_parallel above 1 do not go together yet; set engine.tensor_parallel=1")
        if (self.steps is None) == (self.data.epochs is None):
            raise ValueError(f"steps={self.steps} and data.epochs={self.data.epochs}: set one of the two, and the other to null")
        if any(source.weight for source in (self.data.test or {}).values()):
            raise ValueError("data.test takes its sources one after the other: leave their weights away")
        together = COMPLETIONS[self.algorithm.reads] if self.offline_algorithm else 1  # of a pair neither is learnt from alone
        longest = together * (self.max_prompt_tokens + self.max_completion_tokens)
        if self.tokens_per_micro_batch < longest:
            what = "one pair, twice" if together == 2 else "one sample of"
            raise ValueError(
                f"tokens_per_micro_batch={self.tokens_per_micro_batch} does not hold {what} max_prompt_tokens + "
                f"max_completion_tokens = {longest}; set it to at least {longest}"
            )
        return self

    def refusals(self) -> list[str]:
        """Why the rest of the recipe makes no sense with its algorithm."""
        name = self.algorithm.name
        own = {word: getattr(self, word) for word in ("samples_per_prompt", "sampling", "rewards", "rewarding")}
        if self.offline_algorithm:
            given = ", ".join(word for word, value in own.items() if value is not None)
            reasons = (
                [f"{given}: of no use to algorithm={name}, which learns from what is written in the data; leave it out"] if given else []
            )
            if self.algorithm.baseline and self.prompts_per_step // self.minibatches < 2:
                reasons.append(f"algorithm={name} compares the rows of a minibatch; set prompts_per_step to at least 2 x updates_per_step")
            if self.algorithm.learner == "reward_model" and self.model.lora.rank is not None:
                reasons.append(f"model.lora.rank={self.model.lora.rank}: algorithm={name} trains all weights; set it to null")
            return reasons
        missing = [word for word, value in own.items() if not value]
        if missing:
            return [f"{missing[0]} is not set, and algorithm={name} samples and is rewarded; set {missing[0]}"]
        truncated = self.sampling.top_p < 1.0 or self.sampling.top_k > 0 or self.sampling.min_p > 0.0
        reasons: list[str] = self.algorithm.refusals(truncated, self.samples_per_prompt)
        return reasons

    @property
    def offline_algorithm(self) -> bool:
        """Whether the algorithm learns from what is written in the data, and samples nothing."""
        return self.algorithm.name in OFFLINE

    def lora_refusals(self) -> Iterator[str]:
        sent, lora = self.engine.lora_sync == "adapter", self.model.lora
        if lora.rank is None and (sent or self.checkpoint.export == "adapter"):
            key = "engine.lora_sync" if sent else "checkpoint.export"
            yield f"{key}=adapter needs an adapter, and all weights are trained; set model.lora.rank, or {key}=merged"
        if sent and lora.dora:
            yield "engine.lora_sync=adapter with model.lora.dora=true: vLLM takes no adapters of DoRA; set engine.lora_sync=merged"
        if sent and self.engine.rollout != "vllm":
            yield f"engine.lora_sync=adapter needs engine.rollout=vllm; with {self.engine.rollout} set engine.lora_sync=merged"

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * (COMPLETIONS[self.algorithm.reads] if self.offline_algorithm else self.samples_per_prompt)

    @property
    def minibatches(self) -> int:
        """Updates of one pass."""
        return self.updates_per_step // self.passes_per_step


IDENTITY_FREE = frozenset({"output_dir", "resume", "offline", "debug", "dry_run", "report", "launch"})  # cannot change what a run computes


def read(config: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a resolved configuration. Raises UserError naming each key, its value and what is valid."""
    try:
        return Recipe.model_validate(dict(config))
    except ValidationError as error:
        lines = [told(entry, config) for entry in error.errors()[:6]]
        raise UserError("\n".join(lines)) from error


def told(error: Any, config: Mapping[str, Any]) -> str:
    """One of pydantic's errors in the words of a recipe."""
    key = ".".join(str(part) for part in error["loc"] if part != "")  # the only source has no name
    if error["type"] == "extra_forbidden":
        *sections, name = error["loc"]
        known = list(at(config, sections) or {})
        return f"unknown key {key}{nearest(str(name), keys_of(sections) or [k for k in known if k != name])}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"{key} is not set; it has no default"
    message = error["msg"].removeprefix("Input ")
    return f"{key}={error['input']!r} is not valid: it {message}"


def keys_of(sections: list[Any]) -> list[str]:
    """The known keys of a section of the recipe, given by its path."""
    kind: Any = Recipe
    for section in sections:
        if section == "algorithm":
            return sorted({name for algorithm in [*ALGORITHMS.values(), *OFFLINE.values()] for name in algorithm.model_fields})
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        field = kind.model_fields.get(section) if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if field is None:
            return []
        kind = field.annotation
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def at(config: Mapping[str, Any], path: list[Any]) -> Any:
    here: Any = config
    for part in path:
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def nearest(word: str, known: Any, ask: str = "valid") -> str:
    """' (did you mean ...?)' where something known is near, else what is valid."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {', '.join(close)}?)"
    return f"; {ask}: {', '.join(sorted(names))}" if names else ""


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys, with both values, in which two recipes differ such that their runs would too."""
    lines = []
    for key in sorted(set(before) | set(now)):
        if not prefix and key in IDENTITY_FREE:
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changed(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} then, {new} now")
    return lines
