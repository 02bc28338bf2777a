"""One row, one event, one run at a time, beside what a careful user would write."""

from __future__ import annotations

import inspect
import json
import operator
import os
import pathlib
import random
import struct
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

import cox
from common import Line, Task, child, compare, optional, timed

NUMBERS = {"step": int, "loss": float, "accuracy": float}
WITH_TEXT = {"step": int, "loss": float, "note": str}
WIDE = {f"column_{i}": float for i in range(20)}
Row = dict[str, Any]


def make_rows(schema: dict[str, type], count: int) -> list[Row]:
    """Rows as a training loop makes them."""
    number = random.Random(0).random
    make: dict[type, Callable[[int], object]] = {
        int: lambda step: step,
        float: lambda step: number(),
        str: lambda step: f"a word or two {step}",
    }
    return [
        {name: make[kind](i) for name, kind in schema.items()} for i in range(count)
    ]


def by_hand(fd: int, rows: list[Row]) -> dict[str, Task]:
    """Loops that write the same rows with one call each."""
    write, values = os.write, list(rows[0].values())

    def loop(encode: Callable[[Row], bytes]) -> Task:
        def task() -> None:
            for row in rows:
                write(fd, encode(row))

        return task

    tasks = {}
    if orjson := optional("orjson"):
        option = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
        tasks["orjson"] = loop(lambda row: orjson.dumps(row, option=option))
    if not any(isinstance(value, np.generic) for value in values):
        if msgspec := optional("msgspec"):
            encode = msgspec.json.Encoder().encode
            tasks["msgspec"] = loop(lambda row: encode(row) + b"\n")
        tasks["json"] = loop(lambda row: (json.dumps(row) + "\n").encode())
    if not any(isinstance(value, str) for value in values):
        pack = struct.Struct(
            "<" + "".join("qd"[isinstance(x, float)] for x in values)
        ).pack
        get = operator.itemgetter(*rows[0])
        tasks["struct"] = loop(lambda row: pack(*get(row)))
    return tasks


def append(
    store: cox.Store, fd: int, name: str, rows: list[Row], rounds: int
) -> list[Line]:
    """`append_row`, beside what writes the same with one call by hand."""
    schema = {name: type(np.array(value).item()) for name, value in rows[0].items()}
    target = store.add_table(name, schema)
    tasks = {"cox": lambda: [target.append_row(row) for row in rows]} | by_hand(
        fd, rows
    )
    limits = {"3 numbers": 1.6, "20 numbers": 1.3, "2 numbers and a text": 2.5}
    limit = {"orjson": limits[name]} if name in limits else {}
    return compare(f"`append_row` of {name}", tasks, rounds, "us", len(rows), **limit)


def append_many(
    store: cox.Store, name: str, rows: list[Row], rounds: int
) -> list[Line]:
    """Many rows in one call."""
    if not hasattr(cox.Table, "append_rows"):
        return []
    target, frame = store[name], pd.DataFrame(rows)
    tasks = {"cox": lambda: target.append_rows(frame)}
    tasks["append_row"] = lambda: [target.append_row(row) for row in rows]
    work = f"`append_rows` of {len(rows):,} rows of {name}"
    limit = 1 / 5 if "text" in name else 1 / 50
    return compare(work, tasks, rounds, append_row=limit)


def log(store: cox.Store, name: str, rows: list[Row], rounds: int) -> list[Line]:
    """`log_table_and_tb` with `flush_row`, beside `append_row` of the same."""
    schema = dict.fromkeys(rows[0], float)
    plain, both = (
        store.add_table(f"plain {name}", schema),
        store.add_table(name, schema),
    )

    def log_all() -> None:
        for row in rows:
            store.log_table_and_tb(name, row)
            both.flush_row()

    tasks = {"cox": log_all}
    tasks["append_row"] = lambda: [plain.append_row(row) for row in rows]
    limits = {"3 columns": {"append_row": 4}, "20 columns": {"append_row": 3}}
    work = f"`log_table_and_tb` of {name}, flushed"
    return compare(work, tasks, rounds, "us", len(rows), **limits.get(name, {}))


def all_rows(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """Rows of several kinds, in a table and in both."""
    numbers, wide, text = (make_rows(s, count) for s in (NUMBERS, WIDE, WITH_TEXT))
    scalars = [
        {name: np.array(value)[()] for name, value in row.items()} for row in numbers
    ]
    kinds = {"3 numbers": numbers, "3 numpy scalars": scalars, "20 numbers": wide}
    kinds["2 numbers and a text"] = text
    fd = os.open(scratch / "by_hand", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with cox.Store(scratch, "rows") as store:
        lines = []
        for name, rows in kinds.items():
            lines += append(store, fd, name, rows, rounds)
        for name in ("3 numbers", "2 numbers and a text"):
            lines += append_many(store, name, kinds[name], rounds)
        logged = {"3 columns": numbers[: count // 4], "20 columns": wide[: count // 4]}
        if torch := optional("torch"):
            logged["3 tensors"] = [
                {name: torch.tensor(value) for name, value in row.items()}
                for row in logged["3 columns"]
            ]
        for name, rows in logged.items():
            lines += log(store, name, rows, rounds)
    os.close(fd)
    return lines


def scalars(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """`add_scalar`, with `close()`, where the others write what they hold back."""

    def add(make: Callable[[str], Any]) -> None:
        writer = make(tempfile.mkdtemp(dir=scratch))
        for step in range(count):
            for tag in range(5):
                writer.add_scalar(f"train/loss_{tag}", step / 7, step)
        writer.close()

    tasks = {"cox": lambda: add(cox.EventWriter)}
    if tensorboardX := optional("tensorboardX"):
        tasks["tensorboardX"] = lambda: add(tensorboardX.SummaryWriter)
    if optional("torch") and (torch := optional("torch.utils.tensorboard")):
        tasks["torch"] = lambda: add(torch.SummaryWriter)
    limits = {"tensorboardX": 1 / 15, "torch": 1 / 15}
    return compare("`add_scalar`", tasks, rounds, "us", 5 * count, **limits)


def whole_runs(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """Short runs from `Store()` to `close()`, and what the history adds."""
    rows, sizes = make_rows(NUMBERS, 10), []

    def run(**options: Any) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            start = time.perf_counter()
            store = cox.Store(folder, "run", **options)
            for name in ("metadata", "train"):
                target = store.add_table(name, NUMBERS)
                for row in rows:
                    target.append_row(row)
            before_close = time.perf_counter()
            store.close()
            end = time.perf_counter()
            sizes.append(os.path.getsize(f"{folder}/run/store.h5") / 1e3)
        return end - start, end - before_close

    lines = compare(
        "`close()` of 2 tables of 10 rows", {"cox": lambda: run()[1]}, count, cox=12
    )
    tasks = {"cox": lambda: run()[0]}
    if "history" in inspect.signature(cox.Store).parameters:
        tasks["without history"] = lambda: run(history=False)[0]
    lines += compare("the whole run of these", tasks, count)
    if line := lines[-1].theirs and lines[-1]:
        added = min(line.ours) - min(line.theirs)
        lines.append(Line("history of a run, outside of git", "ms", [added], limit=2))
    lines.append(Line("`store.h5` of these", "KB", sizes[:1], limit=20))

    def new() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return timed(lambda: [cox.Store(folder) for _ in range(count)])

    return lines + compare("`Store()` of a new run", {"cox": new}, rounds, per=count)


IMPORT = """
start = time.perf_counter()
exec(sys.argv[1])
print(json.dumps(time.perf_counter() - start))
"""


def imports(rounds: int) -> list[Line]:
    """`import cox`, beside that of the libraries it needs."""
    tasks = {"cox": lambda: child(IMPORT, "import cox")}
    tasks["pandas and tables"] = lambda: child(IMPORT, "import pandas, tables")
    return compare("`import cox`", tasks, rounds, pandas=1.1)


def measure(scratch: pathlib.Path, quick: bool) -> list[Line]:
    """Take every figure of this file."""
    count, rounds = (100, 2) if quick else (20_000, 9)
    lines = all_rows(scratch, count, rounds)
    lines += scalars(scratch, count // 10, rounds)
    lines += whole_runs(scratch, 5 if quick else 50, rounds)
    return lines + imports(rounds)
