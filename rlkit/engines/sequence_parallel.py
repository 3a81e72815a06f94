"""Ranks that share their rows: sequence parallelism after Ulysses (Jacobs et al. 2023, arXiv 2309.14509), for samples too long for one.

A crew lays the samples of all its ranks end to end in one row, and each rank takes an equal part of its tokens through embedding, MLPs and
head. In attention they trade: each sees all tokens, by its share of the heads; that is DeepSpeed's, around our own attention. What is
said of a token goes back to all, so that each rank has the loss of its own samples, and a gradient returns to where the token was.
All of a crew call together, a rank without samples too. S tokens in the row, n of them completion tokens, k things said of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rlkit.engines.packing import PackedRow, SeqLens, Text, grid_indices, pack_samples
from rlkit.errors import UserError
from rlkit.types import Sample

CPU = torch.device("cpu")
ALONE = "set engine.sequence_parallel=1"


class SequenceParallelGroup:
    """This rank among those that share its rows."""

    def __init__(self, group: Any) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def said(
        self, say: Callable[[PackedRow], tuple[Tensor, ...]], samples: Sequence[Sample | Text], width: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """What `say` tells of the completion tokens of this rank's samples, [k, n of them], and their flat places on the grid [B, width].

        `say` gets a part of the row that all of the crew share, with the bounds of the whole row.
        """
        theirs: list[list[Text]] = [[]] * self.size
        dist.all_gather_object(theirs, [Text(s.prompt, s.tokens) for s in samples], group=self.group)
        row = pad_to_multiple(pack_samples([text for texts in theirs for text in texts], 0, CPU), self.size)
        inside, part = self._part(row)
        told = torch.stack(say(to_device(part, device)))  # [k, n of the part]
        everything = told.new_zeros(len(told), len(row.where)).index_copy(1, inside.to(device), told)  # [k, n]
        counts = [sum(len(text.tokens) for text in texts) for texts in theirs]
        first = [0, *accumulate(counts)][self.rank]
        own = AllReduceSum.apply(everything, self.group)[:, first : first + counts[self.rank]]  # type: ignore[no-untyped-call]
        return own, grid_indices([len(s.tokens) for s in samples], width).to(device)

    def _part(self, row: PackedRow) -> tuple[Tensor, PackedRow]:
        """The part of an even row that is this rank's, and which of the n predictions are made in it. Each stands at the token before the
        one it predicts, wherever that is: nothing looks over the edge of a part."""
        size = row.ids.shape[1] // self.size
        a, b = self.rank * size, (self.rank + 1) * size
        inside = torch.nonzero((row.where >= a) & (row.where < b)).flatten()
        ids, positions = row.ids[:, a:b], row.positions[:, a:b]
        return inside, row._replace(ids=ids, positions=positions, where=row.where[inside] - a, tokens=row.tokens[inside])

    def around(self, attention: Callable[..., Any], config: Any) -> tuple[str, Callable[..., Any]]:
        """Attention [1, h, S, d], made one of parts [1, h, S / size, d], and its name. Raises UserError where heads cannot be shared."""
        heads, shared = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        if getattr(config, "v_head_dim", None) not in (None, width):
            raise UserError(
                f"models of type {config.model_type} have values of another size than keys, which DeepSpeed does not share; {ALONE}"
            )
        if heads % self.size or (shared % self.size and self.size % shared):
            fit = [n for n in range(1, heads + 1) if heads % n == 0 and (shared % n == 0 or n % shared == 0)]
            raise UserError(
                f"engine.sequence_parallel={self.size} cannot share the {heads} attention heads ({shared} of keys) of this model; "
                f"set it to one of {', '.join(map(str, fit))}"
            )
        import deepspeed
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        with redirect_stdout(StringIO()):  # what it built
            deepspeed.init_distributed(dist_init_required=False)
        trade = UlyssesSPAttentionHF(attention, 1, heads, width, shared, config.num_hidden_layers, self.group, seq_length_is_variable=True)

        def traded(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Any:
            more["position_ids"] = torch.zeros(1, 1, device=query.device)  # gathered in every layer; our attention goes by bounds
            return trade(module, query, key, value, mask, **more)

        return f"over_{self.size}_{heads}x{shared}x{width}", traded


def to_device(row: PackedRow, device: torch.device) -> PackedRow:
    def there(thing: Any) -> Any:
        return thing.to(device) if torch.is_tensor(thing) else thing

    return PackedRow(*map(there, row))._replace(looks=SeqLens(*map(there, row.looks)))


def pad_to_multiple(row: PackedRow, parts: int) -> PackedRow:
    """The row, lengthened by a sample of no use to a multiple of `parts`."""
    size = row.ids.shape[1]
    more = -size % parts
    if not more:
        return row
    looks = row.looks
    longer = SeqLens(
        *(torch.cat([ends, ends[-1:] + more]) for ends in (looks.queries, looks.keys)),
        *(max(most, more) for most in (looks.most_queries, looks.most_keys)),
        None if looks.seen is None else torch.cat([looks.seen, torch.arange(size, size + more)]),
    )
    return row._replace(ids=pad(row.ids, (0, more)), positions=torch.cat([row.positions, torch.arange(more)[None]], dim=1), looks=longer)


class AllReduceSum(torch.autograd.Function):
    """The sum over a crew, whose gradient is the sum of the crew's gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_reduce_sum(values, group)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(slope, ctx.group), None


def all_reduce_sum(values: Tensor, group: Any) -> Tensor:
    total = values.contiguous().clone()
    dist.all_reduce(total, group=group)
    return total
