"""One process group for all engines of a test process."""

from __future__ import annotations

import pytest

from rlkit.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Ranks:
    return Ranks()
