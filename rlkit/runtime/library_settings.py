"""What libraries read from the environment, set before the first of them is imported; a value that is set already stays, but offline."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path


def configure_libraries(*, offline: bool) -> None:
    """Libraries speak when something is wrong, and call nobody; with `offline` nothing touches a network."""
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
        values["DS_ACCELERATOR"] = "cpu"  # transformers imports deepspeed, which would say that it found nothing better
    if offline:  # whatever the environment says
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(logging.ERROR)  # speaks before it reads its own setting
    warnings.filterwarnings("ignore", category=FutureWarning)  # of one library about another
