"""Loads a checkpoint with transformers, whole or not at all, in training shape.

Transformers' from_pretrained gives random values to tensors that the files lack. Left out here: how 4 bits (quantization.py) and ZeRO 3
(deepspeed_config.py) load, which are settings of the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from rlkit.engines import quantization
from rlkit.engines.own_code import find_failed_file
from rlkit.engines.packing import restore_soft_cap
from rlkit.engines.routers import compute_routers_in_float32
from rlkit.engines.training_shape import set_training_shape
from rlkit.errors import UserError, contain_exit, list_some

KINDS = {"causal language model": "AutoModelForCausalLM", "sequence classifier": "AutoModelForSequenceClassification"}
DAMAGE = "a file of it is damaged or incomplete, download or copy it again"
LANGUAGE_HEAD, SCORE_HEAD = "lm_head.", "score."  # how the names of a head's tensors begin


def load_causal_lm(
    path: str,
    dtype: torch.dtype,
    what: str = "model.path",
    *,
    offline: bool,
    trust_remote_code: bool = False,
    checkpoint_every: int = 0,
    four_bits: bool = False,
) -> Any:
    """A causal LM in training shape: no dropout, no cache, and gradient checkpointing of every `checkpoint_every`-th layer (0: none).
    `what`: its key in messages.

    Raises UserError where `path` does not hold all of such a model.
    """
    settings = quantization.build_settings(dtype) if four_bits else {}
    code: dict[str, Any] = {"offline": offline, "trust_remote_code": trust_remote_code}
    model = load_pretrained("causal language model", path, what, dtype=dtype, **code, **settings)
    if four_bits:
        quantization.restore_config(model)
    model.config.use_cache = False
    compute_routers_in_float32(model)
    return set_training_shape(model, checkpoint_every)


def load_classifier(
    path: str, dtype: torch.dtype, pad: int, *, offline: bool, trust_remote_code: bool = False, checkpoint_every: int = 0
) -> Any:
    """The body of the model at `path` with a new head of one label that returns 0, in training shape; for a reward model.

    Raises UserError where there is no such model.
    """
    heads, code = (LANGUAGE_HEAD, SCORE_HEAD), {"offline": offline, "trust_remote_code": trust_remote_code}
    settings: dict[str, Any] = {"num_labels": 1, "dtype": dtype, "pad_token_id": pad}
    model = load_pretrained("sequence classifier", path, "model.path", unused=heads, **code, **settings)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(f"model.path {path}: {type(model).__name__} has no linear head `score`; take a causal language model such as Qwen3")
    nn.init.zeros_(model.score.weight)
    model.config.pad_token_id = pad
    return set_training_shape(model, checkpoint_every)


def load_config(path: str, what: str, *, offline: bool, trust_remote_code: bool) -> Any:
    """The configuration of a model, as transformers has it. Raises UserError where a value is not valid, or code of its own fails."""
    from transformers import AutoConfig

    try:
        with contain_exit():
            return AutoConfig.from_pretrained(path, local_files_only=offline, trust_remote_code=trust_remote_code)
    except Exception as error:  # each configuration checks its values in its own way
        file = find_failed_file(error)
        fault = f"code of its own, {file}, cannot be run" if file else "its config.json is not valid"
        raise UserError(f"{what} {path}: {fault}: {first_line(error)}") from error


def checkpoint_names(model: Any) -> list[str]:
    """Every tensor of the model's checkpoint, the tied ones too; not the constants of 4-bit weights."""
    return [name for name in model.state_dict() if ".weight." not in name]


def load_pretrained(
    kind: str, path: str, what: str, *, offline: bool, trust_remote_code: bool = False, unused: tuple[str, ...] = (), **settings: Any
) -> Any:
    """A model of one of KINDS with each tensor from its files; `settings` go to from_pretrained, `what` is the model's name in messages.

    A tensor whose name starts with one of `unused` may be missing, unexpected or of another shape. Raises UserError where `path` holds no
    such model, or not all of it. Its generation_config.json is not read: it would change sampling, or be refused when the model is saved.
    """
    import transformers
    from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error

    settings |= {"local_files_only": offline, "trust_remote_code": trust_remote_code, "generation_config": transformers.GenerationConfig()}

    def load(**more: Any) -> Any:
        model, info = getattr(transformers, KINDS[kind]).from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **(settings | more)
        )
        check_tensors(f"{what} {path}", type(model).__name__, info, unused)
        if "device_map" not in more:
            check_tied(f"{what} {path}", model)
        check_finite(f"{what} {path}", model)
        restore_soft_cap(model)
        return model

    def load_names() -> None:  # and shapes, without memory for the weights; with ZeRO 3 transformers compares neither as it loads
        with without_zero3():
            load(device_map="meta", quantization_config=None)

    where = f"{what} {path} cannot be loaded as a {kind}"
    disable_progress_bar()
    verbosity = get_verbosity()
    set_verbosity_error()  # its warnings are about what is refused here, and about a new head
    try:
        refuse_other_files(where, load_names)  # a config.json of another model may ask for more memory than there is
        return load()
    except Exception as error:
        if is_damage(error):
            raise UserError(f"{where}: {first_line(error)}; {DAMAGE}") from error
        raise  # UserError, or an error of the device or of another process
    finally:
        set_verbosity(verbosity)


def refuse_other_files(where: str, load_names: Callable[[], None]) -> None:
    """Raises UserError where a model cannot be built of its files, even without a device and memory."""
    try:
        with contain_exit():
            load_names()
    except UserError:
        raise
    except Exception as error:  # transformers raises what its parts raise, and code that comes with a model what it likes
        if file := find_failed_file(error):
            raise UserError(f"{where}: code of its own, {file}, cannot be run: {first_line(error)}") from error
        advice = DAMAGE if is_damage(error) else "its config.json or its files are not those of such a model"
        raise UserError(f"{where}: {first_line(error)}; {advice}") from error


def is_damage(error: Exception) -> bool:
    return isinstance(error, (SafetensorError, EOFError, UnpicklingError)) or "PytorchStreamReader" in str(error)


def check_tensors(where: str, model: str, info: dict[str, Any], unused: tuple[str, ...] = ()) -> None:
    """Raises UserError where files and model do not have the same tensors, by transformers' loading info, which leaves out tied weights and
    buffers of older releases."""
    missing, unexpected = ({name for name in info[key] if not name.startswith(unused)} for key in ("missing_keys", "unexpected_keys"))
    reshaped = {f"{name} {[*held]} instead of {[*own]}" for name, held, own in info["mismatched_keys"] if not name.startswith(unused)}
    faults = [
        f"{len(names)} {word} ({list_some(sorted(names))})"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if not faults:
        return
    if prefix := find_prefix(unexpected, missing):
        remedy = f"names in the files start with {prefix!r}: save the model itself and not its wrapper, or take this off the names"
    elif any(name.startswith(SCORE_HEAD) for name in missing):
        remedy = "this is no sequence classifier; take one that was trained"
    else:
        remedy = "take a complete checkpoint with the config.json that belongs to it"
    raise UserError(f"{where}: its files do not hold the tensors of {model} that its config.json asks for: {', '.join(faults)}; {remedy}")


def check_tied(where: str, model: Any) -> None:
    """Raises UserError where head and embedding are one tensor by the configuration, and the files hold two different ones."""
    head, embedding = (getattr(get(), "weight", None) for get in (model.get_output_embeddings, model.get_input_embeddings))
    asked = getattr(model, "_tied_weights_keys", None) and getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if asked and head is not None and head is not embedding:
        raise UserError(
            f"{where}: config.json has tie_word_embeddings=true, and the files hold a head that differs from the embedding; "
            "set tie_word_embeddings to false there, or take the head out of the files"
        )


def check_finite(where: str, model: nn.Module) -> None:
    """Raises UserError where a weight is NaN or infinite. One pass over what this process holds: nothing yet under ZeRO 3, or on `meta`."""
    for name, tensor in model.named_parameters():
        if not tensor.is_floating_point() or tensor.is_meta or tensor.sum(dtype=torch.float32).isfinite():
            continue
        if not tensor.isfinite().all():  # the sum of large numbers may be infinite too
            raise UserError(f"{where}: {name} holds NaN or infinity; download or copy it again, or take an earlier checkpoint")


def find_prefix(unexpected: Iterable[str], missing: set[str]) -> str | None:
    """The prefix of an unexpected name that ends with the name of a missing tensor."""
    for name in unexpected:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in missing:
                return ".".join(parts[:i]) + "."
    return None


@contextmanager
def without_zero3() -> Iterator[None]:
    """Inside it transformers loads without ZeRO 3."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def first_line(error: BaseException) -> str:
    """Of its message; the next one too where the first only announces it."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    line = f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first
    return f"{type(error).__name__}: {line}" if isinstance(error, LookupError | ArithmeticError) else line
