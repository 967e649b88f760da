"""Focus accuracy: radars with an axis per kind of instruction and a line per split, and bars of methods side by side.

Both take results of `focus_accuracy`, or a table of `focus_by_split` or `focus_over_repeats`.
Source of the radars: Lamb et al., ICML 2025 (arXiv 2410.22944), Figures 3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.template import (
    CLASSES,
    DASHES,
    GRID,
    INK,
    MARK,
    NAME,
    PATTERNS,
    SYMBOLS,
    bar_marker,
    error_bars,
    escaped,
    joined,
    new_figure,
    titled,
)
from analysis.focus_tables import SPLITS, focus_over_repeats, in_order
from analysis.tables import one_of, require_columns, require_finite
from lensteer.data.focus.instructions import Kind

_ACROSS = 3
_PANEL, _GAP = 270, 110  # pixels: a radar, and the labels below it with the title of the next
_TOP, _BOTTOM = 175, 50


def focus_radar(
    data: pd.DataFrame, *, by: Sequence[str] = ("model",), title: str = "focus accuracy by kind of instruction"
) -> go.Figure:
    """One radar per method: an axis for each kind of instruction, a closed line for each split.

    Lines that lie on each other say that accuracy does not depend on how predictive the spurious feature is. Several
    repeats are averaged.

    Args:
        by: the columns that tell methods apart; () for one radar.

    Raises:
        ValueError: missing columns, NaN, no rows, or as `focus_over_repeats`.
    """
    table, by = _accuracies(data, by)
    panels = [(_named(values, by), own) for values, own in _methods(table, by)]
    kinds, splits = in_order(table["kind"], get_args(Kind)), in_order(table["split"], SPLITS)
    across, down = min(_ACROSS, len(panels)), -(-len(panels) // _ACROSS)
    height = _TOP + _BOTTOM + down * _PANEL + (down - 1) * _GAP
    figure = make_subplots(
        rows=down,
        cols=across,
        specs=[[{"type": "polar"}] * across] * down,
        subplot_titles=[escaped(name) for name, _ in panels],
        horizontal_spacing=0.16 / across,
        vertical_spacing=_GAP / (height - _TOP - _BOTTOM) if down > 1 else 0,
    )
    labels = [_broken(kind) for kind in kinds]
    for number, (_, own) in enumerate(panels):
        place = {"row": number // across + 1, "col": number % across + 1}
        for split in in_order(own["split"], SPLITS):
            values = own[own["split"] == split].groupby("kind")["accuracy"].mean().reindex(kinds)
            figure.add_trace(_line(values, labels, str(split), splits.index(split), number == 0), **place)
    _legend_of_all(figure, splits)
    figure.update_polars(
        bgcolor="white",
        angularaxis={
            **{"direction": "clockwise", "rotation": 90, "type": "category", "gridcolor": GRID, "linecolor": INK},
            **{"categoryorder": "array", "categoryarray": labels, "tickfont": {"size": 12}},
        },
        radialaxis={
            **{"range": [0, 1], "tickvals": [0.25, 0.5, 0.75, 1], "angle": 60, "tickangle": 60, "gridcolor": GRID},
            **{"tickfont": {"size": 12, "color": "#4d5566"}, "linecolor": GRID, "ticks": ""},
        },
    )
    figure.update_annotations(font={"size": 14}, yshift=34)
    figure.update_layout(
        template=NAME,
        height=height,
        width=max(460 * across, 560),
        margin={"t": _TOP, "b": _BOTTOM, "l": 80, "r": 80},
        legend={"y": 1 + 72 / (height - _TOP - _BOTTOM)},
        title={"y": 1 - 16 / height},  # however many rows there are
    )
    return titled(figure, title, joined(("from 0 in the middle to 1", _examples(table), _repeats(table))))


def focus_bars(
    data: pd.DataFrame,
    *,
    by: Sequence[str] = ("model",),
    split: str | None = None,
    title: str = "focus accuracy by kind of instruction",
) -> go.Figure:
    """Methods side by side for each kind of instruction, with intervals, on one split.

    A dashed mark across each kind says what an oracle scores that answers y whatever it is told: no method has to be
    steered to reach it.

    Args:
        by: the columns that tell methods apart; () for one.
        split: which one to draw, where there are several.

    Raises:
        ValueError: missing columns, NaN, no rows, several splits and none named, or repeats that are not averaged (use
            the results, or `focus_over_repeats`).
    """
    table, by = _accuracies(data, by)
    require_columns(table, ["low", "high", "always_y"], "the table")
    require_finite(table, ["low", "high", "always_y"], "the table")
    rows = one_of(table, "split", split)
    if rows.duplicated([*by, "kind"]).any():
        raise ValueError("the table holds several repeats; make it with focus_over_repeats, which averages them")
    kinds = in_order(rows["kind"], get_args(Kind))
    figure = new_figure(title, "", height=470)
    for number, (values, own) in enumerate(_methods(rows, by)):
        name = _named(values, by)
        own = own.set_index("kind").reindex([kind for kind in kinds if kind in set(own["kind"])]).reset_index()
        figure.add_bar(
            x=[kinds.index(kind) for kind in own["kind"]],
            y=own["accuracy"],
            name=escaped(name),
            error_y=error_bars(own["accuracy"], own["low"], own["high"], INK),
            marker=bar_marker(CLASSES[number % len(CLASSES)], PATTERNS[number % len(PATTERNS)]),
            customdata=[escaped(kind) for kind in own["kind"]],
            hovertemplate=f"%{{customdata}}, {escaped(name)}<br>accuracy %{{y:.3f}}<extra></extra>",
        )
    oracle = rows.groupby("kind")["always_y"].mean()
    figure.add_scatter(
        x=[x for i in range(len(kinds)) for x in (i - 0.46, i + 0.46, None)],
        y=[y for kind in kinds for y in (oracle[kind], oracle[kind], None)],
        mode="lines",
        name="always y",
        line={"color": MARK, "width": 2, "dash": "dash"},
        hovertemplate="always y: %{y:.3f}<extra></extra>",
    )
    figure.update_layout(barmode="group", bargap=0.22, bargroupgap=0.06, margin={"t": 120, "b": 70})
    figure.update_xaxes(tickvals=list(range(len(kinds))), ticktext=[_broken(kind) for kind in kinds], showgrid=False)
    figure.update_xaxes(range=[-0.55, len(kinds) - 0.45], ticks="")
    figure.update_yaxes(title="accuracy", range=[0, 1.05], tickvals=[0, 0.25, 0.5, 0.75, 1])
    shown = f"split {rows['split'].iloc[0]}" if rows["split"].iloc[0] != "" else ""
    bars = "bars: bootstrap intervals over sources"
    return titled(figure, title, joined((shown, bars, _examples(rows), _repeats(rows))))


def _accuracies(data: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """A table with a column `accuracy`, made from results where they are given."""
    if isinstance(by, str):
        raise TypeError(f"by must be several columns, got the text {by!r}; write by=({by!r},)")
    if isinstance(data, pd.DataFrame) and "accuracy" not in data.columns:
        data = focus_over_repeats(data, by)
    require_columns(data, [*by, "split", "kind", "accuracy"], "the table")
    if data.empty:
        raise ValueError("the table holds no rows to draw")
    require_finite(data, ["accuracy"], "the table")
    return data, list(by)


def _methods(table: pd.DataFrame, by: list[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    if not by:
        return [((), table)]
    return [(values, own) for values, own in table.groupby(by, sort=False, dropna=False)]


def _named(values: Sequence[Any], by: Sequence[str]) -> str:
    return ", ".join(map(str, values)) if by else "accuracy"


def _line(values: pd.Series, labels: Sequence[str], split: str, number: int, shown: bool) -> go.Scatterpolar:
    """A closed line over the axes; it is interrupted where there is no value."""
    ring = [*zip(labels, values, strict=True), (labels[0], values.iloc[0])]
    angles, radii = zip(*ring, strict=True)
    style = {"color": CLASSES[number % len(CLASSES)], "width": 2, "dash": DASHES[number % len(DASHES)]}
    return go.Scatterpolar(
        theta=angles,
        r=radii,
        mode="lines+markers",
        name=escaped(split) or "all",
        legendgroup=split,
        showlegend=shown,
        line=style,
        marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8, "color": style["color"]},
        hovertemplate=f"{escaped(split)}<br>%{{theta}}<br>accuracy %{{r:.3f}}<extra></extra>",
        cliponaxis=False,
    )


def _legend_of_all(figure: go.Figure, splits: Sequence[Any]) -> None:
    """Each split once in the legend, also one that the first radar lacks."""
    for split in map(str, splits):
        own = [trace for trace in figure.data if trace.legendgroup == split]
        for first, trace in enumerate(own):
            trace.showlegend = first == 0


def _broken(kind: str) -> str:
    return escaped(kind).replace("+", "<br>+ ")


def _examples(table: pd.DataFrame) -> str:
    if "n" not in table.columns:
        return ""
    low, high = int(table["n"].min()), int(table["n"].max())
    return f"{low if low == high else f'{low} to {high}'} examples a split"


def _repeats(table: pd.DataFrame) -> str:
    count = int(table["repeats"].max()) if "repeats" in table else table["repeat"].nunique() if "repeat" in table else 1
    return f"mean of {count} repeats" if count > 1 else ""
