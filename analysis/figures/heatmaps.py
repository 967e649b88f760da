"""Heat maps: success over layer and strength, and cosines between vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.figures.template import (
    DIVERGING,
    INK,
    MARK,
    SEQUENTIAL,
    colour_bar,
    escaped,
    joined,
    new_figure,
)
from analysis.tables import UNSTEERED_LAYER, one_instruction, require_columns, require_finite

_COLUMNS_WITH_NUMBERS = 20  # more columns leave no room for a number of 12 points in each cell


def layer_strength_map(
    candidates: pd.DataFrame,
    *,
    instruction: str | None = None,
    value: str = "success",
    relative: bool = False,
    title: str | None = None,
) -> go.Figure:
    """A score over layer (across) and strength (up), beside its value without steering.

    The chosen candidate (column ``chosen``) has a heavy outline; candidates over the fluency budget (column
    ``within_budget``) stand in brackets, or are crossed where cells are too narrow for numbers.

    Args:
        candidates: one row per candidate, such as ``Selection.candidates``; layer −1 is no steering.
        instruction: which one to draw, where the table has several.
        value: the column to draw.
        relative: draw the difference to no steering, red below and blue above.

    Raises:
        ValueError: missing columns, NaN, several instructions and none named, a candidate that occurs twice,
            no steered candidate, or ``relative`` without an unsteered row.
    """
    require_columns(candidates, ["layer", "strength", value], "candidates")
    table = one_instruction(candidates, instruction, "candidates")
    require_finite(table, ["layer", "strength", value], "candidates")
    steered = table[table["layer"] != UNSTEERED_LAYER]
    unsteered = table.loc[table["layer"] == UNSTEERED_LAYER, value]
    if steered.empty or steered.duplicated(["layer", "strength"]).any():
        raise ValueError("candidates must hold steered rows, one for each layer and strength")
    if relative and unsteered.empty:
        raise ValueError("relative=True needs the unsteered row (layer -1)")
    grid = steered.pivot(index="strength", columns="layer", values=value)
    if relative:
        grid = grid - unsteered.iloc[0]
    over = _pivot_flag(steered, "within_budget", default=True).eq(False)
    numbers = len(grid.columns) <= _COLUMNS_WITH_NUMBERS
    name = value.replace("_", " ") + (" gained" if relative else "")
    chosen = table[table["chosen"].astype(bool)] if "chosen" in table.columns else table.iloc[:0]
    subject = _subject(table)
    figure = new_figure(
        title or f"{subject}{name} by layer and strength",
        joined(
            (
                f"no steering: {unsteered.iloc[0]:.2f}" if len(unsteered) else "",
                _chosen_text(chosen),
                ("( ) " if numbers else "× ") + "over the fluency budget" if over.to_numpy().any() else "",
            )
        ),
        height=170 + 44 * max(4, len(grid)),
    )
    figure.add_trace(
        go.Heatmap(
            z=grid.to_numpy(),
            x=[str(layer) for layer in grid.columns],
            y=[f"{strength:g}" for strength in grid.index],
            text=_cell_texts(grid, over, numbers, signed=relative),
            texttemplate="%{text}",
            textfont={"size": 12, "color": None if relative else INK},
            xgap=1,
            ygap=1,
            hovertemplate="layer %{x}<br>strength %{y}<br>" + escaped(name) + " %{z:.3f}<extra></extra>",
            **_colours(grid, value, relative),
        )
    )
    for row in chosen[chosen["layer"] != UNSTEERED_LAYER].itertuples():
        column, line = grid.columns.get_loc(row.layer), grid.index.get_loc(row.strength)
        box = {"x0": column - 0.5, "x1": column + 0.5, "y0": line - 0.5, "y1": line + 0.5}
        figure.add_shape(type="rect", **box, line={"color": "white", "width": 6})
        figure.add_shape(type="rect", **box, line={"color": MARK, "width": 3})
    figure.update_xaxes(title="layer", type="category", showgrid=False)
    figure.update_yaxes(title="strength", type="category", showgrid=False)
    return figure


def cosine_map(matrix: pd.DataFrame, *, title: str = "cosine between directions") -> go.Figure:
    """Cosines between directions, red at −1 and blue at 1, as ``analysis.geometry.cosine_matrix`` gives them.

    Raises:
        ValueError: an empty table, NaN, or values beyond ±1.
    """
    values = matrix.to_numpy(dtype=float)
    if values.size == 0 or not np.isfinite(values).all() or np.abs(values).max() > 1 + 1e-6:
        raise ValueError("cosines must lie between -1 and 1, without NaN")
    numbers = len(matrix.columns) <= _COLUMNS_WITH_NUMBERS
    figure = new_figure(title, height=max(360, 190 + (34 if numbers else 14) * len(matrix)))
    figure.add_trace(
        go.Heatmap(
            z=values,
            x=[escaped(name) for name in matrix.columns],
            y=[escaped(name) for name in matrix.index],
            colorscale=DIVERGING,
            zmin=-1,
            zmax=1,
            zmid=0,
            xgap=1,
            ygap=1,
            colorbar=colour_bar("cosine"),
            texttemplate="%{z:.2f}" if numbers else None,
            textfont={"size": 12},
            hovertemplate="%{y}<br>%{x}<br>cosine %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure


def _pivot_flag(steered: pd.DataFrame, column: str, default: bool) -> pd.DataFrame:
    values = steered[column] if column in steered.columns else pd.Series(default, index=steered.index)
    return steered.assign(flag=values).pivot(index="strength", columns="layer", values="flag")


def _cell_texts(grid: pd.DataFrame, over: pd.DataFrame, numbers: bool, signed: bool) -> list[list[str]]:
    def text(value: float, over_budget: bool) -> str:
        if np.isnan(value):
            return ""
        if not numbers:
            return "×" if over_budget else ""
        number = f"{value:+.2f}" if signed else f"{value:.2f}"
        number = number.replace("-", "−")
        return f"({number})" if over_budget else number

    cells = zip(grid.to_numpy(), over.to_numpy(), strict=True)
    return [[text(value, flag) for value, flag in zip(*row, strict=True)] for row in cells]


def _colours(grid: pd.DataFrame, value: str, relative: bool) -> dict[str, object]:
    values = grid.to_numpy()
    low, high = np.nanmin(values), np.nanmax(values)
    if relative:
        limit = max(abs(low), abs(high)) or 1.0
        bar = colour_bar("difference")
        return {"colorscale": DIVERGING, "zmin": -limit, "zmax": limit, "zmid": 0, "colorbar": bar}
    rate = value == "success" and low >= 0 and high <= 1
    zmin, zmax = (0.0, 1.0) if rate else (float(low), float(high))
    return {
        "colorscale": SEQUENTIAL,
        "zmin": zmin,
        "zmax": zmax,
        "colorbar": colour_bar(value.replace("_", " ")),
    }


def _subject(table: pd.DataFrame) -> str:
    return f"{table['instruction'].iloc[0]}: " if "instruction" in table.columns else ""


def _chosen_text(chosen: pd.DataFrame) -> str:
    if chosen.empty:
        return ""
    row = chosen.iloc[0]
    if row["layer"] == UNSTEERED_LAYER:
        return "chosen: no steering"
    return f"chosen: layer {row['layer']}, strength {row['strength']:g}"
