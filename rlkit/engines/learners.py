"""The models that learn: a module composed with the backend that trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlkit.engines import weight_sync
from rlkit.engines.base import Backend, BackendFactory, FileFactory, Update
from rlkit.engines.heads import LastTokenScorer, TokenScorer, TokenValuer, compute_logprobs, compute_scores, compute_values
from rlkit.engines.loading import load_causal_lm, load_classifier
from rlkit.engines.lora import LoraSettings
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.engines.trained_model import Parts, TrainedModel
from rlkit.types import Sample


class ModuleLearner(ABC):
    """A module under a backend. `name`: of its files in a checkpoint."""

    name: str
    backend: Backend
    _grad = False

    @abstractmethod
    def forward(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        """All outputs of the module, under the backend or not, on which a loss can depend."""

    @contextmanager
    def enable_grad(self) -> Iterator[None]:
        """Inside it outputs keep what a gradient needs."""
        self._grad = True
        try:
            yield
        finally:
            self._grad = False

    def _grad_mode(self) -> AbstractContextManager[None]:
        return nullcontext() if self._grad else torch.no_grad()

    def backward(self, loss: Tensor) -> None:
        self.backend.backward(loss)

    def idle(self) -> None:
        self.backend.backward(self.forward(self.backend.module, []).sum() * 0.0)

    def try_samples(self, samples: Sequence[Sample]) -> None:
        self.backend.try_backward(lambda module: self.forward(module, samples))

    def reserve_update(self) -> Sequence[Tensor]:
        return self.backend.reserve_update()

    def step(self, lr: float) -> Update:
        return self.backend.step(lr)

    def save(self, files: FileFactory) -> None:
        self.backend.save(files, self.name)

    def load(self, folder: Path) -> None:
        self.backend.load(folder, self.name, self.idle)

    def offload(self) -> None:
        self.backend.offload()

    def reload(self) -> None:
        self.backend.reload()


class PolicyLearner(ModuleLearner):
    """The policy: returns log-probs, learns, and is the source of the rollout engine's weights. With `lora` only adapters are trained."""

    name = "policy"

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        backend: BackendFactory,
        temperature: float,
        offline: bool,
        trust_remote_code: bool = False,
        checkpoint_every: int = 0,
        lora: LoraSettings | None = None,
        sp_group: SequenceParallelGroup | None = None,
        four_bits: bool = False,
    ) -> None:
        self.temperature, self.sp_group, self.device = temperature, sp_group, backend.device
        code = {"offline": offline, "trust_remote_code": trust_remote_code}
        with nullcontext() if four_bits else backend.shard_on_load(dtype):  # 4-bit weights are sharded later, by the backend
            model = load_causal_lm(path, dtype, "model.path", checkpoint_every=checkpoint_every, four_bits=four_bits, **code)
            self.trained = TrainedModel(model, path, dtype, lora)
        self.model, self.names, self.adapters = model, self.trained.format.names, self.trained.adapters
        self.backend = backend.build(TokenScorer(model, sp_group), dtype)

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        with self._grad_mode():
            return compute_logprobs(self.backend.module, samples, width, self.temperature, self.device, self.sp_group)

    def forward(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        return torch.cat(compute_logprobs(module, samples, longest_completion(samples), self.temperature, self.device, self.sp_group))

    def disable_adapters(self) -> AbstractContextManager[None]:
        """Inside it the policy is its base."""
        assert self.adapters is not None
        return self.adapters.disable()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """As of Source, adapters merged in; sharded tensors are gathered in buckets."""
        return self.trained.format.revert(self.module_weights())

    def module_weights(self) -> Iterator[tuple[str, Tensor]]:
        """As of Source, adapters merged in."""
        return self._stream(self.trained.checkpoint_parts())

    def base_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint before training, where only adapters are trained."""
        return self.trained.format.revert(self._stream(self.trained.base_parts()))

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The adapters' tensors by the names of peft's files."""
        return self._stream(self.trained.adapter_parts())

    @property
    def adapter_scaling(self) -> float:
        """As of AdapterSource."""
        assert self.adapters is not None
        return self.adapters.settings.scaling

    def _stream(self, parts: Parts) -> Iterator[tuple[str, Tensor]]:
        return weight_sync.stream_weights(*parts, self.trained.dtype, self.backend, weight_sync.BUCKET[self.device.type])

    def write_adapter(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """A peft folder with these tensors."""
        self.trained.write(folder, tensors, adapter=True)

    def export(self, folder: Path, adapter: bool = False) -> None:
        """A Hugging Face folder of the model with its adapters merged, or a peft folder of the adapters alone."""
        state: dict[str, Tensor] = {}
        tied = self.trained.find_tied()
        for name, tensor in self.adapter_weights() if adapter else self.module_weights():  # on every rank: shards are gathered
            if dist.get_rank() == 0 and name not in tied:
                state[name] = tensor.cpu().clone()
        if dist.get_rank() == 0:
            self.trained.write(folder, state, adapter)
        dist.barrier()


class CriticLearner(ModuleLearner):
    """The critic: the policy's architecture and first weights, with a value head and an optimizer of its own."""

    name = "critic"

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        backend: BackendFactory,
        offline: bool,
        trust_remote_code: bool = False,
        checkpoint_every: int = 0,
        sp_group: SequenceParallelGroup | None = None,
    ) -> None:
        self.sp_group, self.device = sp_group, backend.device
        with backend.shard_on_load(dtype):
            code = {"offline": offline, "trust_remote_code": trust_remote_code}
            valuer = TokenValuer(load_causal_lm(path, dtype, "model.path", checkpoint_every=checkpoint_every, **code), sp_group)
        self.backend = backend.build(valuer, dtype)

    def values(self, samples: Sequence[Sample], width: int) -> Tensor:
        with self._grad_mode():
            return compute_values(self.backend.module, samples, width, self.device, self.sp_group)

    def forward(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        return compute_values(module, samples, longest_completion(samples), self.device, self.sp_group)


class RewardModelLearner(ModuleLearner):
    """The reward model: a Hugging Face sequence classifier with one label, the score of a whole text.

    The score is computed at the last token that is not padding, as transformers does; what is exported is an ordinary folder for
    AutoModelForSequenceClassification.
    """

    name = "reward_model"

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        backend: BackendFactory,
        pad: int,
        offline: bool,
        trust_remote_code: bool = False,
        checkpoint_every: int = 0,
    ) -> None:
        code = {"offline": offline, "trust_remote_code": trust_remote_code}
        self.model = load_classifier(path, dtype, pad, checkpoint_every=checkpoint_every, **code)
        self.pad, self.device = pad, backend.device
        self.backend = backend.build(LastTokenScorer(self.model), dtype)

    def scores(self, samples: Sequence[Sample]) -> Tensor:
        """[B] float32."""
        with self._grad_mode():
            return self.forward(self.backend.module, samples)[: len(samples)]

    def forward(self, module: nn.Module, samples: Sequence[Sample]) -> Tensor:
        return compute_scores(module, samples, self.pad, self.device)

    def export(self, folder: Path) -> None:
        """A Hugging Face folder without tokenizer."""
        state: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():  # on every rank: sharded weights are gathered on all
            with self.backend.gather([tensor]):
                if dist.get_rank() == 0:
                    state[name] = tensor.detach().cpu().clone()
        if dist.get_rank() == 0:
            self.model.save_pretrained(folder, state_dict=state)
        dist.barrier()


def longest_completion(samples: Sequence[Sample]) -> int:
    """Tokens."""
    return max((len(s.tokens) for s in samples), default=0)
