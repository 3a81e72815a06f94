"""What a sampler holds is compared with what it was sent by sums of bits: what they see, and what vLLM may do to tensors.

Here with modules that have vLLM's names and attributes; tests/engines/test_engines.py and test_agreement.py have vLLM itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlkit.engines.bit_sums import SentWeights, WeightComparison, sum_bits
from rlkit.engines.held_weights import HeldWeights, record_before_packing
from rlkit.engines.weight_sync import WeightSync
from rlkit.errors import RunFailed

H, KV, F, VOCABULARY, LAYERS = 8, 2, 12, 10, 2  # hidden size, rows of k and v, of the MLP, tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 64, 100_001])
def test_a_sum_sees_one_bit_and_neither_order_nor_parts_nor_padding(dtype: torch.dtype, size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)
    total = int(sum_bits(tensor))
    assert int(sum_bits(tensor.flip(0))) == total
    assert int(sum_bits(torch.cat([tensor, torch.zeros(33, dtype=dtype)]))) == total
    wrapped = (int(sum_bits(tensor[: size // 3])) + int(sum_bits(tensor[size // 3 :])) - total) % 2**64
    assert wrapped == 0
    changed = tensor.clone()
    changed[-1] = torch.nextafter(changed[-1], torch.tensor(9e9, dtype=dtype))
    assert int(sum_bits(changed)) != total


def test_changes_that_cancel_in_a_plain_sum_are_seen() -> None:
    """A step of one last bit upwards and one downwards, as at a small learning rate."""
    integers = torch.tensor([1000, 2000, 3000], dtype=torch.int32)
    moved = torch.tensor([1001, 1999, 3000], dtype=torch.int32)
    assert int(integers.sum()) == int(moved.sum())
    assert int(sum_bits(integers.view(torch.float32))) != int(sum_bits(moved.view(torch.float32)))


@pytest.mark.parametrize(
    "tensor", [torch.arange(24.0).view(4, 6).T, torch.arange(48.0).view(4, 12)[:, ::2], torch.tensor(3), torch.empty(0)]
)
def test_a_sum_does_not_depend_on_how_a_tensor_lies_in_memory(tensor: Tensor) -> None:
    assert int(sum_bits(tensor)) == int(sum_bits(tensor.contiguous()))


def checkpoint() -> dict[str, Tensor]:
    """A model with a tied head, as it is sent."""
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, H), "model.norm.weight": (H,)}
    for i in range(LAYERS):
        attention = {"q_proj": (H, H), "k_proj": (KV, H), "v_proj": (KV, H), "o_proj": (H, H)}
        shapes |= {f"model.layers.{i}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"model.layers.{i}.mlp.{name}.weight": (F, H) for name in ("gate_proj", "up_proj")}
        shapes |= {f"model.layers.{i}.mlp.down_proj.weight": (H, F), f"model.layers.{i}.input_layernorm.weight": (H,)}
    tensors = {name: torch.randn(shape, generator=random).bfloat16() for name, shape in shapes.items()}
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}


class Holder(nn.Module):
    """A layer with a weight, and attributes as vLLM's."""

    def __init__(self, weight: Tensor, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        for name, value in attributes.items():
            setattr(self, name, value)


def engine_model(sent: dict[str, Tensor], rank: int = 0, ranks: int = 1) -> nn.Module:
    """What one rank of vLLM makes of a checkpoint: k and v have two rows, so that with 4 ranks two hold each."""
    replicas = max(1, ranks // KV)
    model = nn.Module()
    model.model = nn.Module()

    def own(tensor: Tensor, dim: int, copies: int = 1) -> Tensor:
        return tensor.chunk(ranks // copies, dim)[rank // copies]

    vocabulary = torch.zeros(16, H, dtype=torch.bfloat16)
    vocabulary[:VOCABULARY] = sent["model.embed_tokens.weight"]
    model.model.embed_tokens = Holder(own(vocabulary, 0), num_embeddings_padded=16)
    model.lm_head = model.model.embed_tokens
    model.model.norm = Holder(sent["model.norm.weight"])
    model.model.rotary = nn.Module()
    model.model.rotary.register_buffer("cos_sin_cache", torch.randn(4))
    model.model.layers = nn.ModuleList()
    for i in range(LAYERS):
        layer, name = nn.Module(), f"model.layers.{i}"
        q, k, v, o = (sent[f"{name}.self_attn.{kind}_proj.weight"] for kind in "qkvo")
        qkv = [own(q, 0), own(k, 0, replicas), own(v, 0, replicas)]
        layer.self_attn = nn.Module()
        sizes = [len(part) for part in qkv]
        layer.self_attn.qkv_proj = Holder(torch.cat(qkv), output_partition_sizes=sizes, num_kv_head_replicas=replicas)
        layer.self_attn.o_proj = Holder(own(o, 1))
        layer.mlp = nn.Module()
        merged = [own(sent[f"{name}.mlp.{kind}_proj.weight"], 0) for kind in ("gate", "up")]
        layer.mlp.gate_up_proj = Holder(torch.cat(merged), output_partition_sizes=[len(part) for part in merged])
        layer.mlp.down_proj = Holder(own(sent[f"{name}.mlp.down_proj.weight"], 1))
        layer.input_layernorm = Holder(sent[f"{name}.input_layernorm.weight"])
        model.model.layers.append(layer)
    return model


def record(tensors: dict[str, Tensor]) -> SentWeights:
    sent = SentWeights()
    for _ in sent.record(iter(tensors.items())):
        pass
    return sent


def compare(models: list[nn.Module], tensors: dict[str, Tensor], held: HeldWeights | None = None) -> WeightComparison:
    """As the first rank sees it."""
    lists: list[list[int]] = []

    def gather(numbers: list[int]) -> list[list[int]]:
        lists.append(numbers)
        return [numbers] if len(lists) < len(models) else list(lists)

    held = held or HeldWeights(gather)
    return [held.compare(model, record(tensors)) for model in models][-1]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_fused_padded_tied_and_sharded_tensors_are_the_same(ranks: int) -> None:
    sent = checkpoint()
    assert compare([engine_model(sent, rank, ranks) for rank in range(ranks)], sent) == WeightComparison([], [])


SHARD = "model.layers.1.self_attn.o_proj.weight"


def stale_shard(models: list[nn.Module]) -> None:
    models[1].model.layers[1].self_attn.o_proj.weight[0, 0] += 1


def stale_norm(models: list[nn.Module]) -> None:
    models[2].model.norm.weight[0] += 1


def stale_copy(models: list[nn.Module]) -> None:
    models[3].model.layers[0].self_attn.qkv_proj.weight[-1, 0] += 1


def exchanged(models: list[nn.Module]) -> None:
    for model in models:
        one, other = model.model.layers
        one.mlp, other.mlp = other.mlp, one.mlp


def exchanged_in_one(models: list[nn.Module]) -> None:
    for model in models:
        weight = model.model.layers[0].mlp.gate_up_proj.weight
        weight.copy_(weight.roll(len(weight) // 2, 0))


MLPS = [f"model.layers.{i}.mlp.{name}_proj.weight" for i in (0, 1) for name in ("gate", "up", "down")]


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (stale_shard, [SHARD]),
        (stale_norm, ["model.norm.weight"]),
        (stale_copy, ["model.layers.0.self_attn.v_proj.weight"]),
        (exchanged, MLPS),
        (exchanged_in_one, MLPS[:2]),
    ],
)
def test_a_difference_on_any_rank_is_named(fault: Any, names: list[str]) -> None:
    sent = checkpoint()
    models = [engine_model(sent, rank, 4) for rank in range(4)]
    fault(models)
    found = compare(models, sent)
    assert sorted(found.differing) == sorted(names) and found.uncompared == []


def test_a_weight_that_a_kernel_repacked_is_compared_as_it_was_packed() -> None:
    """And one whose kernel was replaced since is listed, for its weight is not there."""
    sent = checkpoint()
    model = engine_model(sent)
    layer = model.model.layers[0].self_attn.o_proj

    def pack(layer: Any, remove_weight: bool) -> None:
        weight = layer.weight.clone()
        layer.cpu_linear = lambda x: x @ weight.T
        layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)

    recorded = record_before_packing(pack)
    assert vars(recorded)["__wrapped__"] is pack  # by which a second engine of the process knows that it is done
    recorded(layer, remove_weight=True)
    assert compare([model], sent) == WeightComparison([], [])
    name = "model.layers.0.self_attn.o_proj.weight"
    assert compare([model], {**sent, name: sent[name] + 1}).differing == [name]
    layer.cpu_linear = lambda x: x
    assert compare([model], sent) == WeightComparison([], [name])


def test_what_has_another_form_is_listed_and_what_has_other_names_is_compared_by_layer() -> None:
    sent = checkpoint()
    model = engine_model(sent)
    model.model.layers[0].mlp.down_proj = Holder(sent["model.layers.0.mlp.down_proj.weight"].to(torch.float8_e4m3fn))
    model.model.layers[1].mlp.w13 = model.model.layers[1].mlp.gate_up_proj
    del model.model.layers[1].mlp.gate_up_proj
    model.model.norm = Holder(sent["model.norm.weight"].float())  # wider: the same numbers
    held = HeldWeights(lambda numbers: [numbers])
    assert compare([model], sent, held) == WeightComparison([], ["model.layers.0.mlp.down_proj.weight"])
    model.model.layers[1].mlp.w13.weight[0, 0] += 1
    assert sorted(compare([model], sent, held).differing) == sorted(MLPS[3:5])
    first = compare([model], sent)  # where they never agreed, they may be in another form
    assert first.differing == [] and sorted(first.uncompared) == sorted([MLPS[2], *MLPS[3:5]])


class Engine:
    """A sampler that keeps the first value of a tensor, as `stale` is named."""

    version = 0

    def __init__(self, stale: str) -> None:
        self.stale, self.held = stale, dict[str, Tensor]()

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        for name, tensor in weights:
            if name != self.stale or name not in self.held:
                self.held[name] = tensor.clone()

    def compare_weights(self, sent: SentWeights) -> WeightComparison:
        differing = [name for name, tensor in sent.weights.items() if int(sum_bits(self.held[name])) != int(tensor.total)]
        return WeightComparison(differing, ["q"])


def test_all_ranks_stop_with_the_same_words_where_one_finds_a_difference() -> None:
    def send(policy: dict[str, Tensor], engine: Any, version: int, sent: SentWeights) -> None:
        engine.load(sent.record(iter(policy.items())), version)

    others: list[list[str]] = [[]]
    warnings: list[str] = []
    syncs = [WeightSync(send, gather, warnings.append) for gather in (lambda own: [own, *others], lambda own: [*others, own])]
    engines: list[Any] = [Engine("b"), Engine("")]
    for version in range(2):
        for sync, engine in zip(syncs, engines, strict=True):
            sync({"a": torch.ones(2), "b": torch.ones(2)}, engine, version)
    assert len(warnings) == 2 and "holds 1 tensors in another form than they were sent" in warnings[0] and warnings[0].endswith(": q")
    words = []
    for sync, engine in zip(syncs, engines, strict=True):
        others[0] = ["b"] if engine.stale == "" else []
        with pytest.raises(RunFailed) as stopped:
            sync({"a": torch.ones(2), "b": torch.full((2,), 1.0000001)}, engine, 2)
        words.append(str(stopped.value))
    assert words[0] == words[1] and "1 of 2 tensors differ on 1 of 2 processes: b;" in words[0]
