"""Recipes and data files with mistakes in them, from a seed: what people write by accident, and what fuzzers do.

`mutate_recipe(seed)` gives the words of a command line and files beside it; `mutate_data(seed)` a file of rows and the words that name it.
Case N is the same on every machine and does not depend on the cases before it.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rlkit.config.compose import compose_config

Row = dict[str, Any]
SURROGATE = "\ud83d"


@dataclass(frozen=True)
class Nested:
    """A list in a list, and so on: Python copies and writes none that is deep."""

    depth: int


@dataclass
class Case:
    """A command line, and the files of the folder that it runs in."""

    words: list[str]
    files: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


# -- data ----------------------------------------------------------------------------------------------------------------------------

USER, REPLY = {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}
KINDS: dict[str, tuple[str, list[Row]]] = {
    "prompts": ("recipe=grpo_math", [
        {"question": "What is 1 + 1?", "answer": "2"},
        {"messages": [{"role": "system", "content": "Be brief."}, USER], "solution": "2"},
        {"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "2"}},
        {"conversations": [{"from": "human", "value": "What is 1 + 1?"}], "ground_truth": "2", "tools": [{"type": "function"}]},
        {"prompt": "1 + 1 =", "answer": 2, "level": 3},
    ]),
    "pairs": ("recipe=dpo_math", [
        {"question": "What is 1 + 1?", "chosen": "2", "rejected": "3"},
        {"prompt": [USER], "chosen": [REPLY], "rejected": [{**REPLY, "content": "3"}]},
        {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "3"}]},
        {"messages": [USER, REPLY], "rejected_response": "3"},
    ]),
    "rated": ("recipe=kto_math", [
        {"question": "What is 1 + 1?", "completion": "2", "label": True},
        {"messages": [USER, REPLY], "label": False},
    ]),
    "demonstrations": ("recipe=sft_math", [
        {"question": "What is 1 + 1?", "completion": "2"},
        {"messages": [USER, REPLY]},
        {"question": "What is 1 + 1?", "answer": "2"},
    ]),
}  # fmt: skip
ODD_VALUES: list[Any] = [
    None, "", "  \n", 0, -1, 1.5, True, float("nan"), float("inf"), 10**30, 10**5000, [], {}, [None], [[]], [{}], "\0", SURROGATE,
    "é\u202e‮\u2028", "x" * 20_000, Nested(120), Nested(1000), Nested(4000), {"role": "user"}, {"a": {"b": None}}, ["a", 1, None], "null",
    "nan",
    [{"type": "text", "text": "1 + 1?"}], [{"type": "image_url", "image_url": "x"}], [{"type": "text", "text": None}],
    [{"role": "user", "content": None}], [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}],
    [{"role": "wizard", "content": "x"}], [{"role": "tool", "content": "x"}], [{"role": 3, "content": "x"}],
    [{"role": "user", "content": 7}], [{"from": "chatgpt", "value": "2"}], [{"from": "human", "value": 7}],
    [{"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]}], [USER, {**REPLY, "prefix": True}], [REPLY], [USER, USER],
]  # fmt: skip
OPTIONS = [
    "data.on_bad_row=skip", "data.on_long=cut", "data.chat=true", "data.chat=false", "data.system=hi", "data.answer_pattern='(.+)'",
    "data.answer_pattern='(('", "data.answer_pattern='(a+)+$'", "data.template='{{ prompt }}!'", "data.template='{{ prompt + 1 }}'",
    "data.template='{{ 1 // 0 }}'", "data.template='{% for i in range(10) %}{{ nope }}{% endfor %}'", "data.template='{{'",
    "data.template=' '", "data.curriculum=level", "data.curriculum=nope", "data.columns.prompt=nope", "data.columns.answer=question",
    "data.columns.prompt=reward_model.ground_truth", "data.columns.prompt=''", "data.columns.prompt='..'", "max_prompt_tokens=3",
    "max_completion_tokens=1", "steps=null data.epochs=1", "data.columns.label=question", "data.columns.chosen=rejected",
]  # fmt: skip


def mutate_data(seed: int) -> Case:
    """A file of rows that is probably wrong, as data.train."""
    draw = random.Random(f"data {seed}")
    kind = draw.choice([*KINDS, "prompts"])
    recipe, examples = KINDS[kind]
    rows = [copy.deepcopy(draw.choice(examples))] * draw.choice((1, 5, 9))
    rows = [vary(copy.deepcopy(row), number) for number, row in enumerate(rows)]
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        mutate_rows(rows, draw)
    ending, written = draw.choice(FORMATS)
    data = written(rows, draw)
    if draw.random() < 0.35:
        data = draw.choice(DAMAGES)(data, draw)
    options = [word for option in draw.sample(OPTIONS, draw.choice((0, 0, 1, 2))) for word in option.split(" data")]
    options = [word if "=" in word and not word.startswith(".") else f"data{word}" for word in options]
    return Case([recipe, f"data.train=rows.{ending}", "data.test=null", *options], {f"rows.{ending}": data})


def vary(row: Row, number: int) -> Row:
    """The row with a question of its own; of rated rows every second is bad."""
    text = json.dumps(row).replace("1 + 1", f"1 + {number}")
    row = json.loads(text)
    if "label" in row:
        row["label"] = number % 2 == 0
    return row


def mutate_rows(rows: list[Row], draw: random.Random) -> None:
    """Changes one place of one row, or one key of all."""
    for row in [draw.choice(rows)] if draw.random() < 0.7 else rows:
        action = draw.choice(("value", "value", "leaf", "leaf", "drop", "rename", "add"))
        key = draw.choice(list(row)) if row else "x"
        value = copy.deepcopy(draw.choice(ODD_VALUES))
        if action == "value":
            row[key] = value
        elif action == "leaf":
            set_leaf(row, value, draw)
        elif action == "drop":
            row.pop(key, None)
        elif action == "rename":
            row[draw.choice(("", "a.b", key.upper(), f"{key} ", SURROGATE, "tools", "system"))] = row.pop(key, 1)
        else:
            row[draw.choice(("tools", "system", "label", "prefix", "answer", "prompt", "messages", "", "level"))] = value


def set_leaf(value: Any, new: Any, draw: random.Random) -> None:
    """Puts `new` somewhere inside."""
    while isinstance(value, (dict, list)) and value:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        if not isinstance(value[key], (dict, list)) or not value[key] or draw.random() < 0.2:
            value[key] = new
            return
        value = value[key]


def dump(value: Any) -> bytes:
    """JSON of anything: Python's own gives up on deep lists and long numbers."""
    if isinstance(value, Nested):
        return b"[" * value.depth + b"]" * value.depth
    if isinstance(value, list):
        return b"[" + b",".join(map(dump, value)) + b"]"
    if isinstance(value, dict):
        return b"{" + b",".join(json.dumps(key).encode() + b":" + dump(part) for key, part in value.items()) + b"}"
    if isinstance(value, int) and value > 10**40:
        return b"1" + b"0" * 5000
    return json.dumps(value).encode()


def write_jsonl(rows: list[Row], draw: random.Random) -> bytes:
    return b"".join(dump(row) + b"\n" for row in rows)


def write_list(rows: list[Row], draw: random.Random) -> bytes:
    return b"[" + b",\n".join(map(dump, rows)) + b"]"


def write_csv(rows: list[Row], draw: random.Random) -> bytes:
    out = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        values = [dump(value).decode() if isinstance(value, (dict, list, int, Nested)) else value for value in map(row.get, columns)]
        writer.writerow(values)
    return out.getvalue().encode("utf-8", "surrogatepass")


def write_parquet(rows: list[Row], draw: random.Random) -> bytes:
    """Where Arrow takes the rows; else as it takes their JSON."""
    import pyarrow
    import pyarrow.parquet

    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays = {}
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays[column] = pyarrow.array(values)
        except Exception:  # noqa: BLE001  whatever Arrow does not take
            arrays[column] = pyarrow.array([dump(value).decode("utf-8", "replace") for value in values])
    out = io.BytesIO()
    try:
        table = pyarrow.table({name.encode("utf-8", "replace").decode(): array for name, array in arrays.items()})
        pyarrow.parquet.write_table(table.slice(0, draw.choice((0, len(rows), len(rows), len(rows)))), out)
    except Exception:  # noqa: BLE001
        return b"PAR1" + write_jsonl(rows, draw)
    return out.getvalue()


FORMATS: list[tuple[str, Callable[[list[Row], random.Random], bytes]]] = [
    ("jsonl", write_jsonl), ("jsonl", write_jsonl), ("jsonl", write_jsonl), ("json", write_list), ("json", write_list),
    ("csv", write_csv), ("parquet", write_parquet),
]  # fmt: skip


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 3, 30))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def recode(encoding: str) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, draw: data.decode("utf-8", "replace").encode(encoding, "replace")


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    damage_bytes,
    damage_bytes,
    lambda data, draw: data[: draw.randrange(len(data) + 1)],
    lambda data, draw: data + data,
    lambda data, draw: b"",
    lambda data, draw: b"\n\n \n",
    lambda data, draw: b"\0" * 100,
    lambda data, draw: data.replace(b"\n", b"\r\n"),
    lambda data, draw: data.replace(b'"', b"'"),
    lambda data, draw: data.replace(b"{", b"[" * 3000, 1),
    lambda data, draw: b"\xef\xbb\xbf" + data,
    lambda data, draw: draw.randbytes(300),
    lambda data, draw: data.replace(b":", b"", 1),
    *map(recode, ("utf-16", "utf-16-le", "utf-32", "latin-1")),
]


# -- recipes -------------------------------------------------------------------------------------------------------------------------

BASES = ["grpo_math", "dapo_math", "ppo_math", "remax_math", "rloo_math", "dpo_math", "kto_math", "sft_math", "reward_model", "grpo_gsm8k"]
GOOD_WORDS = [
    "seed=7", "optim.lr=1e-4", "prompts_per_step=4", "eval.every=2", "checkpoint.best=true", "data.curriculum=null",
    "optim.schedule=cosine",
    "optim.betas=[0.9,0.99]", "report.table_every=1", "checkpoint.every=0", "launch.nodes=1", "model.chat_template_kwargs.a=1",
    "engine.zero_stage=0", "hardware.gpus=2", "hardware.gpu_gib=80", "eval.samples=2", "optim.weight_decay=0.1", "data.on_bad_row=skip",
]  # fmt: skip
ODD_WORDS = [
    "null", "", "''", '""', "~", "true", "nan", ".nan", "inf", "-inf", "0", "-1", "1e999", "1e-400", "99999999999999999999999", "0x10",
    "1_000", "2.5", "[]", "{}", "[1", "]", "{a:", "{a: {b: {c: 1}}}", "[1,[2,[3]]]", "a,b", "[a,b]", "interval(0,1)", "interval()",
    "choice(1,2)", "choice()", "range(1,3)", "range()", "glob(*)", "shuffle(1,2)", "sort(3,1)", "tag(a,1)", "int(x)", "float(1)", "str()",
    "extend_list(1)", "${seed}", "${nope}", "${oc.env:NOPE}", "${oc.env:HOME}", "${oc.env}", "${", "${}", "${a:${b}}", "$", "\\${seed}",
    "${oc.decode:'['}", "${oc.create:${data}}", "${optim}", "${.}", "${..}", "???", "*", "&a", "!!python/object:os.system", "a: b", "%",
    "@", "/", "..", "../..", ".", "/dev/null", "/dev/zero/x", "/proc/self/mem", "a\0b", "\udcff", "é", "\u202e", "x" * 300, "x" * 5000,
    "a\nb", "'a", '"', "\\", "`", "#", "a#b", "a@b#c", "builtin@nope", "builtin@train_nope", "builtin:x@test", "grpo_math", "hf",
    "accuracy",
    "[" * 500, "[" * 500 + "]" * 500, "{a:" * 200 + "1" + "}" * 200, "(" * 300, "'" * 301, "sk-" + "a" * 30, "1" * 5000,
]  # fmt: skip
FILES: list[bytes] = [
    b"", b"\n", b"3", b"text", b"[1, 2]", b"- 1\n- 2\n", b"{", b"steps: [3\n", b"steps: 3\nsteps: 4\n", b"\tsteps: 3\n", b"steps: \0\n",
    b"steps: !!python/object/apply:os.system ['true']\n", b"steps: !!binary aGk=\n", b"steps: !!set {a, b}\n", b"seed: 2020-01-01\n",
    b"seed: 0o17\n", b"seed: 1:30\n", b"? [a, b]\n: 1\n", b"1: 2\n", b"null: 3\n", b"true: 3\n", b"'': 3\n", b"<<: {steps: 3}\n",
    b"a: &a [*a]\n", b"a: *nope\n", b"steps: ${steps}\n", b"steps: ${seed}\nseed: ${steps}\n", b"steps: ${oc.env:NOPE}\n", b"data: null\n",
    b"defaults: nope\n", b"defaults: [nope]\n", b"defaults: [mine]\n", b"defaults: [{a: b, c: d}]\n", b"defaults: [_self_, _self_]\n",
    b"defaults: [null]\n", b"defaults: [3]\n", b"defaults: {a: b}\n", b"defaults:\n  - override /model: nope\n", b"defaults: ['../x']\n",
    b"defaults: [grpo_math]\nsteps: 3\n", b"defaults: [grpo_math]\ndata: {train: builtin@train}\n", b"optim: 3\n", b"optim: [1]\n",
    b"defaults: [sft_math]\nseed: 5\n", b"rewards: [1]\n", b"rewards: {accuracy: null}\n", b"rewards: {x: {path: 3}}\n", b"model: hf\n",
    b"algorithm: {name: [grpo]}\n", b"algorithm: {name: {a: b}}\n", b"algorithm: null\n", b"engine: {vllm: 3}\n",
    b"data: {train: {a: 3}}\n",
    b"data: {train: []}\n", b"data: {train: {path: [x]}}\n", b"data: {train: {'': {path: x}}}\n", b"eval: {every: {a: 1}}\n",
    b"hydra: {}\n",
    b"hydra: {run: {dir: x}}\n", b"recipe: x\n", b"---\nsteps: 3\n---\nsteps: 4\n", b"%YAML 9.9\n---\nsteps: 3\n", b"steps: " + b"[" * 500,
    b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
    ),
    b"steps: " + b"[" * 500 + b"]" * 500, "défaults: [x]\n".encode("latin-1"), "steps: 3\n".encode("utf-16"),
    b"model: {shape: {hidden: 3}}\n",
    b"model: {shape: {nope: 3}}\n", b"model: {shape: {}}\n", b"launch: {env: x}\n", b"rewarding: {env: [1]}\n", b"checkpoint: {keep: 0}\n",
]  # fmt: skip
HEADER = b"# @package _global_\n"


@cache
def list_keys() -> tuple[str, ...]:
    """The keys of a whole recipe, dotted."""

    def walk(config: Row, prefix: str = "") -> Iterator[str]:
        for key, value in config.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return tuple(sorted(walk(compose_config(["recipe=grpo_math"], None))))


def mutate_recipe(seed: int, keys: Sequence[str]) -> Case:
    """The words of a command line."""
    draw = random.Random(f"recipe {seed}")
    words = [f"recipe={draw.choice(BASES)}", *draw.sample(GOOD_WORDS, draw.choice((0, 1, 2)))]
    files: dict[str, bytes] = {}
    action = draw.choice(("key", "key", "key", "group", "plus", "typo", "signs", "file", "file", "flag", "several", "good"))
    if action in ("key", "several"):
        words += [f"{draw.choice(keys)}={draw.choice(ODD_WORDS)}" for _ in range(1 if action == "key" else 4)]
    elif action == "group":
        group = draw.choice(("recipe", "model", "data", "rewards", "algorithm", "engine", "optim", "sampling", "eval"))
        words.append(f"{group}={draw.choice(ODD_WORDS)}")
    elif action == "plus":
        key, sign = draw.choice([*keys, "model", "algorithm", "data", "hydra", "hydra.run.dir", ""]), draw.choice(("+", "++", "~", "~~"))
        words.append(sign + key + draw.choice(("", "=", f"={draw.choice(ODD_WORDS)}")))
    elif action == "typo":
        key = draw.choice(keys)
        place = draw.randrange(len(key))
        words.append(f"{key[:place]}{draw.choice(('', 'x', '.', '..', ' ', '=', '@', '/', chr(0)))}{key[place + 1 :]}=1")
    elif action == "signs":
        words.append("".join(draw.choice("ab1.=:@/+~-${}[]()'\" ,\\\n") for _ in range(draw.randrange(12))))
    elif action == "file":
        text = HEADER + draw.choice(FILES)
        files["conf/recipe/mine.yaml"] = draw.choice(DAMAGES)(text, draw) if draw.random() < 0.2 else text
        words = ["--config-dir", "conf", draw.choice(("recipe=mine", "recipe=mine", "recipe=grpo_math")), *words[1:]]
    elif action == "flag":
        flag = ["--cfg", "--cfg=job", "--cfg job", "-c", "--config-dir", "--config-dir=", "--config-dir=\0", "--nope", "-", "--", "-x"]
        words.append(draw.choice(flag))
    return Case(words, files)
