"""Measure cox beside what is better and what is worse, as far as it is installed.

    pip install orjson msgspec polars duckdb pyarrow tensorboardX torch
    python benchmarks/run.py --chart .github/benchmarks.svg --original ENV/bin/python

ENV holds the original cox, which needs an environment of its own because it has the
same name:

    python -m venv ENV
    ENV/bin/pip install cox==0.2 torch tensorboardX dill tables pandas

A ratio is cox's figure for one of the other's. Figures are the smallest of several
rounds, in which the things compared took turns, and the median in brackets.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile

import long_tables
import rows
import runs
from common import Line, chart, machine, table

KINDS = {"rows": rows, "tables": long_tables, "runs": runs}
PANELS = {  # of the chart: the work, and its title there
    "`append_row` of 3 numbers": "a row of 3 numbers, us",
    "1,000 runs of 10 rows, per run": "1,000 runs of 10 rows into a frame, us per run",
    "`df` of 1,000,000 rows, 3 columns, text": "10^6 rows with a text into a frame, ms",
}


def bars(lines: list[Line]) -> dict[str, dict[str, float]]:
    """Of each panel's work, what everyone took."""
    panels: dict[str, dict[str, float]] = {}
    for line in lines:
        if title := PANELS.get(line.work):
            panel = panels.setdefault(title, {"cox": min(line.ours)})
            panel |= {line.against: min(line.theirs)} if line.theirs else {}
    return panels


def main() -> None:
    """Measure, print the table, and draw the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--original", metavar="PYTHON")
    parser.add_argument("--chart", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: a smoke test")
    args = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in args.kinds:
            folder = pathlib.Path(scratch, kind)
            folder.mkdir()
            lines += KINDS[kind].measure(folder, args.quick)
        if args.original:
            lines += runs.original(args.original, pathlib.Path(scratch), lines)
    if args.quick:  # so small, it says nothing
        lines = [dataclasses.replace(line, limit=None) for line in lines]
    print(table(lines))
    print(f"\n{machine('pandas', 'tables', 'tensorboard')}")
    if args.chart:
        pathlib.Path(args.chart).write_text(chart(bars(lines)))


if __name__ == "__main__":
    main()
