"""Families of models, each in a process of its own: exact in a column of rlkit/docs/models.md or refused in words, as the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.model_page import COLUMNS, FAMILIES, FOOTER, HEADER, render_reasons, render_row
from tests.programs.families import measure_apart

PAGE = ROOT / "rlkit" / "docs" / "models.md"


def test_the_page_has_every_family_and_no_failure() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEADER) and text.endswith(FOOTER)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [[name, family] for name, (family, _) in FAMILIES.items()]
    assert {len(row) for row in rows} == {2 + len(COLUMNS)} and {verdict for row in rows for verdict in row[2:]} == {"exact", "refused", ""}
    assert all(row[3:] == [""] * 4 if row[2] == "refused" else "" not in row for row in rows)
    assert sum(row[2] == "exact" for row in rows) >= 30


@pytest.mark.nightly(part="matrices")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_does_what_the_page_says(name: str, tmp_path: Path) -> None:
    found = measure_apart(name, tmp_path / "family")
    lines = PAGE.read_text().splitlines()
    assert render_row(name, found) in lines, found
    assert [line for line in lines if line.startswith(f"- {name}, ")] == render_reasons(name, found)
