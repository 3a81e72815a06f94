"""With offline=true a recipe names no other machine than those of offline_hosts."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit import run
from rlkit.config.network import find_remote_urls

CHECKED = ("recipe=grpo_math", "offline=true", "--cfg", "job")
ANYWHERE = {  # a recipe key and the host that is refused
    "+rewards.judge={path: llm_judge, args: {url: 'https://me:pass@api.example.com/v1', model: m}}": (
        "rewards.judge.args.url",
        "api.example.com",
    ),
    "+rewards.mine={path: remote, args: {url: 'http://10.0.0.7:80'}}": ("rewards.mine.args.url", "10.0.0.7"),
    "+rewards.mine={path: remote, args: {url: 'http://127.0.0.1', servers: ['ws://a.b/c']}}": ("rewards.mine.args.servers[0]", "a.b"),
    "data.train=s3://bucket/rows.jsonl": ("data.train.path", "bucket"),
    "data.test={a: {path: 'https://a.b/rows.jsonl'}}": ("data.test.a.path", "a.b"),
    "model.path=https://huggingface.co/Qwen/Qwen3-0.6B": ("model.path", "huggingface.co"),
    "+engine.vllm.chat_template=tcp://node-1:5000": ("engine.vllm.chat_template", "node-1"),
    "report.wandb=https://wandb.ai/me/mine": ("report.wandb", "wandb.ai"),
}


@pytest.mark.parametrize("override", ANYWHERE)
def test_an_address_of_another_machine_is_refused_wherever_it_stands(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    key, host = ANYWHERE[override]
    override = override.lstrip("+")
    assert run.main([*CHECKED, override]) == 2
    message = capsys.readouterr().err
    assert f"offline=true, but {key} is a URL of {host}; offline_hosts=[HOST, ...]" in message
    assert len(message.splitlines()) == 1 and "pass" not in message
    assert run.main([*CHECKED, override, f"offline_hosts=[{host.upper()}]"]) == 0
    assert run.main([*CHECKED, override, "offline=false"]) == 0


def test_this_machine_and_text_about_addresses_are_allowed() -> None:
    allowed: dict[str, Any] = {
        "a": ["http://127.0.0.1:8000/v1", "http://localhost", "https://LOCALHOST.:443", "http://[::1]:80", "http://127.9.9.9"],
        "b": {
            "file": "file:///etc/hosts",
            "package": "pkg://some_model/x.gguf",
            "text": "see https://example.com for more",
            "name": "org/model",
            "none": None,
            "n": 3,
        },
    }
    assert find_remote_urls(allowed, []) == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://127.0.0.1.example.com",
            "http://localhost@example.com",
            "http://example.com#@localhost",
            "http://example.com\\@localhost/",
        ),
        *(
            "http://0.0.0.0",
            "http://2130706433",
            "http://127.1",
            "http://[::ffff:10.0.0.1]",
            "http://[::1",
            "HTTP://EXAMPLE.COM",
            " http://a ",
        ),
    ],
)
def test_what_only_looks_like_this_machine_is_refused(url: str) -> None:
    assert len(find_remote_urls({"url": url}, [])) == 1, url


@pytest.mark.parametrize("host", ["https://a.b", "a.b:80", "a b", "", "a/b", "user@a"])
def test_an_entry_that_is_no_host_is_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=grpo_math", "dry_run=true", f"offline_hosts=['{host}']"]) == 2
    assert f"offline_hosts: {host!r} is not the name or the address of a host" in capsys.readouterr().err
