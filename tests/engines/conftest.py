"""One process group for all engines of a test process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from rlkit.runtime.ranks import Ranks
from tests.conftest import PLACE


@pytest.fixture(scope="session")
def group() -> Ranks:
    with mock.patch.dict(os.environ):
        return Ranks()


@pytest.fixture(scope="module")
def ranks(group: Ranks) -> Iterator[Ranks]:
    """Alone, and the environment says so, where engines look; for the tests of one module, since those of others start runs of many."""
    with mock.patch.dict(os.environ, {name: "1" if name.endswith("SIZE") else "0" for name in PLACE} | {"MASTER_ADDR": "127.0.0.1"}):
        yield group
