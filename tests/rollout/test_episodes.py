"""Episodes: what stands in the request of each turn, how an episode ends, and that nothing depends on when an environment answers."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from rlkit.builtin.model import build_tokenizer
from rlkit.data.renderer import Renderer
from rlkit.environments.base import EpisodeEnd, EpisodeFailure, Observation, Opening
from rlkit.errors import UserError
from rlkit.rewarding.client import RewardClient
from rlkit.rewarding.spec import RewardSpec
from rlkit.rollout.environment_reward import score_episodes
from rlkit.rollout.episodes import share_prompt
from rlkit.rollout.records import build_sample_row, summarize_groups
from rlkit.rollout.sampler import Sampler
from rlkit.types import Group, Key, Sampling, Stop
from tests.rewarding.settings import make_settings
from tests.rollout.episode_twins import PROMPT, Alone, ScriptedEngine, TwinClient, ask, build_settings, run_episodes, say


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(folder)
    return Renderer(folder, offline=True)


def test_each_turn_goes_on_with_the_tokens_of_the_one_before(renderer: Renderer) -> None:
    rollout, samples, engine = run_episodes(renderer, TwinClient(late=random.Random(0)), ask(4, 3))
    assert len(samples) == 12 and len(engine.requests) == 24
    before: dict[Key, tuple[int, ...]] = {}
    for request in engine.requests:
        key = request.key._replace(turn=0)
        assert request.tokens[: len(before.get(key, ()))] == before.get(key, ())
        ids = [*renderer.tokenize(engine.script(request.key)), min(renderer.eos_ids)]
        before[key] = (*request.tokens, *ids)
        assert request.sampling.max_tokens == 400 - (len(request.tokens) - len(samples[key].prompt))
    assert len({request.seed for request in engine.requests}) == 24
    for key, sample in samples.items():
        assert (*sample.prompt, *sample.tokens.tolist()) == before[key]
        assert sample.tokens[sample.mask].tolist() == engine.sampled[key]
        assert set(sample.rollout_logprobs[sample.mask].tolist()) == {-0.5} and not sample.rollout_logprobs[~sample.mask].any()
        assert set(sample.versions.tolist()) == {7} and sample.stop is Stop.EOS
        chat = rollout.ended[key].conversation
        assert renderer.decode(before[key], special=True) + "\n" == renderer.apply_chat_template(chat, (), opened=False)
        assert [m["role"] for m in chat] == ["user", "assistant", "user", "assistant"]


def test_a_group_opens_with_one_seed(renderer: Renderer) -> None:
    client = TwinClient()
    run_episodes(renderer, client, ask(3, 4))
    by_prompt = {n: {client.seeds[key] for key in client.seeds if key.prompt == n} for n in range(3)}
    assert all(len(found) == 1 for found in by_prompt.values()) and len(set.union(*by_prompt.values())) == 3


@pytest.mark.parametrize(
    ("act", "changes", "max_tokens", "stop", "turns", "acts"),
    [
        (lambda key, turn, message: Observation(say("bye"), True), {}, 400, Stop.EOS, 1, 1),  # done: what it says then is not read
        (lambda key, turn, message: Observation((), False), {}, 400, Stop.EOS, 1, 1),  # nothing to answer
        (lambda key, turn, message: Observation(say("more"), False), {"max_turns": 3}, 400, Stop.EOS, 3, 3),
        (lambda key, turn, message: Observation(say("more"), False), {}, 5, Stop.LENGTH, 1, 0),  # cut within its first turn
        (lambda key, turn, message: Observation(say("x" * 60), False), {}, 80, Stop.LENGTH, 1, 1),  # the observation does not fit
    ],
)
def test_how_an_episode_ends(
    act: Any, changes: dict[str, Any], max_tokens: int, stop: Stop, turns: int, acts: int, renderer: Renderer
) -> None:
    """It is scored as it stands, and no half observation is in it."""
    client = TwinClient(act)
    rollout, samples, _ = run_episodes(renderer, client, ask(1, 1, max_tokens), **changes)
    (sample,), (episode,) = samples.values(), rollout.ended.values()
    assert (sample.stop, episode.turns, [name for name, _ in client.seen].count("act")) == (stop, turns, acts)
    assert bool(sample.mask[-1]) and len(sample.tokens) <= max_tokens and client.seen[-1][0] == "finish"
    assert episode.end == EpisodeEnd(0.0, {"seen": 1.0})


def test_an_end_token_that_the_template_does_not_write_ends_the_episode(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 258]}')  # a byte ends a turn too
    build_tokenizer().save_pretrained(tmp_path)
    other = Renderer(tmp_path, offline=True)
    rollout, samples, _ = run_episodes(other, TwinClient(), ask(1, 1))
    (sample,) = samples.values()
    assert sample.tokens[-1] == 0 and sample.stop is Stop.EOS and rollout.ended[Key(0, 0, 0)].turns == 1


def test_a_lost_session_takes_no_other_with_it(renderer: Renderer) -> None:
    """At each of its three calls, and while its turn is sampled."""
    lost = EpisodeFailure("its worker died")
    whole = run_episodes(renderer, TwinClient(), ask(1, 5))[1]

    class Dying(TwinClient):
        def open(self, key: Key, row: Any, seed: int) -> None:
            super().open(key, row, seed)
            self._answers += [(key, lost)] * (key.sample == 3)

    client = Dying(
        lambda key, turn, message: lost if key.sample == 1 else Observation(say("again"), turn == 2),
        lambda key, row: lost if key.sample == 0 else Opening(tuple(PROMPT), None),
        lambda key: lost if key.sample == 2 else EpisodeEnd(1.0, {}),
    )
    rollout, samples, _ = run_episodes(renderer, client, ask(1, 5))
    assert [type(rollout.ended[Key(0, 0, n)].end) for n in range(5)] == [EpisodeFailure] * 4 + [EpisodeEnd]
    assert samples[Key(0, 0, 4)].tokens.equal(whole[Key(0, 0, 4)].tokens)
    assert [len(samples[Key(0, 0, n)].tokens) > 0 for n in range(5)] == [False, True, True, True, True]
    every = share_prompt(list(samples.values()), (1, 2))
    assert {s.prompt for s in every} == {samples[Key(0, 0, 4)].prompt} and share_prompt([samples[Key(0, 0, 0)]], (1, 2))[0].prompt == (1, 2)


def test_an_episode_whose_worker_another_one_ended_begins_anew(renderer: Renderer) -> None:
    """Before its first turn, while its second is sampled, and instead of its end; its tokens are those of an undisturbed rollout."""
    whole = run_episodes(renderer, TwinClient(), ask(1, 5))[1]
    lost, begun = EpisodeFailure("another one", own=False), dict[Key, int]()

    class Dying(TwinClient):
        def open(self, key: Key, row: Any, seed: int) -> None:
            begun[key] = begun.get(key, 0) + 1
            super().open(key, row, seed)

        def act(self, key: Key, message: Any) -> None:
            super().act(key, message)
            self._answers += [(key, lost)] * (key.sample == 1 and begun[key] == 1 and self.turns[key] == 1)

    client = Dying(
        open_=lambda key, row: lost if key.sample in (0, 3) and begun[key] < 3 + key.sample else Opening(tuple(PROMPT), None),
        end_=lambda key: lost if key.sample == 2 and begun[key] == 1 else EpisodeEnd(1.0, {}),
    )
    rollout, samples, _ = run_episodes(renderer, client, ask(1, 5))
    assert [begun[Key(0, 0, n)] for n in range(5)] == [3, 2, 2, 3, 1]
    assert [type(rollout.ended[Key(0, 0, n)].end) for n in range(5)] == [EpisodeEnd] * 3 + [EpisodeFailure, EpisodeEnd]
    for n in (0, 1, 2, 4):
        assert samples[Key(0, 0, n)].tokens.equal(whole[Key(0, 0, n)].tokens) and samples[Key(0, 0, n)].mask.equal(whole[Key(0, 0, n)].mask)


def test_a_prompt_that_is_too_long_is_a_failure_of_its_episode(renderer: Renderer) -> None:
    client = TwinClient(open_=lambda key, row: Opening(say("x" * 300), None))
    rollout, _, engine = run_episodes(renderer, client, ask(1, 1))
    end = rollout.ended[Key(0, 0, 0)].end
    assert isinstance(end, EpisodeFailure) and "more than max_prompt_tokens=200" in end.why
    assert client.seen == [("open", Key(0, 0, 0)), ("finish", Key(0, 0, 0))] and not engine.requests


def test_episodes_of_a_group_that_begin_differently_are_refused(renderer: Renderer) -> None:
    client = TwinClient(open_=lambda key, row: Opening(say(f"I am {key.sample}"), None))
    _, samples, _ = run_episodes(renderer, client, ask(1, 2))
    with pytest.raises(UserError, match=r"the episodes of row 0 \(draw 0\) opened with 2 different prompts"):
        share_prompt(list(samples.values()), ())


def test_lockstep_makes_the_same_batches_whenever_answers_come(renderer: Renderer) -> None:
    def batches(seed: int, **changes: Any) -> list[list[Key]]:
        act = TwinClient(lambda key, turn, message: Observation(say("again"), turn == 1 + key.sample % 3), late=random.Random(seed))
        found: list[list[Key]] = run_episodes(renderer, act, ask(3, 4), **changes)[2].batches
        return found

    assert all(batches(seed, lockstep=True) == batches(0, lockstep=True) for seed in range(1, 6))
    assert all(batches(seed, lockstep=True, sessions=5) == batches(0, lockstep=True, sessions=5) for seed in range(1, 6))
    assert [len(batch) for batch in batches(0, lockstep=True)] == [12, 6, 3]
    assert len({str(batches(seed)) for seed in range(6)}) > 1  # without it they depend on the answers


def test_no_more_sessions_are_open_than_asked_for(renderer: Renderer) -> None:
    client = TwinClient(late=random.Random(1))
    samples = run_episodes(renderer, client, ask(5, 4), sessions=3)[1]
    assert len(samples) == 20 and client.most == 3


class Team:
    """One of two ranks that share an engine, as threads; the first leads."""

    def __init__(self, rank: int, barrier: threading.Barrier, slot: list[Any]) -> None:
        self.is_tp_leader, self._barrier, self._slot = rank == 0, barrier, slot

    def broadcast_tp(self, item: Any) -> Any:
        if self.is_tp_leader:
            self._slot[0] = item
        self._barrier.wait()
        found = self._slot[0]
        self._barrier.wait()
        return found


@pytest.mark.parametrize("seed", range(5))
def test_ranks_that_share_an_engine_ask_the_same_in_the_same_order(seed: int, renderer: Renderer) -> None:
    barrier, slot, found = threading.Barrier(2, timeout=20), [None], [None, None]

    def work(rank: int) -> None:
        client = TwinClient(late=random.Random(seed)) if rank == 0 else None
        engine = run_episodes(renderer, client, ask(4, 4), ranks=Team(rank, barrier, slot))[2]
        found[rank] = engine.requests

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found[0] == found[1] and len(found[0] or []) == 32


REWARD = """
def score(completion, conversation, turns, environment_metrics, environment_reward):
    assert completion == "\\n".join(turns) and conversation[-1]["content"] == turns[-1]
    return len(turns) + len(conversation) / 10 + environment_metrics.get("seen", 0) / 100
"""


@pytest.fixture(scope="module")
def rewarded(renderer: Renderer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Groups of two prompts by three samples and a greedy one, of real reward workers; the session of one sample is lost."""
    file = tmp_path_factory.mktemp("rewards") / "turns.py"
    file.write_text(REWARD)
    specs = {"turns": RewardSpec(path=f"{file}:score", weight=0.0), "environment": RewardSpec(path="environment")}
    lost = Key(1, 0, 1)
    client = TwinClient(lambda key, turn, message: EpisodeFailure("it died") if key == lost else Observation(say("again"), turn == 2))

    class Prompt:
        prompt, answer, columns, draw, tokens = tuple(PROMPT), None, {"level": 3}, 0, (5, 6)

        def __init__(self, row: int) -> None:
            self.row = row

    class Stopping:
        requested = False

    with RewardClient(specs, make_settings(workers=1), in_process_names=["environment"]) as rewards:
        rewards.in_process["environment"] = score_episodes
        engine = ScriptedEngine(renderer)
        sampler = Sampler(engine, rewards, renderer, Stopping(), 3, Alone(), build_settings(renderer, client))  # type: ignore[arg-type]
        groups = sampler.sample_groups([(0, Prompt(0)), (1, Prompt(1))], 3, Sampling(max_tokens=400), greedy=True)
        metrics = {name: metric.value for name, metric in rewards.pop_metrics().items()}
        Stopping.requested = True
        assert sampler.sample_groups([(0, Prompt(0))], 3, Sampling(max_tokens=400)) is None and engine.aborted and client.aborted
    return groups, metrics, engine


def test_the_reward_of_the_environment_joins_the_others(rewarded: Any) -> None:
    groups, metrics, engine = rewarded
    assert [[s.reward for s in g.samples] for g in groups] == [[0.0, 1.0, 2.0], [0.0, None, 2.0]]
    assert [g.greedy.reward for g in groups] == [-1.0, -1.0]
    assert {r.sampling.temperature for r in engine.requests if r.key.sample == -1} == {0.0}
    turns = {s.sample.key: s.components["turns"] for g in groups for s in g.samples}
    assert turns == {Key(p, 0, n): (pytest.approx(1.2) if (p, n) == (1, 1) else pytest.approx(2.41)) for p in range(2) for n in range(3)}
    assert metrics["rewards/environment/failure_rate"] == 1 / 8 and metrics["rewards/environment/seen"] == 1.0


def test_what_a_run_writes_of_episodes_counts_what_the_policy_wrote(rewarded: Any, renderer: Renderer) -> None:
    groups, _, engine = rewarded
    whole: Group = groups[0]
    row = summarize_groups([whole])
    written = [len(engine.sampled[s.sample.key]) for s in whole.samples]
    assert row["completions/mean_length"] == sum(written) / 3 and row["completions/clipped_ratio"] == 0.0
    assert (row["environment/turns"], row["environment/tool_calls"]) == (2.0, 0.0)
    assert row["environment/observation_tokens"] == len("\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n") - 34 + 3
    line = build_sample_row(whole.samples[1], None, None, renderer.decode, "train")
    assert line["turns"] == [
        {"by": "policy", "text": "0.1 turn 0"},
        {"by": "environment", "text": "\nuser\nagain\nassistant\n"},
        {"by": "policy", "text": "0.1 turn 1"},
    ]
