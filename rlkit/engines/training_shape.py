"""Puts a model of transformers in training shape: one function of its weights, with gradient checkpointing.

Some models drop out by a function call (F.dropout with self.training), drop whole layers, or add noise to their routers, all of it in
training mode. So a model stays in evaluation mode, and only its layers are in training mode, each without its submodules: a
GradientCheckpointingLayer recomputes in training mode alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rlkit.errors import UserError


def set_training_shape(model: Any, checkpoint_every: int = 0) -> Any:
    """The model without anything random, and with gradient checkpointing of every `checkpoint_every`-th layer (0: none).

    Raises UserError where the model cannot recompute its layers.
    """
    model.eval()
    disable_dropout(model)
    if checkpoint_every:
        checkpoint_layers(model, checkpoint_every)
    return model


def checkpoint_layers(model: Any, every: int) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of each `every`-th layer, which is in training mode from then on.

    No random state is kept, since there is no dropout. Shapes are not compared with those of the first pass: under ZeRO 3 the weights are
    no longer whole by then.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    settings = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    except ValueError as error:
        raise UserError(f"engine.gradient_checkpointing: {error}; set it to 0") from error
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for i, layer in enumerate(layers):
        layer.gradient_checkpointing = layer.training = i % every == 0


def disable_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout to 0, those that layers in training mode apply themselves too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        rates = [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
        for name in rates:
            setattr(module, name, 0.0)
