"""What a model computes of packed samples: log-probs and entropies, values, or one score; and their place on the grid of the batch.

S tokens in a packed row, n tokens that count, H hidden size, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.engines import liger, packing
from rlkit.engines.packing import PackedRow, SeqLens, TokenizedSample
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.engines.transfer import copy_to_device
from rlkit.errors import UserError
from rlkit.ops import logprobs as ops_logprobs
from rlkit.ops.logprobs import UsedOutputs
from rlkit.types import Sample


class TokenScorer(nn.Module):
    """A causal LM as a function from packed samples to the log-probs and entropies of their completion tokens.

    Only the outputs that predict completion tokens go through the head, and the head itself returns log-probs: sharded weights are whole
    only inside their module's forward. Both are returned in one tensor: DeepSpeed gathers again for each tensor that a gradient comes back
    to, and all ranks must gather alike, whatever their losses depend on.
    """

    def __init__(self, model: Any, sp_group: SequenceParallelGroup | None = None) -> None:
        super().__init__()
        packing.set_packed_attention(model, sp_group.wrap_attention if sp_group else None)
        self.model = model
        self.scale, cap = find_logit_changes(model.config.get_text_config())
        self.cap = cap and cap / self.scale  # cap tanh(s z / cap) / T = (cap / s) tanh(z / (cap / s)) / (T / s)
        self.head_returns_logprobs = add_logprobs_to_head(model.get_output_embeddings(), self.cap)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        seq_lens: SeqLens,
        predict_index: Tensor,
        tokens: Tensor,
        temperature: float,
        used: UsedOutputs | None = None,
    ) -> Tensor:
        """The first five fields of a PackedRow -> log-probs and entropy [2, n]. `used`: known before the backward pass."""
        decoder = self.model.get_decoder()
        hidden = decoder(**packing.build_decoder_arguments(ids, positions, seq_lens)).last_hidden_state  # [1, S, H]
        chosen = hidden[0].index_select(0, predict_index)  # [n, H]
        head = self.model.get_output_embeddings()
        if self.head_returns_logprobs:
            both: Tensor = head(chosen, tokens, temperature / self.scale, used)
            return both
        return torch.stack(ops_logprobs.logprobs_from_logits(head(chosen), tokens, temperature / self.scale, self.cap))


def find_logit_changes(config: Any) -> tuple[float, float | None]:
    """What a causal LM with this configuration does to logits after its head: the factor (of Cohere and Granite), which comes first, and
    the cap of a soft cap (of Gemma 2), None where there is none. That they are all is shown by the certificate."""
    scale, scaling = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return (scale or 1.0) / (scaling or 1.0), getattr(config, "final_logit_softcapping", None)


def add_logprobs_to_head(head: nn.Module, cap: float | None = None) -> bool:
    """Makes a linear head return the log-probs and entropy [2, n] of the given tokens, with a soft cap of logits or without; False for
    other heads, which stay as they are."""
    if type(head) is not nn.Linear:
        return False

    def forward(hidden: Tensor, tokens: Tensor | None = None, temperature: float = 1.0, used: UsedOutputs | None = None) -> Tensor:
        hidden, weight, bias = read_head(head, hidden)
        if tokens is None:
            return nn.functional.linear(hidden, weight, bias)
        if cap is None and liger.supports(hidden, bias):
            return torch.stack(liger.liger_logprobs(hidden, weight, tokens, temperature))
        return torch.stack(ops_logprobs.logprobs_from_hidden(hidden, weight, bias, tokens, temperature, cap, used))

    head.forward = forward  # type: ignore[method-assign, assignment]
    return True


def compute_head_in_float32(model: Any) -> None:
    """Lets a causal LM compute its logits in float32, of hidden states and weights as they are. Raises UserError where its head is not
    one linear layer."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(
            f"model.float32_head=true: the head of this model is a {type(head).__name__}, not one linear layer; set it to false"
        )
    head.in_float32 = True  # type: ignore[assignment]
    if "forward" not in vars(head):  # no TokenScorer has it
        head.forward = lambda hidden: nn.functional.linear(*read_head(head, hidden))  # type: ignore[method-assign, assignment]


def read_head(head: nn.Linear, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, weight and bias of a head in the dtype in which it computes."""
    if not getattr(head, "in_float32", False):
        return hidden, head.weight, head.bias
    return hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float()


class TokenValuer(nn.Module):
    """The same architecture with one number a position instead of the head: the value before token t is written."""

    def __init__(self, model: Any, sp_group: SequenceParallelGroup | None = None) -> None:
        super().__init__()
        packing.set_packed_attention(model, sp_group.wrap_attention if sp_group else None)
        self.model = model.get_decoder()
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False, dtype=model.dtype)
        nn.init.zeros_(self.head.weight)  # an untrained critic returns 0

    def forward(self, ids: Tensor, positions: Tensor, seq_lens: SeqLens, predict_index: Tensor) -> Tensor:
        """The first four fields of a PackedRow -> values [n] float32."""
        hidden = self.model(**packing.build_decoder_arguments(ids, positions, seq_lens)).last_hidden_state  # [1, S, H]
        values: Tensor = self.head(hidden[0].index_select(0, predict_index)).squeeze(-1).float()
        return values


class LastTokenScorer(nn.Module):
    """A sequence classifier as a function from packed samples to one score each."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        packing.set_packed_attention(model)
        self.model = model

    def forward(self, ids: Tensor, positions: Tensor, seq_lens: SeqLens, last: Tensor) -> Tensor:
        """The first three fields of a PackedRow, last [B] positions in ids -> scores [B] float32."""
        hidden = self.model.base_model(**packing.build_decoder_arguments(ids, positions, seq_lens)).last_hidden_state  # [1, S, H]
        scores: Tensor = self.model.score(hidden[0].index_select(0, last)).squeeze(-1).float()
        return scores


def compute_logprobs(
    scorer: nn.Module,
    samples: Sequence[Sample | TokenizedSample],
    width: int,
    temperature: float,
    device: torch.device,
    sp_group: SequenceParallelGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy of samples by a TokenScorer; each [B, width], 0 where no token counts."""
    used = UsedOutputs()

    def score(row: PackedRow) -> tuple[Tensor, ...]:
        return SplitOutputs.apply(scorer(*row[:5], temperature, used), used)  # type: ignore[no-untyped-call, no-any-return]

    chosen, entropy = run_on_grid(score, samples, width, device, sp_group)
    return chosen, entropy


class SplitOutputs(torch.autograd.Function):
    """Log-probs and entropy [2, n] as two, of which the loss may use one alone: that is noted for the head, whose turn is later."""

    @staticmethod
    def forward(ctx: Any, both: Tensor, used: UsedOutputs) -> tuple[Tensor, Tensor]:
        ctx.used = used
        ctx.set_materialize_grads(False)
        return both[0].clone(), both[1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        by_chosen, by_entropy = gradients
        ctx.used.entropy = by_entropy is not None
        known = next(gradient for gradient in gradients if gradient is not None)
        return torch.stack([torch.zeros_like(known) if gradient is None else gradient for gradient in (by_chosen, by_entropy)]), None


def compute_values(
    valuer: nn.Module, samples: Sequence[Sample], width: int, device: torch.device, sp_group: SequenceParallelGroup | None = None
) -> Tensor:
    """Values of samples by a TokenValuer; [B, width], 0 where no token counts."""
    (values,) = run_on_grid(lambda row: (valuer(*row[:4]),), samples, width, device, sp_group)
    return values


def compute_scores(scorer: nn.Module, samples: Sequence[Sample], pad: int, device: torch.device) -> Tensor:
    """Scores of samples by a LastTokenScorer; [B], and [1] of no samples: sharded models are gathered on all ranks together."""
    row = packing.pack_samples(samples, 0, device, whole=True)
    last = [find_last_token(sample, pad, *starts) for sample, starts in zip(samples, row.starts, strict=True)]
    (index,) = copy_to_device([torch.tensor(last or [0])], device)
    scores: Tensor = scorer(row.ids, row.positions, row.seq_lens, index)
    return scores


def run_on_grid(
    forward: Callable[[PackedRow], tuple[Tensor, ...]],
    samples: Sequence[Sample | TokenizedSample],
    width: int,
    device: torch.device,
    sp_group: SequenceParallelGroup | None,
) -> list[Tensor]:
    """What `forward` returns of the tokens of packed samples that count, each on the grid [B, width]."""
    outputs: Iterable[Tensor]
    if sp_group:
        outputs, grid_index = sp_group.run(forward, samples, width, device)
    else:
        row = packing.pack_samples(samples, width, device)
        outputs, grid_index = forward(row), row.grid_index
    shape = len(samples), width
    return [flat.new_zeros(len(samples) * width).index_put((grid_index,), flat[: len(grid_index)]).view(shape) for flat in outputs]


def find_last_token(sample: Sample, pad: int, prompt: int, completion: int) -> int:
    """The position in a row of the last token of a sample that is not padding; `prompt` and `completion` start at these positions.

    Many models pad with the end token, and then the end of the text does not count either.
    """
    text = torch.cat([torch.tensor(sample.prompt, dtype=torch.int64), sample.tokens])  # [P + L]
    place = int(torch.nonzero(text != pad).max()) if bool((text != pad).any()) else 0
    return prompt + place if place < len(sample.prompt) else completion + place - len(sample.prompt)
