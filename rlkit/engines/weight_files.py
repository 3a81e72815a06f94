"""The files of a model in safetensors: what their headers list, and matrices that were never written.

A download or a copy that was interrupted can leave a file of the right size whose rest is zeros, and the format has no checksum. So no
matrix may be zero in a whole quarter, nor in PIECE bytes; a few bytes of each piece are read. Not looked at: vectors, since biases and
norms may be zero; low-rank adapters inside a model, whose second matrix begins at zero; the head `score` of a new reward model. A router
or an output projection of zeros is refused: experts of such a router tie, and a layer that is meant to add nothing can hold small numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rlkit.errors import UserError, list_some

FLOATS = {"F64", "F32", "F16", "BF16"}  # dtypes of weights; any other is packed, and its elements are no weights
PIECE = 1 << 23  # bytes; a layer that was padded for more GPUs has shorter rows of zeros
SMALL = 1 << 12  # bytes of a matrix that is looked at as a whole
ENDS = ("embed", "head", "wte")  # in names of matrices with a row for each token, of which many may be unused
MEANT = ("lora", "adapter", "score.")  # in names of matrices that may be zero


class StoredTensor(NamedTuple):
    """`begin`, `end`: bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """By name the tensors of a file in safetensors. Raises OSError, and ValueError where the file is not whole."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > size:
                raise ValueError("its header is cut off")
            entries = {name: entry for name, entry in json.loads(opened.read(length)).items() if name != "__metadata__"}
        header = {
            name: StoredTensor(str(entry["dtype"]), tuple(entry["shape"]), *(8 + length + int(at) for at in entry["data_offsets"]))
            for name, entry in entries.items()
        }
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"its header is none of safetensors: {type(error).__name__}") from error
    whole = max((tensor.end for tensor in header.values()), default=8 + length)
    if whole != size:
        raise ValueError(f"it has {size:,} bytes, by its header {whole:,}")
    return header


def check_written(file: Path, header: Mapping[str, StoredTensor], what: str) -> None:
    """Raises UserError where a matrix, or a large part of one, is zero; `what`: the file's name in the message."""
    opened = os.open(file, os.O_RDONLY)
    try:
        empty = [name for name, tensor in header.items() if is_matrix(name, tensor) and has_hole(opened, name, tensor)]
    finally:
        os.close(opened)
    if empty:
        raise UserError(
            f"{what} holds zeros where there should be weights, in {len(empty)} matrices ({list_some(empty)}): a part of it was never "
            "written, as after a download or a copy that was interrupted; download or copy it again"
        )


def is_matrix(name: str, tensor: StoredTensor) -> bool:
    """Whether it is a weight with rows and columns that has no reason to be zero."""
    weight = name.endswith(".weight") or "experts" in name
    return weight and tensor.dtype in FLOATS and sum(side > 1 for side in tensor.shape) > 1 and not any(word in name for word in MEANT)


def has_hole(opened: int, name: str, tensor: StoredTensor) -> bool:
    """Whether one of the pieces into which a matrix is cut holds nothing but zeros; `opened`: the file."""
    size = tensor.end - tensor.begin
    quarter = size if size < SMALL else -(-size // 4)
    step = quarter if any(word in name for word in ENDS) else min(quarter, PIECE)
    starts = range(tensor.begin, tensor.end - step // 2, step)
    return any(is_zero(opened, start, min(start + step, tensor.end)) for start in starts)


def is_zero(opened: int, begin: int, end: int) -> bool:
    """Whether these bytes of a file are zero: a few are read first, since nearly always one of them is not."""
    middle = min(begin + 64, end)
    spans = [(begin, middle), *((at, min(at + (1 << 20), end)) for at in range(middle, end, 1 << 20))]
    return not any(os.pread(opened, stop - start, start).strip(b"\0") for start, stop in spans)
