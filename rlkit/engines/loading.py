"""Loading a checkpoint with transformers, whole or not at all: its from_pretrained gives random values to tensors that the files lack.

Left out: 4 bits (quantization.py) and ZeRO 3 (deepspeed_config.py), which are settings of the same call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from rlkit.errors import UserError

KINDS = {"causal language model": "AutoModelForCausalLM", "sequence classifier": "AutoModelForSequenceClassification"}
DAMAGED = (SafetensorError, EOFError, UnpicklingError)
LANGUAGE_HEAD, SCORE_HEAD = "lm_head.", "score."  # how the names of a head's tensors begin
NAMED = 3  # tensors in a message


def load_pretrained(kind: str, path: str, what: str, *, offline: bool, unused: tuple[str, ...] = (), **settings: Any) -> Any:
    """A model of one of KINDS, each tensor from its files; `settings` are from_pretrained's, and messages call the model `what`.

    A tensor whose name starts with one of `unused` may be missing, left over or of another shape. Raises UserError where `path` holds no
    such model, or not all of it.
    """
    import transformers
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity, set_verbosity_error

    def load(**more: Any) -> Any:
        model, info = getattr(transformers, KINDS[kind]).from_pretrained(
            path, local_files_only=offline, output_loading_info=True, ignore_mismatched_sizes=True, **settings, **more
        )
        check_loaded(f"{what} {path}", type(model).__name__, info, unused)
        return model

    disable_progress_bar()
    verbosity = get_verbosity()
    set_verbosity_error()  # it warns of what is refused here, and of a new head
    try:
        if is_deepspeed_zero3_enabled():  # there transformers does not look for left-over tensors, and only rank 0 for shapes
            with without_zero3():
                load(device_map="meta")  # names and shapes alone
        return load()
    except (OSError, ValueError, RuntimeError, *DAMAGED) as error:
        damaged = isinstance(error, DAMAGED) or "PytorchStreamReader" in str(error)
        if isinstance(error, RuntimeError) and not damaged:
            raise  # of the device or another process
        remedy = "; a file of it is damaged or incomplete, download or copy it again" if damaged else ""
        raise UserError(f"{what} {path} cannot be loaded as a {kind}: {first_line(error)}{remedy}") from error
    finally:
        set_verbosity(verbosity)


def check_loaded(where: str, model: str, info: dict[str, Any], unused: tuple[str, ...] = ()) -> None:
    """Raises UserError where files and model do not have the same tensors, by transformers' loading info; it does not count tied weights
    and buffers of older releases."""
    missing, unexpected = ({name for name in info[key] if not name.startswith(unused)} for key in ("missing_keys", "unexpected_keys"))
    reshaped = {f"{name} {[*held]} instead of {[*own]}" for name, held, own in info["mismatched_keys"] if not name.startswith(unused)}
    faults = [
        f"{len(names)} {word} ({', '.join(sorted(names)[:NAMED])}{', ...' if len(names) > NAMED else ''})"
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


def find_prefix(unexpected: Iterable[str], missing: set[str]) -> str | None:
    """What stands before the name of a missing tensor in the name of an unexpected one."""
    for name in unexpected:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in missing:
                return ".".join(parts[:i]) + "."
    return None


@contextmanager
def without_zero3() -> Iterator[None]:
    """Inside it transformers loads as if deepspeed_config.in_parts were not there."""
    from transformers.integrations import deepspeed

    held = deepspeed._hf_deepspeed_config_weak_ref()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(held)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
