"""Sequence parallelism after Ulysses (Jacobs et al. 2023, arXiv 2309.14509): ranks that share their rows, for samples too long for one.

A sequence-parallel group packs the samples of all its ranks into one row, and each rank takes an equal part of its tokens through
embedding, MLPs and head. In attention the ranks exchange parts: each attends over all tokens with its share of the heads; this exchange is
DeepSpeed's, around our own attention. The outputs of all tokens return to all ranks, so that each rank has the loss of its own samples, and
a gradient goes back to where the token was. All ranks of a group call together, a rank without samples too. S tokens in the row, n of them
completion tokens, k outputs a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rlkit.engines.packing import REMEDY, PackedRow, TokenizedSample, build_seq_lens, index_grid, pack_samples
from rlkit.engines.transfer import copy_to_device
from rlkit.errors import UserError
from rlkit.types import Sample

CPU = torch.device("cpu")


class SequenceParallelGroup:
    """This rank among those that share its rows; `group`: of torch.distributed."""

    def __init__(self, group: Any) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def run(
        self,
        forward: Callable[[PackedRow], tuple[Tensor, ...]],
        samples: Sequence[Sample | TokenizedSample],
        width: int,
        device: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """The outputs [k, n] of the completion tokens of this rank's samples, and their flat positions on the grid [B, width].

        `forward` gets a part of the row that the group shares, with the bounds of the whole row.
        """
        gathered: list[list[TokenizedSample]] = [[]] * self.size
        dist.all_gather_object(gathered, [TokenizedSample(s.key, s.prompt, s.tokens, s.mask) for s in samples], group=self.group)
        row = pad_to_multiple(pack_samples([sample for part in gathered for sample in part], 0, CPU), self.size)
        inside, part = self._take_part(row)
        counts = [sum(int(sample.mask.sum()) for sample in part) for part in gathered]
        grid_index = index_grid(samples, width)
        part, (inside, grid_index) = part.to(device), copy_to_device([inside, grid_index], device)
        outputs = torch.stack(forward(part))  # [k, n of the part]
        of_row = outputs.new_zeros(len(outputs), len(row.predict_index)).index_copy(1, inside, outputs)  # [k, n]
        first = [0, *accumulate(counts)][self.rank]
        own = AllReduceSum.apply(of_row, self.group)[:, first : first + counts[self.rank]]  # type: ignore[no-untyped-call]
        return own, grid_index

    def _take_part(self, row: PackedRow) -> tuple[Tensor, PackedRow]:
        """Which of the n predictions are made in this rank's part of a row, and the part.

        Each prediction is made at the token before the one that it predicts, wherever that is: no part needs the next one.
        """
        size = row.ids.shape[1] // self.size
        a, b = self.rank * size, (self.rank + 1) * size
        inside = torch.nonzero((row.predict_index >= a) & (row.predict_index < b)).flatten()
        ids, positions = row.ids[:, a:b], row.positions[:, a:b]
        return inside, row._replace(ids=ids, positions=positions, predict_index=row.predict_index[inside] - a, tokens=row.tokens[inside])

    def wrap_attention(self, attention: Callable[..., Any], config: Any) -> tuple[str, Callable[..., Any]]:
        """A name and an attention of parts [1, h, S / size, d], made of one of whole rows [1, h, S, d].

        Raises UserError where the heads cannot be shared.
        """
        heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        if getattr(config, "v_head_dim", None) not in (None, width):
            raise UserError(
                f"models of type {config.model_type} have values of another size than keys, which DeepSpeed does not share; {REMEDY}"
            )
        if heads % self.size or (kv_heads % self.size and self.size % kv_heads):
            valid = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
            raise UserError(
                f"engine.sequence_parallel={self.size} cannot share the {heads} attention heads ({kv_heads} of keys) of this model; "
                f"set it to one of {', '.join(map(str, valid))}"
            )
        import deepspeed
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        deepspeed.init_distributed(dist_init_required=False)
        ulysses = UlyssesSPAttentionHF(
            attention, 1, heads, width, kv_heads, config.num_hidden_layers, self.group, seq_length_is_variable=True
        )

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Any:
            more["position_ids"] = torch.zeros(1, 1, device=query.device)  # gathered in every layer; our attention uses the bounds
            return ulysses(module, query, key, value, mask, **more)

        return f"over_{self.size}_{heads}x{kv_heads}x{width}", attend


def pad_to_multiple(row: PackedRow, parts: int) -> PackedRow:
    """The row, made longer to a multiple of `parts` by a run without use."""
    size = row.ids.shape[1]
    more = -size % parts
    if not more:
        return row
    bounds = row.seq_lens
    key_index = None if bounds.key_index is None else torch.cat([bounds.key_index, torch.arange(size, size + more)])
    longer = build_seq_lens((*bounds.q_lens, more), (*bounds.k_lens, more), key_index)
    positions = torch.cat([row.positions, torch.arange(more)[None]], dim=1)
    return row._replace(ids=pad(row.ids, (0, more)), positions=positions, seq_lens=longer)


class AllReduceSum(torch.autograd.Function):
    """The sum over a group, whose gradient is the sum of the group's gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_reduce_sum(values, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient, ctx.group), None


def all_reduce_sum(values: Tensor, group: Any) -> Tensor:
    total = values.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total
