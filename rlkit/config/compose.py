"""From the words of a command line to a resolved configuration: the only file that imports Hydra.

A recipe is found in recipes/ and in a folder of the user's own. Left out: types and bounds, which recipe.py checks.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from rlkit.config.renamed import refuse_old_key, refuse_old_names
from rlkit.errors import UserError
from rlkit.runtime.paths import find_bundled_folder

ASSIGNMENT = re.compile(r"^(?P<key>[A-Za-z_][\w.]*)=(?P<value>.*)$", re.DOTALL)
DELETION = re.compile(r"^~(?P<key>[^=]+)")


def list_groups() -> dict[str, Path]:
    """The config groups: the folders of the recipe tree."""
    return {p.name: p for p in find_bundled_folder("recipes").iterdir() if p.is_dir()}


def list_options(group: str, folder: Path | None) -> list[str]:
    """The names that can be chosen for a group. A file whose name begins with _ is included by others and cannot be chosen."""
    places = [find_bundled_folder("recipes") / group, *([folder / group] if folder else [])]
    return sorted({p.stem for place in places if place.is_dir() for p in place.glob("[!_]*.yaml")})


def compose_config(overrides: list[str], folder: Path | None) -> dict[str, Any]:
    """The resolved configuration. Raises UserError for a recipe or group that is not there, or for what Hydra cannot read."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    written = [check_override(override, folder) for override in overrides]
    if not any(override.startswith("recipe=") for override in written):
        raise UserError(f"choose a recipe: recipe=NAME, one of {', '.join(list_options('recipe', folder))}")
    if folder:
        written.append(f"hydra.searchpath=[{quote(f'file://{folder}')}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(find_bundled_folder("recipes")), version_base="1.3"):
            composed = hydra_compose("config", written, return_hydra_config=True)
        chosen = composed.hydra.runtime.choices.recipe
        OmegaConf.set_struct(composed, False)
        del composed["hydra"]
        config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        for match in filter(None, map(DELETION.match, written)):
            refuse_old_key(match["key"])
        raise UserError(summarise_error(error)) from error
    except YAMLError as error:
        raise UserError(f"a recipe is not valid YAML: {error}") from error
    assert isinstance(config, dict)
    named = {"recipe": chosen, **{str(key): value for key, value in config.items()}}
    refuse_old_names(named)
    return named


def summarise_error(error: Exception) -> str:
    """Hydra's message in a few lines; for a key without a value, how to set it."""
    text = str(error).strip()
    if "Missing mandatory value" in text:
        key = getattr(error, "full_key", None) or text.partition("Missing mandatory value: ")[2].split()[0]
        return f"{key} is not set; it has no default: {key}=..."
    return "\n".join(text.splitlines()[:6])


def check_override(override: str, folder: Path | None) -> str:
    """An override in the form that Hydra needs. Any key may be set: the typed recipe refuses unknown ones. Raises UserError."""
    match = ASSIGNMENT.match(override)
    if match is None:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override!r} is not an override; write key=value")
        return override  # Hydra's own +key=, ++key= and ~key (removes a key)
    key, value = match["key"], match["value"]
    if key not in list_groups():
        return f"++{key}={quote_value(value)}"
    if value not in list_options(key, folder) and not value.startswith("{"):
        from rlkit.config.recipe import suggest  # which loads torch

        raise UserError(f"there is no {key} {value!r}{suggest(value, list_options(key, folder))}")
    return override if not value.startswith("{") else f"++{override}"


def quote_value(value: str) -> str:
    """A value, in quotes where Hydra's grammar cannot parse it: a path with = or ~, a regular expression."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if value.startswith(("{", "[", "'", '"')):
        return value
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return quote(value)
    return value


def quote(value: Path | str) -> str:
    """A value that Hydra's grammar reads as one string: it unescapes a quote, and the backslashes before one."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), str(value)) + "'"


def to_yaml(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def expand_sweep(overrides: list[str]) -> list[tuple[list[str], str]]:
    """Every combination of comma-separated values: its overrides, and those of them that vary, as one text ("0" where none does)."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(summarise_error(error)) from error
    choices = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [None] for o in parsed]
    combinations = []
    for combination in itertools.product(*choices):
        words = [str(o.input_line) if c is None else f"{o.get_key_element()}={c}" for o, c in zip(parsed, combination, strict=True)]
        combinations.append((words, ",".join(w for w, c in zip(words, combination, strict=True) if c is not None) or "0"))
    return combinations
