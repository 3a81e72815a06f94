"""The sections of a recipe, with types, bounds and descriptions. The defaults are in recipes/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlkit.config.network import parse_address
from rlkit.fields import describe_field

LARGEST_COUNT = 2**31 - 1  # what every library takes
LARGEST_SEED = 2**63 - 1
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
NonNegative = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]


class BlankValue(ValueError):
    """A text without a sign, where something is named by it."""


def refuse_blank(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The value. Raises BlankValue where it, or one of several, has no sign."""
    if not all(text.strip() for text in ([value] if isinstance(value, str) else value)):
        raise BlankValue("it is blank; write what is meant, or leave the key out")
    return value


Name = Annotated[str, AfterValidator(refuse_blank)]  # of a file, a layer, a column, a host: what no blank text can be
Names = Annotated[tuple[str, ...], AfterValidator(refuse_blank)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class SamplingSection(Section):
    temperature: Annotated[float, Field(strict=True, gt=0.0, le=2.0)] = describe_field("the trainer divides its logits by it too")
    top_p: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = describe_field(
        "samples among the most probable tokens that add up to this share"
    )
    top_k: CountOrZero = describe_field("samples among so many of the most probable tokens; 0: off")
    min_p: Fraction = describe_field("leaves out tokens below this share of the most probable one's probability")


class RolloutSection(Section):
    """How many groups a step asks for; `rollout=carry_over` sets what fits long answers, with a correction for older tokens."""

    over_ask: Annotated[float, Field(strict=True, ge=1.0, le=2.0)] = describe_field(
        "groups that a step samples, over prompts_per_step; sampling stops once enough are complete, and the others go on in the next step"
    )
    max_lag: Count | None = describe_field(
        "of over_ask above 1: a group that was first asked so many steps ago is waited for, so that no token is older; null: 1",
        unit="steps",
    )

    @property
    def carries_over(self) -> bool:
        """Whether a step may leave groups for the next one to finish."""
        return self.over_ask > 1.0


class LoraSection(Section):
    rank: Count | None = describe_field("null: all weights are trained; a number: LoRA adapters of that rank")
    alpha: Positive = describe_field("what the adapters add is multiplied by alpha / rank")
    targets: Annotated[str | Annotated[tuple[str, ...], Field(min_length=1)], AfterValidator(refuse_blank)] = describe_field(
        "all-linear: every linear layer but the head (and, in a mixture of experts, routers and experts); or a list of names: [q_proj, "
        "v_proj]"
    )
    dora: bool = describe_field("true: DoRA, a trained magnitude beside the adapters")
    rslora: bool = describe_field("true: alpha / sqrt(rank) in place of alpha / rank (rsLoRA, arXiv 2312.03732)")
    modules_to_save: Names = describe_field(
        "layers that are trained whole beside the adapters: [lm_head, embed_tokens], unless they share a weight"
    )


class ShapeSection(Section):
    """The numbers of an architecture; rlkit/profiling/model_shape.py explains them."""

    hidden: Count = describe_field("width of a layer (hidden_size of config.json)")
    intermediate: Count = describe_field("width inside a dense feed-forward layer (intermediate_size)")
    layers: Count = describe_field("their number (num_hidden_layers)")
    heads: Count = describe_field("attention heads (num_attention_heads)")
    kv_heads: Count = describe_field("heads of keys and values (num_key_value_heads)")
    head_dim: Count = describe_field("width of a head (head_dim)")
    vocab: Count = describe_field("tokens that the model knows (vocab_size)")
    tied: bool = describe_field("whether head and embedding share a weight (tie_word_embeddings)")
    qkv_bias: bool = describe_field("whether queries, keys and values have a bias", default=False)
    qk_norm: bool = describe_field("whether queries and keys are normalised", default=False)
    experts: CountOrZero = describe_field("of a mixture: their number in a layer; 0: dense", default=0)
    experts_per_token: CountOrZero = describe_field("experts that a token goes through", default=0)
    expert_intermediate: CountOrZero = describe_field("width inside one expert", default=0)
    shared_intermediate: CountOrZero = describe_field("width inside the experts that every token goes through", default=0)
    dense_layers: CountOrZero = describe_field("layers without experts", default=0)
    query_rank: CountOrZero = describe_field("rank of compressed queries (q_lora_rank, DeepSeek); 0: not compressed", default=0)
    key_rank: CountOrZero = describe_field("rank of compressed keys and values (kv_lora_rank); 0: not compressed", default=0)
    rope_dim: CountOrZero = describe_field("width of the part of a key with positions, where keys are compressed", default=0)
    value_dim: CountOrZero = describe_field("width of a value where it is not that of a key; 0: it is", default=0)
    others: CountOrZero = describe_field("weights that none of these numbers counts", default=0)

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


def check_server(url: str) -> str:
    """The address. Raises ValueError where it is none of HTTP."""
    if not re.fullmatch(r"https?://[^/\s]+\S*", url):
        raise ValueError(f"model.teacher.url={url} is not valid: it should begin with http:// or https://, as in http://127.0.0.1:8000/v1")
    return url


class TeacherSection(Section):
    path: Name | None = describe_field(
        "a model whose log-probs are learned from (algorithm=opd), with the tokenizer of model.path: a folder in Hugging Face format, a "
        "name of the hub, or builtin; null: none, or one behind a server"
    )
    url: Annotated[str, AfterValidator(check_server)] | None = describe_field(
        "such a model behind a server: of `vllm serve`, up to /v1; null: none, or one in this process"
    )
    api_key: Name | None = describe_field("of that server: ${oc.env:NAME}")


class ModelSection(Section):
    path: Name = describe_field(
        "a folder in Hugging Face format, a name of the hub, a file in GGUF (/models/x.gguf, FOLDER@x.gguf, HUB/NAME@x.gguf, "
        "pkg://PACKAGE/x.gguf), or builtin"
    )
    revision: Name | None = describe_field("of a hub name: a branch, a tag or a commit; null: main")
    trust_remote_code: Annotated[bool, Field(strict=True)] = describe_field(
        "true: Python code in the folder of the model, or of its teacher (auto_map in config.json), may run here, unasked"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = describe_field(
        "of the weights in training and sampling; auto: bfloat16 on a GPU, float32 without one; master weights are float32 always"
    )
    float32_head: bool = describe_field(
        "true: trainer, reference and sampler compute the logits of a bfloat16 model in float32, so that their log-probs differ less"
    )
    load_in_4bit: bool = describe_field(
        "true, with adapters: the base in 4 bits (NF4, bitsandbytes); vLLM gets it as the trainer sees it, in dtype"
    )
    lora: LoraSection
    shape: ShapeSection | None
    teacher: TeacherSection
    chat_template_kwargs: dict[str, Any] = describe_field("variables for the chat template: {enable_thinking: false}")


class ColumnsSection(Section):
    prompt: Name | None = describe_field("column of the prompt: text, or a list of messages", default=None)
    answer: Name | None = describe_field("column of the reference answer, where a reward asks for one", default=None)
    chosen: Name | None = describe_field("column of the better completion of a pair", default=None)
    rejected: Name | None = describe_field("column of the worse completion of a pair", default=None)
    completion: Name | None = describe_field("column of a demonstration, or of a rated completion", default=None)
    label: Name | None = describe_field("column of the rating of a completion: true or false", default=None)


class RowsSection(Section):
    """Where rows are, and how they are read. What it does not set, the section `data` sets."""

    path: Name = describe_field("builtin, a file (JSONL, JSON, CSV, Parquet, Arrow), a folder of them, or a dataset of the hub")
    config: Name | None = describe_field("configuration of a dataset of the hub; in short: NAME:CONFIG", default=None)
    split: Name | None = describe_field("its split; in short: NAME@SPLIT", default=None)
    revision: Name | None = describe_field("a branch, a tag or a commit of the hub; in short: NAME#REVISION", default=None)
    columns: ColumnsSection | None = describe_field("as data.columns, of this source", default=None)
    chat: bool | None = describe_field("as data.chat, of this source", default=None)
    system: str | None = describe_field("as data.system, of this source", default=None)
    template: Name | None = describe_field("as data.template, of this source", default=None)
    answer_pattern: Name | None = describe_field("as data.answer_pattern, of this source", default=None)


class SourceSection(RowsSection):
    """A source of rows. The user names it, so no file can hold its defaults."""

    weight: Positive | None = describe_field(
        "share of this source in a mixture, beside the weights of the others; null for all: one shuffle of all rows", default=None
    )


def parse_sources(value: Any) -> Any:
    """One source without a name, or several with names -> sources by name. Raises ValueError for anything else."""
    if isinstance(value, str):
        return {"": {"path": value}}
    if not isinstance(value, Mapping) or ("path" not in value and not all(isinstance(part, Mapping) for part in value.values())):
        raise ValueError(f"data.train and data.test take one source, {{path: ...}}, or several, {{a: {{path: ...}}}}; not {value}")
    return {"": value} if isinstance(value.get("path"), str) else value


Sources = Annotated[dict[str, SourceSection], Field(min_length=1), BeforeValidator(parse_sources)]


class HardwareSection(Section):
    gpus: Count | None = describe_field(
        "of the machine that dry_run plans for where this one has no GPU; null: the processes that are started", unit="GPUs"
    )
    gpu_gib: Positive | None = describe_field("memory of one of them; null: no GPU", unit="GiB")
    force: bool = describe_field("true: a run starts although by its plan it does not fit into memory")


class DataSection(Section):
    train: Sources = describe_field("one source, or several by name: {a: {path: a.jsonl, weight: 3}, b: {path: b.jsonl}}")
    test: Sources | None = describe_field("held-out rows, in the same form; null: evaluation is off")
    curriculum: Name | None = describe_field("a column of numbers: each pass over a source goes from small to large")
    epochs: Positive | None = describe_field("passes over the rows, instead of steps (steps=null); skipped rows count too")
    columns: ColumnsSection
    chat: bool | None = describe_field("text is a user's message (true) or raw text (false); null: raw where the column is called prompt")
    system: str | None = describe_field("a system message before every prompt")
    template: Name | None = describe_field("a Jinja template of the prompt over the row's columns")
    answer_pattern: Name | None = describe_field("a regular expression with one group that extracts the answer from its column")
    on_long: Literal["drop", "cut"] = describe_field(
        "a prompt longer than max_prompt_tokens: drop it, or cut its beginning; counted either way"
    )
    on_bad_row: Literal["stop", "skip"] = describe_field("a row that cannot be read: stop, or skip it (counted)")
    max_overlap: Fraction | None = describe_field(
        "largest share of the problems of a held-out set that may stand in the training rows (same text, or 13 words in a row); above it "
        "the run is refused; null: it is shown, and no more"
    )


def check_warmup(steps: float) -> float:
    """The number. Raises ValueError where it is neither a whole number of steps nor a share of them."""
    if steps >= 1 and not (steps.is_integer() and steps <= LARGEST_COUNT):
        raise ValueError(f"optim.warmup_steps={steps:g} is not valid: it should be a whole number of steps, or a share of them below 1")
    return steps


class OptimSection(Section):
    lr: NonNegative = describe_field("peak learning rate of the policy")
    betas: tuple[Annotated[float, Field(strict=True, ge=0.0, lt=1.0)], Annotated[float, Field(strict=True, ge=0.0, lt=1.0)]] = (
        describe_field("decay rates of AdamW's two moments")
    )
    eps: Positive = describe_field("added to AdamW's denominator")
    weight_decay: NonNegative = describe_field("of AdamW")
    warmup_steps: Annotated[NonNegative, AfterValidator(check_warmup)] = describe_field(
        "in which the learning rate rises from 0; a number below 1: their share of all steps, 0.1 a tenth", unit="steps"
    )
    schedule: Literal["constant", "linear", "cosine"] = describe_field(
        "of the learning rate after the warm-up: constant, or towards lr * min_lr_ratio at the last of all steps; of a run whose steps are "
        "raised, each further step has the rate that it has in a run of so many steps"
    )
    min_lr_ratio: Fraction = describe_field("least learning rate of a linear or cosine schedule, as a share of lr (and of critic_lr)")
    max_grad_norm: Positive = describe_field("global norm to which gradients are clipped")

    @model_validator(mode="after")
    def check_schedule(self) -> Self:
        """Raises ValueError for a least learning rate of a schedule that does not fall."""
        if self.schedule == "constant" and self.min_lr_ratio:
            raise ValueError(
                f"optim.min_lr_ratio={self.min_lr_ratio}: with optim.schedule=constant the learning rate does not fall; "
                "set optim.schedule=linear or cosine, or leave min_lr_ratio out"
            )
        return self


class EngineSection(Section):
    rollout: Literal["vllm", "hf"] = describe_field("what samples: vLLM, or hf: transformers' generate")
    zero_stage: Literal[0, 1, 2, 3] = describe_field(
        "of DeepSpeed ZeRO; 0 runs as 1, which is the same on one process and checks for non-finite gradients"
    )
    gradient_checkpointing: CountOrZero = describe_field(
        "layers whose activations are computed again in the backward pass: 0 none, 1 all, n every n-th"
    )
    float32_gradients: Literal["auto"] | bool = describe_field(
        "whether micro-batches of a bfloat16 model add up in float32; auto: where it fits by the plan"
    )
    tensor_parallel: Count = describe_field(
        "that share one rollout engine, each holding a part of its weights; must divide their number", unit="processes"
    )
    sequence_parallel: Count = describe_field(
        "neighbours that share each packed row, for samples too long for one; must divide their number", unit="processes"
    )
    memory: Literal["auto", "resident", "sleep", "sleep_and_offload"] = describe_field(
        "what leaves a GPU: resident: nothing; sleep: vLLM in training; sleep_and_offload: optimizer state in rollouts too; auto: the "
        "first that fits"
    )
    offload: Literal["none", "optimizer"] = describe_field("optimizer: its state lives on the host and the step is taken there")
    lora_sync: Literal["merged", "adapter"] = describe_field(
        "how adapters reach vLLM: merged into the weights on the way, or as an adapter (not DoRA's)"
    )
    mismatch_limit: Literal["auto"] | Positive = describe_field(
        "mean |log-prob of sampler - of trainer| that stops the run; auto: 1e-4 in float32, 0.1 in bfloat16 with a warning from 0.02 on",
        unit="nats",
    )
    max_skipped_updates: Count = describe_field("updates in a row whose gradient was not finite, after which the run stops", unit="updates")
    vllm: dict[str, Any] = describe_field("raw settings for vllm.LLM")
    deepspeed: dict[str, Any] = describe_field("raw settings for DeepSpeed's configuration")


class EnvironmentSection(Section):
    """What answers the policy between its turns. rlkit/environments/spec.py makes the settings of its sessions of it."""

    path: Name | dict[str, Name] | None = describe_field(
        "a class (my_env.py:Wordle), functions (my_tools.py:search,my_tools.py:add), a shipped one, or several by name, of which a row's "
        "column environment chooses; null: a completion is one turn"
    )
    args: dict[str, Any] = describe_field("arguments of the class by name; of several, one such mapping by name")
    max_turns: Count = describe_field("of the policy in an episode; with the last one it is over and gets its reward", unit="turns")
    max_observation_tokens: Count = describe_field("of one answer of the environment; what is longer is cut, with a note", unit="tokens")
    timeout: Positive = describe_field("for one call; past it the worker is killed, and its episodes have no reward", unit="seconds")
    parser: Name = describe_field(
        "how tool calls are read: auto, hermes, response_template (of the tokenizer, by transformers), or the name of a tool parser of vLLM"
    )
    lockstep: bool = describe_field(
        "true: the next turns begin once the environment has answered all, so that runs with the same seed are equal to the bit; slower"
    )
    sessions: Count | None = describe_field("that are open at the same time, in all processes; null: all of a step", unit="episodes")


class CheckpointSection(Section):
    every: CountOrZero = describe_field("between checkpoints; 0: only at the end and when stopped", unit="steps")
    keep: Count = describe_field("newest checkpoints that are kept")
    best: Literal["export"] | bool = describe_field(
        "true: keep the checkpoint of the best evaluation too, by eval.select: rlkit export RUN step=best; export: and model/ at the end "
        "has its weights, not those of the last step"
    )
    export: Literal["merged", "adapter"] = describe_field(
        "the model at the end: merged, or adapter: a peft folder of the LoRA adapters alone"
    )


def check_listen_address(value: int | str | None) -> int | str | None:
    """The address. Raises ValueError where it is no port and no HOST:PORT."""
    if value is not None:
        parse_address(value)
    return value


class ReportSection(Section):
    table_every: Count = describe_field("between tables of samples", unit="steps")
    roofline: bool = describe_field(
        "compare each phase with the least time that this machine needs; an unknown machine is measured at start"
    )
    tokens: Literal["all"] | CountOrZero = describe_field(
        "whose tokens samples.jsonl holds, about 80 bytes each with both log-probs and entropies, at no forward pass; all: every sample's",
        unit="samples a step",
    )
    wandb: Name | None = describe_field("a project of Weights & Biases; null: off")
    mlflow: Name | None = describe_field("an experiment of MLflow, at MLFLOW_TRACKING_URI or in the folder of the run; null: off")
    swanlab: Name | None = describe_field("a project of SwanLab; null: off")
    trackio: Name | None = describe_field("a project of Trackio; null: off")
    upload_samples: bool = describe_field("true: these trackers also get the samples of each report.table_every steps, as tables")
    prometheus: Annotated[Annotated[int, Field(strict=True)] | str | None, AfterValidator(check_listen_address)] = describe_field(
        "a port of 127.0.0.1, or HOST:PORT, at which Prometheus reads the state of the run; null: off"
    )
    dump_steps: tuple[Count, ...] = describe_field(
        "that `rlkit replay` can compute again: the checkpoint before each is written and kept, and all its samples token by token",
        unit="steps",
    )
    audit_key: Name | None = describe_field(
        "file of an Ed25519 private key (PEM), outside the folder of the run, that signs each line of audit.jsonl; null: none"
    )

    @property
    def trackers(self) -> dict[str, str]:
        """The project of each tracker that is asked for, by its key."""
        asked = {"wandb": self.wandb, "mlflow": self.mlflow, "swanlab": self.swanlab, "trackio": self.trackio}
        return {key: project for key, project in asked.items() if project is not None}


class LaunchSection(Section):
    address: Name | None = describe_field(
        "of a Ray cluster, host:port; null: RAY_ADDRESS or the one here, else one started for this run (local: always)"
    )
    nodes: Count = describe_field(
        "machines of the run; of launch.ray and launch.local, as all of `launch`: there the bare name will do, nodes=2", unit="machines"
    )
    gpus_per_node: Count | None = describe_field("one process each; null: all, or workers_per_node where there are none", unit="GPUs")
    workers_per_node: Count = describe_field("of a node without GPUs", unit="processes")
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = describe_field(
        "at which the processes meet, on the first node; null: a free one"
    )
    interface: Name | None = describe_field("of the network, for gloo and NCCL; null: the one that has the node's address")
    env: Names = describe_field("environment variables that go to the nodes, beside RLKIT_*, HF_*, NCCL_*, VLLM_*, OMP_NUM_THREADS")
    watchdog_minutes: Positive = describe_field("without any progress on any process, after which all are ended", unit="minutes")
    max_restarts: CountOrZero = describe_field("from the last checkpoint, after a process or a node was lost")
    wait_minutes: Positive = describe_field("for enough nodes, at a restart", unit="minutes")
    elastic: bool = describe_field("true: a restart takes the nodes that are left")
