"""A conversation with a model: `rlkit chat RUN|MODEL [step=N|best] [temperature=T] [max_tokens=N] [system=TEXT] ...`.

transformers generates in this process, without a server. Left out: tools, images, and several answers at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlkit.cli.model_source import find_source, read_model_settings
from rlkit.cli.output import LEAVE, print_aside, read_lines
from rlkit.cli.words import split_model
from rlkit.config.recipe import Recipe
from rlkit.errors import EXIT_DONE, UserError
from rlkit.report.console import escape_control
from rlkit.run import handle_errors
from rlkit.runtime.library_settings import configure_libraries

if TYPE_CHECKING:
    from rlkit.data.renderer import Renderer

USAGE = "rlkit chat RUN|MODEL [step=N|best] [temperature=T] [max_tokens=N] [system=TEXT] [key=value ...]"
CLEAR = "/clear"


class ChatSettings(BaseModel):
    """How answers are sampled. temperature 0 takes the most likely token, as the evaluation of a run does."""

    model_config = ConfigDict(extra="forbid")
    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    max_tokens: int = Field(1024, ge=1)
    seed: int | None = None
    system: str | None = None


def run_chat(arguments: list[str]) -> int:
    """Answers until the input ends. Returns the exit code, as rlkit.run."""
    configure_libraries(offline=False)
    return handle_errors(lambda: open_chat(arguments), arguments)


def open_chat(arguments: list[str]) -> int:
    """As run_chat. Raises UserError."""
    name, words = split_model(arguments, USAGE)
    own = {key: value for key, _, value in (word.partition("=") for word in words) if key in {"step", *ChatSettings.model_fields}}
    source = find_source(name, own.pop("step", None))
    settings = read_chat_settings(own)
    recipe = read_model_settings(source, [word for word in words if word.partition("=")[0] not in {"step", *own}])
    if settings.system is None and source.run:
        settings = settings.model_copy(update={"system": recipe.data.system})
    source.write()
    configure_libraries(offline=recipe.offline)
    chat = load_chat(recipe, settings)
    step = "" if source.step is None else f", after step {source.step}"
    how = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    print_aside(f"{source.path}{step}; {how}; {CLEAR} begins anew, Ctrl-C stops an answer, Ctrl-D or {LEAVE[0]} leaves")
    if not chat.renderer.has_chat_template:
        print_aside("this model has no chat template: what you write is continued as it stands, and nothing before it is remembered")
    return converse(chat)


def read_chat_settings(words: dict[str, str]) -> ChatSettings:
    """Raises UserError for a value that is not valid."""
    try:
        return ChatSettings.model_validate(words)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}={first['input']} is not valid: it {first['msg'].removeprefix('Input ')}") from error


@dataclass
class Chat:
    """A model and the conversation so far."""

    model: Any
    renderer: Renderer
    settings: ChatSettings
    context: int | None  # tokens that the model can hold, where that is known
    messages: list[dict[str, str]] = field(default_factory=list)

    def clear(self) -> None:
        """Begins a new conversation."""
        self.messages = [] if self.settings.system is None else [{"role": "system", "content": self.settings.system}]

    def answer(self, text: str) -> None:
        """Prints the answer to a message while it is written. Raises UserError where the conversation does not fit into the model."""
        chats = self.renderer.has_chat_template
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self.renderer.encode_prompt(asked if chats else text)
        left = self.settings.max_tokens if self.context is None else min(self.settings.max_tokens, self.context - len(prompt))
        if left < 1:
            raise UserError(f"the conversation has {len(prompt)} tokens, and this model holds {self.context}; {CLEAR} begins anew")
        reply = generate(self, prompt, left)
        if chats:
            self.messages = [*asked, {"role": "assistant", "content": reply}]


def load_chat(recipe: Recipe, settings: ChatSettings) -> Chat:
    """Loads the model at model.path. Raises UserError."""
    from transformers import set_seed

    from rlkit.assembly.base_model import build_renderer, check_models, find_dtype, load_model_config, locate_model
    from rlkit.engines.heads import compute_head_in_float32
    from rlkit.engines.loading import load_causal_lm
    from rlkit.runtime.gpu_setup import choose_device

    check_models(recipe)
    device = choose_device(0)
    dtype = find_dtype(recipe, device)
    path = locate_model(recipe, dtype, main=False).path
    renderer = build_renderer(recipe, path)
    model = load_causal_lm(path, dtype, offline=recipe.offline, trust_remote_code=recipe.model.trust_remote_code)
    if recipe.model.float32_head:
        compute_head_in_float32(model)
    if settings.seed is not None:
        set_seed(settings.seed)
    context = getattr(load_model_config(recipe, path).get_text_config(), "max_position_embeddings", None)
    chat = Chat(model.eval().requires_grad_(False).to(device), renderer, settings, context)
    chat.clear()
    return chat


def generate(chat: Chat, prompt: list[int], limit: int) -> str:
    """Prints the completion of a prompt as it is sampled, and returns it: what there was of it, where Ctrl-C stopped it."""
    import torch
    from transformers import GenerationConfig, TextStreamer

    class Printer(TextStreamer):
        """Prints what the model writes, with its control characters made visible."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            written.append(text)
            sys.stdout.write(escape_control(text, sys.stdout.encoding or "utf-8") + ("\n" if stream_end else ""))
            sys.stdout.flush()

    written: list[str] = []
    settings, ids = chat.settings, torch.tensor([prompt], device=chat.model.device)
    drawn = {"do_sample": True, **settings.model_dump(include={"temperature", "top_p", "top_k", "min_p"})}
    config = GenerationConfig(
        max_new_tokens=limit,
        eos_token_id=sorted(chat.renderer.eos_ids),
        pad_token_id=chat.renderer.pad_id,
        use_cache=True,
        **(drawn if settings.temperature else {"do_sample": False}),
    )
    tokenizer: Any = chat.renderer  # a streamer only decodes
    printer: Any = Printer(tokenizer, skip_prompt=True)
    try:
        with torch.no_grad():
            chat.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=printer)
    except KeyboardInterrupt:
        printer.end()
    return "".join(written)


def converse(chat: Chat) -> int:
    """Answers each line of the input. Returns the exit code."""
    try:
        for line in read_lines():
            text = line.strip()
            if text in LEAVE:
                break
            if text == CLEAR:
                chat.clear()
            elif text:
                try:
                    chat.answer(text)
                except UserError as error:
                    print_aside(str(error))
    except BrokenPipeError:  # the reader is gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the last flush of Python fails
    return EXIT_DONE
