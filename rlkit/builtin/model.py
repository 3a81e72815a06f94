"""The built-in model: a Qwen3 of under a million parameters, built on first use and kept in a cache.

It is warm-started on demonstrations of the built-in task of sums (loss on completion tokens, with the end of turn). After that it can add,
but it often forgets the carry. Nothing is downloaded. The caller's random state, threads and devices stay as they were.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rlkit.builtin import sums
from rlkit.runtime.cache import ensure_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

Progress = Callable[[int, int, float], None]

PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT = 1024  # tokens; the task needs under 70, the rest is room for prompts of the user's own

HIDDEN, INTERMEDIATE, LAYERS, HEAD = 192, 512, 2, 32  # wide and shallow: as many weights as 128 x 4, quicker to run
PARAMETERS = 935_552
VOCABULARY = 259  # bytes, and three special tokens
MODEL_SEED = 20_472
STEPS, BATCH = 400, 32
PEAK_LR, WARMUP, BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = 2.5e-3, 30, (0.9, 0.95), 0.01, 1.0
REPORT_EVERY = 10
IGNORED = -1  # the label of a token that does not count


def ensure_model(cache: Path, on_progress: Progress | None = None) -> Path:
    """The folder of the built-in model under `cache`; builds the model if it is not there (about a minute on two cores).

    `on_progress(done, total, loss)` is called every few steps. Of several processes one builds it and the others wait.
    """
    return ensure_folder(cache / f"builtin-{_hash_sources()}", lambda part: _build_model_folder(part, on_progress))


def ensure_tokenizer(cache: Path) -> Path:
    """The folder of its tokenizer alone, made in a moment."""
    return ensure_folder(cache / f"builtin-tokenizer-{_hash_sources()}", _build_tokenizer_folder)


def _hash_sources() -> str:
    """A hash of what the weights depend on, without the processor: other sources or libraries give another model."""
    digest = hashlib.sha256()
    for source in (Path(__file__), Path(sums.__file__)):
        digest.update(source.read_bytes())
    for library in ("torch", "transformers", "tokenizers"):
        digest.update(f"{library} {version(library)}\n".encode())
    return digest.hexdigest()[:16]


def _build_tokenizer_folder(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)


def _build_model_folder(folder: Path, on_progress: Progress | None) -> None:
    tokenizer = build_tokenizer()
    model = warm_start(tokenizer, on_progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte (ids 0 to 255), three special tokens, no merges, and a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=symbols, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, TURN, END)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def warm_start(tokenizer: PreTrainedTokenizerFast, on_progress: Progress | None = None) -> Qwen3ForCausalLM:
    """The model after supervised training on demonstrations, in fp32 on the CPU."""
    import torch

    from rlkit.algorithms.sft import SFT
    from rlkit.ops.logprobs import build_predict_index, logprobs_from_logits
    from rlkit.ops.masking import uniform_weights, weighted_sum
    from rlkit.types import OfflineMicroBatch

    sft, rng = SFT(name="sft"), random.Random(MODEL_SEED)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        torch.default_generator.manual_seed(MODEL_SEED)  # torch.manual_seed would also seed the GPUs' generators
        model = _init_model(tokenizer).float().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _compute_lr_factor)
        for done, (tokens, labels) in enumerate(_iterate_batches(tokenizer, rng), start=1):
            hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state  # [B, T, H]
            counted = labels != IGNORED  # [B, T], the completions
            firsts = counted.int().argmax(1) + torch.arange(len(labels)) * labels.shape[1]  # [B], flat
            predict_index = build_predict_index(firsts.tolist(), counted.sum(1).tolist())
            logits = model.lm_head(hidden.flatten(0, 1)[predict_index])  # [completion tokens, V]
            logprobs, _ = logprobs_from_logits(logits, labels[counted], 1.0)  # [completion tokens]
            rows = OfflineMicroBatch(torch.ones(1, len(logprobs), dtype=torch.bool), logprobs.unsqueeze(0))
            losses, _ = sft.compute_losses(rows)  # [1, completion tokens]
            loss = weighted_sum(losses, uniform_weights(losses, len(logprobs)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if on_progress and (done % REPORT_EVERY == 0 or done == STEPS):
                on_progress(done, STEPS, loss.item())
    return model.eval()  # type: ignore[no-any-return]


def _compute_lr_factor(step: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def _init_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // HEAD,
        num_key_value_heads=HIDDEN // HEAD,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    return model


def _iterate_batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """STEPS pairs of tokens [B, T] and labels [B, T]; labels are IGNORED on the prompt and on the padding at the right."""
    import torch

    rows = sums.build_rows("train")
    prompts = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False) for row in rows]
    for _ in range(STEPS):
        drawn = rng.choices(range(len(rows)), k=BATCH)
        pairs = [(prompts[i], tokenizer.encode(sums.write_demonstration(rows[i], rng) + END)) for i in drawn]
        length = max(len(prompt) + len(completion) for prompt, completion in pairs)
        tokens = torch.full((BATCH, length), tokenizer.pad_token_id)
        labels = torch.full((BATCH, length), IGNORED)
        for row, (prompt, completion) in enumerate(pairs):
            whole = torch.tensor(prompt + completion)
            tokens[row, : len(whole)] = whole
            labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
        yield tokens, labels
