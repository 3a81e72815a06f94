"""The only owner of tokenizer and chat template: chats and text to token ids, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from rlkit.data.availability import is_hub_reachable, suggest_paths
from rlkit.data.rows import show, truncate
from rlkit.engines.generation_config import find_generation_config, read_end_tokens
from rlkit.engines.own_code import find_failed_file
from rlkit.errors import UserError, contain_exit
from rlkit.runtime.model_path import is_hub_name

TextOrChat = str | Sequence[Mapping[str, Any]]  # raw text, or a chat
Tools = Sequence[Mapping[str, Any]]


class PromptRefused(UserError):
    """A prompt that the chat template or the tokenizer cannot write."""


class TextTooLong(Exception):
    """Text with more bytes than the tokens that it may have."""


class Renderer:
    """Tokenizer of the model at `model_path` (folder or hub name), which messages call `what`.

    Raises UserError where it is missing or cannot be read.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        offline: bool = False,
        trust_remote_code: bool = False,
        what: str = "model.path",
    ) -> None:
        self._path = str(model_path)
        self._where = f"{what} {self._path}"
        offline = offline or (not Path(self._path).expanduser().is_dir() and not is_hub_reachable())
        self._kwargs = dict(chat_template_kwargs or {})
        self._tokenizer = _load_tokenizer(self._path, self._where, offline, trust_remote_code)
        starts = self._tokenizer("").input_ids
        self.vocabulary: int | None = None  # tokens that the model knows, where that is known
        self._bos = [starts[0]] if starts and starts[0] == self._tokenizer.bos_token_id else []
        self.eos_ids = self._find_eos_ids(offline)
        end = self._tokenizer.eos_token_id
        self._end = [int(end)] if end is not None else sorted(self.eos_ids)[:1]
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else min(self.eos_ids, default=0)
        self.reads_tools = _reads_variable(str(self._tokenizer.chat_template or ""), "tools")
        self.response_template = getattr(self._tokenizer, "response_template", None)  # how transformers reads a turn; None: not known

    def encode_prompt(self, prompt: TextOrChat, tools: Tools = (), limit: int | None = None, cut: bool = False) -> list[int]:
        """Token ids of a chat (through the chat template, opened for the assistant's turn) or of raw text (BOS where the model has one).

        A chat that ends with a message of the assistant's is opened within that message. tools: schemas for the chat template. limit:
        raises TextTooLong for text that must have more tokens, before it is tokenized; with `cut` only its end is tokenized. Raises
        PromptRefused where the chat template refuses this chat, UserError where there is none.
        """
        text = prompt if isinstance(prompt, str) else self.apply_chat_template(prompt, tools, opened=True)
        if limit is not None and self._is_longer(text, limit):
            if not cut:
                raise TextTooLong
            text = text[-2 * limit * self.longest_token :]  # twice as much as fits: tokens at its beginning may be others
        ids = self.tokenize(text)
        if not ids:
            raise PromptRefused(f"is a prompt without a token: {text[:100]!r}")
        return self._bos + ids if isinstance(prompt, str) and ids[:1] != self._bos else ids  # a template has written BOS already

    def encode_completion(self, prompt: TextOrChat, reply: Mapping[str, Any], tools: Tools = (), limit: int | None = None) -> list[int]:
        """Token ids that follow encode_prompt(prompt) where the assistant's message `reply` is written, up to and with the end of the turn.

        limit: raises TextTooLong for a reply that must have more tokens, before it is tokenized.

        The prompt's tokens stay what they are when a completion is sampled: where a tokenizer joins the last sign of the prompt and the
        first of the reply, the reply is tokenized alone. Raises UserError where the template writes another prompt before a reply.
        """
        if isinstance(prompt, str):
            before, whole = prompt, prompt + str(reply["content"])
        else:
            before = self.apply_chat_template(prompt, tools, opened=True)
            whole = self.apply_chat_template(_append_reply(prompt, reply), tools, opened=False)
        if not whole.startswith(before):
            at = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
            raise UserError(
                f"the chat template of {self._where} writes another prompt once a reply follows it, so that what is learned "
                f"would not follow what is asked:\nasked:   ...{before[max(at - 40, 0) : at + 60]!r}\n"
                f"replied: ...{whole[max(at - 40, 0) : at + 60]!r}\n"
                "set model.chat_template_kwargs so that both agree (enable_thinking=false for many), or put another chat template there"
            )
        if limit is not None and self._is_longer(whole[len(before) :], limit):
            raise TextTooLong
        head, joint = self.tokenize(before), self.tokenize(whole)
        ids = joint[len(head) :] if joint[: len(head)] == head else self.tokenize(whole[len(before) :])
        last = next((i for i in reversed(range(len(ids))) if ids[i] in self.eos_ids), None)
        if last is None:
            return ids + self._end
        return ids[: last + 1] if not self.decode(ids[last + 1 :], special=True).strip() else ids + self._end

    def check_vocabulary(self, size: int) -> None:
        """Raises UserError where tokens of the tokenizer are not among the `size` that the model knows.

        Special tokens beyond them, as for images that the model cannot see, may stand in the tokenizer; a text that holds one is refused.
        """
        special = set(self._tokenizer.added_tokens_decoder)
        ids = set(self._tokenizer.get_vocab().values())
        ends = self.eos_ids | {self.pad_id, *self._bos}
        for what, found in (("tokens up to the id", ids - special), ("a special token (EOS, BOS or padding) of the id", ends)):
            if found and max(found) >= size:
                raise UserError(
                    f"{self._where}: its tokenizer has {what} {max(found)}, and its config.json (vocab_size) a model that knows "
                    f"{size} tokens, 0 to {size - 1}; take the tokenizer that belongs to the model, or resize its embedding"
                )
        self.vocabulary = size

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids, special tokens left out or, with `special`, shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def split_text(self, ids: Sequence[int]) -> list[str]:
        """The text that each token adds, which joined is decode(ids): a token inside a character adds "", its last one all of it.

        Where a tokenizer cannot tell, the text of each token alone.
        """
        from tokenizers.decoders import DecodeStream

        text, backend = self.decode(ids), getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            stream = DecodeStream(skip_special_tokens=True)
            with suppress(Exception):  # it raises where a decoder of its kind writes earlier text anew
                pieces = [stream.step(backend, token) or "" for token in ids]
                if text.startswith(joined := "".join(pieces)):
                    return [*pieces[:-1], pieces[-1] + text[len(joined) :]] if pieces else []  # the rest: bytes of no whole character
        return [self.decode([token]) for token in ids]

    def parse_response(self, ids: Sequence[int], prefix: Sequence[int], tools: Tools) -> dict[str, Any]:
        """A turn as a message, by the tokenizer's response_template. prefix: the tokens before it. Raises ValueError for broken JSON."""
        parsed: dict[str, Any] = self._tokenizer.parse_response(
            list(ids), prefix=self.decode(prefix, special=True), tools=list(tools) or None
        )
        return parsed

    @cached_property
    def added_texts(self) -> tuple[str, ...]:
        """The texts that the tokenizer reads as one token wherever they stand: special tokens, and marks of thinking and of tool calls."""
        texts = {str(token.content) for token in self._tokenizer.added_tokens_decoder.values()}
        return tuple(sorted(text for text in texts if len(text) > 1 and text.strip()))

    @property
    def tokenizer(self) -> Any:
        """Of transformers, for libraries that read turns with it."""
        return self._tokenizer

    @property
    def where(self) -> str:
        """The key and the path of the model, for messages."""
        return self._where

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer and chat template as a Hugging Face folder has them."""
        self._tokenizer.save_pretrained(str(folder))

    @property
    def has_chat_template(self) -> bool:
        """Whether it can write a chat."""
        return bool(self._tokenizer.chat_template)

    @cached_property
    def longest_token(self) -> int:
        """The bytes of the longest token."""
        return max((len(token.encode()) for token in self._tokenizer.get_vocab()), default=1)

    def _is_longer(self, text: str, tokens: int) -> bool:
        """Whether text has more bytes than so many tokens can have: a tokenizer may need minutes for what is far too long."""
        return len(text) > tokens * self.longest_token

    def tokenize(self, text: str) -> list[int]:
        """Token ids of text as it stands, special tokens in it too. Raises PromptRefused for a token that the model does not know."""
        ids = list(self._tokenizer(text, add_special_tokens=False).input_ids)
        if self.vocabulary is not None and (largest := max(ids, default=0)) >= self.vocabulary:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise PromptRefused(f"holds the token {largest} ({token!r}), and the model of {self._where} knows {self.vocabulary}")
        return ids

    def apply_chat_template(self, chat: Sequence[Mapping[str, Any]], tools: Tools, *, opened: bool) -> str:
        """The chat template's text; opened: ready for the assistant's turn, or within it where the last message is the assistant's."""
        if not self._tokenizer.chat_template:
            raise UserError(
                f"{self._where} has no chat template, and the prompts are messages\n"
                "put a chat_template.jinja into its folder, take an instruct model, or set data.chat=false where rows hold text"
            )
        messages = [dict(m) for m in chat]
        within = opened and bool(messages) and messages[-1].get("role") == "assistant"
        turn = {"add_generation_prompt": opened and not within, **({"continue_final_message": True} if within else {})}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tools=list(tools) or None, tokenize=False, **turn, **self._kwargs))
        except Exception as error:  # templates add what cannot be added, and raise what their authors like
            why = truncate(str(error) or type(error).__name__)
            raise PromptRefused(f"the chat template of {self._where} refuses a prompt: {why}\nprompt: {show(messages, 300)}") from error

    def _find_eos_ids(self, offline: bool) -> frozenset[int]:
        """The tokenizer's EOS and those of generation_config.json: chat models end a turn with another token than a text."""
        end, file = self._tokenizer.eos_token_id, find_generation_config(self._path, offline)
        own = frozenset() if end is None else frozenset({int(end)})
        return own | read_end_tokens(file) if file else own


def _reads_variable(template: str, name: str) -> bool:
    """Whether a chat template uses a variable: text alone in it, as "no tools", is no use."""
    import jinja2.meta

    try:
        return name in jinja2.meta.find_undeclared_variables(jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    except jinja2.TemplateError:  # a tag of transformers' own
        return name in template


def _append_reply(chat: Sequence[Mapping[str, Any]], reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The chat with a reply, which goes on in the last message where that is the assistant's."""
    if not chat or chat[-1].get("role") != "assistant":
        return [*chat, reply]
    return [*chat[:-1], {**chat[-1], **reply, "content": f"{chat[-1]['content']}{reply['content']}"}]


def _load_tokenizer(path: str, where: str, offline: bool, trust_remote_code: bool) -> Any:
    folder = Path(path).expanduser()
    is_folder = folder.is_dir()
    beside = "" if is_folder else suggest_paths(folder, Path.is_dir, "folder")
    if not is_folder and not is_hub_name(path):
        raise UserError(f"{where} does not exist{beside}")
    from transformers import AutoTokenizer

    try:
        settings = {"local_files_only": offline or is_folder, "trust_remote_code": trust_remote_code}  # None would ask on stdin
        with contain_exit():
            return AutoTokenizer.from_pretrained(str(folder) if is_folder else path, **settings)
    except Exception as error:  # transformers, tokenizers and the hub each raise their own kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if file := find_failed_file(error):
            raise UserError(f"{where}: code of its own, {file}, cannot be run: {type(error).__name__}: {reason}") from error
        if is_folder:
            files = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
            raise UserError(f"{where} holds no tokenizer that can be read (in it: {files}): {reason}") from error
        why = "the hub cannot be asked (offline=true, or no network) and it is not in the cache" if offline else reason
        raise UserError(f"{where} is not a folder here{beside}\nas a model of the hub it cannot be loaded: {why}") from error
