"""One long table: as a frame, in part, its end, as HDF5."""

from __future__ import annotations

import pathlib

import numpy as np
import pandas as pd

import cox
from common import Line, Task, child, compare, optional, timed
from rows import NUMBERS, WITH_TEXT, make_rows
from runs import append_all


def make_table(
    scratch: pathlib.Path, name: str, schema: dict[str, type], count: int
) -> None:
    """Make a run of one table, with random numbers in it."""
    with cox.Store(scratch, name) as store:
        append_all(store.add_table("log", schema), make_rows(schema, count))


def table_of(scratch: pathlib.Path, name: str) -> cox.Table:
    """The table of the run ``name``, opened anew."""
    return cox.Store(scratch, name, mode="r")["log"]


PEAK = """
import cox, pandas
pandas.Series(["text"])  # loads what pandas keeps text in
before = peak_mb()
frame = cox.Store(sys.argv[1], sys.argv[2], mode="r")["log"].df
print(json.dumps([peak_mb() - before, frame.memory_usage(deep=True).sum() / 2**20]))
"""


def frames(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """A whole table as a frame, and what memory that takes."""
    lines = []
    for name, schema, limit in ("numbers", NUMBERS, 0.4), ("text", WITH_TEXT, 0.5):
        make_table(scratch, name, schema, count)
        store_h5 = scratch / name / "store.h5"
        tasks: dict[str, Task] = {
            "cox": lambda n=name: table_of(scratch, n).df,
            "read_hdf": lambda p=store_h5: pd.read_hdf(p, "log"),
        }
        if optional("pyarrow"):
            path = scratch / f"{name}.parquet"
            tasks["cox"]().to_parquet(path)
            tasks["parquet"] = lambda p=path: pd.read_parquet(p)
        work = f"`df` of {count:,} rows, 3 columns, {name}"
        lines += compare(work, tasks, rounds, read_hdf=limit)
        peak, size = child(PEAK, scratch, name)
        lines.append(Line(f"{work}: peak memory", "MB", [peak], "frame", [size], 1.3))
    return lines


def export(scratch: pathlib.Path, rounds: int) -> list[Line]:
    """`close()` after a row was added, beside pandas' own export."""
    frame = table_of(scratch, "numbers").df
    options = {"format": "table", "index": False, "complib": "zlib", "complevel": 1}

    def close() -> float:
        store = cox.Store(scratch, "numbers")
        store["log"].append_row({"step": 0, "loss": 0.0, "accuracy": 0.0})
        return timed(store.close)

    def to_hdf() -> float:
        path = scratch / "by_hand.h5"
        path.unlink(missing_ok=True)
        return timed(lambda: frame.to_hdf(path, key="log", **options))

    work = f"`close()` after {len(frame):,} rows"
    return compare(work, {"cox": close, "to_hdf": to_hdf}, rounds, to_hdf=2)


def columns(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """Two of fifty columns."""
    schema = {f"c{i}": float for i in range(50)}
    if not hasattr(cox.Table, "frame") or not hasattr(cox.Table, "append_rows"):
        return []
    data = np.random.default_rng(0).random((count, 50))
    data.tofile(scratch / "memmap")
    with cox.Store(scratch, "wide") as store:
        store.add_table("log", schema).append_rows(
            pd.DataFrame(data, columns=list(schema))
        )

    def memmap() -> pd.DataFrame:
        mapped = np.memmap(scratch / "memmap", mode="r", shape=data.shape, dtype=float)
        return pd.DataFrame({"c3": mapped[:, 3].copy(), "c7": mapped[:, 7].copy()})

    tasks = {"cox": lambda: table_of(scratch, "wide").frame(columns=["c3", "c7"])}
    tasks["np.memmap"] = memmap
    if optional("pyarrow"):
        pd.DataFrame(data, columns=list(schema)).to_parquet(scratch / "wide.parquet")
        tasks["parquet"] = lambda: pd.read_parquet(
            scratch / "wide.parquet", columns=["c3", "c7"]
        )
    work = f"2 of 50 columns of {count:,} rows"
    return compare(work, tasks, rounds, **{"np.memmap": 2})


ENDLESS = """
import cox, pandas
store = cox.Store(sys.argv[1], "endless")
for name, count in ("short", 1_000), ("long", int(sys.argv[2])):
    log = store.add_table(name, {"step": int, "loss": float})
    for start in range(0, count, 10**5):
        steps = range(start, min(start + 10**5, count))
        log.append_rows(pandas.DataFrame({"step": steps, "loss": 0.5}))
print(json.dumps(None), flush=True)
os._exit(0)  # no export, which is not what is measured here
"""

END = """
import cox
store = cox.Store(sys.argv[1], "endless")
for name in ("short", "long"):  # the first one loads what is loaded once
    log, peaks, times = store[name], [peak_mb()], [time.perf_counter()]
    for work in (
        lambda: log.nrows,
        lambda: log.tail(100),
        lambda: log.append_row({"step": 0, "loss": 0.5}),
    ):
        work()
        times.append(time.perf_counter())
        peaks.append(peak_mb())
figures = [(end - start) * 1e3 for start, end in zip(times, times[1:])]
print(json.dumps([*figures, peaks[2] - peaks[0]]), flush=True)
os._exit(0)
"""


def ends(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """How many rows a table has, its last ones, and going on with it."""
    if not hasattr(cox.Table, "tail") or not hasattr(cox.Table, "append_rows"):
        return []
    tasks = {"cox": lambda: table_of(scratch, "numbers").tail(5)}
    tasks["df.tail(5)"] = lambda: table_of(scratch, "numbers").df.tail(5)
    work = f"the last 5 of {count // 10:,} rows"
    lines = compare(work, tasks, rounds, **{"df.tail(5)": 1 / 50})
    child(ENDLESS, scratch, count)
    found = zip(*(child(END, scratch, count) for _ in range(rounds)))
    works = {"`nrows`": 2, "`tail(100)`": 2, "the first `append_row` after a resume": 2}
    for (work, limit), figures in zip(
        {**works, "memory of the first two": 1}.items(), found
    ):
        unit = "MB" if "memory" in work else "ms"
        lines.append(Line(f"{work}, {count:,} rows", unit, list(figures), limit=limit))
    return lines


def measure(scratch: pathlib.Path, quick: bool) -> list[Line]:
    """Take every figure of this file."""
    count, rounds = (1_000, 2) if quick else (1_000_000, 7)
    lines = frames(scratch, count, rounds)
    lines += ends(scratch, 10 * count, rounds)  # before `numbers` grows
    return lines + columns(scratch, count, rounds) + export(scratch, rounds)
