"""Which values are credentials, and that none of them is written or shown."""

from __future__ import annotations

import pytest

from rlkit.errors import UserError
from rlkit.runtime.redaction import is_secret_name, redact_arguments, redact_config, redact_message, restore_environment


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("wandb.api_key=abc,d e", "wandb.api_key=***"),
        ("+rewards.judge.args.hf_token=abc", "+rewards.judge.args.hf_token=***"),
        ("--password=abc", "--password=***"),
        ("rewards.judge={path: a.py, api_key: 'x, y', weight: 1}", "rewards.judge={path: a.py, api_key: ***, weight: 1}"),
        ("rewards.judge.url=https://me:pw@host/v1?token=abc", "rewards.judge.url=https://***@host/v1?token=***"),
        (
            "a={url: 'https://host?x=1&token=abc&y=2', headers: {Authorization: Bearer abc}}",
            "a={url: 'https://host?x=1&token=***&y=2', headers: {Authorization: ***}}",
        ),
        ("note=hf_abcdefghijklmnopqrstuv", "note=***"),
        ("max_completion_tokens=256", "max_completion_tokens=256"),
        ("tokens_per_micro_batch=4096", "tokens_per_micro_batch=4096"),
        ("model.tokenizer=hub/name", "model.tokenizer=hub/name"),
        ("data.columns={prompt: question, answer: solution}", "data.columns={prompt: question, answer: solution}"),
        ("optim.betas=[0.9,0.95]", "optim.betas=[0.9,0.95]"),
    ],
)
def test_secrets_leave_the_command_line(argument: str, shown: str) -> None:
    assert redact_arguments([argument]) == [shown]


def test_the_argument_after_a_secret_flag_goes_too() -> None:
    assert redact_arguments(["run.py", "--api-key", "abc", "steps=3"]) == ["run.py", "--api-key", "***", "steps=3"]
    assert redact_arguments(["--token", "--verbose"]) == ["--token", "--verbose"]


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "api_key",
        "openai.apiKey",
        "X-Api-Key",
        "token",
        "hf_token",
        "accessToken",
        "client_secret",
        "password",
        "auth_header",
        "Authorization",
    ],
)
def test_names_of_credentials(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "eos_token",
        "pad_token",
        "max_tokens",
        "tokenizer",
        "token_ids",
        "key_column",
        "keys",
        "author",
        "monkey",
        "RAY_AUTH_MODE",
        "token_path",
        "",
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


SECRETS = {
    "key": "Zx81Zx81",
    "api_key": "correcthorse",
    "password": "hunter22",
    "pin_password": 12345678,
    "authorization": "Bearer abcdef0123",
    "url": "https://me:pw0pw0@host/v1",
    "note": "use sk-abcdefghijklmnopqrstuv please",
    "more": ["ghp_abcdefghijklmnopqrstuvwx", "AKIAABCDEFGHIJKLMNOP", {"credentials": ["aaaaaaaa", "bbbbbbbb"]}],
}
PLAIN = {
    "eos_token": "<eos>",
    "max_tokens": 9,
    "token": "[END]",
    "columns": {"key": "answer"},
    "token_ids": [1, 2],
    "text": "a risk-taking-desk",
}


def test_a_configuration_is_written_without_credentials() -> None:
    assert redact_config(PLAIN, PLAIN) == PLAIN
    assert redact_config(SECRETS, SECRETS) == {
        "key": "***",
        "api_key": "***",
        "password": "***",
        "pin_password": "***",
        "authorization": "***",
        "url": "https://***@host/v1",
        "note": "use *** please",
        "more": ["***", "***", {"credentials": ["***", "***"]}],
    }
    told = redact_message("api answered 401 for correcthorse and hunter22 (12345678) at https://me:pw0pw0@host/v1, aaaaaaaa")
    assert told == "api answered 401 for *** and *** (***) at https://***@host/v1, ***"


def test_an_interpolation_stays_where_its_value_is_a_credential() -> None:
    written = {
        "key": "${oc.env:KEY}",
        "headers": {"x": "Bearer ${oc.env:KEY}"},
        "bearer_of": "${oc.env:MY_TOKEN}",
        "path": "${oc.env:HOME}/a",
    }
    value = {"key": "q1w2e3r4", "headers": {"x": "Bearer q1w2e3r4"}, "bearer_of": "t0ken123", "path": "/home/me/a"}
    assert redact_config(value, written) == written | {"path": "/home/me/a"}
    assert redact_message("no luck with q1w2e3r4") == "no luck with ${oc.env:KEY}"


@pytest.mark.parametrize(
    "text",
    [
        'data.train a.jsonl row 2 has no column "key" (columns: key, token); set data.columns.answer',
        "model.eos_token='<eos>' is not valid: it should be a valid integer",
        "the tokenizer has no pad token: set one",
        "optim.lr=1e-3 then, 1e-4 now",
        "basic arithmetic in the bearer of news",
    ],
)
def test_messages_without_credentials_stay(text: str) -> None:
    assert redact_message(text) == text


def test_a_credential_in_a_message_goes_by_its_name() -> None:
    assert redact_message("rewards.j.args.password='abc' is not valid") == "rewards.j.args.password=*** is not valid"
    assert redact_message("not {'api_key': 'abc', 'n': 1}") == "not {'api_key': ***, 'n': 1}"


def test_what_a_replay_left_out_comes_back_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "abc")
    monkeypatch.delenv("NOPE", raising=False)
    assert restore_environment({"args": ["Bearer ${oc.env:KEY}", 3]}) == {"args": ["Bearer abc", 3]}
    with pytest.raises(UserError, match="environment variable NOPE"):
        restore_environment("${oc.env:NOPE}")
    with pytest.raises(UserError, match=r"\*\*\* in place of a credential"):
        restore_environment({"key": "***"})
