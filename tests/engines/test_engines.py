"""Real vLLM, real DeepSpeed and transformers in one process, holding the same weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.data.renderer import Renderer
from rlkit.data.tool_calls import TurnReader
from rlkit.engines.hf_generate import HFEngine
from rlkit.engines.learners import PolicyLearner
from rlkit.engines.loading import load_causal_lm
from rlkit.engines.vllm import VLLMEngine, patch_adapted_layers
from rlkit.engines.weight_sync import WeightSync, send_merged
from rlkit.environments.base import Observation
from rlkit.errors import RunFailed, UserError
from rlkit.ops.masking import pad_rows
from rlkit.runtime.manifest import CheckpointWriter
from rlkit.runtime.ranks import Ranks
from rlkit.types import Key, Request, Sample, Sampling, Stop
from tests.backends import deepspeed
from tests.rollout.episode_twins import TwinClient, WatchedEngine, ask, check_turns, compute_dense, run_episodes, say

TEMPERATURE = 0.7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tiny_model: Path, ranks: Ranks) -> PolicyLearner:
    return PolicyLearner(str(tiny_model), torch.float32, backend=deepspeed(2), temperature=TEMPERATURE, offline=True)


@pytest.fixture(scope="module")
def eos(tiny_model: Path) -> frozenset[int]:
    return Renderer(tiny_model, offline=True).eos_ids


@pytest.fixture(scope="module")
def vllm(tiny_model: Path, policy: PolicyLearner, eos: frozenset[int]) -> VLLMEngine:
    return VLLMEngine(str(tiny_model), "float32", names=policy.names, max_model_len=256, eos=eos, world=1, sleeps=False, extra={})


@pytest.fixture(scope="module")
def hf(tiny_model: Path, eos: frozenset[int]) -> HFEngine:
    return HFEngine(str(tiny_model), torch.float32, device=CPU, eos=eos, pad=0, offline=True)


def asked(engine: Any, count: int, sampling: Sampling, first_seed: int = 0) -> list[Sample]:
    for i in range(count):
        prompt = tuple(40 + (7 * i + j) % 90 for j in range(3 + i % 5))
        engine.add(Request(Key(i, 0, 0), prompt, sampling, first_seed + i))
    finished = []
    while engine.pending:
        finished += engine.advance()
    return sorted(finished, key=lambda s: s.key)


def trained(policy: PolicyLearner, samples: list[Sample]) -> Tensor:
    return policy.logprobs(samples, max(len(s.tokens) for s in samples))[0]


def said(samples: list[Sample]) -> Tensor:
    return pad_rows([s.rollout_logprobs for s in samples], max(len(s.tokens) for s in samples), 0.0)


def large_update(policy: PolicyLearner, samples: list[Sample], sign: float, lr: float = 0.03) -> None:
    with policy.enable_grad():
        logprobs, _ = policy.logprobs(samples, max(len(s.tokens) for s in samples))
        policy.backward(sign * logprobs.sum() / 100)
    assert policy.step(lr).applied


def test_deepspeed_compiles_nothing_on_a_cpu(policy: PolicyLearner) -> None:
    from deepspeed.comm.torch import build_shm_op

    assert build_shm_op() is None


def test_nothing_is_sampled_before_the_first_weights(vllm: VLLMEngine, hf: HFEngine) -> None:
    for engine in (vllm, hf):
        if engine.version is None:
            with pytest.raises(RunFailed, match="before its first weights"):
                engine.add(Request(Key(0, 0, 0), (40, 41), Sampling(), 0))


@pytest.mark.parametrize("kind", ["vllm", "hf"])
def test_sampler_and_trainer_agree_after_three_large_updates(kind: str, request: pytest.FixtureRequest, policy: PolicyLearner) -> None:
    engine = request.getfixturevalue(kind)
    sampling = Sampling(temperature=TEMPERATURE, max_tokens=24)
    for version in range(3):
        engine.load(policy.weights(), version)
        large_update(policy, asked(engine, 16, sampling, 1000 * version), 1.0 if version % 2 else -1.0)
    before = {name: tensor.clone() for name, tensor in policy.weights()}
    stale = asked(engine, 64, sampling, 7)
    assert (trained(policy, stale) - said(stale)).abs().max() > 0.1  # the updates were large: a stale engine is seen
    engine.load(policy.weights(), 3)
    fresh = asked(engine, 64, sampling, 7)
    assert (trained(policy, fresh) - said(fresh)).abs().max() < 1e-4
    assert {int(v) for s in fresh for v in s.versions} == {3}
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.weights())  # sampling moves nothing


def test_vllm_and_transformers_give_the_same_greedy_tokens(vllm: VLLMEngine, hf: HFEngine, policy: PolicyLearner) -> None:
    greedy = Sampling(temperature=0.0, max_tokens=24)
    vllm.load(policy.weights(), 4)
    hf.load(policy.weights(), 4)
    for ours, theirs in zip(asked(vllm, 48, greedy), asked(hf, 48, greedy), strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.stop is theirs.stop


@pytest.mark.parametrize("kind", ["vllm", "hf"])
def test_a_seed_gives_its_tokens_whatever_else_is_in_the_batch(kind: str, request: pytest.FixtureRequest, policy: PolicyLearner) -> None:
    engine = request.getfixturevalue(kind)
    engine.load(policy.weights(), 5)
    sampling = Sampling(temperature=1.0, max_tokens=16)
    many = asked(engine, 40, sampling, 300)
    few = asked(engine, 10, sampling, 300)
    for one, other in zip(many, few, strict=False):
        assert one.tokens.tolist() == other.tokens.tolist()
    assert len({tuple(s.tokens.tolist()) for s in many}) > 30


@pytest.mark.parametrize("kind", ["vllm", "hf"])
def test_end_tokens_belong_to_the_completion_and_cut_ones_have_none(
    kind: str, request: pytest.FixtureRequest, eos: frozenset[int], policy: PolicyLearner
) -> None:
    engine = request.getfixturevalue(kind)
    engine.load(policy.weights(), 6)
    samples = asked(engine, 64, Sampling(temperature=2.0, max_tokens=64), 11)
    assert {s.stop for s in samples} == {Stop.EOS, Stop.LENGTH}
    for s in samples:
        ends = [t for t, token in enumerate(s.tokens.tolist()) if token in eos]
        assert ends == ([len(s.tokens) - 1] if s.stop is Stop.EOS else [])
        assert s.stop is Stop.EOS or len(s.tokens) == 64


@pytest.mark.parametrize("kind", ["vllm", "hf"])
@pytest.mark.parametrize("left_out", ["lm_head.weight", "model.layers.1.self_attn.k_proj.weight"])
def test_a_sync_that_leaves_a_tensor_out_is_caught(kind: str, left_out: str, request: pytest.FixtureRequest, policy: PolicyLearner) -> None:
    engine = request.getfixturevalue(kind)
    with pytest.raises(RunFailed, match=f"missing {left_out}"):
        engine.load(((name, tensor) for name, tensor in policy.weights() if name != left_out), 7)
    engine.load(policy.weights(), 7)


LEFT_OUT = "model.layers.1.self_attn.o_proj.weight"


def send(policy: PolicyLearner, engine: Any, version: int) -> None:
    """As in a run, which no warning interrupts: all that the engine holds is compared."""
    sync = WeightSync(send_merged, lambda names: [names], pytest.fail)
    sync(policy, engine, version)


@pytest.mark.parametrize("kind", ["vllm", "hf"])
def test_a_tensor_that_is_an_update_old_is_named_however_small_the_update(
    kind: str, request: pytest.FixtureRequest, policy: PolicyLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine keeps one tensor, at learning rate 1e-6 and at one that is too small to move any weight; then it gets it."""
    engine = request.getfixturevalue(kind)
    for version, (lr, seen) in enumerate([(1e-6, True), (1e-30, False)], start=8):
        send(policy, engine, version)
        large_update(policy, asked(engine, 4, Sampling(max_tokens=8)), 1.0, lr)
        with monkeypatch.context() as patch:
            skip_tensor(kind, engine, patch)
            if seen:
                with pytest.raises(RunFailed, match=rf"1 of 25 tensors differ: {re.escape(LEFT_OUT)}; nothing"):
                    send(policy, engine, version)
            else:
                send(policy, engine, version)
    send(policy, engine, 10)


def skip_tensor(kind: str, engine: Any, patch: pytest.MonkeyPatch) -> None:
    """All names arrive, and one tensor does not."""
    if kind == "hf":
        own = engine.model.state_dict
        patch.setattr(engine.model, "state_dict", lambda: own() | {LEFT_OUT: own()[LEFT_OUT].clone()})
    pass_on = engine._pass_on if kind == "vllm" else None
    if pass_on:
        patch.setattr(engine, "_pass_on", lambda *arguments: ((n, tensor) for n, tensor in pass_on(*arguments) if n != LEFT_OUT))


def test_layers_that_were_exchanged_are_named(vllm: VLLMEngine, policy: PolicyLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    pass_on = vllm._pass_on
    other = {".0.": ".1.", ".1.": ".0."}
    monkeypatch.setattr(
        vllm, "_pass_on", lambda *args: ((re.sub(r"\.[01]\.", lambda n: other[n[0]], name), t) for name, t in pass_on(*args))
    )
    with pytest.raises(RunFailed, match=r"22 of 25 tensors differ"):
        send(policy, vllm, 11)
    monkeypatch.undo()
    send(policy, vllm, 11)


def test_what_adapters_stand_on_is_loaded_by_its_own_name(vllm: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM 0.26 leaves it to us: by the layer's own way, or where it has none by vLLM's."""
    from vllm.lora.layers import BaseLayerWithLoRA

    class Packed(torch.nn.Linear):
        def load_weights(self, weights: Iterator[tuple[str, Tensor]]) -> set[str]:
            return {f"packed {name}" for name, _ in weights}

    monkeypatch.delattr(BaseLayerWithLoRA, "load_weights", raising=False)
    patch_adapted_layers()
    try:
        seen = []
        for beneath in (torch.nn.Linear(3, 2, bias=False), Packed(3, 2, bias=False)):
            layer = BaseLayerWithLoRA()
            layer.base_layer = beneath
            seen.append((set(layer.load_weights([("weight", torch.ones(2, 3))])), bool((beneath.weight == 1).all())))
    finally:
        del BaseLayerWithLoRA.load_weights
    assert seen == [({"weight"}, True), ({"packed weight"}, False)]


def test_an_abort_returns_what_each_request_had(vllm: VLLMEngine, hf: HFEngine, policy: PolicyLearner) -> None:
    """The first tokens of what the same request gives when it is not aborted; and the engine is ready for the next ones."""
    requests = [Request(Key(i, 1, 0), (40, 41, 42), Sampling(max_tokens=64), i) for i in range(8)]
    for engine, steps in ((vllm, 4), (hf, 0)):  # transformers' generate ends all requests of a batch, or has not begun them
        engine.load(policy.weights(), 10)
        for request in requests:
            engine.add(request)
        finished = [sample for _ in range(steps) for sample in engine.advance()]
        aborted = engine.abort()
        assert {s.stop for s in aborted} == {Stop.ABORTED} and engine.pending == 0
        assert sorted(s.key for s in [*finished, *aborted]) == [request.key for request in requests]
        for request in requests:
            engine.add(request)
        whole = {}
        while engine.pending:
            whole |= {s.key: s for s in engine.advance()}
        for part in aborted:
            n = len(part.tokens)
            assert (n >= steps - 1) and part.tokens.tolist() == whole[part.key].tokens[:n].tolist()
            assert torch.allclose(part.rollout_logprobs, whole[part.key].rollout_logprobs[:n], atol=1e-5)
            assert part.versions.tolist() == [10] * n
    assert len(asked(vllm, 4, Sampling(max_tokens=8))) == 4


@pytest.mark.parametrize("kind", ["vllm", "hf"])
def test_a_begun_sample_goes_on_under_other_weights(
    kind: str, request: pytest.FixtureRequest, policy: PolicyLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had stays; the log-probs of what is added are the trainer's after the whole prefix."""
    engine = request.getfixturevalue(kind)
    if kind == "hf":
        monkeypatch.setattr(engine, "tokens_per_advance", 4)
    sampling = Sampling(temperature=TEMPERATURE, max_tokens=24)
    requests = [Request(Key(i, 2, 0), tuple(range(40, 43 + i % 3)), sampling, i) for i in range(12)]
    engine.load(policy.weights(), 30)
    for asked_first in requests:
        engine.add(asked_first)
    early = [sample for _ in range(8 // engine.tokens_per_advance) for sample in engine.advance()]
    begun = {s.key: s for s in engine.abort()}
    assert begun and all(4 <= len(s.tokens) <= 8 for s in begun.values()) and len(begun) + len(early) == 12
    large_update(policy, list(begun.values()), -1.0)
    engine.load(policy.weights(), 31)
    for asked_first in requests:
        if (part := begun.get(asked_first.key)) is not None:
            engine.add(replace(asked_first, seed=900, begun=part))
    samples = []
    while engine.pending:
        samples += engine.advance()
    apart = (trained(policy, samples) - said(samples)).abs()  # [B, T]
    for sample, row in zip(samples, apart, strict=True):
        had, n = begun[sample.key], len(begun[sample.key].tokens)
        assert sample.prompt == had.prompt and n < len(sample.tokens) <= 24 and sample.stop is not Stop.ABORTED
        for name in ("tokens", "rollout_logprobs", "versions"):
            assert torch.equal(getattr(sample, name)[:n], getattr(had, name))
        assert sample.versions.tolist() == [30] * n + [31] * (len(sample.tokens) - n) and bool(sample.mask.all())
        assert row[n:].max() < 1e-4
    assert len(samples) == len(begun) and apart.max() > 0.01  # the beginnings are of other weights


def test_a_sample_that_is_drawn_in_pieces_is_the_same(hf: HFEngine, policy: PolicyLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    hf.load(policy.weights(), 32)
    sampling = Sampling(max_tokens=24)
    whole = asked(hf, 12, sampling, 40)
    monkeypatch.setattr(hf, "tokens_per_advance", 5)
    for ours, theirs in zip(asked(hf, 12, sampling, 40), whole, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.stop is theirs.stop
        assert torch.allclose(ours.rollout_logprobs, theirs.rollout_logprobs, atol=1e-5)


def test_a_checkpoint_goes_on_to_the_last_bit(policy: PolicyLearner, hf: HFEngine, tmp_path: Path) -> None:
    hf.load(policy.weights(), 11)
    samples = asked(hf, 16, Sampling(temperature=1.0, max_tokens=16))
    large_update(policy, samples, 1.0)
    policy.save(CheckpointWriter(tmp_path))
    large_update(policy, samples, 1.0)
    once = {name: tensor.clone() for name, tensor in policy.weights()}
    large_update(policy, samples, -1.0)
    policy.load(tmp_path)
    large_update(policy, samples, 1.0)
    assert all(torch.equal(once[name], tensor) for name, tensor in policy.weights())


def test_requests_with_different_limits_share_a_batch(hf: HFEngine, policy: PolicyLearner) -> None:
    """As the turns of episodes have them, each with what is left to it; none is sampled otherwise for it."""
    hf.load(policy.weights(), 20)
    limits = [3, 9, 24, 9]

    def sample(chosen: list[int]) -> dict[int, list[int]]:
        for i in chosen:
            hf.add(Request(Key(i, 0, 0), (40 + i, 41, 42), Sampling(max_tokens=limits[i]), i))
        found = {s.key.prompt: s for s in hf.advance()}
        assert not hf.pending and all(len(s.tokens) == limits[i] or s.stop is Stop.EOS for i, s in found.items())
        return {i: s.tokens.tolist() for i, s in found.items()}

    together = sample([0, 1, 2, 3])
    assert together == {i: sample([i])[i] for i in range(4)} and len(together[0]) <= 3


def test_episodes_of_vllm_are_the_rows_that_transformers_reads(vllm: VLLMEngine, policy: PolicyLearner, tiny_model: Path) -> None:
    """The cache holds the tokens of earlier turns. 64 episodes of up to three turns; a random model ends one turn in two."""
    model = load_causal_lm(str(tiny_model), torch.float32, offline=True).eval()
    vllm.load(((name, tensor) for name, tensor in model.state_dict().items() if name in policy.names), 8)
    renderer, engine = Renderer(tiny_model, offline=True), WatchedEngine(vllm)
    client = TwinClient(lambda key, turn, message: Observation(say(f"again {key.sample}"), turn == 3))
    _, found, _ = run_episodes(renderer, client, ask(16, 4, max_tokens=200), engine)
    samples = list(found.values())
    check_turns(samples, engine.sampled)
    assert len(samples) == 64 and sum(not s.mask.all() for s in samples) > 10 and max(r.key.turn for r in engine.asked) == 2
    with torch.no_grad():
        apart = [(compute_dense(model, s) - s.rollout_logprobs)[s.mask].abs().max() for s in samples]
    assert max(apart) < 1e-4


def test_tool_calls_are_read_by_the_parsers_of_vllm(tiny_model: Path) -> None:
    renderer = Renderer(tiny_model, offline=True)
    schema = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}
    reader = TurnReader(renderer, "pythonic")
    for text, calls in (("[add(a=1), add(a=2)]", [{"a": 1}, {"a": 2}]), ("three", []), ("<think>[add(a=1)]</think>3", [])):
        message = reader.read([*renderer.tokenize(text), min(renderer.eos_ids)], [], [schema])
        assert [call["function"]["arguments"] for call in message.get("tool_calls", [])] == calls
    with pytest.raises(UserError, match="vLLM has no tool parser of this name; valid: auto, hermes, response_template, "):
        TurnReader(renderer, "nonsense")
    with pytest.raises(UserError, match="the tool parser of vLLM does not fit the tokenizer"):
        TurnReader(renderer, "llama3_json")


def test_a_gradient_that_is_not_finite_moves_nothing(policy: PolicyLearner, hf: HFEngine) -> None:
    hf.load(policy.weights(), 12)
    samples = asked(hf, 4, Sampling(temperature=1.0, max_tokens=8))
    before = {name: tensor.clone() for name, tensor in policy.weights()}
    with policy.enable_grad():
        policy.backward(policy.logprobs(samples, 8)[0].sum() * float("inf"))
    assert not policy.step(0.03).applied
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.weights())
    large_update(policy, samples, 1.0)  # and the next one counts again


def test_the_export_is_what_the_policy_holds(policy: PolicyLearner, tmp_path: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    policy.export(tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as stored:
        assert "lm_head.weight" not in stored.keys()  # noqa: SIM118  tied: once in the file
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    held = dict(policy.weights())
    assert loaded.keys() == held.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in held.items())
