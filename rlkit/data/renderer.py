"""The one owner of tokenizer and chat template: chats and text to token ids, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.data.places import hub_reachable, neighbours
from rlkit.errors import UserError


class Renderer:
    """Tokenizer of the model at `model_path` (folder or hub name). Raises UserError where it is missing or cannot be read."""

    def __init__(self, model_path: str | Path, *, chat_template_kwargs: Mapping[str, Any] | None = None, offline: bool = False) -> None:
        self._path = str(model_path)
        offline = offline or (not Path(self._path).expanduser().is_dir() and not hub_reachable())
        self._kwargs = dict(chat_template_kwargs or {})
        self._tokenizer = _tokenizer(self._path, offline)
        starts = self._tokenizer("").input_ids
        self._bos = [starts[0]] if starts and starts[0] == self._tokenizer.bos_token_id else []
        self.eos_ids = self._ends(offline)
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else min(self.eos_ids, default=0)

    def encode_prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a chat (through the chat template, opened for the assistant's turn) or of raw text (BOS where the model has one).

        Raises UserError for a chat where the model has no chat template, or one that refuses this chat.
        """
        if isinstance(prompt, str):
            ids = list(self._tokenizer(prompt, add_special_tokens=False).input_ids)
            return ids if ids[:1] == self._bos else self._bos + ids
        if not self._tokenizer.chat_template:
            raise UserError(
                f"model.path {self._path} has no chat template, and the prompts are messages\n"
                "put a chat_template.jinja into its folder, take an instruct model, or set data.chat=false where rows hold text"
            )
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(m) for m in prompt], tokenize=False, add_generation_prompt=True, **self._kwargs
            )
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template of model.path {self._path} refuses a prompt: {error}\nprompt: {str(prompt)[:300]}"
            ) from error
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)  # the template has written BOS already, where there is one

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids, special tokens left out or, with `special`, shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer and chat template as a Hugging Face folder has them."""
        self._tokenizer.save_pretrained(str(folder))

    def _ends(self, offline: bool) -> frozenset[int]:
        """The tokenizer's EOS and those of generation_config.json: chat models end a turn with another token than a text."""
        from transformers import GenerationConfig

        ends = self._tokenizer.eos_token_id
        ids = set() if ends is None else {int(ends)}
        try:
            more = GenerationConfig.from_pretrained(self._path, local_files_only=offline).eos_token_id
        except OSError:  # a model need not have one
            more = None
        return frozenset(ids.union([more] if isinstance(more, int) else more or []))


def _tokenizer(path: str, offline: bool) -> Any:
    folder = Path(path).expanduser()
    is_folder = folder.is_dir()
    beside = "" if is_folder else neighbours(folder, Path.is_dir, "folder")
    if not is_folder and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise UserError(f"model.path {path} does not exist{beside}")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder) if is_folder else path, local_files_only=offline or is_folder)
    except Exception as error:  # transformers, tokenizers and the hub each raise their own kinds
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if is_folder:
            files = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise UserError(f"model.path {path} holds no tokenizer that can be read (in it: {files}): {told}") from error
        why = "the hub cannot be asked (offline=true, or no network) and it is not in the cache" if offline else told
        raise UserError(f"model.path {path} is no folder here{beside}\nas a model of the hub it cannot be loaded: {why}") from error
