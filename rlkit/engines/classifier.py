"""A Hugging Face sequence classifier with one label: one number for a whole sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkit.engines.loading import LANGUAGE_HEAD, load_pretrained
from rlkit.errors import UserError
from rlkit.ops.batching import SampleLength, split_micro_batches
from rlkit.ops.masking import pad_rows


class Classifier:
    """A frozen classifier that can be moved to the host. Raises UserError where `path` holds none with one label."""

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        device: torch.device,
        offline: bool,
        trust_remote_code: bool = False,
        tokens_per_micro_batch: int = 16384,
    ) -> None:
        code, what = {"offline": offline, "trust_remote_code": trust_remote_code}, "the reward model"
        model = load_pretrained("sequence classifier", path, what, unused=(LANGUAGE_HEAD,), dtype=dtype, **code)
        if model.config.num_labels != 1:
            raise UserError(f"the reward model {path} has {model.config.num_labels} labels; expected a classifier with one")
        self.model = model.eval().requires_grad_(False)
        self.device, self.tokens_per_micro_batch = device, tokens_per_micro_batch
        self.longest: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """One number a row of token ids, in the order of the rows: what transformers returns for each row alone."""
        scores = [0.0] * len(rows)
        for batch in split_micro_batches([SampleLength(i, 0, len(row)) for i, row in enumerate(rows)], self.tokens_per_micro_batch):
            for place, score in zip(batch, self._batch([torch.tensor(rows[i]) for i in batch]).tolist(), strict=True):
                scores[place] = score
        return scores

    def offload(self) -> None:
        self.model.to("cpu")

    def reload(self) -> None:
        self.model.to(self.device)

    def _batch(self, rows: list[Tensor]) -> Tensor:
        """Rows of token ids -> [B] float32."""
        config = self.model.config.get_text_config()
        original = pad = config.pad_token_id
        if pad is None:
            # transformers takes the score at the last token that is not padding, and of one row alone at the last: a token that ends no row
            ends = {int(row[-1]) for row in rows}
            pad = next(token for token in range(len(ends) + 1) if token not in ends)
        ids = pad_rows(rows, max(len(row) for row in rows), pad).to(self.device)  # [B, S]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths.unsqueeze(-1)  # [B, S]
        config.pad_token_id = pad
        try:
            with torch.no_grad():
                scores: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1).float()
            return scores
        finally:
            config.pad_token_id = original
