"""The reward model being trained: a Hugging Face sequence classifier with one label, the score of a whole text, under DeepSpeed.

The score stands at the last token that is not padding, where transformers itself looks for it; what is exported is an ordinary folder for
AutoModelForSequenceClassification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlkit.engines import hf, packing
from rlkit.engines.deepspeed import Learner
from rlkit.engines.deepspeed_config import OptimizerSettings, set_environment
from rlkit.engines.loading import LANGUAGE_HEAD, SCORE_HEAD, load_pretrained
from rlkit.errors import UserError
from rlkit.types import Sample


class LastTokenScorer(nn.Module):
    """A sequence classifier as a function from packed samples to one score each."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        packing.keep_apart(model)
        self.model = model

    def forward(self, ids: Tensor, positions: Tensor, looks: packing.SeqLens, last: Tensor) -> Tensor:
        """Packed samples (see packed.Packed), last [B] positions in ids -> scores [B] float32."""
        hidden = self.model.base_model(**packing.decoder_arguments(ids, positions, looks)).last_hidden_state  # [1, S, H]
        return self.model.score(hidden[0].index_select(0, last)).squeeze(-1).float()


class DeepSpeedRewardModel(Learner):
    """Scores, and learns from it."""

    file = "reward_model"

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        pad: int,
        zero_stage: int,
        optimizer: OptimizerSettings,
        device: torch.device,
        offline: bool,
        extra: Mapping[str, Any],
        recompute: int = 0,
    ) -> None:
        set_environment()
        self.model, self.pad = load_classifier(path, dtype, pad, offline=offline), pad
        if recompute:
            hf.recompute_layers(self.model, recompute)
        super().__init__(LastTokenScorer(self.model), dtype, zero_stage=zero_stage, optimizer=optimizer, device=device, extra=extra)

    def scores(self, samples: Sequence[Sample]) -> Tensor:
        """[B] float32."""
        with hf.no_gradient(self._keep):
            return self.said(self.engine, samples)[: len(samples)]

    def said(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        """Of no samples one number, for nothing: sharded models are gathered on all ranks together."""
        row = packing.pack_samples(samples, 0, self.device)
        last = [last_place(s, self.pad, *begin) for s, begin in zip(samples, row.begins, strict=True)]
        return module(row.ids, row.positions, row.looks, torch.tensor(last or [0], device=self.device))

    def export(self, folder: Path) -> None:
        """A Hugging Face folder without tokenizer."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():  # on every rank: sharded weights are gathered on all
            with self._gathered([tensor]):
                if dist.get_rank() == 0:
                    state[name] = tensor.detach().cpu().clone()
        if dist.get_rank() == 0:
            self.model.save_pretrained(folder, state_dict=state)
        dist.barrier()


def last_place(sample: Sample, pad: int, prompt: int, completion: int) -> int:
    """Where the last token of a sample is that is not padding, its prompt and its completion being at these places of a row; many models
    pad with the end token, and then a text's own end does not count either."""
    text = torch.cat([torch.tensor(sample.prompt, dtype=torch.int64), sample.tokens])  # [P + L]
    place = int(torch.nonzero(text != pad).max()) if bool((text != pad).any()) else 0
    return prompt + place if place < len(sample.prompt) else completion + place - len(sample.prompt)


def load_classifier(path: str, dtype: torch.dtype, pad: int, *, offline: bool) -> Any:
    """The body of the model at `path`, a score of 0 for everything, in training shape. Raises UserError where there is no such model."""
    heads, settings = (LANGUAGE_HEAD, SCORE_HEAD), {"num_labels": 1, "dtype": dtype, "pad_token_id": pad}
    model = load_pretrained("sequence classifier", path, "model.path", offline=offline, unused=heads, **settings)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"model.path {path}: {type(model).__name__} has no linear head `score`; take a causal language model such as Qwen3")
    nn.init.zeros_(model.score.weight)
    model.config.pad_token_id = pad
    hf.switch_off_dropout(model)
    return model.train()
