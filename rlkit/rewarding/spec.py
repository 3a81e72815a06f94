"""The keys of a recipe about rewards, with types and bounds: one reward (`rewards.NAME`) and how all of them run (`rewarding`).

Reward workers do not import this file, since pydantic would double the time that a worker needs to start: `RewardSpec.for_worker` makes
the plain dataclass that they get.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rlkit.fields import describe_field
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.python_functions import find_registered

PositiveCount = Annotated[int, Field(strict=True, ge=1)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
TRUST = "trust_remote_code"  # a key of the args of a reward model; that of the recipe's model is for the recipe's model
DEFAULT_CPU_PER_TIMEOUT = 2.0  # CPU seconds for each second of the timeout


class RewardSettings(BaseModel):
    """How all rewards run and how their scores are combined. The defaults are in recipes/config.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: PositiveCount | None = describe_field("null: one a core, shared among the ranks of a machine", unit="processes")
    timeout: PositiveFloat = describe_field(
        "for one sample (times n for a batch of n); then the worker is killed and replaced", unit="seconds"
    )
    load_timeout: PositiveFloat = describe_field("to import the reward files", unit="seconds")
    cpu_seconds: PositiveFloat | None = describe_field("CPU time of one sample; null: twice the timeout", unit="seconds")
    memory_gib: PositiveFloat = describe_field("of one worker", unit="GiB")
    max_failure_rate: Annotated[float, Field(strict=True, ge=0.0, le=1.0)] = describe_field(
        "of the last 1,000 scores; above it, and from three failures on, the run stops"
    )
    combine: Literal["sum", "product", "gate"] = describe_field(
        "of the weighted rewards: sum, product, or gate (0 unless every reward with gate=true is earned)"
    )
    normalise: Literal["none", "each", "sum"] = describe_field(
        "none, each reward, or their sum: to mean 0 and deviation 1 within its group; metrics show the values before"
    )
    env: tuple[str, ...] = describe_field("names of environment variables that reward functions may see")


class RewardSpec(BaseModel):
    """One reward of a recipe. The user names it, so its defaults are here and not in recipes/."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = describe_field(
        "a shipped reward (accuracy), a file and a function (my_rewards.py:score), a dotted name (package.module:function), reward_model, "
        "or environment"
    )
    weight: Annotated[float, Field(strict=True, allow_inf_nan=False)] = describe_field(
        "of this reward in the combination; 0 only logs the score, and a failure then does not void the sample", default=1.0
    )
    args: dict[str, Any] = describe_field("arguments of the function by name", default={})
    timeout: PositiveFloat | None = describe_field("for one sample; null: rewarding.timeout", unit="seconds", default=None)
    gate: bool = describe_field("true, with rewarding.combine=gate: the sample earns 0 where this score is 0 or less", default=False)
    concurrency: PositiveCount = describe_field("that one worker runs at the same time, for an async function", unit="samples", default=32)

    @model_validator(mode="after")
    def check_model(self) -> RewardSpec:
        if self.path != "reward_model":
            return self
        model, trusted = self.args.get("model"), self.args.get(TRUST, False)
        if not isinstance(model, str) or not model.strip() or self.args.keys() - {"model", TRUST} or not isinstance(trusted, bool):
            raise ValueError(
                "path=reward_model takes args={model: FOLDER}, a folder or hub name of a classifier, and trust_remote_code: true where its "
                f"own code may run here; here args={self.args}"
            )
        return self

    @property
    def counts(self) -> bool:
        """Whether the reward of a sample depends on this score."""
        return self.weight != 0 or self.gate

    def for_worker(self, name: str, settings: RewardSettings) -> WorkerReward:
        """What a worker needs to know of this reward, with the defaults of `settings` filled in."""
        timeout = settings.timeout if self.timeout is None else self.timeout
        cpu_seconds = settings.cpu_seconds or DEFAULT_CPU_PER_TIMEOUT * timeout
        function = find_registered(self.path)
        pickled = function.pickled if function else b""
        return WorkerReward(name, self.path, self.args, timeout, cpu_seconds, self.concurrency, pickled)
