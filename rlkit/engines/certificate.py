"""The certificate of a model: packed into one row, each sample is what transformers computes of it alone. Checked at start.

Models of transformers differ in what they do beyond a plain decoder: windows, caps, scales after the head, dropout by function calls,
frequencies that depend on the row. The check runs them, so that a model which rlkit cannot train exactly is refused, whatever its reason.
n completion tokens of a row, B samples.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlkit.engines import heads, packing, rope, training_shape, twin
from rlkit.engines.heads import LastTokenScorer, TokenScorer
from rlkit.engines.loading import KINDS
from rlkit.engines.packing import TokenizedSample
from rlkit.engines.sequence_parallel import SequenceParallelGroup
from rlkit.errors import UserError, contain_exit
from rlkit.ops import logprobs as ops_logprobs
from rlkit.types import Key

CPU = torch.device("cpu")
TEMPERATURE = 0.7
LIMIT = 1e-5  # of outputs and gradients in float32, relative to the largest output and to the norm of the gradient; a gradient that float32
# rounds more may be off by as much as it rounds
HALF_LIMIT = 3.0, 1e-2  # in bfloat16: mean errors of packed outputs over those of plain ones, and nats that are always allowed
WEIGHTS_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 0.3}  # mean difference with a model's own weights, nats: in bfloat16 two kinds of
# attention were 0.12 apart on random tokens (SmolLM2-135M), and in float32 6e-6
SHORT, LONG, OTHER = 0, 1, 2  # the samples of the check; the last two have one prompt
LENGTHS = ((2, 3), (10, 30), (10, 12))  # tokens of their prompts and completions
LONGEST = sum(LENGTHS[LONG])
ROWS = {  # what is compared, and the samples that are packed together
    "a sample of 5 tokens alone": [SHORT],
    "a sample of 40 tokens alone": [LONG],
    "a sample of 5 tokens beside one of 40": [SHORT, LONG],
    "two samples of one prompt beside another": [LONG, OTHER, SHORT],
}
CAUSES = dict(
    zip(
        ROWS,
        (
            "its attention or its head does more than rlkit knows of",
            f"something changes after so many tokens (of this twin {twin.THRESHOLD}), such as a window that only a mask has",
            "something is chosen by the longest sample of a row, or tokens of different samples are mixed",
            "tokens of different samples are mixed",
        ),
        strict=True,
    )
)
REPEATS = 5  # of outputs that differ: are they random?
RANDOM = "it is random in training, by dropout or noise that cannot be switched off"
SOURCES = (ops_logprobs, heads, packing, rope, training_shape, twin)  # what a certificate depends on, besides this file
TRANSIENT = ("_name_or_path", "transformers_version", "dtype", "use_cache", "_attn_implementation_internal")  # of a configuration


def certify(
    config: Any, kind: str, *, where: str, cache: Path, checkpoint_every: int, device: torch.device, trust_remote_code: bool = False
) -> None:
    """Checks the twin of a model with this configuration, of one of KINDS, where this was not done before; with code of its own each time,
    for this code may change. `where`: the model's name in messages, `cache`: a folder. Raises UserError where packed samples are not what
    transformers computes of each alone."""
    import transformers

    auto = getattr(transformers, KINDS[kind])
    own_code = trust_remote_code and auto.__name__ in (getattr(config, "auto_map", None) or {})
    model_class = None if own_code else find_class(auto, config)
    if model_class is not None:
        packing.check_attention(model_class, config)
    found = cache / f"{describe(config, kind, checkpoint_every, device)}.json"
    if found.is_file() and not own_code:
        return
    try:
        with silence(), contain_exit():
            plain = twin.build_twin(config, auto, LONGEST, own_code)
    except Exception as error:  # of any kind: the code of each family is another
        raise UserError(
            f"{where}: a small model of its configuration, by which it is checked, cannot be built: {type(error).__name__}: "
            f"{str(error).strip()[:300]}; choose another model.path"
        ) from error
    with silence():
        difference = check_twin(plain, checkpoint_every, device)
    if difference:
        kind = config.get_text_config().model_type
        raise UserError(f"{where}: models of type {kind} cannot be trained exactly: {difference.describe()}; choose another model.path")
    if not own_code:
        write_certificate(found, config)


@contextmanager
def silence() -> Iterator[None]:
    """Inside it transformers warns of nothing: a twin is not what it would warn of."""
    from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)


def find_class(auto: Any, config: Any) -> Any | None:
    """The class that a configuration is loaded as; None where it comes with the files."""
    mapping = auto._model_mapping
    return mapping.get(type(config), None)


def describe(config: Any, kind: str, checkpoint_every: int, device: torch.device) -> str:
    """A hash of all that a certificate depends on."""
    settings = {name: value for name, value in config.to_dict().items() if name not in TRANSIENT}
    digest = hashlib.sha256(json.dumps([settings, kind, bool(checkpoint_every), device.type], sort_keys=True, default=str).encode())
    for file in (__file__, *(module.__file__ for module in SOURCES)):
        digest.update(Path(str(file)).read_bytes())
    for library in ("torch", "transformers"):
        digest.update(f"{library} {version(library)}".encode())
    return digest.hexdigest()[:16]


def write_certificate(path: Path, config: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps({"model_type": config.model_type, "torch": version("torch"), "transformers": version("transformers")}))
    part.replace(path)


class Difference(NamedTuple):
    """Where packed and plain outputs are apart; `size`: in nats or in scores, or the share of a gradient's norm; None where there is no
    packed output."""

    row: str
    output: str
    size: float | None
    cause: str

    def describe(self) -> str:
        if self.size is None:
            return f"{self.output} of packed samples cannot be computed: {self.cause}"
        return f"{self.output} of {self.row}, packed, differ by {self.size:.2g} from those of transformers; probably {self.cause}"


def check_twin(plain: Any, checkpoint_every: int, device: torch.device) -> Difference | None:
    """The first difference between a plain model and its copy in training shape, packed; None where there is none."""
    trained = training_shape.set_training_shape(copy.deepcopy(plain), checkpoint_every)
    for model in (plain, trained):
        rope.pin_rope(model, LONGEST)
        model.requires_grad_(True)
    try:
        scorer = LastTokenScorer(trained) if hasattr(trained, "score") else TokenScorer(trained)
        difference = find_difference(plain, scorer)
        if difference is None and device.type == "cuda":
            difference = find_half_difference(plain.to(device), scorer.to(device), device)
        return difference
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 of any kind: the code of each family is another
        return Difference("a sample", "outputs", None, f"{type(error).__name__}: {str(error).strip()[:200]}")


def build_samples() -> list[TokenizedSample]:
    """A short one, a long one, and one with the prompt of the long one."""
    random = torch.Generator().manual_seed(5)
    drawn = [torch.randint(twin.FIRST_WORD, twin.FIRST_SPECIAL, (sum(lengths),), generator=random) for lengths in LENGTHS]
    prompts = [tuple(ids[:before].tolist()) for ids, (before, _) in zip(drawn, LENGTHS, strict=True)]
    prompts[OTHER] = prompts[LONG]
    keys = [Key(0, 0, 0), Key(1, 0, 0), Key(1, 0, 1)]
    completions = [ids[before:] for ids, (before, _) in zip(drawn, LENGTHS, strict=True)]
    return [TokenizedSample(k, p, c, torch.ones_like(c, dtype=torch.bool)) for k, p, c in zip(keys, prompts, completions, strict=True)]


def compute_plain(model: Any, samples: Sequence[TokenizedSample], device: torch.device) -> list[Tensor]:
    """By transformers alone, sample by sample: log-probs and entropies [2, L] of a causal LM, the score [1] of a classifier."""
    outputs = []
    for sample in samples:
        read = sample.tokens if model.get_output_embeddings() is None else sample.tokens[:-1]  # the last predicts nothing
        ids = torch.cat([torch.tensor(sample.prompt), read]).unsqueeze(0).to(device)  # [1, S]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]  # [S, V] or [1]
        if logits.ndim == 2:
            index = ops_logprobs.build_predict_index([len(sample.prompt)], [len(sample.tokens)])
            logits = torch.stack(ops_logprobs.logprobs_from_logits(logits[index], sample.tokens.to(device), TEMPERATURE))
        outputs.append(logits)
    return outputs


def compute_packed(scorer: nn.Module, samples: Sequence[TokenizedSample], device: torch.device) -> list[Tensor]:
    """The same by a TokenScorer or a LastTokenScorer, of samples in one row."""
    row = packing.pack_samples(samples, 0, device, whole=isinstance(scorer, LastTokenScorer))
    if isinstance(scorer, LastTokenScorer):
        last = [start + len(sample.tokens) - 1 for (_, start), sample in zip(row.starts, samples, strict=True)]
        return list(scorer(*row[:3], torch.tensor(last, device=device)).split(1))
    return list(scorer(*row[:5], TEMPERATURE).split([len(sample.tokens) for sample in samples], dim=1))


def find_difference(plain: nn.Module, scorer: nn.Module) -> Difference | None:
    """In float32, between a model as transformers has it and its copy in a scorer."""
    samples = build_samples()
    wanted = compute_plain(plain, samples, CPU)
    scale = max(1.0, *(float(output.detach().abs().max()) for output in wanted))
    kind = "scores" if isinstance(scorer, LastTokenScorer) else "log-probs"
    for row, chosen in ROWS.items():
        found = compute_packed(scorer, [samples[i] for i in chosen], CPU)
        size = measure_distance(found, [wanted[i] for i in chosen])
        if not size <= LIMIT * scale:
            again = [compute_packed(scorer, [samples[i] for i in chosen], CPU) for _ in range(REPEATS)]
            random = any(measure_distance(found, other) > LIMIT * scale for other in again)
            return Difference(row, kind, size, RANDOM if random else CAUSES[row])
    measure_loss(wanted).backward()
    measure_loss([found[chosen.index(i)] for i in range(len(samples))]).backward()
    wanted_gradients = list_gradients(plain)
    size = compare_gradients(list_gradients(scorer.get_submodule("model")), wanted_gradients)
    if size <= LIMIT or size <= measure_rounding(plain, wanted_gradients):
        return None
    return Difference(row, "gradients", size, CAUSES[row])


def measure_rounding(plain: nn.Module, gradients: Mapping[str, Tensor]) -> float:
    """How far the gradients of a model in float32 are from those in float64."""
    plain.double().zero_grad()
    measure_loss(compute_plain(plain, build_samples(), CPU)).backward()
    exact = list_gradients(plain)
    plain.float()
    return compare_gradients(gradients, exact)


def find_half_difference(plain: nn.Module, scorer: nn.Module, device: torch.device) -> Difference | None:
    """On a GPU with its kernels for bfloat16: outputs packed are about as far from those in float32 as plain ones are. Not run on a GPU
    yet."""
    samples = build_samples()
    factor, allowed = HALF_LIMIT
    with torch.no_grad():
        exact = compute_plain(plain, samples, device)
        for weights in (*plain.parameters(), *scorer.parameters()):
            weights.data = weights.data.bfloat16()
        rounded = compute_plain(plain, samples, device)
        for row, chosen in ROWS.items():
            wanted = torch.cat([exact[i].flatten() for i in chosen])
            error = (torch.cat([rounded[i].flatten() for i in chosen]) - wanted).abs().mean()
            found = torch.cat([output.flatten() for output in compute_packed(scorer, [samples[i] for i in chosen], device)])
            size = float((found - wanted).abs().mean())
            if not size <= max(allowed, factor * float(error)):
                return Difference(row, "outputs in bfloat16", size, CAUSES[row])
    return None


def measure_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference; NaN where one is NaN."""
    return max(float((a - b).detach().abs().max().nan_to_num(float("inf"))) for a, b in zip(found, wanted, strict=True))


def measure_loss(outputs: Sequence[Tensor]) -> Tensor:
    """Something of which every output has a part of its own."""
    flat = torch.cat([output.flatten() for output in outputs])
    return (flat * torch.arange(1, len(flat) + 1, device=flat.device).sin()).sum()


def list_gradients(model: Any) -> dict[str, Tensor]:
    """By name, in float64."""
    return {name: weights.grad.double() for name, weights in model.named_parameters() if weights.grad is not None}


def compare_gradients(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The norm of the difference over the norm of the second."""
    zero = torch.zeros((), dtype=torch.float64)
    apart = sum(float((found.get(name, zero) - wanted.get(name, zero)).square().sum()) for name in found.keys() | wanted.keys())
    whole = sum(float(gradient.square().sum()) for gradient in wanted.values())
    return math.sqrt(apart / whole if whole else apart)


def compare_weights(model: Any, scorer: nn.Module, device: torch.device, sp_group: SequenceParallelGroup | None = None) -> float:
    """The mean difference of log-probs of two short samples, nats, by a causal LM with its own weights and by its scorer, which may be
    under a backend. All ranks call it together."""
    samples = [sample for i, sample in enumerate(build_samples()) if i != LONG]
    width = max(len(sample.tokens) for sample in samples)
    with torch.no_grad():
        found = heads.compute_logprobs(scorer, samples, width, TEMPERATURE, device, sp_group)[0]  # [B, width]
        with plain_attention(model):
            wanted = compute_plain(model, samples, device)
    return float(torch.cat([row[: len(of[0])] - of[0] for row, of in zip(found, wanted, strict=True)]).abs().mean())


@contextmanager
def plain_attention(model: Any) -> Iterator[None]:
    """Inside it a model has the attention of transformers, for samples alone."""
    packed = model.config._attn_implementation
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    packing.restore_soft_cap(model)
    try:
        yield
    finally:
        model.set_attn_implementation(packed)
