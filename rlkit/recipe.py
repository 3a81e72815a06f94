"""The typed recipe: what a run is told, with types and bounds. Defaults stand in recipes/, with comments; none stand here.

Unknown keys are refused with the nearest known ones; checks across keys stand in one place, `Recipe.consistent`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from rlkit.algorithms import ALGORITHMS, Algorithm
from rlkit.errors import UserError

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


class ModelSection(Section):
    path: str
    dtype: Literal["auto", "float32", "bfloat16"]
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


class ReportSection(Section):
    table_every: Count
    wandb: str | None


def typed_algorithm(value: Any) -> Any:
    """The section `algorithm` as the class that its `name` stands for."""
    if not isinstance(value, Mapping):
        return value
    name = value.get("name")
    if name not in ALGORITHMS:
        raise ValueError(f"there is no algorithm {name!r}{nearest(str(name), ALGORITHMS)}")
    return ALGORITHMS[name].model_validate(dict(value))


class Recipe(Section):
    """All that a run is told."""

    recipe: str
    seed: CountOrZero
    steps: CountOrZero | None
    prompts_per_step: Count
    samples_per_prompt: Count
    passes_per_step: Count
    updates_per_step: Count
    tokens_per_micro_batch: Count
    max_prompt_tokens: Count
    max_completion_tokens: Count
    sampling: SamplingSection
    model: ModelSection
    data: DataSection
    rewards: Annotated[dict[str, RewardSection], Field(min_length=1)]
    rewarding: RewardingSection
    algorithm: Annotated[Any, BeforeValidator(typed_algorithm)]
    optim: OptimSection
    engine: EngineSection
    eval: EvalSection
    checkpoint: CheckpointSection
    report: ReportSection
    output_dir: str | None
    resume: Literal["auto", "never"]
    offline: bool
    debug: bool
    dry_run: bool

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        """The checks across keys."""
        algorithm: Algorithm = self.algorithm
        truncated = self.sampling.top_p < 1.0 or self.sampling.top_k > 0 or self.sampling.min_p > 0.0
        for reason in algorithm.refusals(truncated, self.samples_per_prompt):
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
        if (self.steps is None) == (self.data.epochs is None):
            raise ValueError(f"steps={self.steps} and data.epochs={self.data.epochs}: set one of the two, and the other to null")
        if any(source.weight for source in (self.data.test or {}).values()):
            raise ValueError("data.test takes its sources one after the other: leave their weights away")
        longest = self.max_prompt_tokens + self.max_completion_tokens
        if self.tokens_per_micro_batch < longest:
            raise ValueError(
                f"tokens_per_micro_batch={self.tokens_per_micro_batch} does not hold one sample of max_prompt_tokens + "
                f"max_completion_tokens = {longest}; set it to at least {longest}"
            )
        return self

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def minibatches(self) -> int:
        """Updates of one pass."""
        return self.updates_per_step // self.passes_per_step


IDENTITY_FREE = frozenset({"output_dir", "resume", "offline", "debug", "dry_run", "report"})  # cannot change what a run computes


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
            return sorted({name for algorithm in ALGORITHMS.values() for name in algorithm.model_fields})
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
