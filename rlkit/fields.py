"""How a key of a recipe is described: what rlkit/docs/keys.md and `rlkit keys` show beside its type, its bounds and its default."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def describe_field(description: str, *, unit: str | None = None, **settings: Any) -> Any:
    """pydantic's Field with a description and a unit; `settings`: its other arguments, such as bounds."""
    return Field(description=description, json_schema_extra={"unit": unit} if unit else None, **settings)
