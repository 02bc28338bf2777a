"""A thousand runs at once: as one frame, as a list, in TensorBoard."""

from __future__ import annotations

import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

import cox
from common import (
    Line,
    Task,
    child,
    compare,
    forget_files,
    optional,
    slow_opens,
    take_turns,
    timed,
)
from rows import NUMBERS, make_rows


def make_runs(
    folder: pathlib.Path, count: int, nrows: int = 10, *, one_table: bool = False
) -> None:
    """Fill ``folder`` with runs: ``nrows`` rows; parameters and a curve beside them.

    One is made by cox, the others are copies; what a collection does not read, and
    long tables, are links to its files: that spares the disk gigabytes.
    """
    with cox.Store(folder, "0") as store:
        append_all(store.add_table("train", NUMBERS), make_rows(NUMBERS, nrows))
        if not one_table:
            store.add_table("metadata", {"lr": float}).append_row({"lr": 0.1})
            for step in range(10):
                store.writer.add_scalar("loss", step / 7, step)

    def copy(source: str, target: str) -> None:
        is_read = source.endswith(".rows") and nrows <= 10
        (shutil.copyfile if is_read else os.link)(source, target)

    for i in range(1, count):
        shutil.copytree(folder / "0", folder / str(i), copy_function=copy)


def append_all(table: cox.Table, rows: list[dict[str, Any]]) -> None:
    """Append them in the quickest way there is."""
    if hasattr(table, "append_rows"):
        table.append_rows(pd.DataFrame(rows))
    else:
        for row in rows:
            table.append_row(row)


def frame_of(folder: pathlib.Path, **options: Any) -> pd.DataFrame:
    """What is measured: from the constructor to the frame."""
    return cox.CollectionReader(folder, **options).df("train")


def read_all(paths: list[str]) -> list[bytes]:
    """Open, read and close each."""
    found = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        found.append(os.read(fd, 1 << 20))
        os.close(fd)
    return found


def other_files(folder: pathlib.Path, count: int) -> dict[str, Task]:
    """The same rows in a file a run of other formats, and how one reads those."""
    frame = pd.DataFrame(make_rows(NUMBERS, 10))
    lines = "".join(json.dumps(row) + "\n" for row in frame.to_dict("records"))
    contents = {"csv": frame.to_csv(index=False).encode(), "ndjson": lines.encode()}
    if optional("pyarrow"):
        contents["parquet"] = frame.to_parquet()
    paths: dict[str, list[str]] = {}
    for suffix, content in contents.items():
        paths[suffix] = [str(folder / f"{i}.{suffix}") for i in range(count)]
        for path in paths[suffix]:
            pathlib.Path(path).write_bytes(content)
    ids = np.array([str(i) for i in range(count)])

    def csv_joined() -> pd.DataFrame:
        parts = [data.partition(b"\n") for data in read_all(paths["csv"])]
        data = b"".join([parts[0][0], b"\n", *(body for _, _, body in parts)])
        frame = pd.read_csv(io.BytesIO(data))
        counts = [body.count(b"\n") for _, _, body in parts]
        return frame.assign(exp_id=np.repeat(ids, counts))

    tasks: dict[str, Task] = {"CSV joined, pd.read_csv": csv_joined}
    if polars := optional("polars"):
        options = {"include_file_paths": "path"}
        scan = polars.scan_ndjson
        tasks["polars"] = lambda: scan(paths["ndjson"], **options).collect()
    if duckdb := optional("duckdb"):
        tasks["duckdb, CSV"] = lambda: duckdb.read_csv(paths["csv"], filename=True).df()
    if optional("pyarrow"):
        scan_all = optional("pyarrow.dataset").dataset
        tasks["pyarrow"] = lambda: scan_all(paths["parquet"]).to_table().to_pandas()
    return tasks


def collect(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """All runs as one frame, warm and cold, beside the same in other formats."""
    runs, others = scratch / f"runs-{count}", scratch / f"others-{count}"
    make_runs(runs, count, one_table=True)
    others.mkdir()
    paths = [str(path) for path in runs.glob("*/.tables/train.rows")]
    bare = "loop of open, read, close"
    tasks = {"cox": lambda: frame_of(runs), bare: lambda: read_all(paths)}
    tasks |= other_files(others, count)
    assert len(frame_of(runs)) == 10 * count
    work = f"{count:,} runs of 10 rows, per run"
    lines = compare(work, tasks, rounds, "us", count, loop=2, CSV=1)

    def cold(task: Task) -> Task:
        def run() -> float:
            forget_files()
            return timed(task)

        return run

    if forget_files():
        tasks = {name: cold(task) for name, task in tasks.items() if "loop" not in name}
        tasks[bare] = cold(lambda: read_all(paths))
        lines += compare(f"{work}, cold", tasks, min(rounds, 3), "us", count, loop=1.2)
    return lines


def spread(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """Executors, and a disk whose files take 1 ms to open."""
    folder = scratch / f"spread-{count}"
    make_runs(folder, count, one_table=True)
    with ThreadPoolExecutor(8) as threads, ProcessPoolExecutor(2) as processes:
        tasks = {"cox": lambda: frame_of(folder, executor=threads)}
        tasks["no executor"] = lambda: frame_of(folder)
        tasks["2 processes"] = lambda: frame_of(folder, executor=processes)
        work = f"{count:,} runs with 8 threads, per run"
        frame_of(folder, executor=processes)  # starts them
        lines = compare(work, tasks, rounds, "us", count)
        del tasks["2 processes"]
        with slow_opens(0.001):
            work += ", 1 ms to open a file"
            lines += compare(work, tasks, rounds, "us", count, no=1 / 6)
    return lines


def listed(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """`cox ls` as a process of its own, and `reader.runs()` of short and long runs."""
    if not hasattr(cox.CollectionReader, "runs"):
        return []
    few, many = scratch / "few", scratch / "ten times as many"
    make_runs(few, count)
    make_runs(many, 10 * count)

    def process(*args: object) -> Task:
        command = [sys.executable, *map(str, args)]
        return lambda: subprocess.run(
            command, check=True, capture_output=True, cwd=scratch
        )

    tasks = {
        "import": process("-c", "import cox"),
        "few": process("-m", "cox", "ls", few),
    }
    tasks["many"] = process("-m", "cox", "ls", many)
    times = take_turns(rounds, tasks)
    beyond = {k: [s - min(times["import"]) for s in times[k]] for k in ("few", "many")}
    tenfold = [10 * seconds for seconds in beyond["few"]]
    work = f"`cox ls` of {count:,} runs, less `import cox`"
    lines = [
        Line(work, "s", beyond["few"], "`import cox`", times["import"], 2),
        Line("of ten times as many", "s", beyond["many"], "ten times", tenfold, 1.2),
    ]
    make_runs(scratch / "long", count, 100 * count)
    last = {
        name: lambda f=folder: cox.CollectionReader(f).runs(last=["train"])
        for name, folder in (("cox", scratch / "long"), ("10 rows", few))
    }
    work = f"`reader.runs(last=…)` of {count:,} runs of {100 * count:,} rows"
    return lines + compare(work, last, rounds, **{"10": 1.5})


def first_curve(logdir: pathlib.Path, *command: str) -> tuple[float, float]:
    """Seconds until TensorBoard shows a curve, and from SIGTERM to its end."""
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", *command, "--logdir", logdir, "--port", "0"],
        cwd=logdir,  # not where this checkout's modules would come first
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout
    lines = (re.search(r"http://\S+?/", line) for line in server.stdout)
    url = next(filter(None, lines))[0]

    def get(path: str) -> Any:
        with urllib.request.urlopen(url + "data/plugin/scalars/" + path) as response:
            return json.load(response)

    while not (runs := {run: tags for run, tags in get("tags").items() if tags}):
        time.sleep(0.02)
    query = {"run": next(iter(runs)), "tag": "loss"}
    assert get("scalars?" + urllib.parse.urlencode(query))
    shown = time.perf_counter()
    server.terminate()
    server.communicate()
    return shown - start, time.perf_counter() - shown


def viewed(scratch: pathlib.Path, count: int, rounds: int) -> list[Line]:
    """`cox tb` beside TensorBoard on the same directory."""
    if not optional("tensorboard"):
        return []
    make_runs(scratch / "tb", count)
    ours, ends, theirs = [], [], []
    for _ in range(rounds):
        shown, ended = first_curve(scratch / "tb", "cox", "tb")
        ours.append(shown)
        ends.append(ended)
        theirs.append(first_curve(scratch / "tb", "tensorboard.main")[0])
    work = f"`cox tb` of {count:,} runs, first curve"
    end = Line("its end on SIGTERM", "s", ends, limit=1.5)
    return [Line(work, "s", ours, "tensorboard", theirs, 1.5), end]


# Only what the documentation of the original shows.
ORIGINAL = """
from cox.readers import CollectionReader
from cox.store import Store

folder, runs = sys.argv[1], int(sys.argv[2])
rows = [{"step": i, "loss": i / 7, "accuracy": i / 9} for i in range(10)]
times = []
for _ in range(runs):
    store = Store(folder)
    store.add_table("train", {"step": int, "loss": float, "accuracy": float})
    start = time.perf_counter()
    for row in rows:
        store["train"].append_row(row)
    times.append((time.perf_counter() - start) / len(rows))
    store.close()
start = time.perf_counter()
assert len(CollectionReader(folder).df("train")) == 10 * runs
print(json.dumps([min(times) * 1e6, (time.perf_counter() - start) / runs * 1e6]))
"""


def original(python: str, scratch: pathlib.Path, lines: list[Line]) -> list[Line]:
    """Compare what cox took for rows and runs with what the original takes."""
    found = child(ORIGINAL, scratch / "original", 200, python=python)
    works = "`append_row` of 3 numbers", "1,000 runs of 10 rows, per run"
    ours = [next(line for line in lines if line.work == work) for work in works]
    return [
        Line(o.work, "us", o.ours, "the original", [t]) for o, t in zip(ours, found)
    ]


def measure(scratch: pathlib.Path, quick: bool) -> list[Line]:
    """Take every figure of this file."""
    count, rounds = (10, 2) if quick else (1_000, 9)
    lines = collect(scratch, count, rounds)
    lines += collect(scratch, 10 * count, min(rounds, 5))
    lines += spread(scratch, count // 10, rounds)
    lines += listed(scratch, count, rounds)
    return lines + viewed(scratch, 5 * count, 1 if quick else 3)
