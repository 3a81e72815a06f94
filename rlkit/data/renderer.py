"""The only owner of tokenizer and chat template: chats and text to token ids, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.data.availability import is_hub_reachable, suggest_paths
from rlkit.errors import UserError


class Renderer:
    """Tokenizer of the model at `model_path` (folder or hub name). Raises UserError where it is missing or cannot be read."""

    def __init__(self, model_path: str | Path, *, chat_template_kwargs: Mapping[str, Any] | None = None, offline: bool = False) -> None:
        self._path = str(model_path)
        offline = offline or (not Path(self._path).expanduser().is_dir() and not is_hub_reachable())
        self._kwargs = dict(chat_template_kwargs or {})
        self._tokenizer = _load_tokenizer(self._path, offline)
        starts = self._tokenizer("").input_ids
        self._bos = [starts[0]] if starts and starts[0] == self._tokenizer.bos_token_id else []
        self.eos_ids = self._find_eos_ids(offline)
        end = self._tokenizer.eos_token_id
        self._end = [int(end)] if end is not None else sorted(self.eos_ids)[:1]
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else min(self.eos_ids, default=0)

    def encode_prompt(self, prompt: str | Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a chat (through the chat template, opened for the assistant's turn) or of raw text (BOS where the model has one).

        Raises UserError for a chat where the model has no chat template, or one that refuses this chat.
        """
        if isinstance(prompt, str):
            ids = self._tokenize(prompt)
            return ids if ids[:1] == self._bos else self._bos + ids
        return self._tokenize(self._apply_chat_template(prompt, opened=True))  # the template has written BOS already, where there is one

    def encode_completion(self, prompt: str | Sequence[Mapping[str, Any]], reply: Mapping[str, Any]) -> list[int]:
        """Token ids that follow encode_prompt(prompt) where the assistant's message `reply` is written, up to and with the end of the turn.

        The prompt's tokens stay what they are when a completion is sampled: where a tokenizer joins the last sign of the prompt and the
        first of the reply, the reply is tokenized alone. Raises UserError where the template writes another prompt before a reply.
        """
        if isinstance(prompt, str):
            before, whole = prompt, prompt + str(reply["content"])
        else:
            before, whole = self._apply_chat_template(prompt, opened=True), self._apply_chat_template([*prompt, reply], opened=False)
        if not whole.startswith(before):
            at = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
            raise UserError(
                f"the chat template of model.path {self._path} writes another prompt once a reply follows it, so that what is learned "
                f"would not follow what is asked:\nasked:   ...{before[max(at - 40, 0) : at + 60]!r}\n"
                f"replied: ...{whole[max(at - 40, 0) : at + 60]!r}\n"
                "set model.chat_template_kwargs so that both agree (enable_thinking=false for many), or put another chat template there"
            )
        head, joint = self._tokenize(before), self._tokenize(whole)
        ids = joint[len(head) :] if joint[: len(head)] == head else self._tokenize(whole[len(before) :])
        last = next((i for i in reversed(range(len(ids))) if ids[i] in self.eos_ids), None)
        if last is None:
            return ids + self._end
        return ids[: last + 1] if not self.decode(ids[last + 1 :], special=True).strip() else ids + self._end

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids, special tokens left out or, with `special`, shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer and chat template as a Hugging Face folder has them."""
        self._tokenizer.save_pretrained(str(folder))

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _apply_chat_template(self, chat: Sequence[Mapping[str, Any]], *, opened: bool) -> str:
        """The chat template's text; opened: ready for the assistant's turn."""
        if not self._tokenizer.chat_template:
            raise UserError(
                f"model.path {self._path} has no chat template, and the prompts are messages\n"
                "put a chat_template.jinja into its folder, take an instruct model, or set data.chat=false where rows hold text"
            )
        import jinja2

        messages = [dict(m) for m in chat]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened, **self._kwargs))
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template of model.path {self._path} refuses a prompt: {error}\nprompt: {str(messages)[:300]}"
            ) from error

    def _find_eos_ids(self, offline: bool) -> frozenset[int]:
        """The tokenizer's EOS and those of generation_config.json: chat models end a turn with another token than a text."""
        from transformers import GenerationConfig

        ends = self._tokenizer.eos_token_id
        ids = set() if ends is None else {int(ends)}
        try:
            more = GenerationConfig.from_pretrained(self._path, local_files_only=offline).eos_token_id
        except OSError:  # a model need not have one
            more = None
        return frozenset(ids.union([more] if isinstance(more, int) else more or []))


def _load_tokenizer(path: str, offline: bool) -> Any:
    folder = Path(path).expanduser()
    is_folder = folder.is_dir()
    beside = "" if is_folder else suggest_paths(folder, Path.is_dir, "folder")
    if not is_folder and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise UserError(f"model.path {path} does not exist{beside}")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder) if is_folder else path, local_files_only=offline or is_folder)
    except Exception as error:  # transformers, tokenizers and the hub each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if is_folder:
            files = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise UserError(f"model.path {path} holds no tokenizer that can be read (in it: {files}): {reason}") from error
        why = "the hub cannot be asked (offline=true, or no network) and it is not in the cache" if offline else reason
        raise UserError(f"model.path {path} is not a folder here{beside}\nas a model of the hub it cannot be loaded: {why}") from error
