"""The tensors of a checkpoint, where they are not those of the model.

Transformers 5 renames tensors as it loads a model, and puts some together: the experts of a layer are one tensor [experts, out, in] in the
model, and one by one in the files, which is how vLLM and every other reader know them. Here that is undone as weights stream by, with
transformers' own rules, so that no more than the parts of a few tensors are held at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class CheckpointFormat:
    """`names`: of the checkpoint's tensors, in the order in which `revert` returns them where it gets the model's in order."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        """names: of the model's tensors."""
        self.model = model
        state = model.state_dict(keep_vars=True)
        shapes = {name: torch.empty(getattr(state[name], "ds_shape", state[name].shape), device="meta") for name in names}
        reverted = {name: list(self._revert({name: tensor})) for name, tensor in shapes.items()}
        self._unchanged = {name for name, own in reverted.items() if own == [name]}
        self._groups = group_by_overlap(reverted)
        self.names = [name for name, _ in self.revert(iter(shapes.items()))]

    def revert(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's tensors, of the model's; those that become one tensor wait for each other."""
        waiting: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors:
            group = self._groups[name]
            if group == (name,) and name in self._unchanged:
                yield name, tensor
                continue
            held = waiting.setdefault(id(group), {})
            held[name] = tensor
            del tensor
            if len(held) == len(group):
                parts = self._revert(waiting.pop(id(group)))
                del held
                while parts:
                    name = next(iter(parts))
                    yield name, parts.pop(name)

    def _revert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        reverted: dict[str, Tensor] = revert_weight_conversion(self.model, tensors)
        return reverted


def group_by_overlap(names: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """By each key the keys, in order, that share a name with it, directly or through others; one tuple for all keys of a group."""
    first: dict[str, str] = {}  # by name the first key that has it
    leader: dict[str, str] = {}
    for key, own in names.items():
        leads = {leader[first[name]] for name in own if name in first}
        for name in own:
            first.setdefault(name, key)
        leader[key] = key
        leader |= {other: key for other, lead in leader.items() if lead in leads}
    groups: dict[str, tuple[str, ...]] = {}
    for key, lead in leader.items():
        groups[lead] = (*groups.get(lead, ()), key)
    return {key: groups[lead] for key, lead in leader.items()}
