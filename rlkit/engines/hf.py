"""transformers: loading a causal LM, scoring tokens with it, and a plain engine on its `generate`.

The engine is for machines without vLLM, and the twin that vLLM is tested against. Sampling is greedy decoding of logits / temperature
plus seeded Gumbel noise (Gumbel-max): each request has a generator of its own, so its tokens do not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.engines import liger, packing, quantization
from rlkit.engines.base import checksum
from rlkit.engines.loading import first_line, load_pretrained
from rlkit.engines.offload import CpuOffload
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.errors import RunFailed, UserError
from rlkit.ops.logprobs import logprobs_from_hidden, logprobs_from_logits
from rlkit.types import Request, Sample, Stop


def load_model(path: str, dtype: torch.dtype, *, offline: bool, recompute: int = 0, four_bits: bool = False) -> Any:
    """A causal LM in training shape: no dropout, no cache. Every `recompute`-th layer keeps no activations, but makes them again in the
    backward pass; 0: all layers keep them. Raises UserError where `path` does not hold all of such a model."""
    held = quantization.loading(dtype) if four_bits else {}
    model = load_pretrained("causal language model", path, "model.path", offline=offline, dtype=dtype, **held)
    if four_bits:
        quantization.settle(model)
    model.config.use_cache = False
    switch_off_dropout(model)
    if recompute:
        recompute_layers(model, recompute)
    return model.train()


def recompute_layers(model: Any, every: int) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of each `every`-th layer. No random state is kept: there is no dropout.
    Shapes are not compared with those of the first pass, for ZeRO 3 has given its weights away by then."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    kept = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kept)
    except ValueError as error:
        raise UserError(f"engine.gradient_checkpointing: {first_line(error)}; set it to 0") from error
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for i, layer in enumerate(layers):
        layer.gradient_checkpointing = i % every == 0


def switch_off_dropout(model: nn.Module) -> None:
    """Rollout and trainer must be one function of the weights: dropout would make them two."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def checkpoint_names(model: Any) -> list[str]:
    """Every tensor of the model's checkpoint, the tied ones too; not what 4 bits are taken back with."""
    return [name for name in model.state_dict() if ".weight." not in name]


class TokenScorer(nn.Module):
    """A causal LM as a function from packed samples to the log-probs and entropies of their completion tokens.

    Only the outputs that predict completion tokens go through the head, and the head says log-probs itself: sharded weights are there
    only inside their module's forward. Both say one tensor: DeepSpeed gathers again for each tensor that a gradient comes back to, and
    all ranks must gather alike, whatever their losses depend on.
    """

    def __init__(self, model: Any, crew: SequenceParallelGroup | None = None) -> None:
        super().__init__()
        packing.keep_apart(model, crew.around if crew else None)
        self.model = model
        self.speaks = speaking(model.get_output_embeddings())

    def forward(self, ids: Tensor, positions: Tensor, looks: packing.SeqLens, where: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        """Packed samples (see packed.Packed) -> log-probs and entropy [2, n]."""
        hidden = self.model.get_decoder()(**packing.decoder_arguments(ids, positions, looks)).last_hidden_state  # [1, S, H]
        chosen = hidden[0].index_select(0, where)  # [n, H]
        head = self.model.get_output_embeddings()
        return head(chosen, tokens, temperature) if self.speaks else torch.stack(logprobs_from_logits(head(chosen), tokens, temperature))


def speaking(head: nn.Module) -> bool:
    """Teaches a linear head to say log-probs and entropy of tokens that it is given beside the hidden states; False for other heads."""
    if type(head) is not nn.Linear:
        return False

    def forward(hidden: Tensor, tokens: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        if tokens is None:
            return nn.functional.linear(hidden, head.weight, head.bias)
        if liger.serves(hidden, head.bias):
            return torch.stack(liger.of_hidden(hidden, head.weight, tokens, temperature))
        return torch.stack(logprobs_from_hidden(hidden, head.weight, head.bias, tokens, temperature))

    head.forward = forward
    return True


class TokenValuer(nn.Module):
    """The same architecture with one number a position in place of the head: what is still to come, before token t is written."""

    def __init__(self, model: Any, crew: SequenceParallelGroup | None = None) -> None:
        super().__init__()
        packing.keep_apart(model, crew.around if crew else None)
        self.model = model.get_decoder()
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1, bias=False, dtype=model.dtype)
        nn.init.zeros_(self.head.weight)  # a critic that knows nothing says 0

    def forward(self, ids: Tensor, positions: Tensor, looks: packing.SeqLens, where: Tensor) -> Tensor:
        """Packed samples (see packed.Packed) -> values [n] float32."""
        hidden = self.model(**packing.decoder_arguments(ids, positions, looks)).last_hidden_state  # [1, S, H]
        return self.head(hidden[0].index_select(0, where)).squeeze(-1).float()


def score(
    scorer: nn.Module,
    samples: Sequence[Sample],
    width: int,
    temperature: float,
    device: torch.device,
    crew: SequenceParallelGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs `scorer` on samples and lays what it says on the grid: log-probs and entropy [B, width], 0 beyond a completion."""
    chosen, entropy = laid_out(lambda row: scorer(*row[:5], temperature).unbind(), samples, width, device, crew)
    return chosen, entropy


def value(
    valuer: nn.Module, samples: Sequence[Sample], width: int, device: torch.device, crew: SequenceParallelGroup | None = None
) -> Tensor:
    """Runs `valuer` on samples: values [B, width], 0 beyond a completion."""
    (values,) = laid_out(lambda row: (valuer(*row[:4]),), samples, width, device, crew)
    return values


def laid_out(
    say: Callable[[packing.PackedRow], tuple[Tensor, ...]],
    samples: Sequence[Sample],
    width: int,
    device: torch.device,
    crew: SequenceParallelGroup | None,
) -> list[Tensor]:
    """What `say` tells of the completion tokens of packed samples, each on the grid [B, width]."""
    if crew:
        told, place = crew.said(say, samples, width, device)
    else:
        row = packing.pack_samples(samples, width, device)
        told, place = say(row), row.place
    return [flat.new_zeros(len(samples) * width).index_put((place,), flat[: len(place)]).view(len(samples), width) for flat in told]


class Reference:
    """A frozen model that only scores."""

    def __init__(
        self,
        path: str,
        dtype: torch.dtype,
        *,
        temperature: float,
        device: torch.device,
        offline: bool,
        crew: SequenceParallelGroup | None = None,
    ) -> None:
        model = load_model(path, dtype, offline=offline).eval().requires_grad_(False)
        self.scorer = TokenScorer(model, crew).to(device)
        self.temperature, self.device, self.crew = temperature, device, crew
        self.parking = CpuOffload(self.scorer.parameters if device.type == "cuda" else tuple)

    def logprobs(self, samples: Sequence[Sample], width: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return score(self.scorer, samples, width, self.temperature, self.device, self.crew)

    def park(self) -> None:
        self.parking.park()

    def resume(self) -> None:
        self.parking.resume()


class HFEngine:
    """Rollouts by transformers' generate, `rows` requests at a time."""

    def __init__(
        self, path: str, dtype: torch.dtype, *, device: torch.device, eos: frozenset[int], pad: int, offline: bool, rows: int = 256
    ) -> None:
        self.model = load_model(path, dtype, offline=offline).eval().requires_grad_(False).to(device)
        self.device, self.eos, self.pad, self.rows = device, eos, pad, rows
        self.version: int | None = None
        self._waiting: list[Request] = []
        self._received: dict[str, Tensor] = {}

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        if self.version is None:
            raise RunFailed("the rollout engine was asked to sample before its first weights arrived")
        self._waiting.append(request)

    def advance(self) -> list[Sample]:
        if not self._waiting:
            return []
        first = self._waiting[0].sampling
        batch = [r for r in self._waiting if r.sampling == first][: self.rows]
        taken = {id(r) for r in batch}
        self._waiting = [r for r in self._waiting if id(r) not in taken]
        return self._generate(batch)

    def abort(self) -> list[Sample]:
        aborted = [self._sample(r, [], [], Stop.ABORTED) for r in self._waiting]
        self._waiting = []
        return aborted

    def _generate(self, batch: list[Request]) -> list[Sample]:
        from transformers import GenerationConfig

        sampling = batch[0].sampling
        longest = max(len(r.tokens) for r in batch)
        ids = torch.full((len(batch), longest), self.pad)  # [B, P], padded on the left
        for i, request in enumerate(batch):
            ids[i, longest - len(request.tokens) :] = torch.tensor(request.tokens)
        there = torch.stack([torch.arange(longest) >= longest - len(r.tokens) for r in batch]).long()  # [B, P]
        draw = GumbelDraw(batch)
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens, do_sample=False, eos_token_id=sorted(self.eos), pad_token_id=self.pad, use_cache=True
        )
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids.to(self.device), attention_mask=there.to(self.device), generation_config=config, logits_processor=[draw]
            )
        logs = torch.stack(draw.logs, dim=1).cpu()  # [B, T, V]
        return [self._ended(request, out[i, longest:].cpu(), logs[i]) for i, request in enumerate(batch)]

    def _ended(self, request: Request, row: Tensor, logs: Tensor) -> Sample:
        ends = [t for t, token in enumerate(row.tolist()) if token in self.eos]
        tokens = row[: ends[0] + 1] if ends else row
        chosen = logs[: len(tokens)].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # [L]
        return self._sample(request, tokens.tolist(), chosen.tolist(), Stop.EOS if ends else Stop.LENGTH)

    def _sample(self, request: Request, tokens: list[int], logprobs: list[float], stop: Stop) -> Sample:
        return make_sample(request, tokens, logprobs, stop, self.version)

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        own = self.model.state_dict()
        self._received = {}
        with torch.no_grad():
            for name, tensor in weights:
                if name in own:
                    own[name].copy_(tensor)
                self._received[name] = checksum(tensor)
        check_names(own, self._received)
        self.version = version

    def received(self) -> Mapping[str, Tensor]:
        return self._received

    def wake_weights(self) -> None: ...

    def wake_cache(self) -> None: ...

    def sleep(self) -> None: ...

    def close(self) -> None: ...


def make_sample(request: Request, tokens: list[int], logprobs: list[float], stop: Stop, version: int | None) -> Sample:
    """A sample from plain lists; its text is the renderer's to fill in, so it is empty here."""
    return Sample(
        key=request.key,
        prompt=request.tokens,
        tokens=torch.tensor(tokens, dtype=torch.int64),
        mask=torch.ones(len(tokens), dtype=torch.bool),
        rollout_logprobs=torch.tensor(logprobs, dtype=torch.float32),
        versions=torch.full((len(tokens),), -1 if version is None else version, dtype=torch.int32),
        stop=stop,
        text="",
    )


def check_names(expected: Mapping[str, Any] | Sequence[str], received: Mapping[str, Any]) -> None:
    """Raises RunFailed where a load left out a tensor of the model, or brought one that it does not have."""
    known = set(expected)
    missing = [name for name in expected if name not in received]
    unknown = [name for name in received if name not in known]
    if missing or unknown:
        raise RunFailed(
            "the weights sent to the rollout engine are not the model's: "
            + "; ".join(
                f"{word} {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
                for word, names in (("missing", missing), ("unknown", unknown))
                if names
            )
        )


class GumbelDraw:
    """A logits processor: scaled and truncated as asked, recorded, then disturbed by each request's own noise."""

    def __init__(self, batch: list[Request]) -> None:
        self.sampling = batch[0].sampling
        self.generators = [torch.Generator().manual_seed(r.seed) for r in batch]
        self.logs: list[Tensor] = []

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.sampling.greedy:
            self.logs.append(torch.log_softmax(logits.float(), -1))
            return logits
        logs = torch.log_softmax(truncated(ids, logits.float() / self.sampling.temperature, self.sampling), -1)  # [B, V]
        self.logs.append(logs)
        noise = torch.stack([torch.rand(logits.shape[-1], generator=g, dtype=torch.float64) for g in self.generators])  # [B, V]
        return logs + (-torch.log(-torch.log(noise.clamp(min=1e-300)))).to(logs)


def truncated(ids: Tensor, logits: Tensor, sampling: Any) -> Tensor:
    """top_k, top_p and min_p by transformers' own warpers."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if sampling.top_k > 0:
        logits = TopKLogitsWarper(sampling.top_k)(ids, logits)
    if sampling.top_p < 1.0:
        logits = TopPLogitsWarper(sampling.top_p)(ids, logits)
    if sampling.min_p > 0.0:
        logits = MinPLogitsWarper(sampling.min_p)(ids, logits)
    return logits


def no_gradient(keep: bool) -> Any:
    return nullcontext() if keep else torch.no_grad()
