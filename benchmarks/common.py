"""What the benchmarks share: taking turns, child processes, the printed table."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        what: What was measured, or what was divided by what.
        value: The figure, in ``unit``.
        unit: ``x`` for a ratio.
        target: ``<= 0.9`` and the like, or nothing where none was set.
    """

    what: str
    value: float
    unit: str
    target: str = ""

    def verdict(self) -> str:
        """Say whether the target was met."""
        if not self.target:
            return ""
        sign, limit = self.target.split()
        met = self.value <= float(limit) if sign == "<=" else self.value >= float(limit)
        return "met" if met else "missed"


def timed(loop: Callable[[], object]) -> float:
    """Seconds that ``loop`` takes."""
    start = time.perf_counter()
    loop()
    return time.perf_counter() - start


def best(rounds: int, **tasks: Callable[[], float]) -> dict[str, float]:
    """Run the tasks in turn, ``rounds`` times, and keep each one's smallest time.

    Taking turns lets a slow spell of the machine meet all of them; the minimum
    is the round it disturbed least. Each task returns its own time, so that what
    it prepares is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(task())
    return {name: min(taken) for name, taken in times.items()}


def child(script: str, *args: object, python: str | None = None) -> Any:
    """Run ``script`` in a new process, and return the JSON of its last line.

    Args:
        script: Python source.
        args: Its ``sys.argv[1:]``.
        python: Another interpreter, which then sees nothing of this environment.
    """
    command = [python, "-I"] if python else [sys.executable]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [*command, "-c", script, *map(str, args)],
            cwd=elsewhere,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# For scripts given to child(). Not ru_maxrss: Linux starts a child's from its
# parent's.
PEAK_MB = """
def peak_mb():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
"""


def machine(*packages: str) -> str:
    """Name the processor, the operating system and the versions in use."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    parts = [f"{cpu}, {os.cpu_count()} cores", platform.system()]
    parts.append(f"Python {platform.python_version()}")
    for package in packages:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} not installed")
    return ", ".join(parts)


def short(figure: float) -> str:
    """Round to three digits, without an exponent."""
    return f"{figure:.3g}" if abs(figure) < 1000 else f"{figure:,.0f}"


def table(results: list[Result]) -> str:
    """Lay the results out as a Markdown table."""
    lines = ["| measured | figure | target | |", "|-|-:|-:|-|"]
    for result in results:
        unit = result.unit if result.unit == "x" else f" {result.unit}"
        figure = short(result.value) + unit
        lines.append(
            f"| {result.what} | {figure} | {result.target} | {result.verdict()} |"
        )
    return "\n".join(lines)
