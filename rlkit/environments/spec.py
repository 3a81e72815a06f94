"""What the room needs to know of a recipe's environment; the recipe's section `environment` makes it.

Workers do not import this file, as with rlkit/rewarding/spec.py: pydantic would double the time that a worker needs to start.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from rlkit.fields import describe_field

PositiveInt = Annotated[int, Field(strict=True, ge=1)]
PositiveSeconds = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]
DEFAULT_WORKERS = 16  # at most, and no more than there are sessions: calls mostly wait, so it is not the number of cores


class EnvironmentSettings(BaseModel):
    """The environment of a recipe, and how its sessions run. Import limits, memory and variables of workers are those of `rewarding`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | dict[str, str] = describe_field(
        "a shipped one (wordle), a class (my_env.py:Wordle), functions (my_tools.py:search,my_tools.py:add), or several by name, of which "
        "the column `environment` of a row chooses"
    )
    args: dict[str, Any] = describe_field("arguments of the class by name; for several, one such mapping by name", default={})
    timeout: PositiveSeconds = describe_field(
        "for one call; past it the worker is killed, and its episodes have no reward", unit="seconds", default=30.0
    )
    max_observation: PositiveInt = describe_field("of one answer; what is longer is cut, with a note", unit="characters", default=4096)
    sessions: PositiveInt | None = describe_field("that are open at the same time; others wait. null: no limit", default=None)
    workers: PositiveInt = describe_field(
        "of each rank at most, started as sessions need them; each runs one call at a time, and async ones together",
        unit="processes",
        default=DEFAULT_WORKERS,
    )
