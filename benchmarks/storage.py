"""Measure the storage half of cox against what a user would write by hand.

    python benchmarks/storage.py --chart .github/benchmarks.svg \
        --original OTHER_ENV/bin/python

OTHER_ENV holds the original cox, which needs an environment of its own because
it has the same name:

    python -m venv OTHER_ENV
    OTHER_ENV/bin/pip install cox==0.2 torch tensorboardX dill tables pandas

Without ``--original`` its lines are left out. Every figure is the smallest of
several rounds in which the things compared took turns.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import py_compile
import random
import shutil
import struct
import tempfile

import pandas as pd

import cox
from common import PEAK_MB, Result, best, child, machine, short, table, timed

NUMBERS = {"step": int, "loss": float, "accuracy": float}
WITH_TEXT = {"step": int, "loss": float, "note": str}


def make_rows(count: int, **extra: object) -> list[dict[str, object]]:
    """Rows of ``NUMBERS``, or of ``WITH_TEXT`` if ``extra`` has a note."""
    numbers = random.Random(0).random
    second = (lambda: extra) if extra else (lambda: {"accuracy": numbers()})
    return [{"step": i, "loss": numbers(), **second()} for i in range(count)]


def append(scratch: pathlib.Path, count: int, rounds: int) -> dict[str, float]:
    """Microseconds per row: cox, and two loops written by hand."""
    store = cox.Store(scratch, "append")
    numbers = store.add_table("numbers", NUMBERS)
    text = store.add_table("text", WITH_TEXT)
    rows = make_rows(count)
    text_rows = make_rows(count, note="a word or two")
    fd = os.open(scratch / "by_hand", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    record = struct.Struct("<qdd")

    def cox_rows(target: cox.Table, rows: list[dict[str, object]]) -> None:
        for row in rows:
            target.append_row(row)

    def json_rows(rows: list[dict[str, object]]) -> None:
        for row in rows:
            os.write(fd, (json.dumps(row) + "\n").encode())

    def packed_rows() -> None:
        for row in rows:
            os.write(fd, record.pack(row["step"], row["loss"], row["accuracy"]))

    taken = best(
        rounds,
        cox=lambda: timed(lambda: cox_rows(numbers, rows)),
        json=lambda: timed(lambda: json_rows(rows)),
        struct=lambda: timed(packed_rows),
        cox_text=lambda: timed(lambda: cox_rows(text, text_rows)),
        json_text=lambda: timed(lambda: json_rows(text_rows)),
    )
    os.close(fd)
    store.close()
    return {name: seconds / count * 1e6 for name, seconds in taken.items()}


def whole_table(scratch: pathlib.Path, count: int, rounds: int) -> dict[str, float]:
    """Seconds for one long table: as a frame and as HDF5, by cox and by pandas."""
    store = cox.Store(scratch, "long")
    log = store.add_table("log", NUMBERS)
    for row in make_rows(count):
        log.append_row(row)
    frame = log.df

    def close() -> float:
        nonlocal store
        taken = timed(store.close)
        store = cox.Store(scratch, "long")
        store["log"].append_row({"step": 0, "loss": 0.0, "accuracy": 0.0})
        return taken

    def to_hdf() -> float:
        path = scratch / "by_hand.h5"
        path.unlink(missing_ok=True)
        options = {"format": "table", "index": False, "complib": "zlib", "complevel": 1}
        return timed(lambda: frame.to_hdf(path, key="log", **options))

    taken = best(rounds, close=close, to_hdf=to_hdf)
    store.close()
    store_h5 = scratch / "long" / "store.h5"
    taken |= best(
        2 * rounds,
        df=lambda: timed(lambda: cox.Store(scratch, "long", mode="r")["log"].df),
        read_hdf=lambda: timed(lambda: pd.read_hdf(store_h5, "log")),
    )
    return taken


LOGGER = (
    PEAK_MB
    + """
import json, os, sys
import cox
log = cox.Store(sys.argv[1]).add_table("log", {"step": int, "loss": float, "note": str})
for i in range(int(sys.argv[2])):
    log.append_row({"step": i, "loss": i / 7, "note": "a word or two"})
print(json.dumps(peak_mb()), flush=True)
os._exit(0)  # no export, which is not what is measured here
"""
)

COLLECTOR = (
    PEAK_MB
    + """
import json, sys, time
from cox import CollectionReader
before, times = peak_mb(), []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    frame = CollectionReader(sys.argv[1]).df("log")
    times.append(time.perf_counter() - start)
runs = frame["exp_id"].nunique()
assert len(frame) == 10 * runs
print(json.dumps({"ms": min(times) / runs * 1e3, "mb": peak_mb() - before}))
"""
)

IMPORT = """
import json, sys, time
start = time.perf_counter()
exec(sys.argv[1])
print(json.dumps(time.perf_counter() - start))
"""

# Only what the documentation of the original shows.
ORIGINAL = (
    PEAK_MB
    + """
import json, os, sys, time
from cox.readers import CollectionReader
from cox.store import Store

folder, runs = sys.argv[1], int(sys.argv[2])
schema = {"step": int, "loss": float, "accuracy": float}
rows = [{"step": i, "loss": i / 7, "accuracy": i / 9} for i in range(10)]
times = []
for _ in range(runs):
    store = Store(folder)
    store.add_table("metadata", schema)
    store.add_table("log", schema)
    start = time.perf_counter()
    for row in rows:
        store["log"].append_row(row)
    times.append((time.perf_counter() - start) / len(rows))
    for row in rows:
        store["metadata"].append_row(row)
    store.close()
size = os.path.getsize(os.path.join(folder, os.listdir(folder)[0], "store.h5"))
before = peak_mb()
start = time.perf_counter()
frame = CollectionReader(folder).df("log")
taken = time.perf_counter() - start
assert len(frame) == 10 * runs
print(json.dumps({
    "append": min(times) * 1e6, "kb": size / 1000,
    "ms": taken / runs * 1e3, "mb": peak_mb() - before,
}))
"""
)


def make_runs(folder: pathlib.Path, count: int) -> None:
    """Fill ``folder`` with runs of 10 rows in each of two tables.

    One is made by cox. The others copy the files that a reader opens and leave
    the rest, which it does not, empty: that spares the disk two gigabytes.
    """
    with cox.Store(folder, "run-0") as store:
        for name in ("metadata", "log"):
            target = store.add_table(name, NUMBERS)
            for row in make_rows(10):
                target.append_row(row)
    model = folder / "run-0"
    contents = {
        path.relative_to(model): path.read_bytes() if path.suffix == ".rows" else b""
        for path in model.rglob("*")
        if path.is_file()
    }
    folders = [path.relative_to(model) for path in model.rglob("*") if path.is_dir()]
    for i in range(1, count):
        run = folder / f"run-{i}"
        for path in folders:
            (run / path).mkdir(parents=True)
        for path, content in contents.items():
            (run / path).write_bytes(content)


def collect(
    scratch: pathlib.Path, sizes: tuple[int, ...], rounds: int
) -> dict[int, dict[str, float]]:
    """Milliseconds per run and megabytes, for each number of runs."""
    found = {}
    for count in sizes:
        folder = scratch / f"{count} runs"
        make_runs(folder, count)
        found[count] = child(COLLECTOR, folder, rounds)
        shutil.rmtree(folder)
    return found


def new_store(scratch: pathlib.Path, count: int, rounds: int) -> float:
    """Milliseconds that ``Store()`` takes for a new run."""

    def make() -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            return timed(lambda: [cox.Store(folder) for _ in range(count)])

    return best(rounds, store=make)["store"] / count * 1e3


def store_h5_kb(scratch: pathlib.Path) -> float:
    """Kilobytes of the store.h5 of two tables of 10 rows."""
    make_runs(scratch / "one", 1)
    return (scratch / "one" / "run-0" / "store.h5").stat().st_size / 1000


def measure(
    scratch: pathlib.Path, original: str | None, quick: bool
) -> tuple[list[Result], dict[str, dict[str, float]]]:
    """Take every figure; return the table's lines and the chart's bars."""
    rounds = 2 if quick else 7
    row = append(scratch, 100 if quick else 20_000, 2 * rounds)
    long = whole_table(scratch, 1_000 if quick else 1_000_000, rounds)
    few, many = (100, 200) if quick else (10_000, 1_000_000)
    grown = child(LOGGER, scratch, many) - child(LOGGER, scratch, few)
    sizes = (10, 20) if quick else (1_000, 10_000, 100_000)
    runs = collect(scratch, sizes, 2 if quick else 3)
    made = new_store(scratch, 10 if quick else 50, rounds)
    py_compile.compile(cox.__file__)  # as an installer does
    imports = best(
        1 if quick else 15,
        cox=lambda: child(IMPORT, "import cox"),
        pandas=lambda: child(IMPORT, "import pandas, tables"),
    )

    by_hand = row["cox"] / row["json"]
    packed = row["cox"] / row["struct"]
    text = row["cox_text"] / row["json_text"]
    read = long["df"] / long["read_hdf"]
    close = long["close"] / long["to_hdf"]
    imported = imports["cox"] / imports["pandas"]
    results = [
        Result("`append_row` of 3 numbers", row["cox"], "us"),
        Result("… / `json.dumps` + `os.write`", by_hand, "x", "<= 0.9"),
        Result("… / `struct.pack` + `os.write`", packed, "x", "<= 3"),
        Result("with text / `json.dumps` + `os.write`", text, "x", "<= 1.3"),
        Result(f"`df` of {many:,} rows / `pd.read_hdf`", read, "x", "<= 1"),
        Result("`close()` after as many / `DataFrame.to_hdf`", close, "x", "<= 2"),
        Result(f"memory after {many:,} rows, less {few:,}", grown, "MB", "<= 2"),
        *(
            Result(f"collect {count:,} runs, per run", found["ms"], "ms", "<= 0.15")
            for count, found in runs.items()
        ),
        *(
            Result(f"memory of {count:,} runs", found["mb"], "MB")
            for count, found in runs.items()
        ),
        Result("`store.h5` of two tables", store_h5_kb(scratch), "KB", "<= 20"),
        Result("`Store()` of a new run", made, "ms", "<= 1.5"),
        Result("`import cox` / `import pandas, tables`", imported, "x", "<= 1.1"),
    ]
    bars = {
        "append_row of 3 numbers, us": {
            "struct.pack + os.write": row["struct"],
            "cox": row["cox"],
            "json.dumps + os.write": row["json"],
        },
        "collect 10-row runs, ms per run": {
            f"cox, {count:,} runs": found["ms"] for count, found in runs.items()
        },
    }
    if original:
        count = 10 if quick else 200
        old = child(ORIGINAL, scratch / "original", count, python=original)
        new = next(iter(runs.values()))
        results += [
            Result("original: `append_row` of 3 numbers", old["append"], "us"),
            Result("… / cox", old["append"] / row["cox"], "x"),
            Result(f"original: collect {count:,} runs, per run", old["ms"], "ms"),
            Result("… / cox", old["ms"] / new["ms"], "x"),
            Result(f"original: memory of {count:,} runs", old["mb"], "MB"),
            Result("original: `store.h5` of two tables", old["kb"], "KB"),
        ]
        for panel, figure in zip(bars.values(), ("append", "ms"), strict=True):
            panel["the original"] = old[figure]
    return results, bars


def draw(bars: dict[str, dict[str, float]], path: str) -> None:
    """Draw one panel of horizontal bars for each group."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cox"})
    figure, panels = plt.subplots(len(bars), figsize=(7, 3), layout="constrained")
    for axes, (title, panel) in zip(panels, bars.items(), strict=True):
        colours = ["tab:blue" if "cox" in name else "silver" for name in panel]
        drawn = axes.barh(list(panel), list(panel.values()), color=colours)
        axes.bar_label(drawn, fmt=short, padding=3)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


def main() -> None:
    """Measure, print the table, and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", metavar="PYTHON")
    parser.add_argument("--chart", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results, bars = measure(pathlib.Path(scratch), args.original, args.quick)
    print(table(results))
    print(f"\n{machine('pandas', 'tables')}")
    if args.chart:
        draw(bars, args.chart)


if __name__ == "__main__":
    main()
