"""LoRA adapters inside a causal LM (Hu et al. 2021, arXiv:2106.09685), DoRA's too (Liu et al. 2024, arXiv:2402.09353).

The only file that imports peft. An adapted linear layer returns W x + s B A x with s = alpha / rank. Letters: W [out, in] base weight,
A [rank, in], B [out, rank], m [out] DoRA's magnitude. Only A, B and m are trained. Dropout between A and x is left out: sampler and
trainer must be one function of the weights.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.errors import UserError

ADAPTER = "default"  # peft's name for the one adapter
BASE = ".base_layer"


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: float
    targets: str | tuple[str, ...]  # names of linear layers, or "all-linear": all but the head
    dora: bool
    seed: int = 0  # of A; B starts at 0, so that the model starts as its base

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


class Adapters:
    """The adapters of a model; building them puts them into it."""

    def __init__(self, model: Any, settings: LoraSettings) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.settings = settings
        targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
        alpha: Any = settings.alpha  # annotated as int, and used as a float
        self.config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets, use_dora=settings.dora, task_type="CAUSAL_LM")
        model.requires_grad_(False)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of quantisation libraries that are not installed
            torch.manual_seed(settings.seed)
            try:
                inject_adapter_in_model(self.config, model, adapter_name=ADAPTER)
            except ValueError as error:
                raise UserError(f"model.lora.targets={settings.targets!r} does not fit this model: {error}") from error
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        other = [name for name, layer in self.layers.items() if not isinstance(layer.get_base_layer(), nn.Linear)]
        if other:
            raise UserError(f"model.lora.targets={settings.targets!r} names layers that are not linear: {', '.join(other[:4])}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def name_in_model(self, name: str) -> str:
        """The name in the model of a tensor of the checkpoint."""
        layer, _, kind = name.rpartition(".")
        return f"{layer}{BASE}.{kind}" if layer in self.layers else name

    def find_layer(self, name: str) -> Any | None:
        """The adapted layer of which this name of the checkpoint is the base weight; None where there is none."""
        layer, _, kind = name.rpartition(".")
        return self.layers.get(layer) if kind == "weight" else None

    def tensors_to_merge(self, name: str) -> list[Tensor]:
        """A, B and m of the layer whose base weight has this name; empty where it has no adapter."""
        layer = self.find_layer(name)
        return list(list_tensors(layer).values()) if layer is not None else []

    def merge(self, name: str, base: Tensor) -> Tensor:
        """W + s B A, or DoRA's m (W + s B A) / |W + s B A| with the norm of each row; computed in float32."""
        found = list_tensors(self.find_layer(name))
        whole = base.float() + self.settings.scaling * (found["lora_B.weight"].float() @ found["lora_A.weight"].float())  # [out, in]
        if self.settings.dora:
            magnitude = found["lora_magnitude_vector.weight"].float()  # [out]
            whole = whole * (magnitude / whole.norm(dim=1)).unsqueeze(1)
        return whole.to(base.dtype)

    def name_tensors(self) -> dict[str, Tensor]:
        """The adapters' tensors by the names of peft's files."""
        return {f"base_model.model.{layer}.{kind}": t for layer, module in self.layers.items() for kind, t in list_tensors(module).items()}

    @contextmanager
    def disable(self) -> Iterator[None]:
        """Inside it the model runs without adapters."""
        for layer in self.layers.values():
            layer._disable_adapters = True  # enable_adapters() would also take requires_grad away from under the optimizer
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer._disable_adapters = False

    def write(self, folder: Path, tensors: Mapping[str, Tensor], base: str) -> None:
        """A folder that peft and vLLM load as an adapter of the model `base`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        config = {**self.config.to_dict(), "base_model_name_or_path": base, "inference_mode": True}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, default=to_json))


def list_tensors(layer: Any) -> dict[str, Tensor]:
    """A, B and, with DoRA, m of an adapted layer."""
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector")
    return {f"{kind}.weight": getattr(layer, kind)[ADAPTER].weight for kind in kinds if ADAPTER in getattr(layer, kind, {})}


def to_json(value: Any) -> Any:
    """A set or an enum of a peft configuration as JSON."""
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
