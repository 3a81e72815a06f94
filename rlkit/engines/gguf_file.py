"""Converts a model in GGUF, the format of llama.cpp, to a Hugging Face folder of plain weights: by transformers, exactly or not at all.

Transformers passes over what it does not know without a word: keys of the header (a RoPE scaling, a window), tensors (biases, RoPE factors)
and most of the rules by which text is split before merges. A file with any of these is refused. Left out: SentencePiece vocabularies and
other architectures than ARCHITECTURES, whose conversion was not compared with the model that went into the file.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rlkit.engines.loading import check_finite, check_tensors, first_line
from rlkit.engines.weight_files import check_written, read_header
from rlkit.errors import UserError, list_some

HEAD_SIZE = "attention.key_length"
# The keys that each must have beside REQUIRED_KEYS.
ARCHITECTURES: dict[str, set[str]] = {
    "llama": set(),
    "qwen2": set(),
    "qwen3": {HEAD_SIZE},
}
REQUIRED_KEYS = {  # of an architecture in the header, read by transformers: without one it takes the value of some other model
    *("context_length", "block_count", "embedding_length", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
}
HEAD_KEYS = {"rope.dimension_count", HEAD_SIZE, "attention.value_length"}  # each must be the size of a head
KNOWN_KEYS = REQUIRED_KEYS | HEAD_KEYS | {"rope.freq_base", "vocab_size"}
TENSOR = re.compile(
    r"(token_embd|output|output_norm|blk\.\d+\.(attn_(norm|q|k|v|output|q_norm|k_norm)|ffn_(norm|gate|up|down)))\.(weight|bias)"
)
LINK = "model.gguf"


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file. keys: those of the architecture, without its name; elements: of all tensors together."""

    architecture: str
    keys: dict[str, Any]
    vocabulary: str
    splits: str
    adds_bos: bool
    parts: int
    tensors: tuple[str, ...]
    elements: int


def convert_gguf(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json, tokenizer, chat template and weights in `dtype` to `folder`.

    Raises UserError where the package gguf is not installed, where the file is damaged, or holds what transformers would not read.
    """
    where = f"model.path {file}"
    header = read_gguf_header(file, where)
    check_header(header, where)
    with tempfile.TemporaryDirectory() as place:  # where nothing lies beside the file: transformers would read a tokenizer.json there
        (Path(place) / LINK).symlink_to(file.absolute())
        with redirect_stderr(io.StringIO()):  # progress bars
            model, tokenizer = load_gguf(place, header, dtype, where)
            model.save_pretrained(folder)
            for part in folder.glob("*.safetensors"):
                check_written(part, read_header(part), where)
            tokenizer.save_pretrained(folder)


def read_gguf_header(file: Path, where: str) -> Header:
    """Raises UserError where the file is no whole GGUF file, or the package gguf is not installed."""
    require_gguf(where)
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml.token")}
        architecture = str(values["general.architecture"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:  # numpy's, of bytes that are not there
        raise UserError(
            f"{where} cannot be read as a GGUF file: {first_line(error)}; it is damaged or incomplete, copy it again"
        ) from error
    return Header(
        architecture,
        {name.removeprefix(f"{architecture}."): value for name, value in values.items() if name.startswith(f"{architecture}.")},
        vocabulary=str(values.get("tokenizer.ggml.model")),
        splits=str(values.get("tokenizer.ggml.pre")),
        adds_bos=bool(values.get("tokenizer.ggml.add_bos_token", False)),
        parts=int(values.get("split.count", 1)),
        tensors=tuple(tensor.name for tensor in reader.tensors),
        elements=sum(int(tensor.n_elements) for tensor in reader.tensors),
    )


def require_gguf(where: str) -> None:
    """Raises UserError where the package gguf is not installed."""
    if find_spec("gguf") is None:
        raise UserError(f"{where} is in GGUF, which needs the package gguf: pip install 'rlkit[gguf]'")


def check_header(header: Header, where: str) -> None:
    """Raises UserError for what transformers would not read, or would read as something else."""
    others = "take the model as a folder of safetensors"
    if header.architecture not in ARCHITECTURES:
        raise UserError(f"{where} holds the architecture {header.architecture}; from GGUF {', '.join(ARCHITECTURES)} are read; {others}")
    if header.parts > 1:
        raise UserError(f"{where} is one of {header.parts} files of a model; merge them with llama-gguf-split --merge, or {others}")
    if header.vocabulary != "gpt2" or header.splits not in SPLITS:
        kind = f"a tokenizer of the kind {header.vocabulary}/{header.splits}"
        known = ", ".join(f"gpt2/{splits}" for splits in SPLITS)
        raise UserError(f"{where} has {kind}; from GGUF those of the kinds {known} are read; {others}")
    faults = [
        f"{words} {list_some(sorted(names))}"
        for words, names in (
            ("its header lacks", (REQUIRED_KEYS | ARCHITECTURES[header.architecture]) - header.keys.keys()),
            ("its header has keys that are not read:", header.keys.keys() - KNOWN_KEYS),
            ("it has tensors that are not read:", {name for name in header.tensors if not TENSOR.fullmatch(name)}),
        )
        if names
    ]
    if faults:
        raise UserError(f"{where}: {'; '.join(faults)}; {others}")


def load_gguf(place: str, header: Header, dtype: torch.dtype, where: str) -> tuple[Any, Any]:
    """Model and tokenizer of the file LINK in `place`. Raises UserError where the model does not hold each tensor of the file."""
    import transformers

    models: Any = transformers.AutoModelForCausalLM
    settings: dict[str, Any] = {"gguf_file": LINK, "local_files_only": True}
    head = {"head_dim": header.keys[HEAD_SIZE]} if HEAD_SIZE in ARCHITECTURES[header.architecture] else {}  # transformers does not read it
    checks = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = models.from_pretrained(place, dtype=dtype, **checks, **settings, **head)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, add_bos_token=header.adds_bos, **settings)
    except Exception as error:  # gguf, transformers and tokenizers each raise their own kinds
        raise UserError(f"{where} cannot be read by transformers {transformers.__version__}: {first_line(error)}") from error
    check_model(model, info, header, where)
    check_finite(where, model)
    model.hf_quantizer, model.is_quantized = None, False  # they are plain weights now; transformers would refuse to write them
    del model.config.quantization_config
    vars(model.config).pop("_model_name_or_path", None)  # general.name of the file
    SPLITS[header.splits](tokenizer.backend_tokenizer)
    return model, tokenizer


def check_model(model: Any, info: dict[str, Any], header: Header, where: str) -> None:
    """Raises UserError where a tensor of the file is not in the model as it is in the file. transformers compares no shapes here."""
    kind, config = type(model), model.config
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    reshaped = [(name, tensor.shape, shapes[name]) for name, tensor in model.state_dict().items() if tensor.shape != shapes[name]]
    check_tensors(where, kind.__name__, info | {"mismatched_keys": reshaped})
    elements = sum(parameter.numel() for parameter in model.parameters())
    if elements != header.elements:
        raise UserError(f"{where} holds {header.elements:,} weights, and its {kind.__name__} {elements:,}; some would not be read")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if uneven := {f"{name}={header.keys[name]}" for name in HEAD_KEYS & header.keys.keys() if header.keys[name] != size}:
        raise UserError(f"{where}: {', '.join(sorted(uneven))} in its header, where {kind.__name__} has heads of {size}")


def split_as_gpt2(backend: Any) -> None:
    from tokenizers import pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split_as_smollm(backend: Any) -> None:
    """Each digit is split off first."""
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def split_as_qwen2(backend: Any) -> None:
    """Text is normalised to NFC first, and each digit stands alone."""
    from tokenizers import Regex, normalizers, pre_tokenizers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPLITS: dict[str, Callable[[Any], None]] = {"gpt-2": split_as_gpt2, "smollm": split_as_smollm, "qwen2": split_as_qwen2}
