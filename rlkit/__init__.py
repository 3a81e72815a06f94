"""rlkit: reinforcement-learning alignment of language models, vLLM rollouts and DeepSpeed updates on the same GPUs.

    rlkit.train("grpo_math", rewards=[my_function], data=rows, steps=5) -> Result        rlkit/docs/python.md

The functions are loaded when they are first used: importing rlkit loads nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_DOOR = "rlkit.api"
__all__ = ["Result", "dry_run", "evaluate", "export_model", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_DOOR), name)
    raise AttributeError(f"module 'rlkit' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
