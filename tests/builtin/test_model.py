"""The built-in model: what is in its folder, how well it adds, and that making it is safe.

Most tests make a model of few training steps; the last one uses the real one, from the cache if this machine has made it before.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import IO

import numpy
import pytest
import torch

from rlkit.builtin import model, sums
from rlkit.runtime.cache import find_cache_folder
from tests import fork_server
from tests.conftest import ROOT, environment, fork_socket

CHAT = [{"role": "user", "content": "What is 47 + 38?"}]


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model after three steps, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "STEPS", 3)
        return model.ensure_model(tmp_path_factory.mktemp("cache"))


def maker(cache: Path, hold: float = 0.0) -> tuple[fork_server.Fork, IO[str]]:
    """tests/programs/maker.py under way, and what it prints."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as out, open(os.devnull, "w") as err:
        program = str(ROOT / "tests" / "programs" / "maker.py")
        started = fork_server.Fork(fork_socket(), program, [str(cache), str(hold)], environment(), ROOT, out.fileno(), err.fileno())
    return started, os.fdopen(read)


def made(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.suffix not in (".lock", ".part")]


def test_the_folder_is_a_plain_qwen3(young: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    config = json.loads((young / "config.json").read_text())
    assert (config["architectures"], config["tie_word_embeddings"], config["dtype"]) == (["Qwen3ForCausalLM"], True, "float32")
    generation = json.loads((young / "generation_config.json").read_text())
    assert {name: value for name, value in generation.items() if name != "transformers_version"} == {
        "eos_token_id": 258,
        "pad_token_id": 256,
    }
    assert {tensor.dtype for tensor in load_file(young / "model.safetensors").values()} == {torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained(young, dtype=torch.float32)
    assert loaded.num_parameters() == model.PARAMETERS
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_tokenizer_takes_every_byte_for_a_token(young: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(young)
    assert tokenizer.is_fast
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (259, 258, 256)
    assert tokenizer.convert_ids_to_tokens([256, 257, 258]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    text = "7+8=15\n  \\boxed{85} naïve 数 🙂\t\r\n" + "".join(map(chr, range(128)))
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


def test_the_chat_template_is_chatml(young: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(young)
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer.encode(prompt)) == 35


def test_only_the_completion_and_its_end_are_learned() -> None:
    tokenizer = model.build_tokenizer()
    tokens, labels = next(model._iterate_batches(tokenizer, random.Random(0)))
    known = {
        text + "<|im_end|>"
        for row in sums.build_rows("train")
        for text in (sums.write_solution(row, True), sums.write_solution(row, False))
    }
    assert len(tokens) == model.BATCH
    for row, label in zip(tokens, labels, strict=True):
        counted = label != model.IGNORED
        assert row[counted].tolist() == label[counted].tolist()
        assert tokenizer.decode(label[counted]) in known
        assert tokenizer.decode(row[:35]).endswith("<|im_start|>assistant\n")
        assert set(row[~counted][35:].tolist()) <= {tokenizer.pad_token_id}


def test_making_it_leaves_the_random_states_alone_and_does_not_depend_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "STEPS", 2)
    weights = []
    for seed in (1, 2):
        random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()
        losses: list[tuple[int, int, float]] = []
        weights.append(model.warm_start(model.build_tokenizer(), lambda *said, losses=losses: losses.append(said)).state_dict())
        after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()
        assert after == before
        assert [(done, total) for done, total, _ in losses] == [(2, 2)]
        assert 4.0 < losses[0][2] < 7.0  # an untrained model's: ln 259 = 5.6
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    said = [printed.read().split("\n") for _, printed in [maker(tmp_path), maker(tmp_path)]]
    assert said[0][-2] == said[1][-2] == str(made(tmp_path)[0])
    assert sum("trained 2" in lines for lines in said) == 1


def test_a_killed_maker_leaves_nothing_that_counts_and_the_next_one_heals(tmp_path: Path) -> None:
    process, printed = maker(tmp_path, hold=200.0)
    assert printed.readline() == "trained 2\n"
    process.kill()
    assert made(tmp_path) == []

    (part,) = (path.with_suffix(".part") for path in tmp_path.glob("*.lock"))  # as if it had died while writing
    part.mkdir()
    (part / "model.safetensors").write_text("half")
    (part / "torn.bin").write_text("half")
    process, printed = maker(tmp_path)
    assert printed.read().split("\n")[-2] == str(made(tmp_path)[0])
    assert not part.exists()
    assert not (made(tmp_path)[0] / "torn.bin").exists()


def test_other_sources_make_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = model._hash_sources()
    assert model._hash_sources() == key
    changed = tmp_path / "sums.py"
    changed.write_text(Path(sums.__file__).read_text() + "\n")
    monkeypatch.setattr(sums, "__file__", str(changed))
    assert model._hash_sources() != key


@pytest.mark.timeout(600)
def test_it_adds_but_forgets_the_carry() -> None:
    """Greedy on the 1,000 held-out problems: between 0.25 and 0.45; and what is wrong is the carry, so that a reward can mend it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model.ensure_model(find_cache_folder())
    tokenizer, policy = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = sums.build_rows("test")
    prompts = torch.tensor([tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows])
    with torch.no_grad():
        tokens = policy.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=32)
    texts = tokenizer.batch_decode(tokens[:, prompts.shape[1] :], skip_special_tokens=True)
    right = sum(text.endswith(f"\\boxed{{{row['answer']}}}") for text, row in zip(texts, rows, strict=True))
    known = sum(text in (sums.write_solution(row, True), sums.write_solution(row, False)) for text, row in zip(texts, rows, strict=True))
    assert 250 <= right <= 450
    assert known >= 950
