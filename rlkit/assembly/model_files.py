"""What the files of a model show before it is loaded: at the start of every run, and for `dry_run=true`.

Only JSON is read, of safetensors the header and a few bytes of each matrix. transformers, whose import takes seconds, is not imported: the
models that it has stand in a table of its source. Left out: whether the tensors are those of the model, which engines/loading.py compares.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlkit.config.suggestions import suggest
from rlkit.engines.weight_files import check_written, read_header
from rlkit.errors import UserError, list_some
from rlkit.runtime.model_path import GGUF

CAUSAL_LM, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
TABLES = {CAUSAL_LM: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", CLASSIFIER: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"}
ALL_MODELS = "MODEL_MAPPING_NAMES"
KIND = {CAUSAL_LM: "causal language model", CLASSIFIER: "sequence classifier"}
ENCODERS = {  # types among the causal ones that see the tokens after a token too, unless their config.json has is_decoder
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta"),
    *("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod", "xlm", "xlnet"),
}
TOKENIZERS = ("tokenizer*", "vocab*", "merges.txt", "*.tiktoken", "tekken.json", "spiece.model", "sentencepiece*")  # one of them is needed
WEIGHTS = (("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"))  # whole, or shards
TRUST_KEY = "model.trust_remote_code"
ADAPTERS = "adapter_config.json"
QUANTISED = ("I8", "U8", "F8_", "F4", "F6_")  # how the names of dtypes begin that are weights only together with scales


def check_model_folder(folder: Path, where: str, *, auto_class: str, trust_remote_code: bool, key: str = TRUST_KEY) -> dict[str, Any]:
    """The content of config.json. `where`: the model's name in messages; `auto_class`: one of TABLES; `key`: of trust_remote_code.

    Raises UserError where a file is missing or damaged, and where the model cannot be trained.
    """
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}); give this user access to it") from error
    config = read_config(folder, where)
    check_config(config, where, auto_class=auto_class, trust_remote_code=trust_remote_code, key=key)
    if (folder / ADAPTERS).is_file():  # which transformers would put into the model without a word
        raise UserError(f"{where} holds a whole model and LoRA adapters ({ADAPTERS}); take one of the two out of it")
    check_weight_files(folder, where)
    if trust_remote_code:
        check_own_code(folder, where)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise UserError(f"{where} has no tokenizer ({describe_content(folder)}); copy tokenizer.json and tokenizer_config.json there too")
    return config


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """Raises UserError where the folder has no config.json, or one that is damaged."""
    file = folder / "config.json"
    if not file.is_file():
        remedy = "download or copy the whole model"
        if packed := sorted(folder.glob(f"*{GGUF}")):
            remedy = f"a file in GGUF is named by model.path={packed[0]}"
        elif (folder / ADAPTERS).is_file():
            remedy = "it holds LoRA adapters: merge them into their base model, and name that folder"
        raise UserError(f"{where} has no config.json ({describe_content(folder)}); {remedy}")
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ValueError("it names no model_type")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not the configuration of a model: {error}; download the model again, or set model.path") from error
    return config


def find_own_code(folder: Path, auto_class: str) -> str | None:
    """The class of its own that a model's files name for it, its configuration or its tokenizer, as `file.Class`; None for none."""
    written = read_auto_map(folder)
    return next((written[key] for key in (auto_class, "AutoConfig", "AutoTokenizer") if key in written), None)


def read_auto_map(folder: Path) -> dict[str, str]:
    """By class of transformers the class that the files name in its place; of a slow and a fast tokenizer the first that there is."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "config.json"):
        try:
            written = dict(json.loads((folder / name).read_bytes()).get("auto_map") or {})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # refused elsewhere
            continue
        first = {key: next(filter(None, code), None) if isinstance(code, list) else code for key, code in written.items()}
        found |= {key: str(code) for key, code in first.items() if code}
    return found


def check_own_code(folder: Path, where: str) -> None:
    """Raises UserError where a file with code that comes with a model is no Python."""
    for name in sorted({f"{code.partition('.')[0]}.py" for code in read_auto_map(folder).values()}):
        try:
            ast.parse((folder / name).read_bytes())
        except FileNotFoundError:  # in another repository
            continue
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{where}: code of its own, {name}, cannot be run: {error}; download the model again") from error


def describe_content(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"in it: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "it is empty"


def check_config(config: Mapping[str, Any], where: str, *, auto_class: str, trust_remote_code: bool, key: str = TRUST_KEY) -> None:
    """Raises UserError for a model that transformers does not know, that is not causal, or whose weights are quantised."""
    kind, known, written = str(config["model_type"]), list_model_types(TABLES[auto_class]), config.get("auto_map") or {}
    code = written.get(auto_class) if isinstance(written, dict) else None
    article = "causal language model" if auto_class == CAUSAL_LM else "sequence classifier"
    library = f"transformers {version('transformers')}"
    if config.get("is_encoder_decoder") or (kind in ENCODERS and not config.get("is_decoder") and auto_class == CAUSAL_LM):
        side = "an encoder and a decoder" if config.get("is_encoder_decoder") else "an encoder"
        raise UserError(f"{where} (model_type {kind}) is {side} and no causal language model; take one such as Qwen3 or Llama")
    if known and kind not in known and not (code and trust_remote_code):
        if code:
            raise UserError(
                f"{where} (model_type {kind}) is defined by code of its own ({code}), which would run here; read it, "
                f"and allow it with {key}=true"
            )
        if kind in list_model_types(ALL_MODELS):
            raise UserError(f"{where} (model_type {kind}) is no {article} of {library}; take one such as Qwen3 or Llama")
        raise UserError(f"{where}: {library} knows no model_type {kind!r}{suggest(kind, known, '')}; update it, or take another model")
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        settings = part.get("quantization_config") or part.get("compression_config")
        if settings:
            method = (settings.get("quant_method") if isinstance(settings, dict) else None) or "a method that it does not name"
            raise UserError(
                f"{where} holds weights quantised by {method}, which cannot be trained; take the model that they were made of "
                "(model.load_in_4bit=true puts it in 4 bits under adapters)"
            )


@cache
def list_model_types(table: str) -> frozenset[str]:
    """The model types in a table of transformers' modeling_auto.py; empty where the table is not there."""
    spec = find_spec("transformers")
    file = Path(str(spec.origin)).parent / "models" / "auto" / "modeling_auto.py" if spec else Path()
    text = re.search(rf"^{table} = OrderedDict\((.*?)^\)", file.read_text() if file.is_file() else "", re.MULTILINE | re.DOTALL)
    return frozenset(dict(ast.literal_eval(text[1].strip()))) if text else frozenset()


def list_weight_files(folder: Path) -> list[Path]:
    """The files that weights are read from, with the index of shards; empty where there are none. The shards of a damaged index are left
    out."""
    for whole, index in WEIGHTS:
        if (folder / whole).exists():
            return [folder / whole]
        if (folder / index).exists():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                names = {str(name) for name in json.loads((folder / index).read_bytes())["weight_map"].values()}
                return [folder / index, *(folder / name for name in sorted(names))]
            return [folder / index]
    return []


def check_weight_files(folder: Path, where: str) -> None:
    """Raises UserError where there are no weights, a file is cut off, or an index names files or tensors that are not there."""
    files = list_weight_files(folder)
    if not files:
        raise UserError(f"{where} has no weights ({describe_content(folder)}); download or copy {WEIGHTS[0][0]} or its shards")
    if files[0].suffix == ".json":
        check_shards(folder, files[0].name, where)
    else:
        read_tensor_names(files[0], where)


def check_shards(folder: Path, index: str, where: str) -> None:
    """Raises UserError where files or tensors that an index names are not there."""
    try:
        shards = {str(tensor): str(name) for tensor, name in json.loads((folder / index).read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: {index} is damaged ({type(error).__name__}: {error}); download or copy it again") from error
    files = sorted(set(shards.values()))
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise UserError(f"{where}: {len(absent)} of {len(files)} files that {index} names are missing ({list_some(absent)}); copy them too")
    names = {name: read_tensor_names(folder / name, where) for name in files}
    held = [tensor for part in names.values() for tensor in part or ()]
    if None not in names.values() and (lost := sorted(shards.keys() - set(held))):
        raise UserError(f"{where}: {index} names {len(lost)} tensors that no file holds ({list_some(lost)}); download or copy all again")
    if twice := sorted({tensor for tensor, count in Counter(held).items() if count > 1}):
        raise UserError(f"{where}: {len(twice)} tensors are in several files ({list_some(twice)}); download or copy all again")


def read_tensor_names(file: Path, where: str) -> set[str] | None:
    """Of a file in safetensors, by its header; None for another file. Raises UserError where the file is not whole, a part of it was never
    written, or its tensors are no plain numbers."""
    if file.suffix != ".safetensors":
        return None
    try:
        header = read_header(file)
    except ValueError as error:
        raise UserError(f"{where}: {file.name} is damaged or incomplete ({error}); download or copy it again") from error
    if odd := sorted(name for name, entry in header.items() if entry.dtype.startswith(QUANTISED)):
        raise UserError(
            f"{where}: {file.name} holds {len(odd)} quantised tensors ({list_some(odd)}: {header[odd[0]].dtype}), which cannot be "
            "trained; take the model that they were made of"
        )
    check_written(file, header, f"{where}: {file.name}")
    return set(header)
