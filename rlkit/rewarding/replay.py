"""The file of a failed sample, by which `rlkit reward retry` calls the reward again. Users attach it to reports, so it is no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import Outcome
from rlkit.rewarding.typed_json import TypedJsonEncoder, decode
from rlkit.runtime.redaction import hide_known, restore_environment

FORMAT = "rlkit reward replay, version 1"


@dataclass(frozen=True)
class Replay:
    """A failed call. items: what the reward got, one per sample. inexact: a line for each value that the file holds only in part."""

    reward: WorkerReward
    items: list[dict[str, Any]]
    working_directory: Path
    sample: str
    outcome: str
    inexact: list[str]


def write_replay(folder: Path, reward: WorkerReward, items: Sequence[Mapping[str, Any]], key: Hashable, outcome: Outcome) -> Path:
    """Write all that is needed to call the reward again in the same way. Returns the path of the file."""
    encoder = TypedJsonEncoder()
    content = {
        "format": FORMAT,
        "reward": encoder.encode({key: value for key, value in asdict(reward).items() if key != "pickled"}, "reward"),
        "working_directory": os.getcwd(),
        "sample": str(key),
        "outcome": {"kind": outcome.kind.value, "detail": encoder.encode(outcome.detail, "detail")},
        "items": [encoder.encode(dict(item), f"items[{index}]") for index, item in enumerate(items)],
        "inexact": encoder.inexact,  # after all calls of encode
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{reward.name}.json"
    file.write_text(hide_known(json.dumps(content, indent=1, ensure_ascii=False)) + "\n", encoding="utf-8", errors="backslashreplace")
    return file


def read_replay(file: Path) -> Replay:
    """Read a file of write_replay. Raises UserError for any other file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if "pickled" in content:
            raise ValueError("it holds a pickle, of an earlier rlkit: reading a pickle can run code that is in it. Run the recipe again")
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT!r}")
        return Replay(
            reward=WorkerReward(**restore_environment(decode(content["reward"]))),
            items=decode(content["items"]),
            working_directory=Path(content["working_directory"]),
            sample=str(content["sample"]),
            outcome=str(content["outcome"]["kind"]),
            inexact=[str(line) for line in content["inexact"]],
        )
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is not a file that a run wrote for a failed reward: {reason}") from error
