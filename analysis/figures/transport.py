"""Activation transport: effect and damage over strength and support, and what the maps do to single units."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.template import (
    CLASSES,
    CONDITION_COLOURS,
    DASHES,
    MARK,
    NAME,
    SYMBOLS,
    escaped,
    joined,
    new_figure,
    titled,
)
from analysis.figures.transport_axes import axis, axis_title, free_labels, require_summary
from analysis.tables import require_columns, require_finite

_SETTING = ["method", "condition", "support", "strength"]
_REFERENCE = {"dash": "dot", "color": "#4d5566", "width": 1.5}


def strength_curves(
    summary: pd.DataFrame,
    *,
    measures: tuple[str, ...] = ("success", "text_perplexity"),
    band: str = "auto",
    chosen: bool = True,
    title: str = "effect and damage over strength",
) -> go.Figure:
    """One panel per measure over the strength λ, one line per method and support; 0 is no steering.

    Args:
        summary: as `transport_summary` or `choose_strength` gives it.
        band: "interval" (bootstrap), "quartiles" (then the line is the median) or "auto": quartiles where a measure has
            no interval.
        chosen: ring the chosen settings, where the table has such a column.

    Raises:
        ValueError: results of a sweep instead of their summary, missing columns, NaN, nothing but no steering, or a
            band that the table lacks for a measure.
    """
    require_summary(summary)
    require_columns(summary, [*_SETTING, *measures], "the summary")
    require_finite(summary, ["strength", *measures], "the summary")
    lines = list(_lines(summary))
    if not lines:
        raise ValueError("the summary holds no steered rows to draw")
    figure = make_subplots(rows=len(measures), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(measures))
    for panel, measure in enumerate(measures, start=1):
        centre, low, high = _band_columns(summary, measure, band)
        for number, (name, style, rows) in enumerate(lines):
            # The band first, so that no line lies under another's.
            if low in rows and np.isfinite(rows[[low, high]].to_numpy(dtype=float)).all():
                figure.add_scatter(**_band(rows, low, high, style["color"]), row=panel, col=1)
            figure.add_scatter(
                x=rows["strength"],
                y=rows[centre],
                row=panel,
                col=1,
                mode="lines+markers",
                name=escaped(name),
                legendgroup=name,
                showlegend=panel == 1,
                line=style,
                marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8},
                hovertemplate=f"{escaped(name)}<br>strength %{{x:g}}<br>{measure} %{{y:.3g}}<extra></extra>",
            )
        unsteered = float(summary.loc[summary["condition"] == "none", centre].iloc[0])
        figure.add_hline(y=unsteered, line=_REFERENCE, row=panel, col=1)
        ring = summary[summary["chosen"].astype(bool)] if chosen and "chosen" in summary else summary.iloc[:0]
        if len(ring):
            figure.add_scatter(
                x=ring["strength"],
                y=ring[centre],
                row=panel,
                col=1,
                mode="markers",
                name="chosen",
                legendgroup="chosen",
                showlegend=panel == 1,
                marker={"symbol": "circle-open", "size": 18, "color": MARK, "line": {"width": 2.5}},
                cliponaxis=False,
                hoverinfo="skip",
            )
        shown = axis(summary, measure, centre, low, high)
        figure.update_yaxes(title=axis_title(measure, centre), row=panel, col=1, **shown)
    figure.update_xaxes(title="strength λ", row=len(measures), col=1)
    figure.update_layout(template=NAME, height=190 + 240 * len(measures), margin={"t": 130})
    quartiles = [_band_columns(summary, measure, band)[1].endswith("_q25") for measure in measures]
    kind = "bootstrap intervals" if not any(quartiles) else "median and quartiles"
    if any(quartiles) and not all(quartiles):
        kind = "bootstrap intervals, or median and quartiles"
    return titled(figure, title, joined((f"bands: {kind}", "dotted: no steering", _prompts(summary))))


def support_curve(
    summary: pd.DataFrame,
    *,
    measures: tuple[str, ...] = ("success", "text_perplexity", "untouched"),
    title: str = "effect and damage over the support",
) -> go.Figure:
    """One panel per measure over supports from narrow to everywhere, one line per method and strength.

    Measures that the table lacks are left out.

    Raises:
        ValueError: results of a sweep instead of their summary, missing columns, no measures, NaN in steered rows, or
            nothing but no steering.
    """
    require_summary(summary)
    require_columns(summary, [*_SETTING, "success"], "the summary")
    measures = tuple(measure for measure in measures if measure in summary)
    steered = summary[summary["condition"] != "none"]
    if steered.empty or not measures:
        raise ValueError(f"the summary needs steered rows and one of the measures; it has {list(summary.columns)}")
    require_finite(steered, list(measures), "the summary")
    order = sorted(dict.fromkeys(steered["support"]), key=_width_of_support)
    figure = make_subplots(rows=len(measures), cols=1, shared_xaxes=True, vertical_spacing=0.16 / len(measures))
    groups = list(steered.groupby(["method", "condition", "strength"], sort=False))
    for panel, measure in enumerate(measures, start=1):
        for number, ((method, condition, strength), rows) in enumerate(groups):
            rows = rows.set_index("support").reindex(order).dropna(subset=[measure])
            name = f"{method}{', random' * (condition == 'random')}, λ = {strength:g}"
            bars = None
            if f"{measure}_low" in rows:
                up, down = rows[f"{measure}_high"] - rows[measure], rows[measure] - rows[f"{measure}_low"]
                bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5}
            figure.add_scatter(
                x=rows.index,
                y=rows[measure],
                error_y=bars,
                row=panel,
                col=1,
                mode="lines+markers",
                name=escaped(name),
                legendgroup=name,
                showlegend=panel == 1,
                line={"color": CLASSES[number % len(CLASSES)], "dash": DASHES[number % len(DASHES)], "width": 2},
                marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8},
                hovertemplate=f"{escaped(name)}<br>%{{x}}: %{{y:.3g}}<extra></extra>",
            )
        unsteered = summary.loc[summary["condition"] == "none", measure]
        if measure != "untouched" and len(unsteered):
            figure.add_hline(y=float(unsteered.iloc[0]), line=_REFERENCE, row=panel, col=1)
        drawn = summary if measure != "untouched" else steered
        figure.update_yaxes(title=axis_title(measure, measure), row=panel, col=1, **axis(drawn, measure, measure))
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    figure.update_xaxes(title="support, percentages of the source", row=len(measures), col=1)
    figure.update_layout(template=NAME, height=190 + 200 * len(measures), margin={"t": 130})
    return titled(figure, title, joined(("dotted: no steering", _prompts(summary))))


def effect_perplexity(
    summary: pd.DataFrame, *, text_rise: float | None = None, title: str = "effect against perplexity"
) -> go.Figure:
    """Each setting at the perplexity of neutral texts (across) and its success (up); along a line the strength grows.

    Args:
        text_rise: a budget, drawn as a line so far right of no steering.

    Raises:
        ValueError: results of a sweep instead of their summary, missing columns, NaN, or nothing but no steering.
    """
    require_summary(summary)
    require_columns(summary, [*_SETTING, "success", "text_perplexity"], "the summary")
    require_finite(summary, ["strength", "success", "text_perplexity"], "the summary")
    lines = list(_lines(summary))
    if not lines:
        raise ValueError("the summary holds no steered rows to draw")
    figure = new_figure(title, joined(("along a line, strength grows; its values stand beside", _prompts(summary))))
    across, up = axis(summary, "text_perplexity", "text_perplexity"), axis(summary, "success", "success")
    up |= {"range": [-0.1, 1.12]} if "range" in up else {}  # room for labels above 1 and below 0
    labels = _labels(lines, across, up)
    for number, (name, style, rows) in enumerate(lines):
        figure.add_scatter(
            x=rows["text_perplexity"],
            y=rows["success"],
            mode="lines+markers+text",
            name=escaped(name),
            text=labels[number],
            customdata=rows["strength"],
            textposition="top center" if number % 2 == 0 else "bottom center",
            textfont={"size": 12, "color": style["color"]},
            line=style,
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9},
            cliponaxis=False,
            hovertemplate=f"{escaped(name)}<br>λ %{{customdata:g}}: "
            "success %{y:.2f}, perplexity %{x:.1f}<extra></extra>",
        )
    unsteered = summary[summary["condition"] == "none"].iloc[0]
    figure.add_scatter(
        x=[unsteered["text_perplexity"]],
        y=[unsteered["success"]],
        mode="markers",
        name="no steering",
        marker={"symbol": "diamond", "size": 14, "color": MARK},
    )
    if text_rise is not None:
        figure.add_vline(x=unsteered["text_perplexity"] + text_rise, line={**_REFERENCE, "dash": "dash"})
        figure.add_annotation(
            x=np.log10(
                unsteered["text_perplexity"] + text_rise
            ),  # an annotation is placed by the logarithm, a line not
            y=0,
            yref="paper",
            yanchor="bottom",
            xanchor="left",
            text=f" budget: +{text_rise:g}",
            showarrow=False,
            bgcolor="rgba(255, 255, 255, 0.8)",
        )
    figure.update_layout(height=520, margin={"t": 130})
    figure.update_xaxes(title=axis_title("text_perplexity", "text_perplexity"), **across)
    figure.update_yaxes(title="success", **up)
    return figure


def _labels(
    lines: list[tuple[str, dict[str, Any], pd.DataFrame]], across: dict[str, Any], up: dict[str, Any]
) -> list[list[str]]:
    """The strengths to write along every line, of the strongest ones first, as far as they have room."""
    texts = [[f"{value:g}" if value else "" for value in rows["strength"]] for _, _, rows in lines]
    places = [(line, i) for line, own in enumerate(texts) for i in reversed(range(len(own))) if own[i]]
    tables = [rows[["text_perplexity", "success"]].to_numpy(dtype=float) for _, _, rows in lines]
    points = [(float(tables[line][i][0]), float(tables[line][i][1]), line % 2 == 0) for line, i in places]
    for (line, i), free in zip(places, free_labels(points, across, up), strict=True):
        texts[line][i] = texts[line][i] if free else ""
    return texts


def _lines(summary: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], pd.DataFrame]]:
    """Name, style and rows of every line, no steering first; random controls are dashed in one colour."""
    several = summary.loc[summary["condition"] != "none"].groupby("method", sort=False)["support"].nunique()
    steered, number = summary[summary["condition"] != "none"], 0
    for (method, condition, support), rows in steered.groupby(_SETTING[:3], sort=False):
        none = summary[(summary["method"] == method) & (summary["condition"] == "none")]
        name = f"{method}{', random' * (condition == 'random')}" + f", {support}" * int(several[method] > 1)
        if condition == "random":
            style = {"color": CONDITION_COLOURS["random"], "dash": DASHES[1 + number % (len(DASHES) - 1)], "width": 2}
        else:
            style = {"color": [*CLASSES[:4], *CLASSES[5:]][number % 6], "dash": "solid", "width": 2.5}
            number += 1
        yield name, style, pd.concat([none, rows]).sort_values("strength")


def _band_columns(summary: pd.DataFrame, measure: str, band: str) -> tuple[str, str, str]:
    """The columns of the line and of the ends of its band."""
    if band not in ("auto", "interval", "quartiles"):
        raise ValueError(f"band must be 'auto', 'interval' or 'quartiles', got {band!r}")
    interval = (measure, f"{measure}_low", f"{measure}_high")
    quartiles = (f"{measure}_median", f"{measure}_q25", f"{measure}_q75")
    wanted = quartiles if band == "quartiles" or (band == "auto" and interval[1] not in summary) else interval
    if band != "auto":
        require_columns(summary, wanted, "the summary")
    return wanted if wanted[1] in summary else interval


def _band(rows: pd.DataFrame, low: str, high: str, colour: str) -> dict[str, Any]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return {
        "x": [*rows["strength"], *rows["strength"][::-1]],
        "y": [*rows[high], *rows[low][::-1]],
        "fill": "toself",
        "fillcolor": f"rgba({red}, {green}, {blue}, 0.13)",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _width_of_support(label: str) -> float:
    low, _, high = label.partition("-")
    return float(high) - float(low) if high else float("inf")


def _prompts(summary: pd.DataFrame) -> str:
    return f"{int(summary['n'].max())} prompts" if "n" in summary else ""
