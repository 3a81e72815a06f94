"""Episodes of the built-in model: every sampled token counts and no other, in log-probs, in the gradient and in what a run writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.builtin.model import ensure_model
from rlkit.builtin.sums import build_rows
from rlkit.data.renderer import Renderer
from rlkit.data.tool_calls import TurnReader
from rlkit.data.turn_bridge import TurnBridge
from rlkit.engines.heads import TokenScorer, compute_logprobs
from rlkit.engines.hf_generate import HFEngine
from rlkit.engines.loading import load_causal_lm
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.environments.base import EpisodeEnd, Observation, Opening
from rlkit.errors import RunFailed
from rlkit.ops.masking import count_units
from rlkit.rollout.episodes import EpisodeRequest, EpisodeRollout, EpisodeSettings
from rlkit.runtime.cache import find_cache_folder
from rlkit.types import Group, Key, Sample, Sampling, ScoredSample, Signals
from rlkit.updates.collate import collate
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.online_update import OnlineUpdater
from tests.algorithms.shipped import algorithm
from tests.algorithms.tiny import Ranks, together
from tests.conftest import ROOT, run
from tests.programs.episode_environments import TwoSums
from tests.report.test_metrics_page import find_name
from tests.rollout.episode_twins import Alone, TwinClient, WatchedEngine, check_turns, compute_dense

CPU = torch.device("cpu")
PROMPTS, SAMPLES = 16, 4


class SumsClient(TwinClient):
    """The environment of tests/programs in this process."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        super().__init__(self.answer, self.begin, lambda key: EpisodeEnd(self.rewards[key], {}))
        self.rows, self.rewards, self.made = rows, dict[Key, float](), dict[Key, TwoSums]()

    def begin(self, key: Key, row: Any) -> Opening:
        self.made[key], self.rewards[key] = TwoSums(), 0.0
        self.made[key].reset(self.seeds[key], row)
        return Opening(tuple(row["prompt"]), None)

    def answer(self, key: Key, turn: int, message: Any) -> Observation:
        text, reward, done, *_ = self.made[key].step(message["content"])
        self.rewards[key] += reward
        return Observation(({"role": "user", "content": text},), done)


@pytest.fixture(scope="module")
def model_folder() -> Path:
    return ensure_model(find_cache_folder())


@pytest.fixture(scope="module")
def episodes(model_folder: Path) -> tuple[list[Group], WatchedEngine]:
    """64 episodes of two turns."""
    renderer, rows = Renderer(model_folder, offline=True), build_rows("train", PROMPTS)
    own = HFEngine(str(model_folder), torch.float32, device=CPU, eos=renderer.eos_ids, pad=renderer.pad_id, offline=True)
    own.version, engine = 0, WatchedEngine(own)
    settings = EpisodeSettings(SumsClient(rows), renderer, TurnBridge(renderer, 64), TurnReader(renderer, "auto"), 64, 8)
    keys = [Key(row, 0, n) for row in range(PROMPTS) for n in range(SAMPLES)]
    requests = [EpisodeRequest(key, rows[key.prompt], Sampling(max_tokens=160)) for key in keys]
    rollout = EpisodeRollout(settings, engine, Alone(), 5, requests)  # type: ignore[arg-type]
    scored: dict[Key, ScoredSample] = {}
    while rollout.pending:
        for sample in rollout.advance():
            end = rollout.ended[sample.key].end
            assert isinstance(end, EpisodeEnd)
            scored[sample.key] = ScoredSample(sample, end.reward, {"environment": end.reward})
    return [Group(row, tuple(scored[Key(row, 0, n)] for n in range(SAMPLES))) for row in range(PROMPTS)], engine


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_causal_lm(str(model_folder), torch.float32, offline=True).eval()


def list_samples(groups: Sequence[Group]) -> list[Sample]:
    return [s.sample for group in groups for s in group.samples]


def test_every_turn_goes_on_with_what_was_sampled(episodes: Any) -> None:
    groups, engine = episodes
    samples = list_samples(groups)
    assert len(samples) == 64 and len(engine.asked) == len(engine.sampled) > 100
    check_turns(samples, engine.sampled)
    assert sum(not sample.mask.all() for sample in samples) > 50


def test_the_sampler_s_log_probs_are_those_of_the_whole_row(episodes: Any, model: Any) -> None:
    """At mask True. Elsewhere there are none, and what counts them is stopped by the log-prob check."""
    with torch.no_grad():
        dense = {s.key: compute_dense(model, s) for s in list_samples(episodes[0])}
    samples = list_samples(episodes[0])
    assert max(float((dense[s.key] - s.rollout_logprobs)[s.mask].abs().max()) for s in samples) < 1e-4
    check, everything = LogprobCheck(1e-4), torch.ones_like
    masked = [check.compare(dense[s.key], s.rollout_logprobs, s.mask) for s in samples]
    for metrics in masked:
        check.check(metrics)
    observed = next(s for s in samples if not s.mask.all())
    with pytest.raises(RunFailed, match="does not sample from the policy"):
        check.check(check.compare(dense[observed.key], observed.rollout_logprobs, everything(observed.mask)))


class PlainPolicy:
    """The packed rows of a run, and torch's own backward pass."""

    def __init__(self, model: Any) -> None:
        self.scorer, self.device = TokenScorer(model), CPU

    @contextmanager
    def enable_grad(self) -> Any:
        yield

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        return compute_logprobs(self.scorer, samples, width, 1.0, CPU)

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def idle(self) -> None: ...


def get_gradient(model: Any) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def test_the_gradient_of_episodes_is_that_of_dense_rows_over_what_was_sampled(episodes: Any, model_folder: Path) -> None:
    """GRPO's first update, packed with shared prompts in micro-batches, against one row at a time: -A / L_i / N of each sampled token."""
    groups = [group for group in episodes[0] if len({s.reward for s in group.samples}) > 1][:6]
    assert len(groups) == 6
    groups = [replace(group, index=index) for index, group in enumerate(groups)]
    keys = algorithm("grpo", correction="none")
    dense, packed = (load_causal_lm(str(model_folder), torch.float32, offline=True).eval() for _ in range(2))
    advantages: dict[Key, float] = {}

    def learn(ranks: Ranks) -> None:
        policy: Any = PlainPolicy(packed)
        updater = OnlineUpdater(policy, None, keys, Schedule(0.1, "constant", 0, 10), LogprobCheck(1e-4), ranks, 1, 1, 700, 160, 3)  # type: ignore[arg-type]
        _, batch = collate(groups, ranks, 1, 0)  # type: ignore[arg-type]
        credit, *_ = keys.compute_advantages(batch, Signals(), keys.init_state(), ranks)
        for i, sample in enumerate(batch.samples):
            (advantages[sample.key],) = set(credit.advantages[i, : len(sample.tokens)][sample.mask].tolist())
            assert not credit.advantages[i, : len(sample.tokens)][~sample.mask].any()
        updater.accumulate_gradient(batch, Signals(), credit, list(range(len(batch.samples))), count_units(batch.mask))

    together(1, learn)
    for sample in list_samples(groups):
        mask = sample.mask
        (-advantages[sample.key] * compute_dense(dense, sample)[mask].sum() / mask.sum() / len(advantages)).backward()
    wanted, found = get_gradient(dense), get_gradient(packed)
    assert float(wanted.norm()) > 1e-3 and float((found - wanted).norm() / wanted.norm()) < 1e-6
    for sample in list_samples(groups):  # with the observations the gradient is another
        (-advantages[sample.key] * compute_dense(dense, sample).sum() / len(sample.tokens) / len(advantages)).backward()
    assert float((get_gradient(dense) - wanted).norm() / wanted.norm()) > 1e-2


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.nightly(part="trainings"))])
def test_a_run_with_an_environment(engine: str, tmp_path: Path) -> None:
    """Real sessions in their processes, three steps of GRPO, the evaluation, and what is written of it."""
    path = ROOT / "tests" / "programs" / "episode_environments.py"
    words = ["recipe=grpo_math", "rewards=environment", f"environment.path={path}:TwoSums", "environment.max_observation_tokens=64"]
    small = ["steps=2", "prompts_per_step=4", "samples_per_prompt=4", "max_completion_tokens=160", "max_prompt_tokens=64"]
    words += [
        *small,
        "eval.problems=8",
        f"engine.rollout={engine}",
        "checkpoint.every=0",
        f"output_dir={tmp_path / 'run'}",
        "report.tokens=all",
    ]
    ended = run(*words)
    assert ended.code == 0, ended.out + ended.err
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    row = metrics[1]
    assert 1.0 < row["environment/turns"] <= 2.0 and row["environment/observation_tokens"] > 20
    assert row["rewards/environment/failure_rate"] == 0.0 and row["reward"] == row["rewards/environment/mean"]
    assert row["sampling/sampling_logp_difference/mean"] < 1e-4
    train = [sample for sample in samples if sample["split"] == "train" and sample["step"] == 1]
    assert len(train) == 16 and {t["by"] for s in train for t in s.get("turns", [])} == {"policy", "environment"}
    for sample in train:
        counted = [value is not None for value in sample["tokens"]["rollout_logprobs"]]
        assert len(counted) > sum(counted) or "turns" not in sample
    written = [sum(value is not None for value in s["tokens"]["rollout_logprobs"]) for s in train]
    assert row["completions/mean_length"] == pytest.approx(sum(written) / 16)
    compared = sum(value is not None for s in train for value in s["tokens"]["logprobs"])
    assert row["sampling/compared_tokens"] == compared
    assert "TwoSums, at most 8 turns an episode" in ended.out
    assert [name for row in metrics for name in row if find_name(name) is None] == []
