"""Focus instructions inside a model: at which layer they decide, and prompts beside vectors, model by model."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.template import (
    CLASSES,
    DASHES,
    INK,
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
from analysis.tables import one_of, require_columns, require_finite

_PANELS = {"flips": "share that flips to y_s", "restored": "log-odds restored"}
_REFERENCE = {"dash": "dot", "color": "#4d5566", "width": 1.5}


def focus_patching_curve(
    table: pd.DataFrame, *, title: str = "where the focus is decided: patching focus(S) into focus(C)"
) -> go.Figure:
    """Flips and the restored fraction over the layers, one line and band per site.

    Dotted: what the whole focus(S) prompt flips, and restored 0 and 1. A line breaks where a value is not defined.

    Args:
        table: as `analysis.focus_patching.focus_patching` gives it.

    Raises:
        ValueError: missing columns, NaN, no rows, or a layer that occurs twice for a site.
    """
    columns = [name for panel in _PANELS for name in (panel, f"{panel}_low", f"{panel}_high")]
    require_columns(table, ["site", "layer", "flips_positive", *columns], "the table")
    require_finite(table, ["layer", "flips_positive", *columns[:3]], "the table")
    if table.empty or table.duplicated(["site", "layer"]).any():
        raise ValueError("the table must hold each layer of a site once, one at least")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    sites = list(table.groupby("site", sort=False))
    for number, (site, rows) in enumerate(sites):
        for panel, measure in enumerate(_PANELS, start=1):
            _add_line(figure, rows.sort_values("layer"), str(site), measure, number, panel, len(sites) > 1)
    for panel, (measure, words) in enumerate(_PANELS.items(), start=1):
        levels = [float(table["flips_positive"].iloc[0])] if measure == "flips" else [0.0, 1.0]
        for level in levels:
            figure.add_hline(y=level, line=_REFERENCE, row=panel, col=1)
        # By the lines, not the bands: where the two prompts hardly differ, a band has no end.
        ends = [min(0.0, table[measure].min()) - 0.05, max(1.0, table[measure].max()) + 0.05]
        figure.update_yaxes(title=words, row=panel, col=1, range=ends)
    figure.update_xaxes(title="layer", row=2, col=1)
    figure.update_layout(template=NAME, height=560, margin={"t": 110 if len(sites) > 1 else 90})
    count = f"{int(table['n'].iloc[0])} examples" if "n" in table else ""
    return titled(figure, title, joined(("bands: bootstrap intervals", "dotted: the whole prompt; 0 and 1", count)))


def focus_comparison_bars(
    table: pd.DataFrame,
    *,
    toward: str = "S",
    split: str | None = None,
    value: str = "accuracy",
    title: str | None = None,
) -> go.Figure:
    """Conditions side by side, one bar per model, with bootstrap intervals.

    Args:
        table: as `analysis.focus_conditions.comparison_table` gives it.
        toward: "S" or "C".
        split: which test split, where the table has several.
        value: "accuracy", "accuracy_informative", "flips" or "shift".

    Raises:
        ValueError: missing columns, an unknown toward, an unknown split or several and none named, NaN, or a condition
            that occurs twice for a model.
    """
    columns = [value, f"{value}_low", f"{value}_high"]
    require_columns(table, ["model", "split", "toward", "condition", *columns], "the table")
    rows = one_of(one_of(table, "toward", toward), "split", split)
    require_finite(rows, columns, "the table")
    if rows.duplicated(["model", "condition"]).any():
        raise ValueError("the table must hold each condition of a model once; filter it")
    name, label = value.replace("_", " "), {"S": "y_s, toward S", "C": "y, toward C"}[toward]
    figure = new_figure(
        title or f"{name}: {label}",
        joined((f"split {rows['split'].iloc[0]}", _counts(rows), "bars: mean, with bootstrap intervals")),
        height=460,
    )
    for number, (model, own) in enumerate(rows.groupby("model", sort=False)):
        figure.add_bar(
            x=[escaped(condition) for condition in own["condition"]],
            y=own[value],
            name=escaped(model),
            error_y=error_bars(own[value], own[columns[1]], own[columns[2]], INK),
            marker=bar_marker(CLASSES[number % len(CLASSES)], PATTERNS[number % len(PATTERNS)]),
            hovertemplate=f"%{{x}}, {escaped(model)}<br>{escaped(name)} %{{y:.3f}}<extra></extra>",
        )
    order = [escaped(condition) for condition in dict.fromkeys(rows["condition"])]
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06, margin={"t": 115})
    figure.update_xaxes(type="category", showgrid=False, categoryorder="array", categoryarray=order)
    figure.update_yaxes(title=name, range=None if value == "shift" else [0, 1.02])
    return figure


def _add_line(
    figure: go.Figure, rows: pd.DataFrame, site: str, measure: str, number: int, panel: int, named: bool
) -> None:
    """The band first, so that no line lies under another's."""
    colour = CLASSES[number % len(CLASSES)]
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    sure = rows.dropna(subset=[measure, f"{measure}_low", f"{measure}_high"])
    figure.add_scatter(
        x=[*sure["layer"], *sure["layer"][::-1]],
        y=[*sure[f"{measure}_high"], *sure[f"{measure}_low"][::-1]],
        row=panel,
        col=1,
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, 0.13)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=site,
    )
    figure.add_scatter(
        x=rows["layer"],
        y=rows[measure],
        row=panel,
        col=1,
        mode="lines+markers",
        name=escaped(site),
        legendgroup=site,
        showlegend=named and panel == 1,
        connectgaps=False,
        line={"color": colour, "dash": DASHES[number % len(DASHES)], "width": 2},
        marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
        hovertemplate=f"{escaped(site)} layer %{{x}}<br>{_PANELS[measure]} %{{y:.3f}}<extra></extra>",
    )


def _counts(rows: pd.DataFrame) -> str:
    if "n" not in rows:
        return ""
    informative = f", {int(rows['n_informative'].iloc[0])} of them informative" if "n_informative" in rows else ""
    return f"{int(rows['n'].iloc[0])} examples{informative}"
