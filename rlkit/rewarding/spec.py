"""The keys of a recipe about rewards, with types and bounds: one reward (`rewards.NAME`) and how all of them run (`rewarding`).

Reward workers do not import this file, since pydantic would double the time that a worker needs to start: `RewardSpec.for_worker` makes
the plain dataclass that they get.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlkit.rewarding.job import WorkerReward

PositiveCount = Annotated[int, Field(strict=True, ge=1)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
DEFAULT_CPU_PER_TIMEOUT = 2.0  # CPU seconds for each second of the timeout


class RewardSettings(BaseModel):
    """How all rewards run and how their scores are combined. The defaults are in recipes/config.yaml.

    workers: processes, None for one per core. Seconds: timeout (one sample; times n for a batch of n), load_timeout (import of the reward
    files), cpu_seconds (CPU time of one sample, None: twice the timeout). memory_gib: memory of one worker. env: names of the environment
    variables that workers see. max_failure_rate: the run stops when a reward fails for a larger share of the last 1,000 samples, and for
    at least three. normalise: bring `each` reward, or their `sum`, to mean 0 and standard deviation 1 within its group.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: PositiveCount | None
    timeout: PositiveFloat
    load_timeout: PositiveFloat
    cpu_seconds: PositiveFloat | None
    memory_gib: PositiveFloat
    max_failure_rate: Annotated[float, Field(strict=True, ge=0.0, le=1.0)]
    combine: Literal["sum", "product", "gate"]
    normalise: Literal["none", "each", "sum"]
    env: tuple[str, ...]


class RewardSpec(BaseModel):
    """One reward of a recipe. The user names it, so its defaults are here and not in recipes/.

    path: where the function is (resolve.py). weight: 0 only logs the score, and a failure then does not void the sample. args: arguments
    by name. timeout: seconds for one sample, None for that of the settings. gate: with combine=gate, the sample earns 0 where this score
    is 0 or less. concurrency: samples that one worker runs at the same time, for an async function.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] = 1.0
    args: dict[str, Any] = Field(default_factory=dict)
    timeout: PositiveFloat | None = None
    gate: bool = False
    concurrency: PositiveCount = 32

    @model_validator(mode="after")
    def check_model(self) -> RewardSpec:
        if self.path == "reward_model" and set(self.args) != {"model"}:
            raise ValueError(f"path=reward_model takes args={{model: FOLDER}}, a folder or hub name of a classifier; here args={self.args}")
        return self

    @property
    def counts(self) -> bool:
        """Whether the reward of a sample depends on this score."""
        return self.weight != 0 or self.gate

    def for_worker(self, name: str, settings: RewardSettings) -> WorkerReward:
        """What a worker needs to know of this reward, with the defaults of `settings` filled in."""
        timeout = settings.timeout if self.timeout is None else self.timeout
        cpu_seconds = settings.cpu_seconds or DEFAULT_CPU_PER_TIMEOUT * timeout
        return WorkerReward(name, self.path, self.args, timeout, cpu_seconds, self.concurrency)
