"""From the words of a command line to a resolved configuration: the only file that imports Hydra.

A recipe is found in recipes/ and in a folder of the user's own. Left out: types and bounds, which recipe.py checks.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.config.renamed import refuse_old_key, refuse_old_names
from rlkit.config.suggestions import suggest
from rlkit.errors import UserError
from rlkit.runtime.paths import find_bundled_folder
from rlkit.runtime.redaction import redact_config

ASSIGNMENT = re.compile(r"^(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.DOTALL)
MAX_NODES = 10_000
MAX_DEPTH = 50
DELETION = re.compile(r"^~(?P<key>[^=]+)")


def list_groups() -> dict[str, Path]:
    """The config groups: the folders of the recipe tree."""
    return {p.name: p for p in find_bundled_folder("recipes").iterdir() if p.is_dir()}


def list_options(group: str, folder: Path | None) -> list[str]:
    """The names that can be chosen for a group. A file whose name begins with _ is included by others and cannot be chosen."""
    return sorted({p.stem for place in list_places(group, folder) if place.is_dir() for p in place.glob("[!_]*.yaml")})


def list_places(group: str, folder: Path | None) -> list[Path]:
    """The folders of a group's files; a name that is in both is taken from the first."""
    return [find_bundled_folder("recipes") / group, *([folder / group] if folder else [])]


@dataclass(frozen=True)
class Composed:
    """`config`: with every interpolation resolved. `text`: the same as YAML, without credentials."""

    config: dict[str, Any]
    text: str


def compose_config(overrides: list[str], folder: Path | None) -> dict[str, Any]:
    """The resolved configuration. Raises UserError for a recipe or group that is not there, or for what Hydra cannot read."""
    return compose_recipe(overrides, folder).config


def compose_recipe(overrides: list[str], folder: Path | None) -> Composed:
    """The resolved configuration and its text. Raises UserError as compose_config."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file, words = split_file(expand_names(overrides, folder))
    written = [check_override(word, folder, of_file=file is not None) for word in words]
    if file is None and not any(override.startswith("recipe=") for override in written):
        raise UserError(f"choose a recipe: recipe=NAME, one of {', '.join(list_options('recipe', folder))}")
    if folder:
        refuse_bombs(folder)
        written.append(f"hydra.searchpath=[{quote(f'file://{folder}')}]")
    try:
        composed = _compose(written, folder, file)
    except (HydraException, OmegaConfBaseException) as error:
        for match in filter(None, map(DELETION.match, written)):
            refuse_old_key(match["key"])
        raise UserError(summarise_error(error)) from error
    except YAMLError as error:
        raise UserError(f"a recipe is not valid YAML: {truncate_lines(str(error))}") from error
    except UserError:
        raise
    except Exception as error:  # Hydra, ANTLR and OmegaConf fail in kinds of their own on what they did not expect
        why = "it is nested too deep" if isinstance(error, RecursionError) else f"{type(error).__name__}: {truncate_lines(str(error))}"
        raise UserError(f"the recipe or one of the words after it cannot be read: {why}") from error
    refuse_old_names(composed.config)
    return composed


def expand_names(words: list[str], folder: Path | None) -> list[str]:
    """With the bare name of a recipe as recipe=NAME."""
    return [f"recipe={word}" if word in list_options("recipe", folder) else word for word in words]


def split_file(words: list[str]) -> tuple[Path | None, list[str]]:
    """The recipe of a run that is named by its file, recipe.yaml, and the other words. Raises UserError where it cannot be read."""
    import yaml

    files = [word for word in words if ASSIGNMENT.match(word) is None and word.endswith((".yaml", ".yml"))]
    if not files:
        return None, words
    file = Path(files[0]).expanduser().absolute()
    rest = [word for word in words if word not in files]
    if len(files) > 1 or any(word.startswith("recipe=") for word in rest):
        raise UserError(f"{files[0]} is a recipe, and so is {[*files[1:], *rest][0]}; name one")
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as a recipe: {truncate_lines(str(error))}") from error
    if not isinstance(content, dict) or "recipe" not in content or not isinstance(content.get("algorithm"), dict):
        raise UserError(
            f"{file} is not the resolved recipe of a run, RUN/recipe.yaml; a recipe of your own is DIR/recipe/NAME.yaml: "
            "--config-dir DIR recipe=NAME"
        )
    return file, rest


def _compose(overrides: list[str], folder: Path | None, file: Path | None) -> Composed:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(file.parent if file else find_bundled_folder("recipes")), version_base="1.3"):
        composed = hydra_compose(file.stem if file else "config", overrides, return_hydra_config=True)
    chosen = composed.recipe if file else composed.hydra.runtime.choices.recipe
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    if leaves_test_behind(overrides, None if file else chosen, folder):
        OmegaConf.update(composed, "data.test", None)
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    named = {"recipe": chosen, **{str(key): value for key, value in config.items()}}
    return Composed(named, to_yaml(redact_config(named, OmegaConf.to_container(composed))))


def leaves_test_behind(overrides: list[str], recipe: str | None, folder: Path | None) -> bool:
    """Whether data.train is set in a place that wins over the one that sets data.test: those rows would be held out of another task.

    Places, the first wins: the command line, the recipe, the recipes that it is based on, the group `data`, which sets both. recipe: its
    name; None for a resolved one, which sets both.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    keys: set[str] = set()
    for override in OverridesParser.create().parse_overrides(overrides):
        key, value = override.key_or_group, override.value()
        keys |= {f"data.{name}" for name in value} if key == "data" and isinstance(value, dict) else {".".join(key.split(".")[:2])}
    for place in (keys, *(list_recipe_keys(recipe, folder) if recipe else ())):
        if not place.isdisjoint(("data.train", "data.test")):
            return "data.test" not in place
    return False


def list_recipe_keys(recipe: str, folder: Path | None) -> Iterator[set[str]]:
    """`data.KEY` for each key of the section `data` in a recipe's file, then in those of the recipes that it is based on."""
    import yaml

    file = next((place / f"{recipe}.yaml" for place in list_places("recipe", folder) if (place / f"{recipe}.yaml").is_file()), None)
    content = yaml.safe_load(file.read_text()) if file else None
    if not isinstance(content, dict):
        return
    yield {f"data.{key}" for key in content["data"]} if isinstance(content.get("data"), dict) else set()
    for base in reversed(content.get("defaults") or []):  # the last one wins
        if isinstance(base, str) and base != "_self_":
            yield from list_recipe_keys(base, folder)


def refuse_bombs(folder: Path) -> None:
    """Raises UserError for a recipe in a user's folder that becomes too large or too deep once its aliases are written out."""
    from yaml import YAMLError

    for file in (file for group in list_groups() if (folder / group).is_dir() for file in (folder / group).rglob("*.yaml")):
        try:
            size, depth = measure_yaml(file)
        except (YAMLError, ValueError, OSError, RecursionError):  # no YAML: an error once it is chosen
            continue
        if size > MAX_NODES or depth > MAX_DEPTH:
            raise UserError(f"{file} holds {size:,} values, nested {depth} deep; a recipe has at most {MAX_NODES:,}, {MAX_DEPTH} deep")


def measure_yaml(file: Path) -> tuple[int, int]:
    """How many values a YAML file has, with those of its aliases as often as they are named, and how deep they are nested."""
    import yaml

    sizes: dict[str, tuple[int, int]] = {}  # of each anchor
    open_nodes: list[list[Any]] = [[None, 0, 0]]  # anchor, values, depth
    for event in yaml.parse(file.read_text(), Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1, 0])
            continue
        size, depth = (1, 0) if isinstance(event, yaml.ScalarEvent) else (0, 0)
        if isinstance(event, yaml.AliasEvent):
            size, depth = sizes.get(event.anchor, (1, 0))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size, depth = open_nodes.pop()
            sizes[anchor] = size, depth
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1, 0
        open_nodes[-1][1:] = open_nodes[-1][1] + size, max(open_nodes[-1][2], depth + 1)
    return open_nodes[0][1], open_nodes[0][2]


def summarise_error(error: Exception) -> str:
    """Hydra's message in a few lines; for a key without a value, how to set it."""
    text = str(error).strip()
    if "Missing mandatory value" in text:
        key = getattr(error, "full_key", None) or text.partition("Missing mandatory value: ")[2].split()[0]
        return f"{key} is not set; it has no default: {key}=..."
    return truncate_lines(text)


def truncate_lines(text: str) -> str:
    return "\n".join(line[:300] for line in text.splitlines()[:6])


GROUP_KEYS = {
    "model": "model.path",
    "data": "data.train",
    "rewards": "rewards.NAME.path",
    "engine": "engine.rollout",
    "rollout": "engine.rollout",
}  # what a value may be meant for


def check_override(override: str, folder: Path | None, of_file: bool = False) -> str:
    """An override in the form that Hydra needs. Any key may be set: the typed recipe refuses unknown ones. Raises UserError.

    of_file: of a resolved recipe, for which no file of a group can be chosen any more.
    """
    match = ASSIGNMENT.match(override)
    if match is None:
        if "=" not in override and not override.startswith("~"):
            similar = suggest(override, list_options("recipe", folder), "")
            raise UserError(f"{override!r} is not an override; write key=value" + (similar if "did you mean" in similar else ""))
        return override  # Hydra's own +key=, ++key= and ~key (removes a key)
    key, value = match["key"], match["value"]
    if key not in list_groups():
        return f"++{key}={quote_value(value)}"
    if of_file and not value.startswith("{"):
        raise UserError(f"{override} chooses a file of recipes/{key}, and a run's own recipe is resolved already; set the keys of {key}")
    if value not in list_options(key, folder) and not value.startswith("{"):
        meant = f"; or did you mean {GROUP_KEYS[key]}={value}?" if key in GROUP_KEYS else ""
        raise UserError(f"there is no {key} {value!r}{suggest(value, list_options(key, folder))}{meant}")
    return override if not value.startswith("{") else f"++{override}"


def quote_value(value: str) -> str:
    """A value, in quotes where Hydra's grammar cannot parse it: a path with = or ~, a regular expression."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if value.startswith(("{", "[", "'", '"')):
        return value
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except (HydraException, ValueError, RecursionError):  # ValueError: more digits than Python reads
        return quote(value)
    return value


def quote(value: Path | str) -> str:
    """A value that Hydra's grammar reads as one string: it unescapes a quote, and the backslashes before one."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(value)) + "'"


def to_yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


@dataclass(frozen=True)
class SweepJob:
    """One combination of a sweep: its overrides, and the value of each key that varies."""

    words: list[str]
    values: dict[str, str]


def expand_sweep(words: list[str], folder: Path | None) -> list[SweepJob]:
    """Every combination of comma-separated values. Raises UserError for words that cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    file, overrides = split_file(expand_names(words, folder))
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except (HydraException, ValueError, RecursionError) as error:
        raise UserError(summarise_error(error)) from error
    choices = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [None] for o in parsed]
    jobs = []
    for combination in itertools.product(*choices):
        values = {o.get_key_element(): str(c) for o, c in zip(parsed, combination, strict=True) if c is not None}
        fixed = [str(o.input_line) if c is None else f"{o.get_key_element()}={c}" for o, c in zip(parsed, combination, strict=True)]
        jobs.append(SweepJob([*([str(file)] if file else []), *fixed], values))
    return jobs
