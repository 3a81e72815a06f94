"""What each online algorithm makes of rewards, against loops and over ranks, and its whole update against every way of cutting it up."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest
import torch

from rlkit.algorithms import Needs, State
from rlkit.algorithms.objective import KLState
from rlkit.algorithms.ppo import PPO
from rlkit.engines.logprob_check import LogprobCheck
from rlkit.errors import RunFailed
from rlkit.metrics import metric_values
from rlkit.types import Batch, Group, ScoredSample, Signals
from rlkit.updates.collate import collate
from rlkit.updates.lr_schedule import Schedule
from rlkit.updates.optimizer_step import UpdateCount
from tests.algorithms.shipped import NAMES, algorithm
from tests.algorithms.test_grpo import REWARDS, WAYS, Way, difference, learn, learning, shuffled
from tests.algorithms.tiny import Policy, Ranks, groups_of, together
from tests.ops import oracle

GREEDY = [1.0, None, 0.5, 0.0, 2.0, 0.25]  # of each group's greedy completion; None: it failed
FLAT = [r for row in REWARDS for r in row]
GROUP = [g for g, row in enumerate(REWARDS) for _ in row]
K1 = {"kl_coef": 0.25, "kl_in": "reward", "kl_estimator": "k1"}
WIDTH = 9


def greedily(groups: list[Group]) -> list[Group]:
    return [replace(g, greedy=ScoredSample(g.samples[0].sample, GREEDY[g.index], {})) for g in groups]


def table(seed: int) -> torch.Tensor:
    """Something that a model said of each token of the step; [N, T]."""
    return torch.randn(len(FLAT), WIDTH, generator=torch.Generator().manual_seed(seed))


OLD, REF, VALUES, TAUGHT = table(1) - 2, table(2) - 2, table(3), table(4) - 2
APART = OLD.double() - REF.double()


def assigned(keys: Any, world: int, state: State | None = None) -> tuple[dict[int, Any], State, dict[str, float]]:
    """Advantages, returns and the mask of each sample of the step by its index, the next state, and the metrics."""
    groups = greedily(groups_of(REWARDS))

    def work(ranks: Ranks) -> Any:
        _, batch = collate(groups[ranks.rank :: world], ranks, 1, 0)  # type: ignore[arg-type]
        width = batch.mask.shape[1]
        signals = Signals(*(grid[batch.index, :width] for grid in (OLD, REF, VALUES, TAUGHT)))
        return batch, *keys.compute_advantages(batch, signals, keys.init_state() if state is None else state, ranks)

    seen: dict[int, Any] = {}
    done = together(world, work)
    for batch, credit, after, metrics in done:
        assert after == done[0][2] and metric_values(metrics) == metric_values(done[0][3])
        assert credit.advantages.dtype == torch.float32 and not credit.advantages[~batch.mask].any()
        for row, i in enumerate(batch.index.tolist()):
            seen[i] = [x[row].tolist() if x is not None else None for x in (credit.advantages, credit.returns, batch.mask)]
    assert sorted(seen) == list(range(len(FLAT)))
    return seen, done[0][2], metric_values(done[0][3])


def test_an_algorithm_without_an_oracle_is_told_that() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^no oracle for mine; there are: grpo, reinforce_pp_baseline, remax, rloo$"):
        truth("mine", algorithm("grpo"))


def masks() -> list[list[bool]]:
    samples = [s.sample for g in groups_of(REWARDS) for s in g.samples]
    return [[*s.mask.tolist(), *[False] * (WIDTH - len(s.tokens))] for s in samples]


def truth(name: str, keys: Any) -> tuple[oracle.Grid, oracle.Grid | None]:
    """Advantages of all tokens of the step by loops from the paper, and what a critic is to learn."""
    mask = masks()
    k1 = [[float(o - r) if m else 0.0 for o, r, m in zip(*row, strict=True)] for row in zip(OLD.tolist(), REF.tolist(), mask, strict=True)]
    coef = keys.kl_coef
    whole = [None if r is None else r - coef * math.fsum(row) for r, row in zip(FLAT, k1, strict=True)]
    if name == "opd":
        own = oracle.leave_one_out(FLAT, GROUP)
        taught = oracle.teach(TAUGHT.tolist(), OLD.tolist(), keys.teacher_coef, keys.clip_signal)
        rows = zip(own, taught, k1, mask, strict=True)
        grid = [[a + s - coef * k if m else 0.0 for s, k, m in zip(said, ks, flags, strict=True)] for a, said, ks, flags in rows]
    elif name not in ("ppo", "reinforce_pp"):
        of_samples = {
            "grpo": lambda: oracle.advantages(whole, GROUP, True),
            "rloo": lambda: oracle.leave_one_out(whole, GROUP),
            "remax": lambda: [0.0 if r is None or (b := GREEDY[g]) is None else r - b for r, g in zip(whole, GROUP, strict=True)],
            "reinforce_pp_baseline": lambda: oracle.advantages(whole, GROUP, False),
        }
        numbers = oracle.find(of_samples, name)()
        grid = [[a if m else 0.0 for m in flags] for a, flags in zip(numbers, mask, strict=True)]
    else:
        grid = []
        for r, penalties, v, flags in zip(FLAT, k1, VALUES.tolist(), mask, strict=True):
            last = max((t for t, m in enumerate(flags) if m), default=None)
            rewards = [-coef * k + (0.0 if r is None or t != last else r) for t, k in enumerate(penalties)]
            grid.append(oracle.gae(rewards, v, flags, keys.gamma, keys.gae_lambda) if name == "ppo" else oracle.to_go(rewards, flags))
    learnt = [[a + v for a, v in zip(*rows, strict=True)] for rows in zip(grid, VALUES.tolist(), strict=True)] if name == "ppo" else None
    if name in ("reinforce_pp", "reinforce_pp_baseline", "ppo"):
        grid = oracle.whitened(grid, [[m and r is not None for m in flags] for r, flags in zip(FLAT, mask, strict=True)])
    return grid, learnt


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("changes", [{}, K1], ids=["plain", "kl in the reward"])
@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_the_papers_however_groups_are_split(name: str, changes: Any, world: int) -> None:
    own = {"ppo": {"gamma": 0.9, "gae_lambda": 0.8}, "opd": {"teacher_coef": 0.7, "clip_signal": 1.0}}
    keys = algorithm(name, **own.get(name, {}), **changes)
    seen, state, metrics = assigned(keys, world)
    grid, learnt = truth(name, keys)
    assert state == State()
    for i, (advantages, returned, mask) in seen.items():
        assert advantages == pytest.approx(grid[i][: len(advantages)], rel=1e-6, abs=1e-6)
        if learnt is not None and FLAT[i] is None:
            assert all(math.isnan(x) for x in returned)
        elif learnt is not None:
            assert [x for x, m in zip(returned, mask, strict=True) if m] == pytest.approx(
                [x for x, m in zip(learnt[i], mask, strict=False) if m], rel=1e-6, abs=1e-6
            )
    counted = torch.tensor(masks())
    if changes:
        assert metrics["kl"] == pytest.approx(float(APART[counted].mean()), abs=1e-12)
    if name in ("grpo", "rloo", "reinforce_pp_baseline", "opd"):
        assert metrics["frac_reward_zero_std"] == pytest.approx((1 if changes and name != "opd" else 2) / 6)
    if name == "opd":
        apart = (OLD.double() - TAUGHT.double())[counted]
        assert metrics["teacher/kl"] == pytest.approx(float(apart.mean()), abs=1e-12)
        assert (
            metrics["teacher/clip_ratio"] == pytest.approx(float((apart.abs() > keys.clip_signal).double().mean()))
            and apart.abs().max() > 1
        )


def test_ppo_places_the_rewards_of_turns_and_others_do_not() -> None:
    """On the last token of each; the rest of a sample's reward is on its last one. The sum over a sample is its reward."""
    (group,) = groups_of([[0.5, 2.0, 1.0]], seed=3)
    places = [[t for t, m in enumerate(s.sample.mask.tolist()) if m] for s in group.samples]
    turns = [(), ((places[1][1], 0.75), (places[1][-1], 0.5)), ((places[2][0], 1.0),)]
    of_turns = replace(group, samples=tuple(replace(s, turn_rewards=t) for s, t in zip(group.samples, turns, strict=True)))

    def advantages(name: str, group: Group) -> torch.Tensor:
        def work(ranks: Ranks) -> torch.Tensor:
            _, batch = collate([group], ranks, 1, 0)  # type: ignore[arg-type]
            keys = algorithm(name, **({"gamma": 0.9, "gae_lambda": 0.8, "whiten": False} if name == "ppo" else {}))
            credit, *_ = keys.compute_advantages(
                batch, Signals(*(table[:3, : batch.mask.shape[1]] for table in (OLD, REF, VALUES))), keys.init_state(), ranks
            )
            return torch.as_tensor(credit.advantages)

        return together(1, work)[0]

    wide = max(len(s.sample.tokens) for s in group.samples)
    for i, scored in enumerate(group.samples):
        flags = [*scored.sample.mask.tolist(), *[False] * (wide - len(scored.sample.tokens))]
        placed = [0.0] * wide
        for place, reward in turns[i]:
            placed[place] += reward
        placed[places[i][-1]] += float(scored.reward or 0.0) - sum(reward for _, reward in turns[i])
        wanted = oracle.gae(placed, VALUES[i, :wide].tolist(), flags, 0.9, 0.8)
        assert sum(placed) == pytest.approx(scored.reward) and advantages("ppo", of_turns)[i].tolist() == pytest.approx(wanted, rel=1e-5)
    assert not torch.equal(advantages("ppo", of_turns), advantages("ppo", group))
    assert torch.equal(advantages("grpo", of_turns), advantages("grpo", group))


@pytest.mark.parametrize("reward", [0.1, 0.7, -1 / 3, 1e6 / 7])
@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline", "ppo"])
def test_whitening_makes_no_signal_from_rounding(name: str, reward: float) -> None:
    """All rewards are one number, which the mean of many of it is not exactly."""
    for groups in (2, 3, 5, 7):

        def work(ranks: Ranks, groups: int = groups) -> Any:
            _, batch = collate(groups_of([[reward] * 3] * groups), ranks, 1, 0)  # type: ignore[arg-type]
            signals = Signals(values=torch.zeros(batch.mask.shape))
            return algorithm(name).compute_advantages(batch, signals, State(), ranks)[0]

        assert not together(1, work)[0].advantages.any()


@pytest.mark.parametrize("where", [K1, {"kl_coef": 0.25, "kl_in": "loss", "kl_estimator": "k2"}], ids=["reward", "loss"])
@pytest.mark.parametrize("world", [1, 2])
def test_the_coefficient_is_adapted_from_step_to_step(where: Any, world: int) -> None:
    """This step is taken with the coefficient that the last one left; the next one's follows the KL of a completion."""
    measured = float(APART[torch.tensor(masks())].sum()) / len(FLAT)
    keys = algorithm("rloo", **where, kl_target=abs(measured) * 0.95)
    first, state, metrics = assigned(keys, world)
    wanted = 0.25 * (1 + 0.1 * max(min((measured - keys.kl_target) / keys.kl_target, 0.2), -0.2))
    assert isinstance(state, KLState) and state.kl_coef == pytest.approx(wanted, abs=1e-12) and metrics["kl_coef"] == 0.25
    assert KLState(**asdict(state)) == state
    second, _, metrics = assigned(keys, world, KLState(0.5))
    assert metrics["kl_coef"] == 0.5
    doubled = truth("rloo", keys.model_copy(update={"kl_coef": 0.5 if where is K1 else 0.0}))[0]
    assert all(second[i][0] == pytest.approx(doubled[i][: len(second[i][0])], abs=1e-5) for i in second)
    assert (first == second) is (where is not K1)


@pytest.mark.parametrize("masked", [False, True], ids=["no samples", "no token that counts"])
def test_a_step_that_measures_no_kl_adapts_nothing(masked: bool) -> None:
    keys = algorithm("grpo", kl_coef=0.25, kl_target=5.0)
    blank = [replace(s, sample=replace(s.sample, mask=torch.zeros_like(s.sample.mask))) for s in groups_of([[1.0, 0.0]])[0].samples]

    def work(ranks: Ranks) -> Any:
        _, batch = collate([Group(0, tuple(blank))] if masked else [], ranks, 1, 0)  # type: ignore[arg-type]
        said = torch.ones(batch.mask.shape)
        return keys.compute_advantages(batch, Signals(said, said), KLState(0.5), ranks)[1:]

    state, metrics = together(1, work)[0]
    assert state == KLState(0.5) and metric_values(metrics)["kl_coef"] == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_without_samples_works_as_the_others(name: str) -> None:
    """Four prompts of one sample on eight ranks; a step without any on two."""
    keys = algorithm(name)

    def work(ranks: Ranks, groups: list[Group]) -> Any:
        _, batch = collate(groups[ranks.rank :: ranks.world], ranks, 1, 0)  # type: ignore[arg-type]
        credit, *_ = keys.compute_advantages(batch, Signals(*[torch.zeros(batch.mask.shape)] * 4), keys.init_state(), ranks)
        assert credit.advantages.shape == batch.mask.shape
        return len(batch.samples), batch.baseline

    seen = together(8, lambda ranks: work(ranks, greedily(groups_of([[1.0], [0.5], [2.0], [0.0]]))))
    assert sorted(n for n, _ in seen) == [0] * 4 + [1] * 4 and all(b is not None and len(b) == n for n, b in seen)
    assert [n for n, _ in together(2, lambda ranks: work(ranks, []))] == [0, 0]


# -- the critic ----------------------------------------------------------------------------------------------------------------------


def test_the_critic_learns_nothing_from_a_failed_reward() -> None:
    """Values 1 and 3, returns 2 and unknown: (1 - 2)^2 / 2 and nothing, with gradients -1 and 0; what does not count is 0 too."""
    seen = torch.tensor([[1.0, 3.0, 7.0]], requires_grad=True)
    losses, metrics = algorithm("ppo").compute_value_loss(
        seen, seen.detach(), torch.tensor([[2.0, torch.nan, 1.0]]), torch.tensor([[True, True, False]])
    )
    losses.sum().backward()
    assert losses.tolist() == [[0.5, 0.0, 0.0]] and seen.grad is not None and seen.grad.tolist() == [[-1.0, 0.0, 0.0]]
    assert metric_values(metrics) == {"critic/squared_error": 1.0, "critic/clip_ratio": 0.0}


def test_the_policys_schedule_begins_when_the_critic_is_warm() -> None:
    """Two updates of waiting, then a warm-up of two and a linear fall over the four that are left: 1/2, 1, 1, 1/2."""
    groups = groups_of(REWARDS)

    def work(ranks: Ranks) -> list[float]:
        run = learning(made("ppo"), ranks, minibatches=1, schedule=Schedule(1.0, "linear", 2, 4), critic_warmup=2)
        _, batch = collate(groups, ranks, 1, 0)  # type: ignore[arg-type]
        credit = run.algorithm.compute_advantages(batch, Signals(), State(), ranks)[0]
        rates, count = [], UpdateCount()
        for _ in range(6):
            metrics, count = run.update(batch, Signals(), credit, count)
            rates.append(metric_values(metrics).get("learning_rate", 0.0))
        return rates

    assert together(1, work)[0] == [0.0, 0.0, 0.5, 1.0, 1.0, 0.5]


# -- sampler and trainer -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minibatches", [1, 2])
def test_ranks_stop_together_where_the_sampler_is_another_policy(minibatches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler is 1/2 nat off on one group, which one rank has: both report the mean over all tokens."""
    monkeypatch.setattr("rlkit.updates.collate.balance_samples", lambda sizes, ranks: [i * ranks // len(sizes) for i in range(len(sizes))])
    groups = groups_of([[1.0, 0.0, 0.0, 1.0]] * 4)
    samples = [s.sample for g in groups for s in g.samples]
    tokens, wrong = (sum(int(s.mask.sum()) for s in part) for part in (samples, samples[-4:]))

    def work(ranks: Ranks, limit: float | None) -> Any:
        policy = Policy(ranks)

        def told(scored: ScoredSample, off: float) -> ScoredSample:
            said = policy.logprobs([scored.sample], len(scored.sample.tokens))[0][0]
            return replace(scored, sample=replace(scored.sample, rollout_logprobs=said + off))

        mine = [replace(g, samples=tuple(told(s, 0.5 * (g.index == 3)) for s in g.samples)) for g in groups[ranks.rank :: 2]]
        logprob_check = LogprobCheck(limit)
        run = learning(algorithm("grpo"), ranks, minibatches=minibatches, logprob_check=logprob_check)
        _, batch = collate(mine, ranks, minibatches, 0)  # type: ignore[arg-type]
        try:
            signals, seen = run.observe(batch)
            credit = run.algorithm.compute_advantages(batch, signals, State(), ranks)[0]
            return {**metric_values(run.update(batch, signals, credit, UpdateCount())[0]), **metric_values(seen)}
        except RunFailed as error:
            return str(error)

    one, other = together(2, lambda ranks: work(ranks, None))
    assert one == other and one["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5 * wrong / tokens, rel=1e-5)
    one, other = together(2, lambda ranks: work(ranks, 0.01))
    assert one == other and "does not sample from the policy" in one


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_of_a_completion_the_tokens_of_the_current_weights_are_compared(world: int, minibatches: int) -> None:
    """Each second token was sampled by older weights, 5 nats off: no fault, and the others are seen to agree."""
    groups = groups_of([[1.0, 0.0, 0.0, 1.0]] * 4)
    samples = [s.sample for g in groups for s in g.samples]

    def work(ranks: Ranks) -> Any:
        policy = Policy(ranks)

        def told(scored: ScoredSample) -> ScoredSample:
            said = policy.logprobs([scored.sample], len(scored.sample.tokens))[0][0]
            current = torch.arange(len(said)) % 2 == 0
            return replace(scored, sample=replace(scored.sample, rollout_logprobs=said + 5.0 * ~current, versions=current.int()))

        mine = [replace(g, samples=tuple(map(told, g.samples))) for g in groups[ranks.rank :: world]]
        run = learning(algorithm("grpo"), ranks, minibatches=minibatches, logprob_check=LogprobCheck(1e-3))
        _, batch = collate(mine, ranks, minibatches, 1, max_lag=1)  # type: ignore[arg-type]
        signals, seen = run.observe(batch)
        credit = run.algorithm.compute_advantages(batch, signals, State(), ranks)[0]
        row = {**metric_values(run.update(batch, signals, credit, UpdateCount())[0]), **metric_values(seen)}
        return row["sampling/compared_tokens"], row["sampling/sampling_logp_difference/max"]

    wanted = sum(int(s.mask[::2].sum()) for s in samples)
    assert 0 < wanted < sum(int(s.mask.sum()) for s in samples)
    assert together(world, work) == [(wanted, pytest.approx(0.0, abs=1e-5))] * world


# -- the whole update ----------------------------------------------------------------------------------------------------------------


class Valued(PPO):
    """PPO whose critic says something of each sample by its key."""

    def needs(self, updates_per_step: int) -> Needs:
        return replace(super().needs(updates_per_step), values=False)

    def compute_advantages(self, batch: Batch, signals: Signals, state: State, peers: Any) -> Any:
        said = torch.zeros(batch.mask.shape)
        for row, sample in enumerate(batch.samples):
            said[row] = torch.randn(9, generator=torch.Generator().manual_seed(hash(sample.key[:3]) % 1000))[: said.shape[1]]
        return super().compute_advantages(batch, replace(signals, values=said), state, peers)


def made(name: str, **changes: Any) -> Any:
    keys = algorithm(name, **changes)
    return Valued(**keys.model_dump()) if name == "ppo" else keys


CASES = {
    "rloo": lambda: made("rloo", **K1, loss="clipped"),
    "remax": lambda: made("remax", entropy_coef=0.1),
    "reinforce": lambda: made("rloo", correction="mask"),
    "reinforce_pp": lambda: made("reinforce_pp", **K1),
    "reinforce_pp_baseline": lambda: made("reinforce_pp_baseline", kl_coef=0.3),
    "ppo": lambda: made("ppo", **K1, gae_lambda=0.9),
    "opd": lambda: made("opd", **K1, teacher_coef=0.5, clip_signal=0.8),
    "dual_clip": lambda: made("grpo", loss="dual_clip", dual_clip=1.01, reduction="fixed_length"),
    "gspo": lambda: made("grpo", loss="gspo", clip_low=3e-4, clip_high=4e-4, correction_level="sequence"),
    "cispo": lambda: made("grpo", loss="cispo", reduction="token_mean", correction="mask"),
    "sapo": lambda: made("grpo", loss="sapo"),
    "dppo": lambda: made("grpo", loss="dppo", clip_low=0.01, clip_high=0.01, correction="mask", correction_cap=5.0, correction_floor=0.3),
    "sequence mask": lambda: made("grpo", correction="mask", correction_level="sequence", correction_floor=0.5),
}


def cut(way: Way) -> Way:
    return replace(way, order=lambda groups: greedily(way.order(groups)))


@cache
def uncut(case: str) -> Any:
    return learn(CASES[case](), cut(Way()), minibatches=2, passes=2)[:2]


@pytest.mark.parametrize("way", ["order", "padding", "small micro-batches", "three ranks and everything"])
@pytest.mark.parametrize("case", CASES)
def test_no_cut_changes_a_gradient(case: str, way: str) -> None:
    """Two passes of two minibatches, so that ratios, clips and old log-probs have work."""
    gradients, metrics, _ = learn(CASES[case](), cut(WAYS[way]), minibatches=2, passes=2)
    wanted, numbers = uncut(case)
    assert len(wanted) == 4 and min(float(g.norm()) for g in wanted) > 1e-3
    assert difference(gradients, wanted) < 1e-12
    assert metrics == pytest.approx(numbers, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_out_changes_nothing(name: str) -> None:
    """No pass for old log-probs, no work on samples without advantage: the same gradient."""
    keys = made(name)
    eager = type(
        "Eager",
        (type(keys),),
        {
            "needs": lambda self, updates: replace(keys.needs(updates), old_logprobs=True),
            "inert_without_advantage": property(lambda self: False),
        },
    )(**keys.model_dump())
    lazily = learn(keys, cut(Way(order=shuffled)))[0]
    assert len(lazily) == 1 and difference(lazily, learn(eager, cut(Way()))[0]) < 1e-6  # old log-probs are kept in float32
