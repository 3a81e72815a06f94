"""The wheel and the source distribution: what is in them, and that an installed one trains far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which hatchling, the build backend, can be imported."""
    if subprocess.run([sys.executable, "-c", "import hatchling"], capture_output=True).returncode == 0:
        return dict(os.environ)
    folder = tmp_path_factory.mktemp("hatchling")
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), "hatchling"], capture_output=True, text=True
    )
    if fetched.returncode != 0:
        pytest.skip(f"no wheel is built: hatchling is not installed and no registry gives it ({fetched.stderr.strip().splitlines()[-1]})")
    return os.environ | {"PYTHONPATH": str(folder)}


def build_wheel(source: Path, folder: Path, env: dict[str, str]) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "-q", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(command, env=env, check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(builder: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"), builder)


def files_of(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if "__pycache__" not in name or pytest.fail(f"{name} is in the wheel")}


def shipped(folder: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_wheel_installs_rlkit_and_no_other_package(wheel: Path) -> None:
    files = files_of(wheel)
    assert wheel.name == "rlkit-0.1.0-py3-none-any.whl"
    assert {name.split("/")[0] for name in files} == {"rlkit", "rlkit-0.1.0.dist-info"}
    for folder in ("recipes", "rewards", "launch"):
        assert {f"rlkit/{name}" for name in shipped(folder)} == {name for name in files if name.startswith(f"rlkit/{folder}/")}
    assert shipped("rlkit") <= files
    assert {
        "rlkit/recipes/config.yaml",
        "rlkit/recipes/recipe/grpo_math.yaml",
        "rlkit/rewards/accuracy.py",
        "rlkit/launch/local.sh",
    } <= files


def test_sdist_builds_the_same_wheel(wheel: Path, builder: dict[str, str], tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)], cwd=ROOT, env=builder, check=True, timeout=120
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert tops <= {"rlkit", "recipes", "rewards", "launch", "tests", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    again = build_wheel(sdist, tmp_path / "again", builder)
    assert files_of(again) == files_of(wheel)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installed_wheel_trains_far_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")  # torch and the rest, without installing them again
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import rlkit; print(rlkit.__file__)"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert where.stdout.strip() == str(packages / "rlkit" / "__init__.py")

    command = [python, "-m", "rlkit.run", "recipe=grpo_math", "dry_run=true"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "grpo_math" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"venv"}  # a dry run leaves nothing behind

    many = [python, "-m", "rlkit.launch.local", "recipe=grpo_math", "workers_per_node=2", "dry_run=true"]  # the launchers travel too
    result = subprocess.run(many, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert (result.returncode, "2 processes" in result.stdout) == (0, True), result.stderr

    small = ["steps=1", "prompts_per_step=8", "eval.problems=20", "output_dir=run"]
    trained = subprocess.run([*command[:-1], *small], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=400)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()

    installed = subprocess.run(["bash", str(packages / "rlkit" / "launch" / "local.sh")], env=env, capture_output=True, text=True)
    assert (installed.returncode, "python -m rlkit.run" in installed.stderr) == (2, True)
