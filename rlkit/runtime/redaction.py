"""Credentials of a recipe or a command line, which are written nowhere and shown in no message.

A value is a credential where its name says so (the name of its key, of a key around it, or of the environment variable that it comes
from), or where it looks like one of a known service. rlkit/docs/credentials.md has the rules. Left out: rows of data and completions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.errors import UserError

REDACTED = "***"
SHORTEST = 6  # characters of a credential that is looked for in messages; a shorter one is part of many words
_WORDS = {"secret", "password", "passwd", "pwd", "passphrase", "credential", "credentials", "auth", "authorization", "apikey", "bearer"}
_LAST_WORDS = _WORDS | {"token", "key"}  # not tokens_per_micro_batch, key_index or tokenizer
_SETTINGS = {"mode", "path", "file", "method", "scheme", "type"}  # auth_mode and token_path say how and where, not what
_API_KEY = re.compile(r"(api|access|private|secret|auth)[^a-z]*key$")
_TOKENS_OF_TEXT = {"bos", "eos", "pad", "unk", "sep", "cls", "mask", "start", "end", "stop", "think", "image", "special"}  # before "token"
_VALUES = re.compile(
    r"\b(?:(?:hf|gh[opsu]|github_pat)_[A-Za-z0-9]{16,}\w*|sk-[\w-]{16,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|(?i:bearer|basic)\s+(?=\S*[\d._=-])[\w+/=.~-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PAIR = re.compile(r"""(?P<key>[\w.+-]+)(?P<between>["']?\s*[:=](?!//)\s*)(?P<value>"[^"]*"|'[^']*'|[^,{}\[\]&]+)""")
_PAIR_IN_MESSAGE = re.compile(r"""(?P<key>[\w.+-]+)(?P<between>=|["']\s*:\s*)(?P<value>"[^"]*"|'[^']*'|[^\s,;{}\[\]&]+)""")
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)[^}]*\}")
_shown: dict[str, str] = {}  # each credential of this process's recipes -> what is shown in its place


def redact_config(value: Any, written: Any, name: str = "", *, secret: bool = False) -> Any:
    """A configuration as it may be written; what is left out of it is left out of messages from now on.

    written: the same before interpolations were resolved: a credential that comes from one is written as it, so that `${oc.env:KEY}` stays.
    """
    secret = secret or is_secret_name(name)
    if isinstance(value, Mapping):
        inner = written if isinstance(written, Mapping) else {}
        return {key: redact_config(part, inner.get(key, part), str(key), secret=secret) for key, part in value.items()}
    if isinstance(value, list):
        outer = written if isinstance(written, list) else value
        return [redact_config(part, before, name, secret=secret) for part, before in zip(value, outer, strict=True)]
    interpolated = isinstance(written, str) and "${" in written
    named = secret and _may_be_secret(value, name)
    named = named or (interpolated and isinstance(value, str) and any(map(is_secret_name, _ENVIRONMENT.findall(written))))
    clean = REDACTED if named else _redact_values(value) if isinstance(value, str) else value
    if clean == value:
        return value
    if interpolated:
        clean = _redact_values(written)
    if len(str(value)) >= SHORTEST:
        _shown[str(value)] = clean
    return clean


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a credential: by whole words, so that tokenizer and max_tokens are not."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    words = [word for word in words if word]
    if not words or words[-1] in _SETTINGS or (words[-1] == "token" and len(words) > 1 and words[-2] in _TOKENS_OF_TEXT):
        return False
    return words[-1] in _LAST_WORDS or not _WORDS.isdisjoint(words)


def redact_message(text: str) -> str:
    """A message without the credentials of this process's recipes, and without what looks like one."""
    return _redact_values(_PAIR_IN_MESSAGE.sub(lambda pair: _redact_pair(pair, str), hide_known(text)))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without credentials: `a.api_key=x`, `--token x`, `{password: x}`, logins in URLs."""
    clean: list[str] = []
    for argument in arguments:
        flag = clean[-1] if clean else ""
        key, equals, value = argument.partition("=")
        if flag.startswith("--") and "=" not in flag and is_secret_name(flag) and not argument.startswith("--"):
            clean.append(REDACTED)
        elif equals and is_secret_name(key):
            clean.append(key + equals + (REDACTED if _may_be_secret(value, key) and not value.startswith("${") else value))
        else:
            clean.append(key + equals + _redact_text(value) if equals else _redact_text(argument))
    return clean


def hide_known(text: str) -> str:
    """Text with what is shown in place of each credential of this process's recipes."""
    for credential in sorted(_shown, key=len, reverse=True):
        text = text.replace(credential, _shown[credential])
    return text


def restore_environment(value: Any) -> Any:
    """The credentials of `hide_known` again, as far as they came from the environment. Raises UserError where one cannot be had."""
    if isinstance(value, Mapping):
        return {key: restore_environment(part) for key, part in value.items()}
    if isinstance(value, list):
        return [restore_environment(part) for part in value]
    if not isinstance(value, str):
        return value
    for name in _ENVIRONMENT.findall(value):
        if name not in os.environ:
            raise UserError(f"it needs the environment variable {name}, a credential that is written nowhere; set it and try again")
    if value == REDACTED:
        raise UserError("it holds *** in place of a credential; write that into the file, or name it ${oc.env:NAME} in the recipe")
    return _ENVIRONMENT.sub(lambda found: os.environ[found[1]], value)


def _may_be_secret(value: Any, name: str) -> bool:
    """Whether a value under a secret name is one: text, but no word under `key`, which is a column; a number only as a password."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value in ("", REDACTED, "null"):
        return False
    last = re.split(r"[^a-z]+", name.lower())[-1]
    if isinstance(value, int):
        return last not in ("token", "key")
    if last == "token":
        return not re.fullmatch(r"<.*>|\[.*\]", value)
    return last != "key" or _API_KEY.search(name.lower()) is not None or not re.fullmatch(r"[a-z_]+", value)


def _redact_values(text: str) -> str:
    return _URL_LOGIN.sub(REDACTED, _VALUES.sub(REDACTED, text))


def _redact_text(text: str) -> str:
    return _redact_values(_PAIR.sub(lambda pair: _redact_pair(pair, _redact_text), text))


def _redact_pair(pair: re.Match[str], clean: Any) -> str:
    key, value = pair["key"], pair["value"]
    secret = is_secret_name(key) and _may_be_secret(value.strip("\"' "), key) and not value.lstrip("\"'").startswith("${")
    return key + pair["between"] + (REDACTED if secret else clean(value))
