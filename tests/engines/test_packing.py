"""Samples end to end in one row say what each says alone, whatever the model, the attention, the head's blocks or the ZeRO stage."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.engines import packing
from rlkit.engines.base import make_sample
from rlkit.engines.heads import LastTokenScorer, TokenScorer, TokenValuer, compute_logprobs, compute_values, find_last_token
from rlkit.engines.learners import PolicyLearner
from rlkit.errors import UserError
from rlkit.ops import logprobs
from rlkit.ops.batching import count_tokens, measure_sample
from rlkit.runtime.ranks import Ranks
from rlkit.trainers.online_report import lengths_by_prompt
from rlkit.types import Key, Request, Sample, Sampling, Stop
from tests.backends import deepspeed

CPU = torch.device("cpu")
TEMPERATURE = 0.7
STEP = 1e4
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "mistral": {"sliding_window": 3},
    "llama": {"num_key_value_heads": 4},
    "granite": {"logits_scaling": 4.0},
}


def model_of(kind: str, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **MODELS.get(kind, {}), **more}), dtype=dtype)
        for weights in model.parameters():
            torch.nn.init.normal_(weights, std=0.3)
    return model.train()


def samples_of(vocabulary: int = 50, *, shared: bool = False) -> list[Sample]:
    """Prompts of 1 to 5 tokens, completions of 1 to 9 and one of none; `shared`: the last has the prompt of the first."""
    random = torch.Generator().manual_seed(4)
    made = []
    for i, (before, after) in enumerate([(3, 5), (1, 9), (5, 1), (2, 0), (4, 7)]):
        prompt, tokens = (torch.randint(2, vocabulary, (n,), generator=random).tolist() for n in (before, after))
        same = shared and i == 4
        request = Request(Key(0 if same else i, 0, int(same)), made[0].prompt if same else tuple(prompt), Sampling(), 0)
        made.append(make_sample(request, tokens, [0.0] * after, Stop.LENGTH, 0))
    return made


def alone(model: Any, sample: Sample) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy of one sample by the model as transformers has it."""
    ids = torch.tensor([[*sample.prompt, *sample.tokens.tolist()]])
    logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0] / TEMPERATURE, -1)
    logs = logs[len(sample.prompt) - 1 : len(ids[0]) - 1]
    return logs.gather(-1, sample.tokens[:, None])[:, 0], -(logs.exp() * logs).sum(-1)


def loss_of(chosen: Tensor, entropy: Tensor) -> Tensor:
    """Something of which every token has a part of its own."""
    steps = torch.arange(1, chosen.numel() + 1, dtype=chosen.dtype)
    return ((chosen + 0.3 * entropy) * steps.sin()).sum()


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    first, second = (torch.cat([t.double().flatten() for t in side]) for side in (one, other))
    assert first.norm() > 0.1
    return float((first - second).norm() / first.norm())


def test_the_layout_in_numbers() -> None:
    """Two prompts (7 8 | 9) with completions (5 | 4 3): 7 8 9 4, as 5 and 3 predict nothing; 5 is predicted at 1, 4 and 3 at 2 and 3."""
    requests = [Request(Key(i, 0, 0), prompt, Sampling(), 0) for i, prompt in enumerate([(7, 8), (9,)])]
    samples = [make_sample(r, tokens, [0.0] * len(tokens), Stop.LENGTH, 0) for r, tokens in zip(requests, [[5], [4, 3]], strict=True)]
    row = packing.pack_samples(samples, 3, CPU)
    assert row.ids.tolist() == [[7, 8, 9, 4]] and row.positions.tolist() == [[0, 1, 0, 1]]
    assert row.seq_lens.cu_seqlens_q.tolist() == row.seq_lens.cu_seqlens_k.tolist() == [0, 2, 4]
    assert row.seq_lens.max_seqlen_q == row.seq_lens.max_seqlen_k == 2 and row.seq_lens.key_index is None
    assert row.predict_index.tolist() == [1, 2, 3] and row.tokens.tolist() == [5, 4, 3] and row.grid_index.tolist() == [0, 3, 4]


def test_two_rows_with_the_same_token_ids_are_two_prompts() -> None:
    """They may differ in an image or in their answer: a prompt is its row and draw."""
    ids = torch.tensor([5, 6])
    for keys, tokens in (([Key(0, 0, 0), Key(0, 0, 1)], 6), ([Key(0, 0, 0), Key(1, 0, 0)], 8), ([Key(0, 0, 0), Key(0, 1, 0)], 8)):
        samples = [make_sample(Request(key, (7, 8), Sampling(), 0), ids.tolist(), [0.0] * 2, Stop.EOS, 0) for key in keys]
        assert tokens == count_tokens([measure_sample(s) for s in samples]) == packing.pack_samples(samples, 2, CPU).ids.shape[1] + 2
        assert sum(prompt + sum(lengths) for prompt, lengths in lengths_by_prompt(samples)) == tokens


def test_one_key_with_two_prompts_is_a_fault() -> None:
    """As of a training row and a held-out row of one number: packed together, one would be scored behind the other's prompt."""
    samples = [make_sample(Request(Key(3, 0, 0), prompt, Sampling(), 0), [5], [0.0], Stop.EOS, 0) for prompt in ((7, 8), (7, 9))]
    with pytest.raises(ValueError, match=r"the prompt \(3, 0\) have different token ids"):
        packing.pack_samples(samples, 1, CPU)


def test_a_prompt_stands_once() -> None:
    """Of 7 8 the completions 5 6, 4, none, 3 3, and of 9 in their midst 2 and none: 7 8 5 3 9, or whole 7 8 5 6 4 3 3 9 2, where
    the run 4 attends to 7 8 4, the run 3 3 to 7 8 3 3. Token 4 is predicted at 8, and so is the first 3."""
    made = [((7, 8), [5, 6]), ((7, 8), [4]), ((9,), [2]), ((7, 8), []), ((7, 8), [3, 3]), ((9,), [])]
    samples = [
        packing.TokenizedSample(Key(p[0], 0, i), p, torch.tensor(ids, dtype=torch.int64), torch.ones(len(ids), dtype=torch.bool))
        for i, (p, ids) in enumerate(made)
    ]
    row = packing.pack_samples(samples, 2, CPU)
    assert row.ids.tolist() == [[7, 8, 5, 3, 9]] and row.positions.tolist() == [[0, 1, 2, 2, 0]]
    bounds = row.seq_lens
    assert bounds.cu_seqlens_q.tolist() == [0, 3, 4, 5] and bounds.cu_seqlens_k.tolist() == [0, 3, 6, 7]
    assert bounds.key_index is not None and bounds.key_index.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert row.predict_index.tolist() == [1, 2, 1, 4, 1, 3] and row.tokens.tolist() == [5, 6, 4, 2, 3, 3]
    row = packing.pack_samples(samples, 2, CPU, whole=True)
    assert row.ids.tolist() == [[7, 8, 5, 6, 4, 3, 3, 9, 2]] and row.positions.tolist() == [[0, 1, 2, 3, 2, 2, 3, 0, 1]]
    queries, keys, *lens, seen = row.seq_lens
    assert queries.tolist() == [0, 4, 5, 7, 9] and keys.tolist() == [0, 4, 7, 11, 13] and lens == [(4, 1, 2, 2), (4, 3, 4, 2)]
    assert seen is not None and seen.tolist() == [0, 1, 2, 3, 0, 1, 4, 0, 1, 5, 6, 7, 8]
    assert row.predict_index.tolist() == [1, 2, 1, 7, 1, 5] and row.tokens.tolist() == [5, 6, 4, 2, 3, 3]
    assert row.grid_index.tolist() == [0, 1, 2, 4, 8, 9]
    assert row.starts == [(0, 2), (0, 4), (7, 8), (0, 5), (0, 5), (7, 9)]


@pytest.mark.parametrize("block", [2**25, 250])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("shared", "bar"), [(False, 1e-12), (True, 1e-7)])  # norms round a shared prompt's gradient to float32, once
def test_in_one_row_each_sample_is_alone(kind: str, block: int, shared: bool, bar: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "BLOCK", block)  # 250: the vocabulary in blocks of 11
    model, samples = model_of(kind), samples_of(shared=shared)
    said = [alone(model, sample) for sample in samples]
    loss_of(*(torch.cat(part) for part in zip(*said, strict=True))).backward()
    wanted = [weights.grad.clone() for weights in model.parameters()]
    model.zero_grad()
    scorer = TokenScorer(model)
    assert model.config._attn_implementation == packing.NAME
    grids = compute_logprobs(scorer, samples, 9, TEMPERATURE, CPU)
    counts = torch.arange(9) < torch.tensor([len(s.tokens) for s in samples])[:, None]
    for grid, part in zip(grids, zip(*said, strict=True), strict=True):
        assert (grid[counts] - torch.cat(part)).abs().max() < 1e-12 and not grid[~counts].any()
    loss_of(*(grid[counts] for grid in grids)).backward()
    assert apart(wanted, [weights.grad for weights in model.parameters()]) < bar


def test_values_are_those_of_each_sample_alone() -> None:
    samples = samples_of(shared=True)
    valuer = TokenValuer(model_of("qwen3"))
    torch.nn.init.ones_(valuer.head.weight)
    together = compute_values(valuer, samples, 9, CPU)
    for row, sample in zip(together, samples, strict=True):
        assert torch.allclose(row[None, : len(sample.tokens)], compute_values(valuer, [sample], len(sample.tokens), CPU), atol=1e-6)


def test_scores_are_those_of_each_sample_alone() -> None:
    """Samples of shared prompts, also with nothing written, and with padding at their end."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.for_model("qwen3", **SMALL, num_labels=1)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float64)
        torch.nn.init.normal_(model.score.weight)
    made = [((9, 8), [5, 6]), ((7, 3, 4), [2]), ((7, 3, 4), []), ((9, 8), [3, 0]), ((7, 3, 0), []), ((7, 3, 4), [0])]
    samples = [make_sample(Request(Key(i, 0, 0), p, Sampling(), 0), t, [0.0] * len(t), Stop.EOS, 0) for i, (p, t) in enumerate(made)]
    wanted = [model(input_ids=torch.tensor([[*p, *t]])).logits.item() for p, t in made]
    row = packing.pack_samples(samples, 0, CPU, whole=True)
    last = [find_last_token(s, 0, *begin) for s, begin in zip(samples, row.starts, strict=True)]
    found = LastTokenScorer(model)(row.ids, row.positions, row.seq_lens, torch.tensor(last))
    assert found.tolist() == pytest.approx(wanted, rel=1e-6) and len({round(x, 6) for x in wanted}) == 5  # one ends twice in its prompt


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("qwen3_next", {"num_experts": 2, "num_hidden_layers": 4}, "would mix in layers of linear_attention"),
        ("mamba", {"num_heads": 2}, "does not let their attention be replaced"),
    ],
)
def test_models_that_would_be_wrong_are_refused(kind: str, more: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        TokenScorer(model_of(kind, torch.float32, **more))


@pytest.fixture(scope="module")
def wanted(tiny_model: Path) -> dict[str, Tensor]:
    """The gradient of plain torch, sample by sample, in float64."""
    from rlkit.engines.loading import load_causal_lm

    model = load_causal_lm(str(tiny_model), torch.float64, offline=True)
    said = [alone(model, sample) for sample in samples_of(200, shared=True)]
    loss_of(*(torch.cat(part) for part in zip(*said, strict=True))).backward()
    return {name: weights.grad for name, weights in model.named_parameters()}


class Full(torch.autograd.Function):
    """Lets the forward pass through, and the backward pass find no memory."""

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise torch.OutOfMemoryError


def memory_runs_out_in_a_trial(policy: PolicyLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    """First in the second layer's attention, then in its backward pass; then a trial ends well."""
    attention = packing.attend_per_run
    for backwards in (False, True):
        calls: list[int] = []

        def full(*given: Any, backwards: bool = backwards, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            if len(calls) == 2 and not backwards:
                raise torch.OutOfMemoryError
            return Full.apply(attention(*given)) if len(calls) == 2 else attention(*given)

        monkeypatch.setattr(packing, "attend_per_run", full)
        with pytest.raises(torch.OutOfMemoryError):
            policy.try_samples(samples_of(200))
    monkeypatch.setattr(packing, "attend_per_run", attention)
    policy.try_samples(samples_of(200))


def calls_of_each_layer(model: Any) -> list[list[int]]:
    calls: list[list[int]] = [[] for _ in model.model.layers]
    for layer, mine in zip(model.model.layers, calls, strict=True):
        layer.mlp.register_forward_pre_hook(lambda module, given, mine=mine: mine.append(1))
    return calls


class Descent(torch.optim.SGD):
    """With so large a step that the weights after it are the gradient."""

    def __init__(self, parameters: Any, lr: float, **rest: Any) -> None:
        super().__init__(parameters, lr=lr)


@pytest.mark.parametrize(("block", "recompute"), [(2**25, 0), (250, 1), (2**25, 2)])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_gradient_is_that_of_plain_torch_under_every_zero_stage(
    stage: int, block: int, recompute: int, wanted: dict[str, Tensor], tiny_model: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = deepspeed(stage, norm=1e9)
    importlib.import_module("deepspeed")  # it derives classes from the true AdamW

    monkeypatch.setattr(torch.optim, "AdamW", Descent)
    monkeypatch.setattr(logprobs, "BLOCK", block)
    policy = PolicyLearner(
        str(tiny_model),
        torch.float32,
        backend=backend,
        temperature=TEMPERATURE,
        offline=True,
        checkpoint_every=recompute,
    )
    memory_runs_out_in_a_trial(policy, monkeypatch)
    kept = calls_of_each_layer(policy.model)
    before = [weights.clone() for _, weights in policy.weights()]
    samples = samples_of(200, shared=True)
    counts = torch.arange(9) < torch.tensor([len(s.tokens) for s in samples])[:, None]
    with policy.enable_grad():
        policy.backward(loss_of(*(grid[counts] for grid in policy.logprobs(samples, 9))))
    assert [len(calls) for calls in kept] == {0: [1, 1], 1: [2, 2], 2: [2, 1]}[recompute]  # forward, and again in the backward pass
    with policy.enable_grad():
        policy.idle()
    assert policy.step(STEP).applied
    found = {name: (old - new) / STEP for old, (name, new) in zip(before, policy.weights(), strict=True)}
    assert apart(list(wanted.values()), [found[name] for name in wanted]) < 1e-6
