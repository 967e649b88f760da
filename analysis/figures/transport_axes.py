"""Axes of the figures of transports: shares from 0 to 1, perplexities on a log scale, labels that do not collide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

_NAMES = {
    "success": "success",
    "text_perplexity": "perplexity of neutral texts",
    "perplexity": "perplexity of the responses",
    "degenerate": "degenerate share",
    "untouched": "share left alone",
}
_MEANS = {"text_perplexity": "mean", "perplexity": "geometric mean"}
_LABEL = (0.045, 0.06)  # width and height of a strength's label, as shares of the panel
_MARKER = (0.02, 0.03)  # how near a label may come to a point


def require_summary(table: pd.DataFrame) -> None:
    """Refuse the results of a sweep where their summary is wanted.

    Raises:
        ValueError: one row per prompt.
    """
    if isinstance(table, pd.DataFrame) and "prompt_id" in table:
        raise ValueError(
            "the table has one row per prompt, as a sweep returns; draw transport_summary(results), or "
            "choose_strength(results) where the choice is to be marked"
        )


def axis_title(measure: str, column: str) -> str:
    """What an axis shows; of a perplexity also which statistic, since its mean and its median lie far apart."""
    name = _NAMES.get(measure, measure)
    if column.endswith("_median"):
        return f"{name}, median"
    return f"{name}, {_MEANS[measure]}" if measure in _MEANS else name


def axis(summary: pd.DataFrame, measure: str, *columns: str) -> dict[str, Any]:
    """0 to 1 for shares, a log scale for perplexities, and from 0 for what lies near it."""
    found = [summary[column].to_numpy(dtype=float) for column in columns if column in summary]
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if measure in _MEANS and len(values) and values.min() > 0:
        return _log_axis(float(values.min()), float(values.max()))
    if values.min() >= 0 and values.max() <= 1:
        return {"range": [-0.06, 1.06]}
    return {"rangemode": "tozero"} if values.min() < 0.5 * values.max() else {}


def _log_axis(low: float, high: float) -> dict[str, Any]:
    """Few round ticks, whether one broken setting spreads the axis over decades or all settings lie close."""
    reach = max(math.log10(high / low), 0.05)
    ends = math.log10(low) - 0.06 * reach, math.log10(high) + 0.06 * reach
    if reach < 0.5:
        width = 10 ** ends[1] - 10 ** ends[0]
        unit = 10 ** math.floor(math.log10(width / 4))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= width / 5)
        ticks = [step * i for i in range(math.ceil(10 ** ends[0] / step), math.floor(10 ** ends[1] / step) + 1)]
    else:
        parts = (1, 2, 5) if reach < 2.5 else (1,)
        decades = range(math.floor(ends[0]), math.ceil(ends[1]) + 1, max(1, round(reach / 6)))
        ticks = [part * 10.0**decade for decade in decades for part in parts]
        ticks = [tick for tick in ticks if ends[0] <= math.log10(tick) <= ends[1]]
    return {"type": "log", "range": list(ends), "tickvals": ticks, "ticktext": [_short(tick) for tick in ticks]}


def _short(value: float) -> str:
    return f"{value:.6g}" if value < 1e6 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def free_labels(points: Sequence[tuple[float, float, bool]], across: dict[str, Any], up: dict[str, Any]) -> list[bool]:
    """Which labels can be shown: one that would lie on an earlier label or on a point is left out.

    Args:
        points: x, y, and whether the label stands above its point rather than below, the most important ones first.
        across, up: the axes, as `axis` gives them.
    """
    ways = [_share(axis, [point[i] for point in points]) for i, axis in enumerate((across, up))]
    markers = list(zip(*ways, strict=True))
    placed: list[tuple[float, float]] = []
    shown = []
    for x, y, (_, _, above) in zip(*ways, points, strict=True):
        y += _LABEL[1] * (0.6 if above else -0.6)
        free = not _near(x, y, placed, _LABEL) and not _near(x, y, markers, _MARKER)
        placed += [(x, y)] if free else []
        shown.append(free)
    return shown


def _near(x: float, y: float, others: Sequence[tuple[float, float]], reach: tuple[float, float]) -> bool:
    return any(abs(x - a) < reach[0] and abs(y - b) < reach[1] for a, b in others)


def _share(axis: dict[str, Any], values: list[float]) -> list[float]:
    """Where values lie on an axis, 0 at its start and 1 at its end."""
    if axis.get("type") == "log":
        values = [math.log10(value) for value in values]
    low, high = axis.get("range", (min(values, default=0.0), max(values, default=1.0)))
    return [(value - low) / ((high - low) or 1.0) for value in values]
