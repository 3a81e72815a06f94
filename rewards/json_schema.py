"""Whether the completion is a JSON document that a schema allows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import SchemaError  # type: ignore[import-untyped]
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from referencing import Registry

FENCED = re.compile(r"^[^\n`]*```[ \t]*(\w*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)  # the language, the contents


def json_schema(completion: str, schema: Mapping[str, Any] | str, **columns: Any) -> float:
    """1.0 where the last fenced block, or the whole completion where it has none, is JSON that the schema allows; else 0.0.

    Blocks of json are preferred to blocks without a language; others do not count. schema: a JSON Schema, from a column of the data or from
    args; a text is parsed as JSON. Nothing is downloaded: a $ref must point into the schema. Raises ValueError for an invalid schema.
    """
    schema = json.loads(schema) if isinstance(schema, str) else dict(schema)
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"the schema is not a valid JSON Schema: {error.message}") from error
    fenced = FENCED.findall(completion.replace("\r\n", "\n"))
    blocks = [text for name, text in fenced if name.lower() == "json"] or [text for name, text in fenced if not name]
    try:
        document = json.loads(blocks[-1] if blocks else completion)
    except (ValueError, RecursionError):
        return 0.0
    return float(kind(schema, registry=Registry()).is_valid(document))
