"""A causal LM in training, with or without adapters, its base in 4 bits or not; and the checkpoint that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.engines import quantization
from rlkit.engines.checkpoint_format import CheckpointFormat
from rlkit.engines.generation_config import GENERATION_CONFIG, find_generation_config
from rlkit.engines.loading import checkpoint_names
from rlkit.engines.lora import Adapters, LoraSettings

# By name the tensors that must be whole to build it (more than one where adapters are merged in), and the function that builds it.
Parts = tuple[dict[str, list[Tensor]], Callable[[str], Tensor]]


class TrainedModel:
    """`names`: every tensor of the model, as it was before adapters; `format`: how a checkpoint has them. `dtype`: of what is sent and
    written."""

    def __init__(self, model: Any, path: str, dtype: torch.dtype, lora: LoraSettings | None) -> None:
        self.model, self.path, self.dtype = model, path, dtype
        self.names = checkpoint_names(model)
        self.format = CheckpointFormat(model, self.names)
        self.adapters = Adapters(model, lora) if lora else None
        file = find_generation_config(path, offline=True)
        self.generation_config = file.read_bytes() if file else None

    def base_parts(self) -> Parts:
        """The model; where only adapters are trained, without them."""
        state = self.model.state_dict(keep_vars=True)
        tensors = {name: state[self.adapters.name_in_model(name) if self.adapters else name] for name in self.names}
        return {name: [tensor] for name, tensor in tensors.items()}, lambda name: quantization.dequantize(tensors[name])

    def checkpoint_parts(self) -> Parts:
        """The model, adapters merged into it."""
        parts, build = self.base_parts()
        adapters = self.adapters
        if adapters is None:
            return parts, build
        parts = {name: [*tensors, *adapters.tensors_to_merge(name)] for name, tensors in parts.items()}
        return parts, lambda name: adapters.merge(name, build(name)) if adapters.find_layer(name) else build(name)

    def adapter_parts(self) -> Parts:
        """The adapters' tensors by the names of peft's files."""
        assert self.adapters is not None
        tensors = self.adapters.name_tensors()
        return {name: [tensor] for name, tensor in tensors.items()}, lambda name: tensors[name]

    def find_tied(self) -> set[str]:
        """Names that are a second name of a tensor; a file holds such a tensor once."""
        first: dict[int, str] = {}
        return {name for name, (tensor,) in self.base_parts()[0].items() if first.setdefault(id(tensor), name) != name}

    def write(self, folder: Path, tensors: Mapping[str, Tensor], adapter: bool) -> None:
        """A Hugging Face folder of the model with the generation_config.json of its base, or a peft folder of the adapters alone."""
        if adapter:
            assert self.adapters is not None
            self.adapters.write(folder, tensors, self.path)
        else:
            self.model.save_pretrained(folder, state_dict=dict(tensors))
            (folder / GENERATION_CONFIG).unlink(missing_ok=True)  # the empty one that the model was loaded with
            if self.generation_config is not None:
                (folder / GENERATION_CONFIG).write_bytes(self.generation_config)
