"""LoRA adapters inside a causal LM (Hu et al. 2021, arXiv:2106.09685), DoRA's too (Liu et al. 2024, arXiv:2402.09353).

The only file that imports peft. An adapted linear layer returns W x + s B A x with s = alpha / rank, or alpha / sqrt(rank) with rsLoRA
(Kalajdzievski 2023, arXiv:2312.03732). Letters: W [out, in] base weight, A [rank, in], B [out, rank], m [out] DoRA's magnitude. Trained
are A, B, m, and all weights of the modules that are chosen to be trained whole. Dropout between A and x is left out: sampler and trainer
must be one function of the weights.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.engines.lora_targets import find_adapted_layers, find_whole_modules, format_names
from rlkit.errors import UserError, list_some

ADAPTER = "default"  # peft's name for the one adapter
BASE = ".base_layer"


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: float
    targets: str | tuple[str, ...]  # names of linear layers, or "all-linear": all but the head
    dora: bool
    seed: int = 0  # of A; B starts at 0, so that the model starts as its base
    rslora: bool = False
    modules_to_save: tuple[str, ...] = ()  # names of modules that are trained whole

    @property
    def scaling(self) -> float:
        return self.alpha / (sqrt(self.rank) if self.rslora else self.rank)


class Adapters:
    """The adapters of a model; building them puts them into it."""

    def __init__(self, model: Any, settings: LoraSettings) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        self.settings = settings
        targets = find_adapted_layers(model, settings.targets)
        self.whole = find_whole_modules(model, settings.modules_to_save, targets)
        alpha: Any = settings.alpha  # annotated as int, and used as a float
        self.config = LoraConfig(
            r=settings.rank,
            lora_alpha=alpha,
            target_modules=targets,
            use_dora=settings.dora,
            use_rslora=settings.rslora,
            task_type="CAUSAL_LM",
        )
        self.taken_for_experts = find_taken_for_experts(model, self.config)
        model.requires_grad_(False)
        with torch.random.fork_rng(), warnings.catch_warnings(), without_conversion():
            warnings.simplefilter("ignore")  # peft warns of quantisation libraries that are not installed
            torch.manual_seed(settings.seed)
            try:
                inject_adapter_in_model(self.config, model, adapter_name=ADAPTER)
            except ValueError as error:
                raise UserError(f"model.lora.targets={format_names(settings.targets)} does not fit this model: {error}") from error
        self.layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        if left := [name for name in targets if name not in self.layers]:
            raise UserError(
                f"model.lora.targets={format_names(settings.targets)}: peft puts no adapter on {list_some(left)}; leave them out"
            )
        model.requires_grad_(False)
        for trained in (*self.name_tensors().values(), *(p for module in self.whole.values() for p in module.parameters())):
            trained.requires_grad_(True)

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
        """All that is trained, by the names of peft's files."""
        adapters = {f"{layer}.{kind}": tensor for layer, module in self.layers.items() for kind, tensor in list_tensors(module).items()}
        whole = {f"{name}.{kind}": tensor for name, module in self.whole.items() for kind, tensor in module.named_parameters()}
        return {f"base_model.model.{name}": tensor for name, tensor in (adapters | whole).items()}

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

    def check_files(self) -> None:
        """Raises UserError where peft could not read a file of these adapters."""
        if self.taken_for_experts:
            raise UserError(
                f"checkpoint.export=adapter: peft takes {list_some(self.taken_for_experts)} of this model for experts as it reads a file; "
                "set checkpoint.export=merged, or model.lora.targets to layers of attention alone"
            )

    def write(self, folder: Path, tensors: Mapping[str, Tensor], base: str) -> None:
        """A folder that peft and vLLM load as an adapter of the model `base`."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        whole = list(self.whole) or None  # in full: peft takes every name that ends with one of these, norm for input_layernorm too
        config = {**self.config.to_dict(), "modules_to_save": whole, "base_model_name_or_path": base, "inference_mode": True}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, default=to_json))


@contextmanager
def without_conversion() -> Iterator[None]:
    """Inside it peft adapts the layers that it is given. Otherwise it takes gate_proj and others in a mixture of experts for what they were
    called in transformers 4, and adapts the experts."""
    from peft.utils import transformers_weight_conversion as conversion

    convert = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *arguments, **keywords: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = convert


def find_taken_for_experts(model: Any, config: Any) -> list[str]:
    """The adapted layers that peft takes for experts when it reads a file; see without_conversion."""
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    read = deepcopy(config)
    try:
        convert_peft_config_for_transformers(read, model=model, conversions=None)
    except ValueError:  # one of two that would be put together
        return sorted(config.target_modules)
    return sorted(set(config.target_modules) - set(read.target_modules))


def list_tensors(layer: Any) -> dict[str, Tensor]:
    """A, B and, with DoRA, m of an adapted layer."""
    kinds = ("lora_A", "lora_B", "lora_magnitude_vector")
    return {f"{kind}.weight": getattr(layer, kind)[ADAPTER].weight for kind in kinds if ADAPTER in getattr(layer, kind, {})}


def to_json(value: Any) -> Any:
    """A set or an enum of a peft configuration as JSON."""
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
