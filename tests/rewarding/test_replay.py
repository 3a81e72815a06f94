"""The file of a failed sample: what is written comes back, in value and type, and nothing in it runs."""

from __future__ import annotations

import base64
import collections
import datetime
import decimal
import enum
import fractions
import io
import json
import math
import pickle
import uuid
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from rlkit.errors import UserError
from rlkit.rewarding.job import WorkerReward
from rlkit.rewarding.outcome import Outcome, OutcomeKind
from rlkit.rewarding.replay import Replay, read_replay, write_replay
from rlkit.rewarding.typed_json import TypedJsonEncoder, decode
from tests.conftest import Ended, run

UTC = datetime.UTC
EXACT = [
    *(None, True, 1, 2**53, -(10**5000), 0.1, -0.0, 5e-324, math.inf, "", "ü 日本 \u2028", "\ud800", 1 + 2j),
    *((), (1, (2.0, "x")), [], {"a": [1, {"b": ()}]}, {"$type": "tuple", "value": []}, {1: "a", (2, 3): "b"}, {"\ud800": 1}),
    *({1, 2}, frozenset({"a"}), b"\0\xff", bytearray(b"ab")),
    *(datetime.date(2026, 1, 2), datetime.time(3, 4, 5, 6), datetime.timedelta(-1, 2, 3)),
    *(datetime.datetime(2026, 1, 2, 3, 4, 5, 6), datetime.datetime(2026, 1, 2, tzinfo=UTC)),
    *(decimal.Decimal("1.10"), fractions.Fraction(1, 3), uuid.UUID(int=7)),
]
ARRAYS = [
    *(numpy.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("int8", "uint64", ">i4", "float16", "float64", "complex64")),
    *(numpy.zeros((0, 2)), numpy.array(3.5), numpy.array([True, False]), numpy.array(["ü", "ab"]), numpy.array([b"a"])),
    *(numpy.array(["2026-01-02"], "datetime64[ns]"), numpy.array([math.nan, 1.0], "float32"), numpy.arange(6).reshape(2, 3).T),
]
SCALARS = [numpy.float32(0.1), numpy.int64(2**60), numpy.bool_(True), numpy.str_("a"), numpy.datetime64("2026-01-02"), numpy.float64(0.1)]


class Colour(enum.IntEnum):
    RED = 1


def there_and_back(value: Any) -> tuple[Any, list[str]]:
    encoder = TypedJsonEncoder()
    return decode(json.loads(json.dumps(encoder.encode(value, "x")))), encoder.inexact


@pytest.mark.parametrize("value", EXACT, ids=lambda value: type(value).__name__)
def test_values_come_back_with_their_types(value: Any) -> None:
    back, inexact = there_and_back(value)
    assert (back, type(back), inexact) == (value, type(value), [])
    assert math.copysign(1, back) == math.copysign(1, value) if value == 0.0 else True


def test_not_a_number_comes_back() -> None:
    back, inexact = there_and_back([math.nan, decimal.Decimal("NaN")])
    assert math.isnan(back[0]) and back[1].is_nan() and inexact == []


@pytest.mark.parametrize("value", [*ARRAYS, *SCALARS], ids=lambda value: f"{value.dtype}{value.shape}")
def test_numbers_of_numpy_come_back_bit_by_bit(value: Any) -> None:
    back, inexact = there_and_back(value)
    assert (type(back), back.dtype, back.shape, back.tobytes(), inexact) == (type(value), value.dtype, value.shape, value.tobytes(), [])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "F", "CMYK"])
def test_images_come_back_pixel_by_pixel(mode: str) -> None:
    image = Image.effect_mandelbrot((9, 7), (-2, -1, 1, 1), 50).convert("RGB").convert(mode)
    image.info = {"dpi": (72, 72), "icc_profile": b"\0"}
    back, inexact = there_and_back({"image": image})
    assert (back["image"].mode, back["image"].size, back["image"].info, inexact) == (mode, (9, 7), image.info, [])
    assert back["image"].tobytes() == image.tobytes() and back["image"].convert("RGB").tobytes() == image.convert("RGB").tobytes()


def test_what_is_not_exact_is_named_in_words() -> None:
    class Thing:
        def __repr__(self) -> str:
            raise OSError

    Pair = collections.namedtuple("Pair", "a b")
    zone = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
    deep: list[Any] = []
    deep.append(deep)
    back, inexact = there_and_back(
        {"pair": Pair(1, 2), "counts": collections.Counter("aa"), "colour": Colour.RED, "zone": zone, "set": {object}, "things": [Thing()]}
    )
    assert back["pair"] == (1, 2) and back["counts"] == {"a": 2} and back["colour"] == 1 and back["zone"] == zone
    assert back["set"] == {"<class 'object'>"} and back["things"] == ["repr raised OSError"]
    assert [line.partition(" ")[0] for line in inexact] == ["x.pair", "x.counts", "x.colour", "x.zone", "x.set[0]", "x.things[0]"]
    assert inexact[0].endswith(".Pair): written as tuple") and inexact[-1].endswith(".Thing): written as the text of its repr")
    assert there_and_back(deep)[1][0].endswith("(builtins.list): nested more than 64 levels deep")
    damaged = io.BytesIO()
    Image.effect_mandelbrot((90, 90), (-2, -1, 1, 1), 50).save(damaged, "PNG")
    assert there_and_back(Image.open(io.BytesIO(damaged.getvalue()[:500])))[1][0].endswith("written as the text of its repr")
    assert there_and_back(numpy.array([object()]))[1] == ["x (numpy.ndarray): written as the text of its repr"]


@pytest.mark.parametrize(
    "value",
    [
        {"$type": "object", "value": 1},
        {"$type": "bytes", "value": "not base64"},
        {"$type": "tuple"},
        {"$type": ["tuple"], "value": []},
        {"$type": "numpy", "value": {"dtype": "O", "shape": [1], "bytes": "AAAAAAAAAAA="}},
        {"$type": "numpy", "value": {"dtype": "f8", "shape": [10**12], "bytes": ""}},
        {"$type": "image", "value": {"mode": "RGB", "size": [9, 9], "palette": None, "info": {}, "bytes": ""}},
    ],
)
def test_what_is_no_typed_json_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"typed JSON|cannot be read"):
        decode(value)


def command(file: Path) -> Ended:
    return run("reward", "retry", str(file), module="rlkit.cli.main", timeout=100)


def write(folder: Path, path: str, items: list[dict[str, Any]]) -> Path:
    reward = WorkerReward("f", path, {"limits": (1, math.inf)}, timeout=5.0)
    return write_replay(folder, reward, items, ("row", 0), Outcome(OutcomeKind.ERROR, detail="no"))


def test_retry_calls_with_the_same_values_and_names_those_that_are_not(tmp_path: Path, write_rewards: Callable[[str], str]) -> None:
    source = "def f(completion, at, data, thing, limits):\n    print(repr((at, data, thing, limits)))\n    return 1.0\n"
    at, data = datetime.date(2026, 1, 2), (b"\0", numpy.float32(0.5))
    item = {"prompt": "p", "completion": "c", "at": at, "data": data, "thing": Colour.RED}
    file = write(tmp_path, f"{write_rewards(source)}:f", [item])
    assert read_replay(file) == Replay(
        WorkerReward("f", f"{tmp_path}/my_rewards.py:f", {"limits": (1, math.inf)}, timeout=5.0),
        [item],
        Path.cwd(),
        "('row', 0)",
        "error",
        [f"items[0].thing ({__name__}.Colour): written as int"],
    )
    ended = command(file)
    assert ended.code == 0, ended.err
    assert f"{(at, data, 1, (1, math.inf))!r}\n" in ended.out
    assert ended.out.startswith(f"not as in the run: items[0].thing ({__name__}.Colour): written as int\n")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_in_the_file_is_never_read(tmp_path: Path, write_rewards: Callable[[str], str]) -> None:
    trap = tmp_path / "trap"
    pickled = pickle.dumps(Hostile(trap))
    pickle.loads(pickled)
    assert trap.exists()  # the pickle is a trap indeed
    trap.unlink()
    source = "def f(completion, data, limits): return float(len(data))\n"
    file = write(tmp_path, f"{write_rewards(source)}:f", [{"prompt": "p", "completion": "c", "data": pickled}])
    assert command(file).code == 0  # bytes are bytes
    content = json.loads(file.read_text())
    attacks = [
        content | {"pickled": base64.b64encode(pickled).decode()},
        content | {"items": [{"$type": "pickle", "value": base64.b64encode(pickled).decode()}]},
        content | {"items": [{"$type": "numpy", "value": {"dtype": "O", "shape": [1], "bytes": base64.b64encode(pickled).decode()}}]},
    ]
    for attack, reason in zip(attacks, ("it holds a pickle", "'pickle' is not a type of typed JSON", "a value of type numpy"), strict=True):
        file.write_text(json.dumps(attack))
        ended = command(file)
        assert ended.code == 2 and f"{file} is not a file that a run wrote for a failed reward: {reason}" in ended.err, ended.err
        assert "Traceback" not in ended.err
    file.write_bytes(pickled)
    assert command(file).code == 2
    assert not trap.exists()


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    for text, reason in [
        ("[]", "object has no attribute 'get'"),
        ("{}", "its format is None"),
        ('{"format": "rlkit reward replay, version 1"}', "it has no 'reward'"),
        ("[" * 100_000, "recursion"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError, match="is not a file that a run wrote for a failed reward") as caught:
            read_replay(file)
        assert reason in str(caught.value)
