"""The numbers of a decoder: how many weights it has, how many of them each token goes through, and what a token leaves in the KV cache.

Letters: h hidden size, q = heads x head_dim, kv = kv_heads x head_dim, i intermediate size, E experts of a layer, k of them for each token.
Left out: layers of another kind (Mamba, linear attention); `others` holds weights that no other number counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Linear = tuple[int, int]  # in, out
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # maps that a family holds as one
LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")  # in the name of a map of one layer


@dataclass(frozen=True)
class ModelShape:
    """A decoder of the Llama and Qwen families: grouped or latent attention, gated MLP, dense or a mixture of experts, RMSNorm."""

    hidden: int
    intermediate: int  # of a dense MLP
    layers: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    vocab: int
    tied: bool  # the output head is the embedding
    qkv_bias: bool = False
    qk_norm: bool = False  # of each head
    experts: int = 0  # of a sparse layer; 0: all layers are dense
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0  # of the experts that every token goes through, together
    dense_layers: int = 0  # those of the layers that have no experts, where others have them
    query_rank: int = 0  # of latent attention (DeepSeek-AI 2024, arXiv 2405.04434): of compressed queries; 0: not compressed
    key_rank: int = 0  # of compressed keys and values; 0: no latent attention
    rope_dim: int = 0  # of head_dim, the part with positions, one for all heads
    value_dim: int = 0  # of a head's values
    others: int = 0  # weights beside these, of the whole model: further biases and norms, sinks
    counted: bool = True  # False: the number of weights is that of the files, and these numbers alone give another

    @property
    def attention(self) -> dict[str, Linear]:
        """The linear maps of a layer's attention: q, k, v, o, or those of latent attention."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        if not self.key_rank:
            return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        ranked = {"q_a_proj": (h, self.query_rank), "q_b_proj": (self.query_rank, q)}
        keys = {
            "kv_a_proj_with_mqa": (h, self.key_rank + self.rope_dim),
            "kv_b_proj": (self.key_rank, self.heads * (self.head_dim - self.rope_dim + self.value_dim)),
        }
        return (ranked if self.query_rank else {"q_proj": (h, q)}) | keys | {"o_proj": (self.heads * self.value_dim, h)}

    def mlp(self, intermediate: int) -> dict[str, Linear]:
        """Its linear maps; none where it has no width."""
        h, i = self.hidden, intermediate
        return {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)} if i else {}

    @property
    def sparse_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def _parts(self) -> list[tuple[int, dict[str, Linear]]]:
        """(layers that have them, linear maps) beside routers and experts, which transformers holds as plain tensors."""
        sparse = self.sparse_layers
        dense, shared = self.mlp(self.intermediate), self.mlp(self.shared_intermediate)
        return [(self.layers, self.attention), (self.layers - sparse, dense), (sparse, shared)]

    @property
    def linears(self) -> list[Linear]:
        """All linear maps of all layers beside routers and experts."""
        return [linear for layers, maps in self._parts for linear in maps.values() for _ in range(layers)]

    def count_experts(self, experts: int) -> int:
        """Weights of so many experts of each sparse layer, and of its router."""
        return self.sparse_layers * (self.hidden * self.experts + experts * count_weights(self.mlp(self.expert_intermediate).values()))

    def count_linear(self, experts: int | None = None) -> int:
        """Weights of the linear maps of all layers, with so many experts of each layer; None: with all."""
        return count_weights(self.linears) + self.count_experts(self.experts if experts is None else min(experts, self.experts))

    @property
    def active_linear(self) -> int:
        """Weights of all layers that a token goes through."""
        return self.count_linear(self.experts_per_token)

    @property
    def largest_layer(self) -> int:
        """Weights of the linear maps of the largest layer."""
        own = count_weights(self.attention.values())
        dense = count_weights(self.mlp(self.intermediate).values()) if self.sparse_layers < self.layers else 0
        sparse = self.count_experts(self.experts) // self.sparse_layers if self.sparse_layers else 0
        return own + max(dense, sparse + count_weights(self.mlp(self.shared_intermediate).values()) if sparse else 0)

    @property
    def largest_tensor(self) -> int:
        """Weights of the largest tensor: an end of the model, a linear map, or the gates of all experts of a layer, which are one."""
        experts = 2 * self.hidden * self.expert_intermediate * self.experts
        return max(self.vocab * self.hidden, experts, *(into * out for into, out in self.linears))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 2 * self.hidden + (q + 2 * kv) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        layer += (self.query_rank + self.key_rank) if self.key_rank else 0  # their norms
        ends = self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden
        return self.count_linear() + self.layers * layer + ends + self.others

    @property
    def active_parameters(self) -> int:
        """The number of weights without the experts that a token does not go through."""
        return self.parameters - self.count_linear() + self.active_linear

    def adapters(self, rank: int, targets: Sequence[str] | None = None) -> int:
        """The number of weights of LoRA adapters on all linear layers but the head, or on those whose names end with one of `targets`;
        experts and routers get none. A name that is none of a decoder's counts as the largest map of a layer."""
        if targets is None:
            return rank * sum(into + out for into, out in self.linears)
        chosen: dict[str, int] = {}  # by name of a map: in how many layers
        for target in targets:
            for name in FUSED.get(leaf := target.rpartition(".")[2], (leaf,)):
                chosen[name] = chosen.get(name, 0) + 1 if LAYER.search(target) else self.layers
        maps = [(min(chosen[name], layers), linear) for layers, part in self._parts for name, linear in part.items() if name in chosen]
        largest = max([*self.attention.values(), *self.mlp(self.intermediate).values()], key=sum)
        known = {name for _, part in self._parts for name in part}
        odd = [(1, (self.hidden, self.vocab)) if name == "lm_head" else (chosen[name], largest) for name in chosen if name not in known]
        return rank * sum(layers * (into + out) for layers, (into, out) in maps + odd)

    def largest_adapter(self, rank: int) -> int:
        """Weights of the largest matrix of the adapters."""
        return rank * max(max(pair) for pair in self.linears)

    def cache(self, width: int) -> int:
        """Bytes of the keys and values of one token; of latent attention what stands for them."""
        each = self.key_rank + self.rope_dim if self.key_rank else 2 * self.kv_heads * self.head_dim
        return self.layers * each * width


def count_weights(linears: Iterable[Linear]) -> int:
    return sum(into * out for into, out in linears)
