"""Timing that noise hits evenly: contenders take turns, in another order each round, and ratios are taken per round."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensteer.progress import progress_bar

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Settings:
    """What all benchmarks share."""

    threads: int
    clock: str = "wall"
    quick: bool = False
    repeats: int | None = None
    peers: Path | None = None


@dataclass
class Comparison:
    """One ratio of times per round, and the bar that its median is held against (None: shown only)."""

    what: str
    values: Sequence[float]
    bar: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        sense, limit = self.bar.split()
        return self.median <= float(limit) if sense == "<=" else self.median >= float(limit)


@dataclass
class Result:
    """What one benchmark found: seconds by contender and round, ratios, and the checks that make them count."""

    title: str
    times: dict[str, list[float]]
    comparisons: list[Comparison]
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        compared = [{**vars(c), "median": c.median, "met": c.met} for c in self.comparisons]
        return {**vars(self), "comparisons": compared}


def seconds(function: Callable[[], Any], clock: str) -> float:
    """How long one call takes, on the wall or in CPU time of this process."""
    now = CLOCKS[clock]
    start = now()
    function()
    return now() - start


def interleaved(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round; a contender is a function that runs once and says how long it took.

    Round r starts with contender r and goes up in even rounds, down in odd ones, so that nobody always follows the
    same neighbour or has the quiet end of a round.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    with progress_bar(repeats * len(names), "benchmark", unit="run") as bar:
        for turn in range(repeats):
            order = [names[(turn + i) % len(names)] for i in range(len(names))]
            for name in order if turn % 2 == 0 else reversed(order):
                times[name].append(contenders[name]())
                bar.update()
    return times


def compare(times: Mapping[str, Sequence[float]], what: str, over: str, bar: str | None = None) -> Comparison:
    """Seconds of ``what`` over seconds of ``over``, round by round."""
    return Comparison(f"{what} / {over}", [a / b for a, b in zip(times[what], times[over], strict=True)], bar)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """``median (min–max)``."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def machine(settings: Settings) -> dict[str, Any]:
    """What the numbers were measured on."""
    from importlib.metadata import version

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "clock": settings.clock,
        "load": [round(x, 1) for x in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "transformer-lens", "lensteer")},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
