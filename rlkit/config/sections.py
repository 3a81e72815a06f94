"""The sections of a recipe, with types and bounds. The defaults are in recipes/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LARGEST_COUNT = 2**31 - 1  # what every library takes
LARGEST_SEED = 2**63 - 1
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
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
    rslora: bool
    modules_to_save: tuple[str, ...]


class ShapeSection(Section):
    """The numbers of an architecture; rlkit/profiling/model_shape.py explains them."""

    hidden: Count
    intermediate: Count
    layers: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab: Count
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: CountOrZero = 0
    experts_per_token: CountOrZero = 0
    expert_intermediate: CountOrZero = 0
    shared_intermediate: CountOrZero = 0
    dense_layers: CountOrZero = 0
    query_rank: CountOrZero = 0
    key_rank: CountOrZero = 0
    rope_dim: CountOrZero = 0
    value_dim: CountOrZero = 0
    others: CountOrZero = 0

    @model_validator(mode="after")
    def check_experts(self) -> Self:
        """Raises ValueError where the numbers of a mixture of experts do not fit together."""
        if not self.experts:
            return self
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(f"experts_per_token is {self.experts_per_token}; with experts={self.experts} it is 1 to {self.experts}")
        if not self.expert_intermediate:
            raise ValueError(f"experts={self.experts} needs expert_intermediate, the intermediate size of one of them")
        if self.dense_layers > self.layers:
            raise ValueError(f"dense_layers is {self.dense_layers}, and there are {self.layers} layers")
        return self


class ModelSection(Section):
    path: str
    revision: str | None
    trust_remote_code: Annotated[bool, Field(strict=True)]
    dtype: Literal["auto", "float32", "bfloat16"]
    load_in_4bit: bool
    lora: LoraSection
    shape: ShapeSection | None
    chat_template_kwargs: dict[str, Any]


class ColumnsSection(Section):
    prompt: str | None = None
    answer: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    completion: str | None = None
    label: str | None = None


class SourceSection(Section):
    """A source of rows. What it does not set, the section `data` sets. The user names it, so no file can hold its defaults."""

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


def parse_sources(value: Any) -> Any:
    """One source without a name, or several with names -> sources by name. Raises ValueError for anything else."""
    if isinstance(value, str):
        return {"": {"path": value}}
    if not isinstance(value, Mapping) or ("path" not in value and not all(isinstance(part, Mapping) for part in value.values())):
        raise ValueError(f"data.train and data.test take one source, {{path: ...}}, or several, {{a: {{path: ...}}}}; not {value}")
    return {"": value} if isinstance(value.get("path"), str) else value


Sources = Annotated[dict[str, SourceSection], Field(min_length=1), BeforeValidator(parse_sources)]


class HardwareSection(Section):
    gpus: Count | None
    gpu_gib: Positive | None
    force: bool


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
    gradient_checkpointing: CountOrZero
    tensor_parallel: Count
    sequence_parallel: Count
    memory: Literal["auto", "resident", "sleep", "sleep_and_offload"]
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
    roofline: bool
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
