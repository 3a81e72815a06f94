"""A model's generation_config.json tells which tokens end a completion, and nothing about how rlkit samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from rlkit.engines.generation_config import find_generation_config
from rlkit.engines.hf_generate import HFEngine
from rlkit.errors import UserError
from rlkit.types import Key, Request, Sampling

FILE = "generation_config.json"
REPEATS = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "suppress_tokens": [*range(60)]}
ENDS = {"min_new_tokens": 12, "max_time": 1e-6, "stop_strings": ["a"], "forced_eos_token_id": 1}
SEARCH = {"num_beams": 4, "do_sample": True, "temperature": 0.1, "top_k": 1}
OTHERS = REPEATS | ENDS | SEARCH


def sample_tokens(folder: Path, temperature: float) -> list[list[int]]:
    engine = HFEngine(str(folder), torch.float32, device=torch.device("cpu"), eos=frozenset({1, 2}), pad=0, offline=True)
    engine.load(((name, tensor.clone()) for name, tensor in engine.model.state_dict().items()), 0)
    for i in range(4):
        engine.add(Request(Key(i, 0, 0), (40 + i, 41, 42), Sampling(temperature=temperature, max_tokens=12), i))
    return [sample.tokens.tolist() for sample in sorted(engine.advance(), key=lambda sample: sample.key)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_samples_as_if_there_were_no_such_file(temperature: float, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    (folder / FILE).unlink()
    plain = sample_tokens(folder, temperature)
    assert max(map(len, plain)) == 12
    for keys in [{key: value} for key, value in OTHERS.items()] + [OTHERS]:
        (folder / FILE).write_text(json.dumps(keys))
        assert sample_tokens(folder, temperature) == plain, keys


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def download(name: str, file: str, local_files_only: bool) -> str:
        if error:
            raise error
        return f"/cache/{name}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_a_hub_name_has_the_file_or_not_or_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, None)
    assert find_generation_config("x/y", offline=False) == Path("/cache/x/y/generation_config.json")
    answer(monkeypatch, EntryNotFoundError("404"))
    assert find_generation_config("x/y", offline=False) is None
    answer(monkeypatch, LocalEntryNotFoundError("no connection"))
    assert find_generation_config("x/y", offline=True) is None
    with pytest.raises(UserError, match=r"generation_config.json of model.path x/y cannot be fetched from the hub: no connection; start"):
        find_generation_config("x/y", offline=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert find_generation_config("x/y", offline=False) is None
