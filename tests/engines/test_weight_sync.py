"""Weights on their way: buckets, dtypes; adapters merged as the papers say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from rlkit.engines.deepspeed import DeepSpeedBackend
from rlkit.engines.lora import Adapters, LoraSettings
from rlkit.engines.vllm import find_max_lora_rank
from rlkit.engines.weight_sync import convert, split_into_buckets, stream_weights
from rlkit.errors import UserError


def test_buckets_keep_the_order_and_the_limit() -> None:
    assert split_into_buckets({"a": 3, "b": 4, "c": 4, "d": 20, "e": 1, "f": 9}, 10) == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert split_into_buckets({}, 10) == []


def test_a_tied_tensor_is_gathered_once_and_sent_twice() -> None:
    one, two = torch.ones(4), torch.zeros(2)
    asked: list[list[int]] = []

    class Whole(DeepSpeedBackend):
        def __init__(self) -> None: ...

        @contextmanager
        def gather(self, tensors: Sequence[Tensor]) -> Iterator[None]:
            asked.append([id(part) for part in tensors])
            yield

    held = {"embed": [one], "norm": [two], "head": [one]}
    sent = list(stream_weights(held, lambda name: held[name][0].clone(), torch.float32, Whole(), limit=10**6))
    assert [name for name, _ in sent] == ["embed", "norm", "head"]
    assert asked == [[id(one), id(two)]]
    assert torch.equal(sent[0][1], sent[2][1])


def test_floats_are_sent_in_the_dtype_asked_for_and_counts_as_they_are() -> None:
    assert convert(torch.tensor([1.0001]), torch.bfloat16, copy=False).tolist() == [1.0]
    assert convert(torch.tensor([3]), torch.bfloat16, copy=False).dtype is torch.int64
    weight = torch.ones(3)
    assert convert(weight, torch.float32, copy=True).data_ptr() != weight.data_ptr()
    assert convert(weight, torch.float32, copy=False).data_ptr() == weight.data_ptr()  # resident and of the right dtype: nothing is copied


def linear(dora: bool) -> tuple[nn.Sequential, Adapters]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    return model, Adapters(model, LoraSettings(rank=1, alpha=4.0, targets=("0",), dora=dora))


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_say_what_the_adapted_layer_says(dora: bool) -> None:
    model, adapters = linear(dora)
    assert adapters.name_in_model("0.weight") == "0.base_layer.weight" and adapters.name_in_model("1.weight") == "1.weight"
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == (3 if dora else 2)
    inputs = torch.randn(5, 3)
    base = model[0].base_layer.weight.detach()
    assert torch.allclose(model[0](inputs), inputs @ base.T, atol=1e-6)  # it starts as its base
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn_like(parameter))
    assert torch.allclose(model[0](inputs), inputs @ adapters.merge("0.weight", base).T, atol=1e-5)
    assert not torch.allclose(model[0](inputs), inputs @ base.T, atol=1e-2)
    with adapters.disable():
        assert torch.equal(model[0](inputs), inputs @ base.T)


def test_a_merge_by_hand() -> None:
    model, adapters = linear(dora=False)
    layer = model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        layer.lora_B["default"].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    merged = adapters.merge("0.weight", torch.ones(2, 3))  # 1 + 4 / 1 x B A
    assert merged.tolist() == [[5.0, 9.0, 13.0], [-3.0, -7.0, -11.0]]


def test_targets_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"model\.lora\.targets=\[elsewhere\] names 'elsewhere', and no layer of this model is called that; it has 0"
    ):
        Adapters(nn.Sequential(nn.Linear(2, 2)), LoraSettings(rank=1, alpha=1.0, targets=("elsewhere",), dora=False))
    with pytest.raises(UserError, match="not linear: 0"):
        Adapters(nn.Sequential(nn.Embedding(2, 2)), LoraSettings(rank=1, alpha=1.0, targets=("0",), dora=False))


def test_an_adapter_gets_the_smallest_room_that_holds_it() -> None:
    assert [find_max_lora_rank(rank) for rank in (1, 4, 8, 9, 512)] == [1, 8, 8, 16, 512]
    with pytest.raises(UserError, match=r"model\.lora\.rank=513"):
        find_max_lora_rank(513)
