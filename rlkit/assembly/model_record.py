"""Which models a run began with, file by file, so that a resume and an export notice another one.

A checkpoint holds what was trained. Everything else is read again: the weights under adapters, those of a reference or a teacher, buffers,
config.json, the tokenizer. So all files of a model that are read are compared by their digests, of a model of the hub its commit.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from rlkit.assembly.base_model import LocatedModel, find_commit
from rlkit.assembly.model_files import TOKENIZERS, list_weight_files
from rlkit.assembly.teacher import TEACHER, LocatedTeacher
from rlkit.config.recipe import Recipe
from rlkit.errors import UserError, list_some
from rlkit.runtime.cache import find_cache_folder
from rlkit.runtime.checkpoint import CHECKPOINTS
from rlkit.runtime.manifest import hash_file
from rlkit.runtime.ranks import Ranks

MODEL, COMMIT = "model.path", "commit"
RECORD = "models.json"  # in the folder of a run
READ = ("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.py", *TOKENIZERS)
SETTLED = 2 * 10**9  # nanoseconds after which a change of a file has another time than the one before
LARGE = 4 * 2**30  # bytes that are announced before they are read

Record = Mapping[str, Mapping[str, str]]  # by key of the recipe: the digest of each file, or the commit


def record_models(recipe: Recipe, model: LocatedModel, teacher: LocatedTeacher | None, folder: Path, ranks: Ranks) -> Record:
    """What the run in `folder` begins with, on the rank that is main; empty on others.

    Raises UserError, on all ranks, where the run has a checkpoint and began with something else.
    """
    found: Record = {}
    refusal = None
    if ranks.main:
        try:
            found = identify_models(recipe, model, teacher)
            if any((folder / CHECKPOINTS).glob("step-*")):
                check_record(folder, found, "put this back, or choose another output_dir")
        except UserError as error:
            refusal = str(error)
    if refusal := ranks.gather(refusal)[0]:
        raise UserError(refusal)
    return found


def check_record(folder: Path, now: Record, remedy: str) -> None:
    """Raises UserError where the run in `folder` began with other models, naming what changed."""
    file = folder / RECORD
    try:
        before = {key: dict(files) for key, files in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read, so it is not known which model this run began with; {remedy}") from error
    changes = [change for key, files in now.items() if (change := explain_change(key, before.get(key, {}), files))]
    if changes:
        raise UserError(f"the run in {folder} began with another model: {'; '.join(changes)}\n{remedy}")


def explain_change(key: str, before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """None where nothing changed."""
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if not changed:
        return None
    if before.keys() == now.keys() == {COMMIT}:
        advice = f" (model.revision={before[COMMIT]} takes that one)" if key == MODEL else ""
        return f"{key} is at commit {now[COMMIT]}, and was at {before[COMMIT]}{advice}"
    return f"{list_some(changed)} of {key} changed"


def identify_models(recipe: Recipe, model: LocatedModel, teacher: LocatedTeacher | None) -> Record:
    """Of the recipe's model, its teacher and its reward models. Raises UserError where one of the hub cannot be found."""
    found = {MODEL: identify_model(recipe, model)}
    if teacher:
        found["model.teacher"] = teacher.version or hash_or_find(teacher.path, f"{TEACHER} {teacher.path}", recipe.offline)
    for name, reward in (recipe.rewards or {}).items():
        if reward.path == "reward_model":
            path, what = str(reward.args["model"]), f"rewards.{name}: the reward model {reward.args['model']}"
            found[f"rewards.{name}"] = hash_or_find(path, what, recipe.offline)
    return found


def identify_model(recipe: Recipe, model: LocatedModel) -> Mapping[str, str]:
    """Of the recipe's model, as `locate_model` found it."""
    return model.version or hash_or_find(model.path, f"model.path {model.path}", recipe.offline)


def hash_or_find(path: str, what: str, offline: bool) -> Mapping[str, str]:
    """The digests of a folder, or the commit of a name of the hub; `what`: its name in messages. Raises UserError."""
    folder = Path(path).expanduser()
    return hash_model(folder) if folder.is_dir() else {COMMIT: find_commit(path, what, offline)}


def hash_model(folder: Path) -> dict[str, str]:
    """By name the digests of the files in a folder that are read of a model."""
    files = sorted({file for pattern in READ for file in folder.glob(pattern) if file.is_file()} | set(list_weight_files(folder)))
    size = sum(file.stat().st_size for file in files if not find_known(file).is_file())
    if size >= LARGE:
        print(f"reading {size / 2**30:.0f} GiB in {folder} for their digests, once on this machine", flush=True)
    return {file.name: hash_once(file) for file in files}


def hash_once(file: Path) -> str:
    """The digest of a file; from the cache where the file was hashed before and the system has not noted a change of it since."""
    known, changed = find_known(file), file.stat().st_ctime_ns
    if known.is_file():
        return known.read_text()
    settled = time.time_ns() - changed > SETTLED
    digest = hash_file(file)
    if settled and find_known(file) == known:
        known.parent.mkdir(exist_ok=True)
        part = known.with_suffix(f".{os.getpid()}.part")
        part.write_text(digest)
        part.replace(known)
    return digest


def find_known(file: Path) -> Path:
    """Where the digest of a file is cached, by all that the system knows of it: no program sets the time of a change (ctime)."""
    stat = file.stat()
    seal = (str(file.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return find_cache_folder() / "digests" / blake3(repr(seal).encode()).hexdigest()[:32]
