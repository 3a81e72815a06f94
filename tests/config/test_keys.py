"""rlkit/docs/keys.md has every key of every recipe, with the type, bounds, default and meaning that the code has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from rlkit.algorithms import ALGORITHMS, OFFLINE
from rlkit.config.compose import compose_config
from rlkit.config.keys import format_page, list_entries, read_defaults
from rlkit.config.recipe import Recipe
from tests.conftest import ROOT

ENTRIES = list_entries()
BY_KEY = {(entry.key, name): entry for entry in ENTRIES for name in entry.algorithms or [""]}


def walk(config: Mapping[str, Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of what no section holds."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value and f"{key}{name}" not in ("model.chat_template_kwargs", "engine.vllm", "model.shape"):
            yield from walk(value, f"{key}{name}.")
        else:
            yield f"{key}{name}", value


def test_the_page_is_the_one_that_the_code_makes() -> None:
    page = (ROOT / "rlkit" / "docs" / "keys.md").read_text()
    assert page == format_page(), "python -m rlkit.config.keys > rlkit/docs/keys.md"


@pytest.mark.parametrize("name", [*ALGORITHMS, *OFFLINE])
def test_every_key_that_a_run_has_is_on_it(name: str) -> None:
    """Of a resolved recipe, whose other way of being read is Hydra's; defaults that no recipe changes are equal too."""
    config = compose_config(["recipe=grpo_math", f"algorithm={name}"], None)
    keys = {key.replace("rewards.accuracy.", "rewards.NAME.") for key, _ in walk(config)}
    described = {key for key, of in BY_KEY if of in ("", name)} | {
        "algorithm.name",
        "sampling",
        "rewards",
        "rewarding",
        "data.columns",
        "model.shape",
    }
    assert keys - described == set()
    for key, value in walk(config["algorithm"], "algorithm."):
        if key != "algorithm.name":
            default = BY_KEY[key, name].default
            assert str(value).lower().replace("none", "null") in default.lower() or float(value) == float(default), key


def test_every_entry_is_a_key_with_a_meaning_and_no_two_are_the_same() -> None:
    assert len(BY_KEY) == sum(max(len(entry.algorithms), 1) for entry in ENTRIES) and len(ENTRIES) > 120
    for entry in ENTRIES:
        assert entry.meaning and entry.type and entry.default, entry.key
        assert not entry.meaning.endswith(".") and "  " not in entry.meaning, entry.key


def test_the_bounds_on_the_page_are_those_that_are_checked() -> None:
    """The first value past each bound is refused, and names the bound."""
    tried = 0
    for entry in ENTRIES:
        section, _, name = entry.key.partition(".")
        if (
            entry.algorithms
            or "." in name
            or section not in ("optim", "engine", "eval", "checkpoint", "report", "sampling")
            or ", at least" not in entry.type
        ):
            continue
        least = float(entry.type.partition(", at least ")[2].split(",")[0])
        config = compose_config(["recipe=grpo_math"], None)
        if name == "betas":
            continue
        past = least - 1 if entry.type.startswith("number") else int(least) - 1
        config[section][name] = [past] if entry.type.startswith("list") else past
        with pytest.raises(ValidationError, match=f"greater than or equal to {least:g}"):
            Recipe.model_validate(config)
        tried += 1
    assert tried > 10


def test_a_unit_stands_where_a_number_has_one() -> None:
    """Names that carry their unit agree with it."""
    for entry in ENTRIES:
        for ending, unit in {
            "_steps": "steps",
            "_tokens": "tokens",
            "_gib": "GiB",
            "_minutes": "minutes",
            "_seconds": "seconds",
            "timeout": "seconds",
        }.items():
            if entry.key.endswith(ending):
                assert entry.unit == unit, entry.key
    assert read_defaults()["launch"]["watchdog_minutes"] == 30.0
