# ruff: noqa: E402 - torch comes after what makes its GPU
"""The code paths of a GPU on fake tensors, which have a device, a shape and a dtype but no memory: fake_cuda.py GUARD OUT.

GUARD: fake_cuda.cpp, compiled. Writes what the test asserts. An operation over two devices raises.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

found = find_spec("torch")
assert found is not None and found.origin is not None
for library in ("libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(Path(found.origin).parent / "lib" / library), ctypes.RTLD_GLOBAL)
ctypes.CDLL(sys.argv[1])  # before torch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlkit.engines import packing
from rlkit.engines.base import make_sample
from rlkit.engines.heads import TokenScorer, compute_logprobs
from rlkit.types import Key, Request, Sample, Sampling, Stop

GPU = torch.device("cuda", 0)
HOPPER = (9, 0)
WAIT = "aten::_local_scalar_dense"  # the host reads a value
empty = torch.empty
torch.empty = lambda *sizes, pin_memory=False, **named: empty(*sizes, **named)  # pinning needs a driver
torch.cuda.get_device_capability = lambda device=None: HOPPER  # type: ignore[assignment]


class Calls(TorchDispatchMode):
    """The operations by name, with their arguments; where the host asks for a value, it gets True."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        self.seen.append((function.name(), given))
        if function.name() == WAIT:
            return True  # fake tensors hold none
        return function(*given, **(named or {}))


def samples_of(lengths: list[int], prompt: int, shared: bool) -> list[Sample]:
    """Completions of these lengths; shared: of one prompt."""
    keys = [Key(0 if shared else i, 0, i if shared else 0) for i in range(len(lengths))]
    requests = [Request(key, tuple(range(prompt)), Sampling(), 0) for key in keys]
    return [make_sample(request, [1] * n, [0.0] * n, Stop.LENGTH, 0) for request, n in zip(requests, lengths, strict=True)]


def pack_for_gpu(samples: Any, width: int, device: torch.device, *given: Any) -> packing.PackedRow:
    """As pack_samples, with its layout computed on the host from real values."""
    with unset_fake_temporarily():
        row = pack_samples(samples, width, torch.device("cpu"), *given)
    moved: packing.PackedRow = move(row)
    return moved


def move(value: Any) -> Any:
    """The tensors in a nested tuple as fake ones on the GPU."""
    if isinstance(value, Tensor):
        return value.to(GPU)
    return type(value)(*map(move, value)) if hasattr(value, "_fields") else value


def list_left(value: Any, name: str = "row") -> list[str]:
    """The tensors of a packed row that did not go where they were asked to go, the device meta."""
    if isinstance(value, Tensor):
        return [] if value.is_meta else [name]
    return [left for field in getattr(value, "_fields", ()) for left in list_left(getattr(value, field), field)]


def describe(tensor: Tensor) -> list[Any]:
    return [str(tensor.device), str(tensor.dtype).removeprefix("torch."), *tensor.shape]


def try_attention(dim: int, groups: int, window: int | None, shared: bool) -> dict[str, Any]:
    """Of 12 heads, over completions of 1, 63, 64, 65 and 700 tokens."""
    row = packing.pack_samples(SAMPLES[shared], 700, GPU)
    tokens = row.ids.shape[1]
    heads = [torch.empty(1, h, tokens, dim, dtype=torch.bfloat16, device=GPU, requires_grad=True) for h in (12, 12 // groups, 12 // groups)]
    with Calls() as calls:
        bounds = packing.build_decoder_arguments(row.ids, row.positions, row.seq_lens)
        bounds = {name: value for name, value in bounds.items() if name not in ("input_ids", "position_ids", "use_cache")}
        output, _ = packing.attention(None, *heads, None, scaling=dim**-0.5, sliding_window=window, **bounds)
        slopes = torch.autograd.grad(output.sum(), heads)
    ((_, given),) = [call for call in calls.seen if call[0] == "torch_attn::_varlen_attn"]
    return {
        "row": tokens,
        "output": describe(output),
        "slopes": [describe(slope) for slope in slopes],
        "heads": [describe(head) for head in heads],
        "keys": given[1].shape[0],
        "most": given[5:7],
        "bounds": [describe(given[3]), describe(given[4])],
        "window": given[9],
        "backward": sum(name == "torch_attn::_varlen_attn_backward" for name, _ in calls.seen),
    }


def build_model() -> Any:
    """Two layers of Qwen2.5-1.5B without memory."""
    sides = {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 2}
    with torch.device("meta"):
        config = Qwen2Config(**sides, num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True)
        return Qwen2ForCausalLM(config).to(torch.bfloat16)


def try_policy(model: Any, lengths: list[int]) -> dict[str, Any]:
    """A forward and backward pass of a causal LM over completions of one prompt."""
    samples = samples_of(lengths, 7, shared=True)
    with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
        model.to_empty(device=GPU)
        grids = compute_logprobs(TokenScorer(model), samples, max(lengths), 0.7, GPU)
        grids[0].sum().backward()
    gradients = {tuple(describe(p.grad)[:2]) for p in model.parameters() if p.grad is not None and p.grad.shape == p.shape}
    waits = sum(name == WAIT for name, _ in calls.seen)
    return {
        "waits": waits,
        "grids": [describe(grid) for grid in grids],
        "gradients": sorted(gradients),
        "of": len(list(model.parameters())),
    }


cases = [(dim, groups, window, shared) for dim in (64, 128) for groups in (1, 6) for window in (None, 256) for shared in (False, True)]
SAMPLES = {shared: samples_of([1, 63, 64, 65, 700], 7, shared) for shared in (False, True)}  # real tensors of the host
pack_samples = packing.pack_samples
left = [list_left(pack_samples(samples, 700, torch.device("meta"))) for samples in SAMPLES.values()]
packing.pack_samples = pack_for_gpu
with FakeTensorMode(allow_non_fake_inputs=True):
    attention = [[case, try_attention(*case)] for case in cases]
policy = [try_policy(build_model(), lengths) for lengths in ([3, 5], [300, 5])]  # the head in one block, and in several
Path(sys.argv[2]).write_text(json.dumps({"attention": attention, "policy": policy, "left": left}))
os._exit(0)  # the thread of a device that is not there does not end
