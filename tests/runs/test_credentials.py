"""A run whose recipe has credentials leaves none of them in a file or on a screen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rlkit.errors import UserError
from rlkit.rewarding.replay import read_replay
from tests.conftest import run

NAMED, LIKELY, OF_ENVIRONMENT, IN_URL = "correct-horse-7", "sk-abcdefghijklmnopqrstuv", "v4lue-of-environment", "pw0pw0pw0"
REWARD = """
def score(prompt, completion, api_key, password, header, url, note):
    print("debugging", api_key)
    raise RuntimeError(f"401 for {api_key} {password} {header} {url} {note}")
"""


@pytest.mark.slow
def test_credentials_are_written_nowhere_and_shown_in_no_message(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    from_environment = "header: 'Bearer ${oc.env:JUDGE}', api_key: '${oc.env:JUDGE}'"
    args = f"{{password: {NAMED}, {from_environment}, url: 'https://me:{IN_URL}@host', note: {LIKELY}}}"
    words = [*small, "steps=1", f"rewards.mine={{path: 'mine.py:score', args: {args}}}", "output_dir=run", "rewarding.timeout=5.0"]
    variants: tuple[list[str], ...] = ([], ["debug=true"], ["--cfg", "job"], [f"optim.lr={NAMED}"])
    shown = [run(*words, *more, cwd=tmp_path, JUDGE=OF_ENVIRONMENT) for more in variants]
    assert [ended.code for ended in shown] == [2, 1, 0, 2], [ended.err[-300:] for ended in shown]
    assert "401 for" in shown[0].err and "Traceback" in shown[1].err
    text = "".join(ended.out + ended.err for ended in shown)
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for credential in (NAMED, LIKELY, OF_ENVIRONMENT, IN_URL):
        assert credential not in text
        assert [name for name, data in files.items() if credential.encode() in data] == []
    written = yaml.safe_load(files["run/recipe.yaml"])["rewards"]["mine"]["args"]
    assert written == {
        "password": "***",
        "header": "Bearer ${oc.env:JUDGE}",
        "url": "https://***@host",
        "note": "***",
        "api_key": "${oc.env:JUDGE}",
    }
    assert yaml.safe_load(shown[2].out)["rewards"]["mine"]["args"] == written
    assert "run/replay/mine.json" in files
    with pytest.raises(UserError, match=r"environment variable JUDGE|in place of a credential"):
        read_replay(tmp_path / "run" / "replay" / "mine.json")
