"""The laws and floors of the house, read out of the source with ast; two of them by behaviour."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import torch

from rlkit.algorithms import ALGORITHMS, OFFLINE
from rlkit.types import MicroBatch, OfflineMicroBatch
from tests.algorithms.shipped import algorithm as shipped_algorithm

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(p for folder in ("rlkit", "rewards", "launch") for p in (ROOT / folder).rglob("*.py"))
ALL = [*CODE, *sorted((ROOT / "tests").rglob("*.py"))]

FLOORS = [  # from the lowest; a room imports rooms of lower floors, and of its own floor those of BESIDE
    {"nouns", "ops", "profiling"},
    {"algorithms", "builtin", "engines", "grading", "report", "runtime"},
    {"data", "environments", "rewarding"},
    {"config", "rollout", "updates"},
    {"trainers"},
    {"assembly"},
    {"doors"},
]
BESIDE = {
    *(("ops", "nouns"), ("profiling", "nouns"), ("builtin", "algorithms"), ("builtin", "runtime"), ("report", "runtime")),
    ("environments", "rewarding"),  # the same sandbox, limits and supervision of worker processes
}
TOP = {**dict.fromkeys(("__init__", "errors", "fields", "metrics", "seeds", "types"), "nouns"), "run": "doors"}  # files of no room
DOORS = {"api", "cli"}
OWNERS = {  # heavy library -> the only files that may import it
    "vllm": {"rlkit/engines/vllm.py", "rlkit/engines/vllm_tools.py"},
    "deepspeed": {f"rlkit/engines/{name}.py" for name in ("deepspeed", "deepspeed_config", "sequence_parallel")},
    "peft": {"rlkit/engines/lora.py"},
    "bitsandbytes": {"rlkit/engines/quantization.py"},
    "liger_kernel": {"rlkit/engines/liger.py"},
    "gguf": {"rlkit/engines/gguf_file.py"},
    **{name: {f"rlkit/report/{name}.py"} for name in ("wandb", "mlflow", "swanlab", "trackio")},
    "prometheus_client": {"rlkit/report/prometheus.py"},
    "pynvml": {"rlkit/report/gpu_usage.py"},
    "hydra": {"rlkit/config/compose.py"},
    "omegaconf": {"rlkit/config/compose.py"},
    "typer": {"rlkit/cli/main.py"},
    "fastapi": {"rlkit/cli/watch_app.py"},
    "uvicorn": {"rlkit/cli/watch_app.py"},
}
DISTRIBUTIONS = {"mlflow": ["mlflow-skinny"], "pynvml": ["nvidia-ml-py"]}  # of optional libraries that are called otherwise
PEERS = {"trl"}  # what a benchmark compares with, installed by hand
HEAVY = [
    *("vllm", "deepspeed", "transformers", "datasets", "matplotlib", "sympy", "math_verify", "tensorboard", "wandb", "ray", "hydra"),
    *("mlflow", "swanlab", "trackio", "prometheus_client", "peft", "pandas", "pyarrow", "tokenizers"),
]
OPS_MAY_IMPORT = {"__future__", "typing", "math", "collections", "heapq", "itertools", "torch", "rlkit"}  # no files, no ranks, no logging
SCIENCE, SCIENCE_MAY_IMPORT = {"nouns", "ops", "algorithms"}, {"torch", "pydantic", "rlkit"}  # beside the standard library


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of everything a file imports, wherever in it; import_module("...") too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path not in CODE, f"{path}:{node.lineno} imports by dots; write the whole name"
            if node.level:
                continue  # a test, of the conftest.py beside it
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if str(node.module).startswith("rlkit") and is_module(whole) else str(node.module)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def room_of(name: str) -> str:
    """The room of a module: its folder under rlkit/; launch/ stands beside the doors, and rewards/ are plug-ins of no room."""
    top, *rest = name.split(".")
    if top in ("launch", "rewards"):
        return "doors"
    if is_package(".".join(["rlkit", *rest[:1]])) and rest:
        return "doors" if rest[0] in DOORS else rest[0]
    return TOP[rest[0] if rest else "__init__"]


def is_package(name: str) -> bool:
    return (ROOT.joinpath(*name.split(".")) / "__init__.py").is_file()


def floor_of(room: str) -> int:
    (floor,) = [number for number, rooms in enumerate(FLOORS, start=1) if room in rooms]
    return floor


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


# -- floors ------------------------------------------------------------------------------------------------------------------------


def test_a_floor_imports_only_what_is_below_it() -> None:
    broken = []
    for path in CODE:
        room = room_of(module_name(path))
        for line, name in imports(path):
            if name == "rlkit" or not name.startswith("rlkit."):
                continue
            other = room_of(name)
            if other != room and floor_of(other) >= floor_of(room) and (room, other) not in BESIDE:
                broken.append(f"{where(path, line)} ({room}, floor {floor_of(room)}) imports {name} ({other}, floor {floor_of(other)})")
    assert broken == []


def test_the_rooms_are_those_of_the_folders() -> None:
    folders = {path.parent.name for path in (ROOT / "rlkit").glob("*/__init__.py")}
    assert set().union(*FLOORS) == folders - DOORS | {"nouns", "doors"}
    assert {path.stem for path in (ROOT / "rlkit").glob("*.py")} == set(TOP)


def test_no_circle_between_files() -> None:
    """Imports inside functions and for types too."""
    left = {module_name(path): {name for _, name in imports(path)} for path in CODE}
    while ends := {name for name, wanted in left.items() if not (wanted - {name}) & left.keys()}:
        left = {name: wanted for name, wanted in left.items() if name not in ends}
    assert left == {}


@pytest.mark.parametrize("library", OWNERS)
def test_one_heavy_library_a_file(library: str) -> None:
    importing = {str(path.relative_to(ROOT)) for path in CODE for _, name in imports(path) if name.split(".")[0] == library}
    assert importing == OWNERS[library]


def test_ray_stays_in_launch() -> None:
    assert [where(p, n) for p in CODE for n, name in imports(p) if name.split(".")[0] == "ray" and "launch" not in p.parts] == []


def test_the_maths_knows_no_file_and_no_rank() -> None:
    broken = []
    for path in CODE:
        room = room_of(module_name(path))
        for line, name in imports(path):
            top = name.split(".")[0]
            if room == "ops" and (top not in OPS_MAY_IMPORT or (top == "rlkit" and not name.startswith(("rlkit.ops", "rlkit.types")))):
                broken.append(f"{where(path, line)}: {name}")
            if room in SCIENCE and (top not in SCIENCE_MAY_IMPORT and top not in sys.stdlib_module_names):
                broken.append(f"{where(path, line)}: {name}")
            if room in SCIENCE and name.startswith("torch.distributed"):
                broken.append(f"{where(path, line)}: {name}")
    assert broken == []


def test_only_the_backend_knows_how_weights_are_sharded() -> None:
    """Another backend than DeepSpeed is a file: no other engine looks at ds_id, ds_numel, ds_tensor or zero_stage."""
    words = re.compile(r"\bds_(id|numel|tensor)\b|\bzero_stage\b")
    engines = [path for path in CODE if path.parent.name == "engines"]
    assert {path.stem for path in engines if words.search(path.read_text())} == {"deepspeed", "deepspeed_config"}


# -- law 1: the one shift ----------------------------------------------------------------------------------------------------------


def test_the_one_shift_lives_in_logprobs() -> None:
    """[:, :-1] beside [:, 1:] is how a shift between logits and tokens is written everywhere else."""
    broken = []
    for path in CODE:
        for node in ast.walk(tree(path)):
            if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)) or path.name == "logprobs.py":
                continue
            cuts = [ast.unparse(s) for s in node.slice.elts if isinstance(s, ast.Slice)]
            if ":-1" in cuts or "1:" in cuts:
                broken.append(f"{where(path, node.lineno)}: {ast.unparse(node)}")
    assert broken == []


# -- law 2: losses never reduce ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_token_loss_is_one_value_a_token_and_of_that_token_alone(name: str) -> None:
    """The derivative of the loss of token (b, t) by the log-prob of any other token is zero, with all that can be added switched on."""
    algorithm = shipped_algorithm(name, kl_coef=0.2, entropy_coef=0.1)
    rows, width = 3, 4
    random = torch.Generator().manual_seed(0)
    old, ref = (-torch.rand(rows, width, generator=random, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(rows, width, generator=random) < 0.8
    advantages = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64) * mask

    def losses(logprobs: torch.Tensor) -> torch.Tensor:
        loss, _ = algorithm.compute_policy_loss(MicroBatch(mask, logprobs, -logprobs.detach(), old, old, ref, advantages))
        assert loss.shape == (rows, width)
        return loss

    jacobian = torch.autograd.functional.jacobian(losses, old + 0.05).view(rows * width, rows * width)
    own = jacobian.diagonal()
    assert torch.equal(jacobian, torch.diag(own)) and bool((own[mask.flatten()] != 0).all())


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_an_offline_loss_is_one_value_a_unit_and_of_that_unit_alone(name: str) -> None:
    """The derivative of the loss of a pair, a completion or a token by what the model said of any other is zero."""
    algorithm = shipped_algorithm(name)
    pairs, width = 3, 1 if algorithm.learner == "reward_model" else 4
    random = torch.Generator().manual_seed(0)
    said, ref = (-torch.rand(2 * pairs, n, generator=random, dtype=torch.float64) for n in (width, 1))
    good, mask = torch.arange(2 * pairs) % 2 == 0, torch.rand(2 * pairs, width, generator=random) < 0.8
    mask[:, 0] = True

    def losses(said: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = algorithm.compute_losses(OfflineMicroBatch(mask, said, ref.squeeze(-1), good, torch.tensor(0.1).double()))[0]  # type: ignore[attr-defined]
        assert loss.shape == {"pair": (pairs,), "sequence": (2 * pairs,), "token": (2 * pairs, width)}[algorithm.unit]
        return loss.flatten()

    jacobian = torch.autograd.functional.jacobian(losses, said)  # [units, 2 pairs, width]
    owner = torch.arange(2 * pairs * width).view(2 * pairs, width) // {"pair": 2 * width, "sequence": width, "token": 1}[algorithm.unit]
    for unit, slopes in enumerate(jacobian):
        assert bool((slopes[(owner == unit) & mask] != 0).all()) and not slopes[(owner != unit) | ~mask].any()


# -- law 5: import is silent -------------------------------------------------------------------------------------------------------


def test_importing_everything_is_silent_and_light() -> None:
    modules = [module_name(p) for p in CODE if p.is_relative_to(ROOT / "rlkit") and p.stem != "__main__"]
    code = (
        "import importlib, sys, threading\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "loaded = [name for name in sys.argv[1].split(',') if name in sys.modules]\n"
        "import torch\n"
        "print(loaded, torch.cuda.is_initialized(), threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code, ",".join(HEAVY), *modules], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("[] False 1\n", "", 0)


@pytest.mark.parametrize(("files", "more"), [(CODE, []), (ALL, ["test"])], ids=["code", "tests"])
def test_every_imported_library_is_declared(files: list[Path], more: list[str]) -> None:
    """In pyproject.toml: what another library happens to bring is gone with its next release. Tests have an extra of their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "test" or name in more for line in lines]
    declared = {canonical(re.split(r"[\[<>= ]", line)[0]) for line in [*project["dependencies"], *extras]}
    brought_by = DISTRIBUTIONS | dict(metadata.packages_distributions())
    names = {name.partition(".")[0]: where(path, line) for path in files for line, name in imports(path)}
    programs = {path.stem for path in (ROOT / "tests/programs").glob("*.py")}
    ours = {"rlkit", "rewards", "launch", "tests", *sys.stdlib_module_names, *programs}
    missing = {
        name: place
        for name, place in names.items()
        if name not in ours | PEERS and not declared & {canonical(brought) for brought in brought_by.get(name, [name])}
    }
    assert missing == {}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# -- no file is a pickle -----------------------------------------------------------------------------------------------------------

PICKLE_READERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}  # libraries whose load runs code of the file
BETWEEN_OWN_PROCESSES = {  # file that unpickles -> where the pickles come from: another process of the same run, never a file
    "rlkit/rewarding/calling.py": "the caller of rlkit.train, through a pipe, the trainer and the supervisor",
    "rlkit/environments/supervisor.py": "the trainer and the workers, over socket pairs",
    "rlkit/environments/worker.py": "the supervisor, over a socket pair, and rows of the trainer in its messages",
    "rlkit/rewarding/supervision.py": "a supervisor, over a socket pair",
    "rlkit/rewarding/supervisor.py": "the trainer, over the same socket pair",
    "rlkit/rewarding/worker.py": "the trainer's items, passed on by the supervisor",
}


def unpicklings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, call) of everything that may unpickle: pickle and its like, pandas, a Connection, torch.load and numpy.load where they may."""
    names = {"torch": "torch", "np": "numpy", "numpy": "numpy"}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0] for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(module):
        if not isinstance(node, ast.Call):
            continue
        head, *rest = ast.unparse(node.func).split(".")
        call = ".".join([names.get(head, head), *rest])
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        reads = call.split(".")[-1] in ("load", "loads", "Unpickler", "open")
        if (
            (call.split(".")[0] in PICKLE_READERS and reads)
            or call.endswith("read_pickle")
            or (call.endswith(".recv") and "multiprocessing.connection.Connection" in names.values())
            or (call == "torch.load" and settings.get("weights_only") != "True")
            or (call == "numpy.load" and settings.get("allow_pickle", "False") != "False")
        ):
            yield node.lineno, call


def test_no_file_that_is_read_is_a_pickle() -> None:
    found = {str(path.relative_to(ROOT)): list(unpicklings(tree(path))) for path in CODE}
    assert {file: calls for file, calls in found.items() if calls and file not in BETWEEN_OWN_PROCESSES} == {}
    assert all(found[file] for file in BETWEEN_OWN_PROCESSES)  # the list holds no file more than it must


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import pickle\npickle.load(file)", True),
        ("from pickle import loads as read\nread(text)", True),
        ("import pickle as p\np.Unpickler(file).load()", True),
        ("import pandas as pd\npd.read_pickle(file)", True),
        ("import torch\ntorch.load(file)", True),
        ("import torch\ntorch.load(file, weights_only=False)", True),
        ("import torch\ntorch.load(file, weights_only=True)", False),
        ("import numpy as np\nnp.load(file, allow_pickle=True)", True),
        ("import numpy as np\nnp.load(file)", False),
        ("import json, pickle\njson.load(file), pickle.dumps(value)", False),
        ("from multiprocessing.connection import Connection\nConnection(3).recv()", True),
    ],
)
def test_the_law_on_pickles_sees_them(source: str, seen: bool) -> None:
    assert bool(list(unpicklings(ast.parse(source)))) is seen


# -- how code reads ----------------------------------------------------------------------------------------------------------------


def test_files_and_functions_are_short() -> None:
    broken = []
    for path in ALL:
        lines = path.read_text().count("\n")
        if lines > 400:
            broken.append(f"{where(path, 1)}: {lines} lines, at most 400")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 50:
                broken.append(f"{where(path, node.lineno)}: {node.name} has over 50 lines")
    assert broken == []


def test_a_broad_except_says_why() -> None:
    """`except Exception` swallows faults nobody thought of: a reason stands beside it, or it raises again what it caught."""
    broken = []
    for path in CODE:
        remarks = {
            t.start[0]: t.string.lstrip("# ").removeprefix("noqa: BLE001").lstrip(" -")
            for t in tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            if t.type == tokenize.COMMENT
        }
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
            last = node.body[-1]
            raises_again = isinstance(last, ast.Raise) and last.exc is None
            if kinds & {"Exception", "BaseException"} and not raises_again and len(remarks.get(node.lineno, "")) < 10:
                broken.append(where(path, node.lineno))
    assert broken == []


def test_every_file_speaks_first_and_annotates_lazily() -> None:
    broken = []
    for path in CODE:
        body = tree(path).body
        if path.read_text().strip() and ast.get_docstring(tree(path)) is None:
            broken.append(f"{where(path, 1)}: no docstring")
        code = [n for n in body if not isinstance(n, ast.Expr)]
        if code and path.name != "__init__.py" and not (isinstance(code[0], ast.ImportFrom) and code[0].module == "__future__"):
            broken.append(f"{where(path, 1)}: no `from __future__ import annotations`")
    assert broken == []
