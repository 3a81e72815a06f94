"""Environment variables of libraries, set before the first import of them, and how the C library keeps freed memory. Values that are set
already stay, except for `offline`."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from pathlib import Path

MMAP_THRESHOLD = -3  # of mallopt, as malloc.h numbers it
LARGE_BLOCK = 2**20  # bytes; activations of a real model are larger, what Python allocates is smaller


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


def expand_segments() -> None:
    """Lets torch's allocator grow its segments on a GPU, so that rows of ever different lengths leave no holes. Before CUDA starts.

    Not for a process with vLLM in it, whose memory pools cannot be made of such segments.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def map_large_blocks() -> None:
    """Makes the C library map blocks of LARGE_BLOCK bytes and more one by one, so that each goes back to the system when it is freed.

    By itself glibc raises this size up to 32 MiB as such blocks are freed, and keeps smaller ones in a heap, whose holes cost a run of a
    model of 135 million weights on a CPU 1 to 2 GiB. The price: the system clears each block anew, a quarter more CPU time in a forward and
    a backward pass of that model. MALLOC_MMAP_THRESHOLD_ in the environment wins.
    """
    if {"MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library has none
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE_BLOCK)
