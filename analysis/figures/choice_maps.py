"""Multiple choice: accuracy over K (or layer) and strength, over the number of pairs; attribution beside patching."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.template import (
    CLASSES,
    DASHES,
    DIVERGING,
    INK,
    MARK,
    SYMBOLS,
    colour_bar,
    error_bars,
    escaped,
    joined,
    new_figure,
)
from analysis.statistics import spearman
from analysis.tables import UNSTEERED_LAYER, one_of, require_columns, require_finite

_LAYERS = [[0.0, "#9ecae1"], [0.5, "#4292c6"], [1.0, "#08306b"]]  # seen on white from end to end


def choice_map(
    candidates: pd.DataFrame,
    *,
    method: str | None = None,
    value: str = "accuracy",
    title: str | None = None,
) -> go.Figure:
    """A score over K (or layer; across) and strength (up), with the unsteered value as the middle of the colours.

    Red cells are worse than no steering, blue ones better. The chosen setting has a heavy outline.

    Args:
        candidates: as `analysis.choice_selection.choose_setting` gives them: method, k, layer, strength, the value,
            chosen; the unsteered row (strength 0) among them.
        method: which one to draw, where the table has several.
        value: the column to draw.

    Raises:
        ValueError: missing columns, NaN, an unknown method or several and none named, no unsteered row, no steered
            ones, a setting that occurs twice, or a grid over both K and layer.
    """
    require_columns(candidates, ["method", "k", "layer", "strength", value], "candidates")
    table = one_of(candidates, "method", method)
    method = table["method"].iloc[0]
    require_finite(table, ["k", "layer", "strength", value], "candidates")
    nothing, steered = table[table["strength"] == 0], table[table["strength"] != 0]
    if len(nothing) != 1 or steered.empty:
        raise ValueError(
            f"the candidates of {method!r} must hold one unsteered row (strength 0) and steered ones; they hold "
            f"{len(nothing)} and {len(steered)}"
        )
    by_layer = (steered["layer"] != UNSTEERED_LAYER).any()
    across, other = ("layer", "k") if by_layer else ("k", "layer")
    if steered[other].nunique() > 1 or steered.duplicated([across, "strength"]).any():
        raise ValueError(
            f"the candidates of {method!r} must hold each {across} and strength once, at one {other}; filter the table"
        )
    base = float(nothing[value].iloc[0])
    cells = steered.pivot(index="strength", columns=across, values=value)
    limit = float(np.nanmax(np.abs(cells.to_numpy() - base))) or 0.01
    chosen = table[table["chosen"].astype(bool)] if "chosen" in table else table.iloc[:0]
    name = {"k": "K", "layer": "layer"}[across]
    numbers = len(cells.columns) <= 20
    figure = new_figure(
        title or f"{method}: {value.replace('_', ' ')} by {name} and strength",
        joined(
            (
                f"no steering: {base:.3f}, white",
                _chosen_text(chosen, across, name),
                f"{int(table['n'].iloc[0])} questions" if "n" in table else "",
            )
        ),
        height=170 + 40 * max(5, len(cells)),
    )
    bar = colour_bar(value.replace("_", " "))
    ticks = [base - limit, base - limit / 2, base, base + limit / 2, base + limit]
    texts = [f"{tick:.3f}" for tick in ticks]
    texts[2] = f"{base:.3f} no steering"
    figure.add_trace(
        go.Heatmap(
            z=cells.to_numpy(),
            x=[str(column) for column in cells.columns],
            y=[f"{strength:g}" for strength in cells.index],
            text=[["" if np.isnan(v) or not numbers else f"{v:.3f}" for v in row] for row in cells.to_numpy()],
            texttemplate="%{text}",
            textfont={"size": 12},
            xgap=1,
            ygap=1,
            colorscale=DIVERGING,
            zmin=base - limit,
            zmax=base + limit,
            zmid=base,
            colorbar={**bar, "tickvals": ticks, "ticktext": texts},
            hovertemplate=f"{name} %{{x}}<br>strength %{{y}}<br>{escaped(value)} %{{z:.3f}}<extra></extra>",
        )
    )
    for row in chosen[chosen["strength"] != 0].to_dict("records"):
        column, line = cells.columns.get_loc(row[across]), cells.index.get_loc(row["strength"])
        box = {"x0": column - 0.5, "x1": column + 0.5, "y0": line - 0.5, "y1": line + 0.5}
        figure.add_shape(type="rect", **box, line={"color": "white", "width": 6})
        figure.add_shape(type="rect", **box, line={"color": MARK, "width": 3})
    figure.update_xaxes(title=name, type="category", showgrid=False)
    figure.update_yaxes(title="strength", type="category", showgrid=False)
    return figure


def accuracy_by_pairs(table: pd.DataFrame, *, title: str = "accuracy against the number of pairs") -> go.Figure:
    """Accuracy after fitting on more and more pairs, with intervals; the unsteered accuracy is a dotted line.

    Args:
        table: as `analysis.pairs_curve.pairs_curve` gives it: n_pairs, seed, accuracy, low, high; the row with
            n_pairs 0 is no steering. With a column ``method`` there is a line for each. With several seeds the line
            is their mean, the small points are single seeds, and the bars are the seeds' mean interval.

    Raises:
        ValueError: missing columns, NaN, no steered rows, or a number of pairs and seed that occurs twice.
    """
    columns = ["n_pairs", "accuracy", "low", "high"]
    require_columns(table, [*columns, "seed"], "the table")
    require_finite(table, columns, "the table")
    table = table if "method" in table else table.assign(method="steered")
    steered, nothing = table[table["n_pairs"] > 0], table[table["n_pairs"] == 0]
    if steered.empty or steered.duplicated(["method", "n_pairs", "seed"]).any():
        raise ValueError("the table must hold steered rows, one for each number of pairs and seed")
    seeds = steered["seed"].nunique()
    figure = new_figure(
        title,
        joined(
            (
                f"no steering: {nothing['accuracy'].iloc[0]:.3f}, dotted" if len(nothing) else "",
                f"mean of {seeds} draws of the pairs, each a small point" if seeds > 1 else "",
                "bars: bootstrap over questions",
            )
        ),
    )
    methods = list(dict.fromkeys(steered["method"]))
    for i, method in enumerate(methods):
        rows = steered[steered["method"] == method]
        mean = rows.groupby("n_pairs")[columns[1:]].mean()
        colour, symbol = CLASSES[i % len(CLASSES)], SYMBOLS[i % len(SYMBOLS)]
        if seeds > 1:
            figure.add_scatter(
                x=rows["n_pairs"],
                y=rows["accuracy"],
                mode="markers",
                name=f"{escaped(method)}, one draw",
                showlegend=False,
                marker={"color": colour, "symbol": symbol, "size": 5, "opacity": 0.5},
                customdata=rows["seed"],
                hovertemplate="%{x} pairs, seed %{customdata}<br>accuracy %{y:.3f}<extra></extra>",
            )
        figure.add_scatter(
            x=mean.index,
            y=mean["accuracy"],
            mode="lines+markers",
            name=escaped(method),
            line={"color": colour, "dash": DASHES[i % len(DASHES)], "width": 2},
            marker={"symbol": symbol, "size": 9},
            error_y=error_bars(mean["accuracy"], mean["low"], mean["high"], colour),
            hovertemplate=f"{escaped(method)}<br>%{{x}} pairs<br>accuracy %{{y:.3f}}<extra></extra>",
        )
    if len(nothing):
        line = {"dash": "dot", "color": INK, "width": 1.5}
        figure.add_hline(y=float(nothing["accuracy"].iloc[0]), line=line)
    figure.update_layout(showlegend=len(methods) > 1, margin={"t": 110 if len(methods) > 1 else 90})
    figure.update_xaxes(title="pairs", type="log", tickvals=sorted(steered["n_pairs"].unique()))
    figure.update_yaxes(title="accuracy")
    return figure


def patching_comparison(comparison: pd.DataFrame, *, title: str = "attribution against patching") -> go.Figure:
    """What attribution patching predicts of an element (across) against the measured effect of patching it (up).

    On the dashed line the two are equal; the subtitle tells the rank correlation (Spearman).

    Args:
        comparison: layer, element, attribution, effect.

    Raises:
        ValueError: missing columns, NaN, fewer than two elements, or one that occurs twice.
    """
    require_columns(comparison, ["layer", "element", "attribution", "effect"], "comparison")
    require_finite(comparison, ["layer", "element", "attribution", "effect"], "comparison")
    if len(comparison) < 2 or comparison.duplicated(["layer", "element"]).any():
        raise ValueError("comparison must hold two or more elements, each once")
    correlation = spearman(comparison["attribution"].to_numpy(), comparison["effect"].to_numpy())
    figure = new_figure(
        title,
        joined((f"rank correlation {correlation:.2f}", f"{len(comparison)} elements", "dashed: equal")),
        height=500,
    )
    ends = [comparison[["attribution", "effect"]].min().min(), comparison[["attribution", "effect"]].max().max()]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"dash": "dash", "color": "#4d5566", "width": 1.5},
        hoverinfo="skip",
        name="equal",
    )
    figure.add_scatter(
        x=comparison["attribution"],
        y=comparison["effect"],
        mode="markers",
        name="elements",
        marker={
            "color": comparison["layer"],
            "colorscale": _LAYERS,
            "colorbar": colour_bar("layer"),
            "size": 8,
            "line": {"color": INK, "width": 0.5},
        },
        customdata=comparison[["layer", "element"]],
        hovertemplate="layer %{customdata[0]}, element %{customdata[1]}<br>attribution %{x:.4g}<br>"
        "effect %{y:.4g}<extra></extra>",
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="attribution: gradient × difference")
    figure.update_yaxes(title="effect of patching")
    return figure


def _chosen_text(chosen: pd.DataFrame, across: str, name: str) -> str:
    if chosen.empty:
        return ""
    row = chosen.iloc[0]
    if row["strength"] == 0:
        return "chosen: no steering"
    return f"chosen: {name} {row[across]}, strength {row['strength']:g}"
