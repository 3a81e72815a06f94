"""JSON that keeps the types of Python values, for files that are read back. Reading it runs no code of the file, unlike a pickle.

A value that JSON has is written as it is. Any other is an object {"$type": NAME, "value": ...}: tuple, set, frozenset, dict (where a key is
not text), bytes, bytearray, int (from 2**53 on, which other programs round), float (nan, inf), complex, text (with lone surrogates), date,
time, datetime, timedelta, decimal, fraction, uuid, numpy (arrays and scalars), image (PIL).
"""

from __future__ import annotations

import base64
import datetime
import decimal
import fractions
import math
import sys
import uuid
from collections.abc import Callable
from typing import Any

TYPE, VALUE = "$type", "value"
EXACT_INT = 2**53  # a double, as other programs read numbers, holds every smaller whole number
MAX_DEPTH = 64  # of values in each other: far below the recursion limit of Python's own json
REPR_CHARACTERS = 1000
NUMPY_KINDS = "biufcSUMm"  # dtypes that are plain bytes: no objects, no records


class TypedJsonEncoder:
    """Turns values into typed JSON. `inexact`: a line, path and reason, for each value that cannot be written without loss."""

    def __init__(self) -> None:
        self.inexact: list[str] = []

    def encode(self, value: Any, path: str, depth: int = 0) -> Any:
        """JSON of `value`. path: its name in the lines of `inexact`. What has no exact form becomes a near one, or the text of its repr."""
        if depth > MAX_DEPTH:
            return self._encode_repr(value, path, f"nested more than {MAX_DEPTH} levels deep")
        if value is None or type(value) is bool:
            return value
        if type(value) in (int, float, str):
            return _encode_plain(value)
        if type(value) in (datetime.datetime, datetime.time):
            if value.fold or type(value.tzinfo) not in (type(None), datetime.timezone):
                self._note(value, path, "its time zone is written as an offset")
            return _tag(type(value).__name__, value.isoformat())
        if type(value) in _ENCODE:
            return _tag(_NAMES[type(value)], _ENCODE[type(value)](value))
        if isinstance(value, (list, tuple, set, frozenset, dict)):
            return self._encode_collection(value, path, depth)
        if (array := _encode_numpy(value)) is not None:
            return array
        if (image := _encode_image(value)) is not None:
            return _tag("image", {name: self.encode(part, f"{path}.{name}", depth + 1) for name, part in image.items()})
        bases: tuple[Any, ...] = (str, int, float, bytes)
        for base in bases:
            if isinstance(value, base):
                self._note(value, path, f"written as {base.__name__}")
                return self.encode(base(value), path, depth)
        return self._encode_repr(value, path, "written as the text of its repr")

    def _encode_collection(self, value: Any, path: str, depth: int) -> Any:
        base = next(base for base in (list, tuple, set, frozenset, dict) if isinstance(value, base))
        if type(value) is not base:
            self._note(value, path, f"written as {base.__name__}")
        if base is dict:
            return self._encode_dict(value, path, depth)
        parts = [self.encode(part, f"{path}[{index}]", depth + 1) for index, part in enumerate(value)]
        return parts if base is list else _tag(base.__name__, parts)

    def _encode_dict(self, value: dict[Any, Any], path: str, depth: int) -> Any:
        if all(type(key) is str and not _has_surrogates(key) for key in value) and TYPE not in value:
            return {key: self.encode(part, f"{path}.{key}", depth + 1) for key, part in value.items()}
        pairs = []
        for number, (key, part) in enumerate(value.items()):
            place = f"{path}, entry {number}"
            pairs.append([self.encode(key, f"{place}, key", depth + 1), self.encode(part, place, depth + 1)])
        return _tag("dict", pairs)

    def _encode_repr(self, value: Any, path: str, reason: str) -> Any:
        self._note(value, path, reason)
        try:
            text = repr(value)
        except Exception as error:  # noqa: BLE001 - the value's own code: whatever it raises, the file is still written
            text = f"repr raised {type(error).__name__}"
        return self.encode(text[:REPR_CHARACTERS], path)

    def _note(self, value: Any, path: str, reason: str) -> None:
        self.inexact.append(f"{path} ({type(value).__module__}.{type(value).__qualname__}): {reason}")


def decode(value: Any) -> Any:
    """The Python value of typed JSON. Raises ValueError where it is not typed JSON."""
    if isinstance(value, list):
        return [decode(part) for part in value]
    if not isinstance(value, dict):
        return value
    if TYPE not in value:
        return {key: decode(part) for key, part in value.items()}
    name = value[TYPE]
    if not isinstance(name, str) or name not in _DECODE or value.keys() != {TYPE, VALUE}:
        raise ValueError(f"{name!r} is not a type of typed JSON; valid: {', '.join(sorted(_DECODE))}")
    try:
        return _DECODE[name](value[VALUE])
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a value of type {name} cannot be read: {type(error).__name__}: {error}") from error


def _tag(name: str, value: Any) -> dict[str, Any]:
    return {TYPE: name, VALUE: value}


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _encode_plain(value: Any) -> Any:
    if type(value) is int:
        return value if abs(value) < EXACT_INT else _tag("int", hex(value))
    if type(value) is float:
        return value if math.isfinite(value) else _tag("float", str(value))
    return _tag("text", _encode_bytes(value.encode("utf-8", "surrogatepass"))) if _has_surrogates(value) else value


def _encode_bytes(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _decode_bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _encode_numpy(value: Any) -> Any:
    """The tagged bytes of a numpy array or scalar; None for all else. Where numpy is not imported, no value is one of numpy."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
        return None
    array = numpy.asarray(value)
    if array.dtype.kind not in NUMPY_KINDS or array.dtype.isbuiltin == 2:  # 2: of another library
        return None
    shape = None if isinstance(value, numpy.generic) else list(array.shape)
    return _tag("numpy", {"dtype": array.dtype.str, "shape": shape, "bytes": _encode_bytes(array.tobytes())})


def _decode_numpy(value: dict[str, Any]) -> Any:
    import numpy

    dtype, shape = numpy.dtype(value["dtype"]), value["shape"]
    if dtype.kind not in NUMPY_KINDS:
        raise ValueError(f"dtype {value['dtype']}")
    array = numpy.ndarray(() if shape is None else shape, dtype, _decode_bytes(value["bytes"]))
    return array[()] if shape is None else array.copy()


def _encode_image(value: Any) -> dict[str, Any] | None:
    """The pixels of a PIL image and what belongs to them; None for all else."""
    pil = sys.modules.get("PIL.Image")
    if pil is None or not isinstance(value, pil.Image):
        return None
    try:
        pixels = value.tobytes()  # reads the image file, if there is one
    except Exception:  # noqa: BLE001 - of a damaged file: its decoder may raise anything, SyntaxError too
        return None
    palette = [value.palette.mode, list(value.palette.palette)] if value.mode in ("P", "PA") else None
    return {"mode": value.mode, "size": list(value.size), "palette": palette, "info": dict(value.info), "bytes": pixels}


def _decode_image(value: dict[str, Any]) -> Any:
    from PIL import Image

    image = Image.frombytes(value["mode"], tuple(value["size"]), decode(value["bytes"]))
    if value["palette"] is not None:
        image.putpalette(bytes(value["palette"][1]), value["palette"][0])
    image.info = decode(value["info"])
    return image


_ENCODE: dict[type, Callable[[Any], Any]] = {
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
    complex: lambda value: [value.real.hex(), value.imag.hex()],
    datetime.date: datetime.date.isoformat,
    decimal.Decimal: str,
    fractions.Fraction: lambda value: [hex(value.numerator), hex(value.denominator)],
    datetime.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    uuid.UUID: str,
}
_NAMES = {kind: kind.__name__.lower() for kind in _ENCODE}
_DECODE: dict[str, Callable[[Any], Any]] = {
    "bytes": _decode_bytes,
    "bytearray": lambda value: bytearray(_decode_bytes(value)),
    "complex": lambda value: complex(*map(float.fromhex, value)),
    "date": datetime.date.fromisoformat,
    "datetime": datetime.datetime.fromisoformat,
    "decimal": decimal.Decimal,
    "dict": lambda value: {decode(key): decode(part) for key, part in value},
    "float": float,
    "fraction": lambda value: fractions.Fraction(*(int(part, 16) for part in value)),
    "frozenset": lambda value: frozenset(map(decode, value)),
    "image": _decode_image,
    "int": lambda value: int(value, 16),
    "numpy": _decode_numpy,
    "set": lambda value: set(map(decode, value)),
    "text": lambda value: _decode_bytes(value).decode("utf-8", "surrogatepass"),
    "time": datetime.time.fromisoformat,
    "timedelta": lambda value: datetime.timedelta(*value),
    "tuple": lambda value: tuple(map(decode, value)),
    "uuid": uuid.UUID,
}
