"""Success against fluency: what each candidate gains, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from analysis.figures.template import MARK, colour_bar, escaped, joined, new_figure
from analysis.tables import UNSTEERED_LAYER, one_instruction, require_columns, require_finite

# One hue like the sequential scale, but from a blue that is seen on white to a very dark one.
_LAYERS = [[0.0, "#9ecae1"], [0.5, "#4292c6"], [1.0, "#08306b"]]


def success_fluency(
    candidates: pd.DataFrame,
    *,
    instruction: str | None = None,
    perplexity_ratio: float | None = None,
    title: str | None = None,
) -> go.Figure:
    """Each candidate at its perplexity (across, logarithmic) and success (up); one line per layer.

    Along a line the strength grows, and the points with it. Filled points are within the fluency budget
    (column ``within_budget``), open ones are not. The unsteered model is a diamond, the chosen
    candidate has a ring; these two carry their bootstrap intervals where the table has ``success_low``
    and ``success_high``.

    Args:
        candidates: one row per candidate, such as ``Selection.candidates``; layer −1 is no steering.
        instruction: which one to draw, where the table has several.
        perplexity_ratio: the budget, drawn as a line at this multiple of the unsteered perplexity.

    Raises:
        ValueError: missing columns, NaN, a perplexity that is not positive, or no unsteered row for the
            budget.
    """
    columns = ["layer", "strength", "success", "perplexity"]
    require_columns(candidates, columns, "candidates")
    table = one_instruction(candidates, instruction, "candidates")
    require_finite(table, columns, "candidates")
    if (table["perplexity"] <= 0).any():
        raise ValueError("perplexities must be positive")
    steered = table[table["layer"] != UNSTEERED_LAYER].sort_values(["layer", "strength"])
    unsteered = table[table["layer"] == UNSTEERED_LAYER]
    if perplexity_ratio is not None and unsteered.empty:
        raise ValueError("a budget line needs the unsteered row (layer -1)")
    chosen = table[table["chosen"].astype(bool)] if "chosen" in table.columns else table.iloc[:0]
    subject = f"{table['instruction'].iloc[0]}: " if "instruction" in table.columns else ""
    strengths = [f"{value:g}" for value in sorted(steered["strength"].unique())]
    figure = new_figure(
        title or f"{subject}success against fluency",
        joined(
            (
                "one line per layer, larger points are stronger steering",
                f"strengths {', '.join(strengths)}" if len(strengths) <= 8 else "",
            )
        ),
        height=500,
    )
    for _, line in steered.groupby("layer"):
        figure.add_scatter(
            x=line["perplexity"],
            y=line["success"],
            mode="lines",
            line={"color": "#c3c9d4", "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
    within = steered["within_budget"].astype(bool) if "within_budget" in steered.columns else steered["layer"] >= 0
    rank = steered["strength"].abs().rank(method="dense")
    sizes = 7 + 9 * (rank - 1) / max(1.0, rank.max() - 1)
    for keep, symbol, name in (
        (within, "circle", "within the budget"),
        (~within, "circle-open", "over the budget"),
    ):
        if keep.any():
            _add_points(figure, steered[keep], sizes[keep], symbol, name)
    if len(unsteered):
        _add_marked(figure, unsteered, "no steering", {"symbol": "diamond", "size": 13, "color": MARK})
    _add_chosen(figure, chosen)
    if perplexity_ratio is not None:
        _add_budget(figure, float(unsteered["perplexity"].iloc[0]), perplexity_ratio)
    figure.update_layout(
        coloraxis={"colorscale": _LAYERS, "colorbar": colour_bar("layer")},
        margin={"t": 120},
    )
    shown = list(table["perplexity"])
    if perplexity_ratio is not None:
        shown.append(float(unsteered["perplexity"].iloc[0]) * perplexity_ratio)
    figure.update_xaxes(
        title="perplexity under the unsteered model (geometric mean)", type="log", tickvals=_ticks(shown)
    )
    rate = table["success"].between(0, 1).all()
    figure.update_yaxes(title="success", range=[-0.05, 1.05] if rate else None)
    return figure


def _add_points(figure: go.Figure, rows: pd.DataFrame, sizes: pd.Series, symbol: str, name: str) -> None:
    figure.add_scatter(
        x=rows["perplexity"],
        y=rows["success"],
        mode="markers",
        name=name,
        marker={
            "color": rows["layer"],
            "coloraxis": "coloraxis",
            "size": sizes,
            "symbol": symbol,
            "line": {"width": 1.5 if symbol.endswith("open") else 0.5, "color": None},
        },
        customdata=rows[["layer", "strength"]],
        hovertemplate="layer %{customdata[0]}, strength %{customdata[1]:g}<br>"
        "success %{y:.2f}, perplexity %{x:.1f}<extra></extra>",
    )


def _add_marked(figure: go.Figure, rows: pd.DataFrame, name: str, marker: dict[str, object]) -> None:
    row = rows.iloc[0]
    error = None
    if "success_low" in rows.columns and "success_high" in rows.columns:
        up, down = row["success_high"] - row["success"], row["success"] - row["success_low"]
        error = {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "color": MARK}
    figure.add_scatter(
        x=[row["perplexity"]],
        y=[row["success"]],
        mode="markers",
        name=escaped(name),
        marker=marker,
        error_y=error,
        hovertemplate=escaped(name) + "<br>success %{y:.2f}, perplexity %{x:.1f}<extra></extra>",
    )


def _add_chosen(figure: go.Figure, chosen: pd.DataFrame) -> None:
    if chosen.empty:
        return
    row = chosen.iloc[0]
    steered = row["layer"] != UNSTEERED_LAYER
    name = f"chosen: layer {row['layer']}, strength {row['strength']:g}" if steered else "chosen: no steering"
    _add_marked(figure, chosen, name, {"symbol": "circle-open", "size": 24, "color": MARK, "line": {"width": 3}})


def _add_budget(figure: go.Figure, perplexity: float, ratio: float) -> None:
    limit = perplexity * ratio
    figure.add_vline(x=limit, line={"dash": "dash", "color": "#4d5566", "width": 1.5})
    figure.add_annotation(
        x=math.log10(limit),  # shapes take values on a logarithmic axis, annotations take exponents
        y=1,
        yref="paper",
        text=f" budget: {ratio:g} × no steering",
        showarrow=False,
        xanchor="left",
        yanchor="top",
        font={"size": 12},
        bgcolor="rgba(255, 255, 255, 0.8)",
    )


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers over the range: as fine a series as gives at most eight, so that any range has some."""
    low, high = min(values) / 1.3, max(values) * 1.3
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for series in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in series]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 8:
            break
    return ticks
