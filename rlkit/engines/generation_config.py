"""generation_config.json of a model: only the tokens that end a completion are taken from it, since recipes say how to sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlkit.errors import UserError

GENERATION_CONFIG = "generation_config.json"


def find_generation_config(path: str, offline: bool) -> Path | None:
    """The file of the model at `path`, a folder or a name of the hub; None where the model has none, or with `offline` where it is not in
    the cache. Raises UserError where the hub does not answer."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        file = folder / GENERATION_CONFIG
        return file if file.exists() or file.is_symlink() else None  # a link to nothing is a damaged file and no absent one
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, GENERATION_CONFIG, local_files_only=offline))
    except (EntryNotFoundError, OSError, ValueError) as error:
        if (
            offline
            or constants.HF_HUB_OFFLINE
            or (isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError))
        ):
            return None
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{GENERATION_CONFIG} of model.path {path} cannot be fetched from the hub: {why}; start again, or set offline=true to use what "
            "the cache holds"
        ) from error


def read_end_tokens(file: Path) -> frozenset[int]:
    """The ids of `eos_token_id`. Raises UserError where the file cannot be read, or holds something else there."""
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {describe_json(content)} and no keys")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read as the generation configuration of a model: {error}; download or copy it again, or delete it where the "
            "tokenizer's end token is the only one"
        ) from error
    ends = content.get("eos_token_id")
    ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    for wrong in (end for end in ids if type(end) is not int or end < 0):
        raise UserError(
            f"{file}: eos_token_id holds {describe_json(wrong)}, which is no token; valid: the id of a token (an integer from 0), a "
            "list of such ids, or null where the tokenizer's end token is the only one"
        )
    return frozenset(ids)


def describe_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
