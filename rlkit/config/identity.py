"""Whether two recipes are one run: the keys that may change when it is resumed, and those that make it go on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# When they change, a finished run goes on; assembly/going_on.py looks whether they leave anything to do.
GOES_ON = frozenset({"steps", "data.epochs", "eval.patience"})
# Keys that may change when a run is resumed: they change nothing that it computes, or only how it uses memory.
IDENTITY_FREE = frozenset(
    {
        "output_dir",
        "resume",
        "offline",
        "offline_hosts",
        "debug",
        "dry_run",
        "report",
        "launch",
        "hardware",
        "checkpoint.every",
        "checkpoint.keep",
    }
    | {"model.revision", "model.teacher.url", "model.teacher.api_key"}  # assembly/model_record.py compares the models themselves
    | {"eval.every", "engine.gradient_checkpointing", "engine.memory", "engine.vllm"}
    | GOES_ON
)


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys, with both values, in which two recipes differ and that change what a run computes."""
    lines = []
    for key in sorted(set(before) | set(now)):
        if f"{prefix}{key}" in IDENTITY_FREE:
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += list_changes(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} then, {new} now")
    return lines
