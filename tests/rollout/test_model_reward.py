"""A reward model as a reward: the numbers of plain transformers, failures told apart, workers beside it, and a run trained with it."""

from __future__ import annotations

import json
import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlkit.data.renderer import Renderer
from rlkit.engines.classifier import Classifier
from rlkit.errors import UserError
from rlkit.metrics import metric_values
from rlkit.report.folder import read_rows
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSpec
from rlkit.rollout.model_reward import ModelReward
from tests.conftest import run
from tests.rewarding.settings import make_settings

CPU = torch.device("cpu")
ASKED = [{"role": "user", "content": "What is 27 + 18?"}]
SAID = ["7+8=15\n\\boxed{45}", "", "?" * 200, "7", "a long one " * 20]
ITEMS = [{"prompt": ASKED, "completion": said} for said in SAID]


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier of random weights with the built-in tokenizer and chat template."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    from rlkit.builtin.model import build_tokenizer

    folder = tmp_path_factory.mktemp("classifier") / "model"
    tokenizer = build_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=320,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen3ForSequenceClassification(config)
        torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Path, budget: int = 16384, **more: Any) -> ModelReward:
    scorer = Classifier(str(folder), torch.float32, device=CPU, offline=True, tokens_per_micro_batch=budget)
    return ModelReward(Renderer(folder), scorer, **more)


def plain(folder: Path) -> list[float]:
    """One row at a time, as anybody would write it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for item in ITEMS:
        chat = [*ASKED, {"role": "assistant", "content": item["completion"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("\n")
        with torch.no_grad():
            scores.append(float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits))
    return scores


@pytest.mark.parametrize("pad", ["its own", "none"])
@pytest.mark.parametrize("budget", [1, 600, 16384])
def test_scores_are_those_of_plain_transformers_whatever_the_batches(tiny_classifier: Path, budget: int, pad: str) -> None:
    reward = loaded(tiny_classifier, budget)
    if pad == "none":
        reward.model.model.config.pad_token_id = None  # type: ignore[attr-defined]
    scores = [outcome.value for outcome in reward.score(ITEMS)]
    assert scores == pytest.approx(plain(tiny_classifier), abs=1e-5) and max(scores) - min(scores) > 0.1  # type: ignore[type-var]


def test_a_sample_that_fails_leaves_the_others_alone(tiny_classifier: Path) -> None:
    reward = loaded(tiny_classifier)
    mark = reward.renderer.encode_prompt("?" * 9)[-1]
    assert mark not in reward.renderer.encode_prompt(ASKED[0]["content"][:-1])
    asked = [{"role": "user", "content": "7"}]
    with torch.no_grad():
        reward.model.model.model.embed_tokens.weight[mark] = math.nan  # type: ignore[attr-defined]
    outcomes = reward.score([{"prompt": asked, "completion": said} for said in ("7", "??", "x" * 400, "8")])
    assert [outcome.kind.value for outcome in outcomes] == ["score", "error", "error", "score"]
    assert outcomes[1].detail == "the reward model returned nan" and "reads at most 320" in outcomes[2].detail


def test_what_is_no_reward_model_is_refused(tiny_model: Path, tiny_classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 missing \(score\.weight\); this is no sequence classifier"):
        loaded(tiny_model)
    with pytest.raises(UserError, match="cannot be loaded as a sequence classifier"):
        loaded_config = tmp_path / "config.json"
        loaded_config.write_text("{}")
        Classifier(str(tmp_path), torch.float32, device=CPU, offline=True)
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny_classifier, num_labels=2, ignore_mismatched_sizes=True).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="has 2 labels; expected a classifier with one"):
        Classifier(str(tmp_path), torch.float32, device=CPU, offline=True)


def test_workers_score_beside_it_and_its_failures_leave_no_reward(tiny_classifier: Path, tmp_path: Path) -> None:
    """The model speaks once for all samples, inside the phase that it is given; verdicts weigh both rewards."""
    seen: list[str] = []

    @contextmanager
    def room() -> Any:
        seen.append("in")
        yield
        seen.append("out")

    (tmp_path / "mine.py").write_text("import os\ndef size(completion):\n    return {'score': len(completion), 'pid': os.getpid()}\n")
    specs = {"size": RewardSpec(path=f"{tmp_path}/mine.py:size", weight=2.0), "rm": RewardSpec(path="reward_model", args={"model": "x"})}
    reward = loaded(tiny_classifier, pause_rollout=room)
    items = [*ITEMS, {"prompt": ASKED, "completion": "x" * 400}]
    with RewardClient(specs, make_settings(workers=1, max_failure_rate=0.5), tmp_path, ["rm"]) as client:
        client.in_process["rm"] = reward.score
        for number, item in enumerate(items):
            client.submit(number, item, 0, len(items))
        verdicts = client.collect(range(len(items)))
        stats = metric_values(client.pop_metrics())
    alone = [outcome.value for outcome in reward.score(ITEMS)]
    for number, said in enumerate(SAID):
        assert verdicts[number].reward == pytest.approx(2 * len(said) + alone[number])
        assert verdicts[number].metrics["size/pid"] != os.getpid()
    assert verdicts[5].reward is None and stats["rewards/rm/failure_rate"] == 1 / 6 and stats["rewards/size/failure_rate"] == 0
    assert seen == ["in", "out"] * 2


def test_a_run_trains_with_it(small: list[str], tiny_classifier: Path, tmp_path: Path) -> None:
    rm = f"rewards={{rm: {{path: reward_model, args: {{model: '{tiny_classifier}'}}}}}}"
    ended = run(*[word for word in small if not word.startswith("rewards")], rm, "~rewards.accuracy", "steps=2", f"output_dir={tmp_path}")
    assert ended.code == 0, ended.out + ended.err
    rows = {row["step"]: row for row in (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())}
    assert rows[2]["rewards/rm/failure_rate"] == 0 and rows[2]["grad_norm"] > 0 and rows[2]["rewards/rm/std"] > 0
    samples = [row for row in read_rows(tmp_path / "samples.jsonl") if row["split"] == "train"][:4]
    reward = loaded(tiny_classifier)
    asked = [{"prompt": [{"role": "user", "content": row["prompt"].split("\n")[1]}], "completion": row["completion"]} for row in samples]
    assert [row["rewards"]["rm"] for row in samples] == pytest.approx([o.value for o in reward.score(asked)], abs=1e-5)
