from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.runtime.cache import find_cache_folder


def test_the_cache_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "a" / "b"))
    assert find_cache_folder() == tmp_path / "a" / "b"
    monkeypatch.delenv("RLKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_cache_folder() == tmp_path / ".cache" / "rlkit"
    assert (tmp_path / ".cache" / "rlkit").is_dir()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RLKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file cannot be created .*set RLKIT_CACHE"):
        find_cache_folder()
    if os.geteuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        monkeypatch.setenv("RLKIT_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=r"cannot be written; set RLKIT_CACHE"):
            find_cache_folder()
    monkeypatch.delenv("RLKIT_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])  # as for the user of many a container
    with pytest.raises(UserError, match=r"no home folder .*set RLKIT_CACHE"):
        find_cache_folder()
