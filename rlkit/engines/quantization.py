"""Base weights in 4 bits under LoRA adapters (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), by bitsandbytes through transformers.

NF4 with its scales quantised once more: about 0.52 bytes a weight of a linear layer; embeddings, norms and head stay as they are. What is
sent to the rollout engine and exported is what the trainer's layers multiply with: the dequantised weights with the adapters merged in.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from rlkit.errors import UserError

BLOCK = 64  # weights that share a scale


def build_settings(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of from_pretrained. Raises UserError where bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError("model.load_in_4bit=true needs bitsandbytes: pip install 'rlkit[four_bit]', or set it to false")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def restore_config(model: Any) -> None:
    """Gives the model the configuration of the model in full precision, which is what is exported.

    Raises UserError where the dequantised weights would be wrong: bitsandbytes 0.50 on a CPU mistakes blocks of 64 that reach over the
    end of a row.
    """
    rows = {module.in_features for module in model.modules() if hasattr(getattr(module, "weight", None), "quant_state")}
    uneven = sorted(row for row in rows if row % BLOCK)
    if uneven and not torch.cuda.is_available():
        raise UserError(
            f"model.load_in_4bit=true on a CPU needs linear layers whose inputs are multiples of {BLOCK}, and this model has "
            f"{', '.join(map(str, uneven))}; set it to false"
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # or it packs its weights anew in evaluation mode, and what is sent is another weight
    del model.config.quantization_config
    model.hf_quantizer = None


def dequantize(tensor: Any) -> Tensor:
    """A weight in its layer's dtype; the tensor itself where it is not in 4 bits."""
    if not hasattr(tensor, "quant_state"):
        return tensor  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(tensor.data, tensor.quant_state)
    return whole
