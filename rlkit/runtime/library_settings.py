"""Environment variables of libraries, set before the first import of them. Values that are set already stay, except for `offline`."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path


def configure_libraries(*, offline: bool) -> None:
    """Makes libraries print only errors and send no telemetry; with `offline` they use no network."""
    values = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if not Path("/dev/nvidiactl").exists():
        values["DS_ACCELERATOR"] = "cpu"  # transformers imports deepspeed, which would print that it found no accelerator
    if offline:  # even where the environment has another value
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # it prints before it reads its own setting
    warnings.filterwarnings("ignore", category=FutureWarning)  # from one library about another
