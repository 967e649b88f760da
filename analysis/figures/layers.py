"""Curves over layers: how well a direction separates its classes, and how stable it is."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.template import CLASSES, DASHES, NAME, SYMBOLS, escaped, titled
from analysis.tables import require_columns, require_finite

_NAMES = {"auroc": "AUROC", "effect_size": "effect size (d)", "split_half_cosine": "split-half cosine"}
_CHANCE = {"auroc": 0.5, "effect_size": 0.0, "split_half_cosine": 0.0}


def separation_by_layer(
    table: pd.DataFrame,
    *,
    measures: Sequence[str] = ("auroc", "effect_size", "split_half_cosine"),
    chosen: int | None = None,
    title: str = "class separation by layer",
) -> go.Figure:
    """One panel per measure over the layers, one line per instruction; a dotted line marks chance.

    Args:
        table: columns layer and the measures, such as ``InstructionVectors.separation``; with a column
            ``instruction`` there is a line for each (``pandas.concat`` of several with their names).
        chosen: a layer to mark in all panels.

    Raises:
        ValueError: missing columns, NaN, no measures, or a layer that occurs twice in a line.
    """
    if not measures:
        raise ValueError("name at least one measure")
    require_columns(table, ["layer", *measures], "the table")
    require_finite(table, ["layer", *measures], "the table")
    lines = {str(k): v for k, v in table.groupby("instruction", sort=False)} if "instruction" in table else {"": table}
    if any(rows["layer"].duplicated().any() for rows in lines.values()):
        raise ValueError("a layer occurs twice; several vectors need a column 'instruction' with their names")
    figure = make_subplots(rows=len(measures), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for i, (name, rows) in enumerate(lines.items()):
        rows = rows.sort_values("layer")
        for panel, measure in enumerate(measures, start=1):
            figure.add_scatter(
                x=rows["layer"],
                y=rows[measure],
                row=panel,
                col=1,
                mode="lines+markers",
                name=escaped(name),
                legendgroup=name,
                showlegend=panel == 1 and len(lines) > 1,
                line={"color": CLASSES[i % len(CLASSES)], "dash": DASHES[i % len(DASHES)], "width": 2},
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7},
                hovertemplate=f"{escaped(name)} layer %{{x}}<br>{escaped(measure)} %{{y:.3f}}<extra></extra>",
            )
    for panel, measure in enumerate(measures, start=1):
        figure.update_yaxes(title=_NAMES.get(measure, measure.replace("_", " ")), row=panel, col=1)
        if measure in _CHANCE:
            figure.add_hline(y=_CHANCE[measure], line={"dash": "dot", "color": "#4d5566"}, row=panel, col=1)
        if chosen is not None:
            figure.add_vline(x=chosen, line={"dash": "dash", "color": "#000000", "width": 1.5}, row=panel, col=1)
    figure.update_xaxes(title="layer", row=len(measures), col=1)
    figure.update_layout(template=NAME, height=150 + 190 * len(measures), margin={"t": 110 if len(lines) > 1 else 90})
    return titled(figure, title, "" if chosen is None else f"dashed: the chosen layer, {chosen}")
