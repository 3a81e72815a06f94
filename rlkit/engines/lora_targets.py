"""Which layers of a model get adapters (model.lora.targets) and which are trained whole (model.lora.modules_to_save).

Refused are choices that could not be trained, sent and exported exactly: names that no layer has, layers that are not linear, weights that
another layer shares. The experts of a mixture of experts are one tensor a layer and no linear layers, so adapters go on attention, on
dense and shared layers, and not on routers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from rlkit.engines.routers import find_routers
from rlkit.errors import UserError, list_some

ALL_LINEAR = "all-linear"
PLAIN = ("FalconLinear",)  # subclasses that multiply in another order


def find_adapted_layers(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The names of the layers that get adapters. Raises UserError where one of `targets` cannot."""
    where, modules, routers = "model.lora.targets", dict(model.named_modules()), find_routers(model)
    if isinstance(targets, str):
        if targets.lower() != ALL_LINEAR:
            raise UserError(f"model.lora.targets={targets!r} is neither {ALL_LINEAR} nor a list of names; write [{targets}]")
        head = getattr(model, "get_output_embeddings", lambda: None)()
        left_out = {id(head), *map(id, routers.values())}
        chosen = [name for name, module in modules.items() if is_plain_linear(module) and id(module) not in left_out]
    else:
        chosen = match_names(where, targets, modules, [name for name, module in modules.items() if is_plain_linear(module)])
    other = [name for name in chosen if not is_plain_linear(modules[name])]
    if other or not chosen:
        experts = "; experts of a mixture of experts are one tensor and get no adapters" if any("expert" in name for name in other) else ""
        what = f"layers that are not linear: {list_some(other)}" if other else "no layer, since the model has no linear ones"
        raise UserError(
            f"{where}={format_names(targets)} names {what}{experts}; leave them out, or set model.lora.rank=null to train all weights"
        )
    refuse_shared(where, model, {name: modules[name] for name in chosen})
    return chosen


def find_whole_modules(model: nn.Module, names: Sequence[str], adapted: Sequence[str]) -> dict[str, nn.Module]:
    """By name the modules that are trained whole, beside `adapted` layers. Raises UserError where one of `names` cannot be."""
    where = "model.lora.modules_to_save"
    owners = {name: module for name, module in model.named_modules() if name and next(module.parameters(), None) is not None}
    chosen = {name: owners[name] for name in match_names(where, names, owners, list(owners))}
    for name, module in chosen.items():
        inside = [layer for layer in adapted if f"{layer}.".startswith(f"{name}.")]
        if inside:
            raise UserError(
                f"{where} names {name}, of which model.lora.targets adapts {list_some(inside)}: a weight is trained whole or adapted; take "
                "it out of one of them"
            )
        if any(not parameter.is_floating_point() for parameter in module.parameters()):
            raise UserError(
                f"{where} names {name}, whose weights are in 4 bits and cannot be trained; leave it out, or set load_in_4bit=false"
            )
    refuse_shared(where, model, chosen)
    return chosen


def match_names(where: str, wanted: Sequence[str], modules: Mapping[str, Any], known: Sequence[str]) -> list[str]:
    """The names in `modules` that are one of `wanted`, or end with it as a whole. `known`: names to suggest.

    Raises UserError for one that no module has.
    """
    for name in wanted:
        if not any(matches(module, name) for module in modules):
            leaves = sorted({module.rpartition(".")[2] for module in known} - {""})
            close = difflib.get_close_matches(name, leaves, n=3) or leaves
            raise UserError(
                f"{where}={format_names(wanted)} names {name!r}, and no layer of this model is called that; it has {list_some(close, 12)}"
            )
    return [module for module in modules if module and any(matches(module, name) for name in wanted)]


def matches(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def is_plain_linear(module: nn.Module) -> bool:
    """Whether its outputs are x W + b; those of a router and of a grouped layer are not, though both are subclasses of a linear layer."""
    kind = type(module)
    return kind is nn.Linear or (isinstance(module, nn.Linear) and (kind.__module__.startswith("bitsandbytes") or kind.__name__ in PLAIN))


def refuse_shared(where: str, model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
    """Raises UserError where a weight of the chosen modules is a weight of others too: exported as one, it would lose what was trained."""
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for name, module in chosen.items():
        for parameter in module.parameters():
            others = [other for other in holders[id(parameter)] if not other.startswith(f"{name}.")]
            if others:
                raise UserError(
                    f"{where} names {name}, whose weight is that of {list_some(others)} too (config.json: tie_word_embeddings); what is "
                    f"trained in one of them would be lost at export; leave {name.rpartition('.')[2]} out"
                )


def format_names(names: str | Iterable[str]) -> str:
    """As in a recipe."""
    return names if isinstance(names, str) else f"[{', '.join(names)}]"
