"""The tokens between two turns of an episode: what the chat template writes after a turn of the policy, up to where the next one begins.

What was sampled is never encoded again. The template writes one short conversation whose assistant's turn holds a mark; the text behind the
turn's end token is the bridge. Earlier turns are not in that conversation, so a template that rewrites them (thinking that it removes)
changes nothing: the policy keeps reading what it wrote.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlkit.data.renderer import PromptRefused, Renderer, Tools
from rlkit.errors import UserError

Message = Mapping[str, Any]
BREAK = "\uf8f1"  # for private use: a tokenizer gets the text before it and after it one by one
USER = {"role": "user", "content": "u"}
CUT = "\n[cut: {} more characters]"


class TurnBridge:
    """Writes what follows a turn. max_observation_tokens: of one message; what is longer is cut, with a note."""

    def __init__(self, renderer: Renderer, max_observation_tokens: int) -> None:
        self._renderer, self._limit = renderer, max_observation_tokens
        self._mark = f"mark{secrets.token_hex(8)}"  # which no observation can hold
        self._ends = {renderer.decode([token], special=True): token for token in sorted(renderer.eos_ids)}
        self._added = renderer.added_texts
        firsts = re.escape("".join(sorted({text[0] for text in self._added})))  # few characters need a closer look
        whole = "|".join(map(re.escape, self._added))
        self._pattern = re.compile(rf"(?=[{firsts}])(?={whole})." if whole else r"(?!)", re.DOTALL)

    def encode(self, last: int, replies: Sequence[Message], tools: Tools) -> list[int] | None:
        """The tokens after `last`, the end token of a turn, where these messages answer it; None where the template writes no such text.

        The text of an observation stands for itself: what reads like a special token in it is encoded as plain text.
        """
        try:
            end, after = self._write([self._shorten(reply) for reply in replies], tools)
        except PromptRefused:  # of this reply: check() has seen that others can be written
            return None
        return self._tokenize(end, after) if self._ends.get(end) == last else None

    def check(self, tools: Tools) -> None:
        """Raises UserError where the chat template cannot continue an episode, with tools or with answers of a user."""
        role, observed = "tool" if tools else "user", self._mark[::-1]
        replies = [{"role": role, "content": observed, **({"name": _name_tool(tools[0])} if tools else {})}]
        try:
            end, after = self._write(replies, tools)
            earlier = [USER, {"role": "assistant", "content": "a"}]
            again = self._write(replies, tools, earlier)
        except PromptRefused as error:
            raise UserError(f"environment: an episode cannot go on after a message of the role {role}: {error}") from error
        problem = self._find_problem(role, observed, end, after)
        if problem is None and again != (end, after):
            problem = f"writes other text between two turns where there were more before:\n{after!r}\n{again[1]!r}"
        if problem:
            raise UserError(
                f"environment: the chat template of {self._renderer.where} {problem}\ntake a model whose template can, or put another "
                "chat_template.jinja into its folder"
            )

    def _find_problem(self, role: str, observed: str, end: str, after: str) -> str | None:
        if not end:
            ends = ", ".join(map(repr, self._ends)) or "none"
            return f"writes no token that ends a turn (eos_token of the tokenizer, eos_token_id of generation_config.json: {ends})"
        if observed not in after:
            return f"leaves out messages of the role {role}"
        if self._tokenize(end, after) is None:
            return f"ends a turn with {end!r}, which the tokenizer does not encode as one token"
        return None

    def _write(self, replies: Sequence[Message], tools: Tools, earlier: Sequence[Message] = ()) -> tuple[str, str]:
        """The text that ends a turn ("": there is none), and what the template writes after it. Raises PromptRefused."""
        refused: PromptRefused | None = None
        for turn, answers in self._build_turns(replies):
            try:
                text = self._renderer.apply_chat_template([*earlier, USER, turn, *answers], tools, opened=True)
            except PromptRefused as error:
                refused = refused or error
                continue
            if self._mark in text:
                after = text[text.rindex(self._mark) + len(self._mark) :]
                found = [(place, -len(end), end) for end in self._ends if (place := after.find(end)) >= 0]
                if not found:
                    return "", after
                place, _, end = min(found)
                return end, after[place + len(end) :]
        raise refused or PromptRefused(f"the chat template of {self._renderer.where} leaves out what the assistant writes")

    def _build_turns(self, replies: Sequence[Message]) -> Iterator[tuple[Message, list[Message]]]:
        """Turns of the assistant with the mark in them, and their answers: with tool calls, where it is answered by tools, in two forms of
        their arguments, and as text for templates that write no calls."""
        answers: list[Message] = []
        calls = []
        for number, reply in enumerate(replies):
            own = {**reply, "content": self._shield(str(reply["content"]))}
            if reply["role"] == "tool":
                own = {"name": "tool", "tool_call_id": name_call(number), **own}
                calls.append((own["tool_call_id"], own["name"]))
            answers.append(own)
        arguments = {self._mark: self._mark}
        for form in (arguments, json.dumps(arguments)) if calls else ():
            functions = [{"id": call, "type": "function", "function": {"name": name, "arguments": form}} for call, name in calls]
            yield {"role": "assistant", "content": "", "tool_calls": functions}, answers
        yield {"role": "assistant", "content": self._mark}, answers

    def _shield(self, content: str) -> str:
        """The content with a break inside all that would be read as an added token, alone or with what follows."""
        shielded = self._pattern.sub(lambda found: found[0] + BREAK, content.replace(BREAK, ""))
        goes_on = any(content.endswith(text[:size]) for text in self._added for size in range(1, len(text)))
        return shielded + BREAK if goes_on else shielded

    def _shorten(self, reply: Message) -> Message:
        """The message with a content of at most so many tokens, with a note of what was cut."""
        content, renderer = str(reply["content"]), self._renderer
        if len(content.encode(errors="replace")) <= self._limit:  # no token is shorter than a byte
            return reply
        start = content[: self._limit * renderer.longest_token]  # more cannot fit, and a tokenizer may need minutes for all of it
        ids = self._tokenize_pieces(self._shield(start))
        if len(ids) <= self._limit and len(start) == len(content):
            return reply
        room = self._limit - len(renderer.tokenize(CUT.format(len(content))))
        kept = renderer.decode(ids[: max(room, 0)], special=True).rstrip("\ufffd")  # of a character that was cut in two
        return {**reply, "content": kept + CUT.format(len(content) - len(kept))}

    def _tokenize(self, end: str, after: str) -> list[int] | None:
        """The tokens of `after`, read behind the end of the turn: some tokenizers remove white space there."""
        first, *rest = self._tokenize_pieces(end + after)
        return rest if first == self._ends.get(end) else None

    def _tokenize_pieces(self, text: str) -> list[int]:
        return [token for piece in text.split(BREAK) for token in self._renderer.tokenize(piece)]


def _name_tool(schema: Message) -> str:
    return str(schema.get("function", schema).get("name", "tool"))


def name_call(number: int) -> str:
    """The id of a call of a turn: nine letters and digits, which Mistral's templates ask for."""
    return f"call{number:05d}"
