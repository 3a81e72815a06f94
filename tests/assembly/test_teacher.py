"""What is asked of a teacher before anything is loaded: the same tokens, room for the longest sample, and its share of the memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkit import run
from rlkit.assembly import plan
from rlkit.assembly.teacher import build_probes, check_local_teacher, compare_tokenizers
from rlkit.data.renderer import Renderer
from rlkit.errors import UserError
from tests.config.test_recipe import composed

WORDS = ("recipe=opd_math", "model.teacher.path=builtin")


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model without its weights, with changes in a JSON file of it."""

    def change(name: str, file: str, edit: Callable[[dict[str, Any]], object]) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        content = json.loads((folder / file).read_text())
        edit(content)
        (folder / file).write_text(json.dumps(content))
        return folder

    return change


def test_the_plan_counts_its_weights() -> None:
    job = plan.build_job(composed(*WORDS))
    assert job is not None and job.teacher is not None and job.teacher.parameters == 935_552
    assert plan.build_job(composed("recipe=opd_math", "model.teacher.path=nobody/knows-it")) is None  # until it is on this disk
    served = plan.build_job(composed("recipe=opd_math", "model.teacher.url=http://127.0.0.1:8000/v1"))
    assert served is not None and served.teacher is None


def test_a_dry_run_names_it_and_asks_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*WORDS, "dry_run=true"]) == 0
    shown = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert shown["teacher"].strip().startswith("builtin, 0.9 M parameters") and "weight 0" in shown["rewards"]
    url = "http://me:pass@127.0.0.1:9/v1"
    assert run.main(["recipe=opd_math", f"model.teacher.url='{url}'", "dry_run=true"]) == 0
    told = capsys.readouterr().out
    assert "the model at http://***@127.0.0.1:9/v1, which is asked at the start of a run" in told and "pass" not in told


def test_tokens_that_the_teacher_alone_knows_do_no_harm(tiny_model: Path, changed: Callable[..., Path]) -> None:
    """A token of the policy that it lacks does."""
    policy = Renderer(tiny_model, offline=True)
    more = changed(
        "more", "tokenizer.json", lambda file: file["added_tokens"].append(dict(file["added_tokens"][-1], id=259, content="<think>"))
    )
    compare_tokenizers(policy, Renderer(more, offline=True, what="model.teacher.path"))
    with pytest.raises(
        UserError, match=r"another tokenizer than the policy: 1 of 260 tokens of model\.path .* are others there \('<think>'\)"
    ):
        compare_tokenizers(Renderer(more, offline=True), Renderer(tiny_model, offline=True, what="model.teacher.path"))


def test_texts_that_become_other_tokens_are_found(tiny_model: Path, changed: Callable[..., Path]) -> None:
    """The same vocabulary, and a normaliser that makes every letter small."""
    policy = Renderer(tiny_model, offline=True)
    small = changed("small", "tokenizer.json", lambda file: file.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(UserError, match="of 100 texts become other tokens there, such as"):
        compare_tokenizers(policy, Renderer(small, offline=True, what="model.teacher.path"))
    assert len(build_probes(policy)) == 100


def test_a_teacher_that_is_too_small_is_refused(tiny_model: Path, changed: Callable[..., Path]) -> None:
    """In tokens that it knows, and in tokens that it can read at once."""
    renderer = Renderer(tiny_model, offline=True)
    renderer.check_vocabulary(259)
    few = changed("few", "config.json", lambda config: config.update(vocab_size=200))
    with pytest.raises(UserError, match=r"few knows 200 tokens, and the policy may write 259 .*; take a teacher that knows as many"):
        check_local_teacher(composed(*WORDS), renderer, str(few))
    short = changed("short", "config.json", lambda config: config.update(max_position_embeddings=64))
    with pytest.raises(UserError, match=r"= 80 is more than the 64 tokens that model\.teacher\.path .*short can read; lower one of them"):
        check_local_teacher(composed(*WORDS), renderer, str(short))
    check_local_teacher(composed(*WORDS), renderer, str(tiny_model))
