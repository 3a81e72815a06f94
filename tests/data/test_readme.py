"""Every example row of the room's README is read as it says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rlkit.config.recipe import DataSection
from rlkit.data.columns import Columns, PromptReader
from rlkit.data.completions import DemonstrationReader, PairReader, RatedReader
from rlkit.data.rows import ListRows
from tests.conftest import ROOT

README = (ROOT / "rlkit" / "data" / "README.md").read_text()
BLOCKS = {kind: block.splitlines() for kind, block in re.findall(r"```json (\w+)\n(.*?)\n```", README, re.DOTALL)}
USER = {"role": "user", "content": "What is 1 + 1?"}


def read(kind: str, line: str) -> Any:
    readers = {"prompts": PromptReader, "pairs": PairReader, "rated": RatedReader, "demonstrations": DemonstrationReader}
    return readers[kind](ListRows("README", [json.loads(line)]), Columns()).read(0)


def replies(*texts: str) -> tuple[dict[str, str], ...]:
    return tuple({"role": "assistant", "content": text} for text in texts)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_rows_of_the_readme(kind: str) -> None:
    assert len(BLOCKS[kind]) >= 2
    found = [read(kind, line) for line in BLOCKS[kind]]
    assert all(one.prompt[-1] == USER for one in found)
    if kind == "prompts":
        assert {one.answer for one in found} == {"2"}
    elif kind == "rated":
        assert [(one.completions, one.desirable) for one in found] == [(replies("2"), True), (replies("3"), False)]
    else:
        assert {one.completions == replies("2", "3")[: len(one.completions)] for one in found} == {True}
        assert {len(one.completions) for one in found} == {2 if kind == "pairs" else 1}


def test_every_kind_and_every_key_is_told() -> None:
    assert set(BLOCKS) == {"prompts", "pairs", "rated", "demonstrations"}
    assert [key for key in DataSection.model_fields if f"`data.{key}`" not in README] == []
