"""A small random twin of a model: the same configuration with few narrow layers, and every threshold of lengths so low that short samples
cross it. What it computes is the model's own code with the model's own settings; only sizes are others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

THRESHOLD = 8  # tokens
CONTEXT = 64  # positions
VOCABULARY, FIRST_WORD, FIRST_SPECIAL = 256, 16, 200  # ids from FIRST_WORD to FIRST_SPECIAL are no special tokens
MOST_LAYERS = 4  # if two layers do not show every kind of layer
LARGEST = 60_000_000  # weights of a twin that keeps its sizes

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "num_decoder_layers")
OWN, SHARED = "per_layer_config", "num_kv_shared_layers"  # settings of single layers, and how many have the keys of others
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
WIDTHS = ("hidden_size", "n_embd", "d_model", "embed_dim", "dim", "word_embed_proj_dim")
VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input")
CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx", "max_seq_len")
LIMITS = {  # largest value of other sizes, by a pattern of their names
    r".*intermediate_size|n_inner|.*ffn_dim|ffn_hidden_size|d_ff": 64,
    r"(q|kv|o)_lora_rank": 32,
    r"num_experts|n_routed_experts|num_local_experts|moe_num_experts": 16,
    r"num_experts_per_tok|moe_topk|moe_k|num_experts_per_token|top_k_experts": 4,
    r"n_group": 4,
    r"topk_group": 2,
    r"first_k_dense_replace|num_dense_layers": 1,
    r"hidden_size_per_layer_input": 64,
}
THRESHOLDS = r".*window(_size)?|original_max_position_embeddings|.*chunk_size|floor_scale|index_topk|attention_window|local_attention"
SPECIAL = r".*token_(id|index)"


def build_twin_config(config: Any, narrow: bool = True) -> Any:
    """The configuration of the twin of a model with this configuration; without `narrow` its layers are as wide as the model's."""
    return type(config).from_dict(shrink(config.to_dict(), narrow))


def build_twin(config: Any, auto: Any, longest: int, own_code: bool = False) -> Any:
    """A random model in float32 on the CPU in evaluation mode; `auto`: AutoModelForCausalLM or another, `longest`: tokens of its samples,
    `own_code`: its class is the one that comes with its files.

    Where narrow layers do not fit each other in a family, its layers are as wide as the model's. Raises the errors of transformers where
    neither can be built and run, and ValueError where the twin is too large.
    """
    try:
        return build_and_run(build_twin_config(config), auto, longest, own_code)
    except Exception as error:  # noqa: BLE001 of any kind: each family has its own ways to refuse sizes
        try:
            return build_and_run(build_twin_config(config, narrow=False), auto, longest, own_code)
        except Exception:  # noqa: BLE001 the first error is the one that helps
            raise error from None


def build_and_run(config: Any, auto: Any, longest: int, own_code: bool) -> Any:
    code = {"trust_remote_code": own_code}  # None would ask on stdin
    with torch.device("meta"):
        size = sum(weights.numel() for weights in auto.from_config(config, **code).parameters())
    if size > LARGEST:
        raise ValueError(f"its twin of two layers has {size:,} weights")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        torch.default_generator.manual_seed(0)
        model = randomize(auto.from_config(config, dtype=torch.float32, attn_implementation="eager", **code))
        model(input_ids=torch.arange(longest).unsqueeze(0) + FIRST_WORD, use_cache=False)
    return model


def randomize(model: Any) -> Any:
    """In evaluation mode, with weights that give attention and routers something to choose from; biases and norms are not what they begin
    as, for zeros and ones hide what is left out."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=weights.shape[-1] ** -0.5)
            else:
                weights.add_(torch.randn_like(weights), alpha=0.1)
    return model.eval()


def shrink(settings: Mapping[str, Any], narrow: bool) -> dict[str, Any]:
    """Settings of a configuration, and of those inside it."""
    small: dict[str, Any] = {name: shrink(value, narrow) if is_settings(value) else value for name, value in settings.items()}
    shrink_layers(small)
    if narrow:
        narrow_layers(small)
    specials = FIRST_SPECIAL
    for name, value in list(small.items()):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and re.fullmatch(THRESHOLDS, name) and value > THRESHOLD:
            small[name] = THRESHOLD
        elif whole and name in CONTEXTS:
            small[name] = min(value, THRESHOLD if is_dynamic(small) else CONTEXT)
        elif name in VOCABULARIES and whole:
            small[name] = VOCABULARY
        elif re.fullmatch(SPECIAL, name) and value is not None and value != -1:
            small[name] = 0 if name == "pad_token_id" else specials
            specials += name != "pad_token_id"
        elif narrow and (limit := find_limit(name)):
            small[name] = min(value, limit) if whole else [min(size, limit) for size in value] if isinstance(value, list) else value
    return small


def is_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def find_limit(name: str) -> int | None:
    return next((limit for pattern, limit in LIMITS.items() if re.fullmatch(pattern, name)), None)


def is_dynamic(settings: Mapping[str, Any]) -> bool:
    """Whether frequencies change beyond the context."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    return "dynamic" in str(rope)


def shrink_layers(small: dict[str, Any]) -> None:
    """Two layers, or as many as show every kind of layer, in their order; half of them share keys where the model's do."""
    found = [name for name in LAYERS if isinstance(small.get(name), int) and small[name] > 2]
    if not found:
        return
    count = small[found[0]]
    lists = [name for name, value in small.items() if isinstance(value, list | tuple) and len(value) == count]
    own = {int(i): settings for i, settings in (small.get(OWN) or {}).items()}
    chosen = choose_layers([(*(repr(small[name][i]) for name in lists), repr(own.get(i))) for i in range(count)])
    if small.get(SHARED):
        chosen = chosen if len(chosen) > 2 else [*chosen, *chosen]
        small[SHARED] = len(chosen) // 2
    for name in lists:
        small[name] = [small[name][i] for i in chosen]
    if own:
        small[OWN] = {str(new): own[i] for new, i in enumerate(chosen) if i in own}
    for name in found:
        small[name] = len(chosen)


def choose_layers(kinds: list[tuple[str, ...]]) -> list[int]:
    """The first layer of each kind, and a second layer where there is but one."""
    first: dict[tuple[str, ...], int] = {}
    for i, kind in enumerate(kinds):
        first.setdefault(kind, i)
    chosen = sorted(first.values())[:MOST_LAYERS]
    return chosen if len(chosen) > 1 else [0, 1]


def narrow_layers(small: dict[str, Any]) -> None:
    """Few heads as wide as the model's; keys have fewer than queries where the model's have."""
    width, heads = find_name(small, WIDTHS), find_name(small, HEADS)
    if width is None or heads is None:
        return
    key_heads = find_name(small, KEY_HEADS)
    keys = small[key_heads] if key_heads else small[heads]
    head = small.get("head_dim") or max(1, small[width] // small[heads])
    fewer = min(2, keys)
    few = fewer if keys == small[heads] else 2 * fewer
    old = small[width]
    for name in HEADS:
        if isinstance(small.get(name), int):
            small[name] = few
    if key_heads:
        small[key_heads] = fewer
    for name in WIDTHS:
        if small.get(name) == old:
            small[name] = few * head


def find_name(settings: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((name for name in names if isinstance(settings.get(name), int)), None)
