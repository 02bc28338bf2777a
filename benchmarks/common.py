"""What the benchmarks share: taking turns, child processes, the table and the chart."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import importlib
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

UNITS = {"s": 1, "ms": 1e3, "us": 1e6}
Task = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: what cox took, what something else took.

    Attributes:
        work: What was done.
        unit: Of the figures.
        ours: Figures of cox, one of each round.
        against: What else did the same, if anything.
        theirs: Its figures.
        limit: What the ratio may be, or our figure where there is no other.
    """

    work: str
    unit: str
    ours: list[float]
    against: str = ""
    theirs: list[float] = dataclasses.field(default_factory=list)
    limit: float | None = None

    def ratio(self, middle: Callable[[list[float]], float] = min) -> float:
        """Our figure for one of theirs, of the smallest or of the medians."""
        return middle(self.ours) / middle(self.theirs)

    def verdict(self) -> str:
        """Say what the limit is, and whether it was met."""
        if self.limit is None:
            return ""
        found = self.ratio() if self.theirs else min(self.ours)
        unit = "" if self.theirs else f" {self.unit}"
        met = "met" if found <= self.limit else "MISSED"
        return f"<= {short(self.limit)}{unit}: {met}"


def take_turns(rounds: int, tasks: Mapping[str, Task]) -> dict[str, list[float]]:
    """Seconds of each task in each round.

    Taking turns lets a slow spell of the machine meet all of them. A task that
    prepares something returns its own time; the others are timed.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.perf_counter()
            own = task()
            taken = time.perf_counter() - start
            times[name].append(own if isinstance(own, float) else taken)
    return times


def compare(
    work: str,
    tasks: Mapping[str, Task],
    rounds: int,
    unit: str = "ms",
    per: int = 1,
    **limits: float,
) -> list[Line]:
    """Let ``cox`` and the other tasks take turns: a line for each of the others.

    Args:
        work: What they do.
        tasks: By name.
        rounds: How often each has its turn.
        unit: Of the figures.
        per: How many of the work a task does at once.
        limits: By the first word of a task's name: what the ratio may be. That of
            ``cox`` is our own figure's.
    """
    times = {
        name: [seconds * UNITS[unit] / per for seconds in taken]
        for name, taken in take_turns(rounds, tasks).items()
    }
    ours = times.pop("cox")
    lines = [
        Line(work, unit, ours, name, theirs, limits.get(name.split()[0]))
        for name, theirs in times.items()
    ]
    if not lines or "cox" in limits:
        lines.append(Line(work, unit, ours, limit=limits.get("cox")))
    return lines


def timed(task: Task) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def optional(name: str) -> Any:
    """Return the module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@contextlib.contextmanager
def slow_opens(seconds: float) -> Iterator[None]:
    """Make opening a file wait as on a network disk, for whoever opens it here."""
    real, real_os = builtins.open, os.open

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        def wait_and_open(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return function(*args, **kwargs)

        return wait_and_open

    builtins.open, os.open = slow(real), slow(real_os)  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.open, os.open = real, real_os


def forget_files() -> bool:
    """Have the kernel drop what it remembers of files; say whether it does so."""
    try:
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


# What scripts given to child() start with. Not ru_maxrss: Linux starts a child's from
# its parent's.
CHILD = """
import json, os, sys, time
def peak_mb():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
"""


def child(script: str, *args: object, python: str | None = None) -> Any:
    """Run ``script`` in a new process, and return the JSON of its last line.

    Args:
        script: Python source.
        args: Its ``sys.argv[1:]``.
        python: Another interpreter, which then sees nothing of this environment.
    """
    command = [python, "-I"] if python else [sys.executable]
    # as for users: modules are compiled once, not at every import
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [*command, "-c", CHILD + script, *map(str, args)],
            cwd=elsewhere,
            env=env,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def machine(*packages: str) -> str:
    """Name the processor, the operating system and the versions in use."""
    cpu = platform.machine()
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"model name\s*: (.*)|$", text)[1] or cpu
    versions = [f"{name} {version(name)}" for name in packages if optional(name)]
    python = f"Python {platform.python_version()}"
    parts = [f"{cpu}, {os.cpu_count()} cores", platform.system(), python, *versions]
    return ", ".join(parts)


def short(figure: float) -> str:
    """Round to three digits, without an exponent; 1/50 for a small ratio."""
    return f"1/{plain(1 / figure)}" if 0 < figure < 0.1 else plain(figure)


def plain(figure: float) -> str:
    """Round to three digits, without an exponent."""
    return f"{figure:.3g}" if abs(figure) < 999.5 else f"{figure:,.0f}"


def figures(values: list[float], unit: str) -> str:
    """The smallest of them, and the median."""
    more = f" ({plain(statistics.median(values))})" if len(values) > 1 else ""
    return f"{plain(min(values))}{more} {unit}"


def table(lines: list[Line]) -> str:
    """Lay the lines out in Markdown: smallest of all rounds (median), and ratios."""
    text = ["| work | cox | against | theirs | ratio | of medians | |"]
    text.append("|-|-:|-|-:|-:|-:|-|")
    work = ""
    for line in lines:
        cells = ["", ""]
        if line.work != work:
            cells = [line.work, figures(line.ours, line.unit)]
        cells += [line.against] + ([""] if line.theirs else [""] * 3)
        if line.theirs:
            cells[-1] = figures(line.theirs, line.unit)
            cells += [short(line.ratio()), short(line.ratio(statistics.median))]
        text.append(f"| {' | '.join([*cells, line.verdict()])} |")
        work = line.work
    return "\n".join(text)


STYLE = """<style>
  text { font: 12px sans-serif; fill: #1f2328 } .title { font-weight: bold }
  rect { fill: #b6bdc6 } .cox { fill: #2f6feb }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } rect { fill: #57606a } }
  @media (prefers-color-scheme: dark) { .cox { fill: #4184e4 } }
</style>"""


def chart(panels: dict[str, dict[str, float]]) -> str:
    """Draw horizontal bars of logarithmic length, a panel for each kind of work."""
    parts, y = [], 0
    for title, bars in panels.items():
        y += 24
        parts.append(f'<text class="title" x="8" y="{y}">{title}</text>')
        low, high = min(bars.values()) / 2, max(bars.values())
        for name, figure in sorted(bars.items(), key=lambda bar: bar[1]):
            y += 18
            width = 330 * math.log(figure / low) / math.log(high / low)
            kind = ' class="cox"' if name.startswith("cox") else ""
            parts.append(f'<text x="200" y="{y}" text-anchor="end">{name}</text>')
            bar = f'x="208" y="{y - 11}" width="{width:.0f}" height="13" rx="2"'
            parts.append(f"<rect{kind} {bar}/>")
            parts.append(f'<text x="{214 + width:.0f}" y="{y}">{plain(figure)}</text>')
    size = f'width="640" height="{y + 12}" viewBox="0 0 640 {y + 12}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, STYLE, *parts, "</svg>\n"])
