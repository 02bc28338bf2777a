"""Measure the event writer beside tensorboardX and torch's SummaryWriter.

    python benchmarks/events.py

A writer that is not installed is left out. Times include ``close()``, where the
others write what their queues still hold. Every figure is the smallest of
several rounds in which the things compared took turns.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import struct
import tempfile
from collections.abc import Callable
from typing import Any

import cox
from common import Result, best, machine, table, timed

TAGS = [f"train/loss_{i}" for i in range(5)]
ROW = {f"column_{i}": i / 7 for i in range(20)}
OTHERS = {"tensorboardX": "tensorboardX", "torch": "torch.utils.tensorboard"}


def add_scalars(make: Callable[[str], Any], logdir: str, count: int) -> None:
    """Make a writer, add ``count`` scalars to each tag, and close it."""
    writer = make(logdir)
    for step in range(count):
        for tag in TAGS:
            writer.add_scalar(tag, step / 7, step)
    writer.close()


def records(logdir: str) -> list[bytes]:
    """Return the records of the one event file in ``logdir``."""
    (path,) = pathlib.Path(logdir).iterdir()
    data, found, start = path.read_bytes(), [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        found.append(data[start : start + length + 16])
        start += length + 16
    return found


def write_all(path: str, pieces: list[bytes]) -> None:
    """Write each piece with one call."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for piece in pieces:
        os.write(fd, piece)
    os.close(fd)


def scalar_times(count: int, rounds: int) -> dict[str, float]:
    """Microseconds per ``add_scalar``, for each writer there is."""
    writers: dict[str, Callable[[str], Any]] = {"cox": cox.EventWriter}
    for name, module in OTHERS.items():
        try:
            writers[name] = importlib.import_module(module).SummaryWriter
        except ImportError:
            print(f"{name} is not installed: left out")

    def log(make: Callable[[str], Any]) -> float:
        with tempfile.TemporaryDirectory() as logdir:
            return timed(lambda: add_scalars(make, logdir, count))

    with tempfile.TemporaryDirectory() as logdir:
        add_scalars(cox.EventWriter, logdir, count)
        pieces = records(logdir)
        taken = best(
            rounds,
            bare=lambda: timed(lambda: write_all(f"{logdir}/bare", pieces)),
            **{name: lambda make=make: log(make) for name, make in writers.items()},
        )
    return {name: t / count / len(TAGS) * 1e6 for name, t in taken.items()}


def row_times(count: int, rounds: int) -> dict[str, float]:
    """Microseconds per row of 20 columns, with and without TensorBoard."""
    with tempfile.TemporaryDirectory() as folder, cox.Store(folder) as store:
        schema = dict.fromkeys(ROW, float)
        plain = store.add_table("plain", schema)
        both = store.add_table("both", schema)

        def append() -> None:
            for _ in range(count):
                plain.append_row(ROW)

        def log() -> None:
            for _ in range(count):
                store.log_table_and_tb("both", ROW)
                both.flush_row()

        taken = best(rounds, append=lambda: timed(append), log=lambda: timed(log))
    return {name: seconds / count * 1e6 for name, seconds in taken.items()}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 9
    scalar = scalar_times(10 if quick else 2_000, rounds)
    row = row_times(10 if quick else 5_000, rounds)

    others = {name: scalar[name] for name in OTHERS if name in scalar}
    ratio = scalar["cox"] / scalar["bare"]
    results = [
        Result("`add_scalar`", scalar["cox"], "us"),
        Result("… / `os.write` of the same bytes", ratio, "x", "<= 4"),
        *(Result(f"{name}: `add_scalar`", us, "us") for name, us in others.items()),
    ]
    if others:
        fastest = min(others.values()) / scalar["cox"]
        results.append(Result("… the faster of them / cox", fastest, "x", ">= 8"))
    ratio = row["log"] / row["append"]
    results += [
        Result("`append_row` of 20 columns", row["append"], "us"),
        Result("`log_table_and_tb` + `flush_row` / that", ratio, "x", "<= 3"),
    ]
    print(table(results))
    print(f"\n{machine('numpy', *OTHERS)}")


if __name__ == "__main__":
    main()
