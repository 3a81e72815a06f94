"""A causal LM as it is held for training: adapters in it or not, its base in 4 bits or not; and as the model that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.engines import hf, quantization, weight_sync
from rlkit.engines.lora import Adapters, LoraSettings

# By name what is held for a tensor (more than one where adapters are merged into it), and the tensor itself, asked for by its name.
Parts = tuple[dict[str, list[Tensor]], Callable[[str], Tensor]]


class TrainedModel:
    """`names`: every tensor of the checkpoint at `path`. `dtype`: of what is sent and written."""

    def __init__(self, model: Any, path: str, dtype: torch.dtype, lora: LoraSettings | None) -> None:
        self.model, self.path, self.dtype = model, path, dtype
        self.names = hf.checkpoint_names(model)
        self.adapters = Adapters(model, lora) if lora else None

    def base(self) -> Parts:
        """The checkpoint; where only adapters are trained, as it was before."""
        state = self.model.state_dict(keep_vars=True)
        held = {name: state[self.adapters.held(name) if self.adapters else name] for name in self.names}
        return {name: [tensor] for name, tensor in held.items()}, lambda name: weight_sync.sendable(
            quantization.plain(held[name]), self.dtype
        )

    def merged(self) -> Parts:
        """The checkpoint, adapters merged into it."""
        parts, whole = self.base()
        adapters = self.adapters
        if adapters is None:
            return parts, whole
        parts = {name: [*held, *adapters.parts(name)] for name, held in parts.items()}
        return parts, lambda name: adapters.merged(name, whole(name)) if adapters.adapted(name) else whole(name)

    def own(self) -> Parts:
        """The adapters' tensors by the names of peft's files."""
        assert self.adapters is not None
        own = self.adapters.own()
        return own, lambda name: weight_sync.sendable(own[name][0], self.dtype)

    def tied(self) -> set[str]:
        """Names that are another tensor's second name; a file holds such a tensor once."""
        first: dict[int, str] = {}
        return {name for name, (tensor,) in self.base()[0].items() if first.setdefault(id(tensor), name) != name}

    def write(self, folder: Path, tensors: Mapping[str, Tensor], adapter: bool) -> None:
        """A Hugging Face folder of the model, or a peft folder of the adapters alone."""
        if adapter:
            assert self.adapters is not None
            self.adapters.write(folder, tensors, self.path)
        else:
            self.model.save_pretrained(folder, state_dict=dict(tensors))
