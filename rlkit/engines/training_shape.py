"""Puts a model of transformers in training shape: one function of its weights, with gradient checkpointing."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlkit.errors import UserError


def set_training_shape(model: Any, checkpoint_every: int = 0) -> Any:
    """The model without dropout, and with gradient checkpointing of every `checkpoint_every`-th layer (0: none)."""
    disable_dropout(model)
    if checkpoint_every:
        checkpoint_layers(model, checkpoint_every)
    return model.train()


def checkpoint_layers(model: Any, every: int) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of each `every`-th layer.

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
        layer.gradient_checkpointing = i % every == 0


def disable_dropout(model: nn.Module) -> None:
    """Sampler and trainer must be one function of the weights."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  mypy
