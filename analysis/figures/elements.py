"""Key elements: where they are, over which layers they spread, and how far the criteria that rank them agree."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.template import (
    CLASSES,
    DIVERGING,
    MARK,
    NAME,
    SEQUENTIAL,
    SYMBOLS,
    colour_bar,
    escaped,
    joined,
    new_figure,
    titled,
)
from analysis.tables import one_of, require_columns, require_finite

_COLUMNS_WITH_NUMBERS = 8  # in each of two maps side by side
_ELEMENTS_WITH_GAPS = 40
_CHANCE = {"auroc": 0.5, "probe": 0.5}


def element_map(
    scores: pd.DataFrame,
    *,
    criterion: str | None = None,
    k: int = 0,
    element: str = "head",
    centre: float | None = None,
    limit: float | None = None,
    title: str | None = None,
) -> go.Figure:
    """The score of every element (up) in every layer (across), red below the centre and blue above.

    Args:
        scores: layer, element, score; criterion where there are several; rank (1 is first) to mark the K first ones
            with a ring. What `SADI.table` gives will do; elements that it leaves out stay white.
        criterion: which one to draw, where the table has several.
        k: how many to mark.
        element: what an element is called on the axis.
        centre: the score that says nothing. Default: 0.5 for the criteria "auroc" and "probe", else 0.
        limit: the distance from the centre of full colour. Default: the 99th percentile, because a few elements of
            the last layers are often far beyond all others.

    Raises:
        ValueError: missing columns, NaN, an unknown criterion or several and none named, an element that occurs
            twice, K out of range or without ranks, or a limit that is not positive.
    """
    named = ["criterion"] if criterion is not None or "criterion" in scores else []
    require_columns(scores, [*named, "layer", "element", "score", *(["rank"] if k else [])], "scores")
    table = one_of(scores, "criterion", criterion) if named else scores
    criterion = table["criterion"].iloc[0] if named else "key elements"
    require_finite(table, ["layer", "element", "score"], "scores")
    if table.duplicated(["layer", "element"]).any():
        raise ValueError(f"an element occurs twice among the scores of {criterion!r}")
    if not 0 <= k <= len(table):
        raise ValueError(f"k={k}: there are {len(table)} elements to mark")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    if centre is None:
        centre = _CHANCE.get(str(criterion), 0.0)
    cells = table.pivot(index="element", columns="layer", values="score")
    far = np.abs(table["score"].to_numpy(dtype=float) - centre)
    scale = limit or float(np.quantile(far, 0.99)) or float(far.max()) or 1.0
    gap = int(max(cells.shape) <= _ELEMENTS_WITH_GAPS)
    figure = new_figure(
        title or f"{criterion}: score of every {element}",
        joined((f"○ the first {k}" if k else "", f"{table['layer'].nunique()} layers, {len(table)} {element}s")),
        height=170 + 22 * min(30, max(10, len(cells))),
    )
    figure.add_trace(
        go.Heatmap(
            z=cells.to_numpy(),
            x=cells.columns.to_numpy(),
            y=cells.index.to_numpy(),
            colorscale=DIVERGING,
            zmid=centre,
            zmin=centre - scale,
            zmax=centre + scale,
            xgap=gap,
            ygap=gap,
            colorbar=colour_bar("score"),
            hovertemplate=f"layer %{{x}}<br>{escaped(element)} %{{y}}<br>score %{{z:.4g}}<extra></extra>",
        )
    )
    if k:
        first = table[table["rank"] <= k].sort_values("rank")
        figure.add_scatter(
            x=first["layer"],
            y=first["element"],
            mode="markers",
            name=f"the first {k}",
            marker={"symbol": "circle", "size": 9, "color": "white", "line": {"color": MARK, "width": 2}},
            customdata=first[["rank", "score"]],
            hovertemplate=f"rank %{{customdata[0]}}: layer %{{x}}, {escaped(element)} %{{y}}<br>"
            "score %{customdata[1]:.4g}<extra></extra>",
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title="layer", showgrid=False, zeroline=False)
    figure.update_yaxes(title=element, showgrid=False, zeroline=False)
    return figure


def layer_distribution(counts: pd.DataFrame, *, title: str = "where the first elements are") -> go.Figure:
    """How many of the K first elements every layer holds: one panel of bars for each criterion.

    Args:
        counts: criterion, layer, count; layers that are left out have none.

    Raises:
        ValueError: missing columns, NaN, an empty table, or a layer that occurs twice for a criterion.
    """
    require_columns(counts, ["criterion", "layer", "count"], "counts")
    require_finite(counts, ["layer", "count"], "counts")
    if counts.empty or counts.duplicated(["criterion", "layer"]).any():
        raise ValueError("counts must hold each criterion and layer once")
    criteria = list(dict.fromkeys(counts["criterion"]))
    totals = counts.groupby("criterion")["count"].sum()
    figure = make_subplots(
        rows=len(criteria),
        cols=1,
        shared_xaxes=True,
        shared_yaxes="all",
        vertical_spacing=min(0.08, 0.3 / len(criteria)),
        subplot_titles=[escaped(name) for name in criteria],
    )
    for panel, name in enumerate(criteria, start=1):
        rows = counts[counts["criterion"] == name].sort_values("layer")
        figure.add_bar(
            x=rows["layer"],
            y=rows["count"],
            row=panel,
            col=1,
            name=escaped(name),
            marker={"color": CLASSES[(panel - 1) % len(CLASSES)], "line": {"width": 0}},
            hovertemplate=f"{escaped(name)}<br>layer %{{x}}: %{{y}} of {totals[name]:g}<extra></extra>",
        )
    # The titles of the panels: at their left edge, in the size of the other text.
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.update_layout(
        template=NAME, height=130 + 110 * len(criteria), margin={"t": 100}, showlegend=False, bargap=0.15
    )
    figure.update_yaxes(rangemode="tozero", nticks=4)
    figure.update_yaxes(title="elements", row=(len(criteria) + 1) // 2, col=1)
    figure.update_xaxes(title="layer", row=len(criteria), col=1)
    sizes = sorted({int(total) for total in totals})
    return titled(figure, title, f"K = {', '.join(map(str, sizes))} by each criterion, layer by layer")


def criterion_agreement(agreement: pd.DataFrame, *, title: str = "agreement of the criteria") -> go.Figure:
    """Two maps side by side: the share of the K first that two criteria have in common, and their rank correlation.

    Args:
        agreement: first, second, overlap (a share), rank_correlation; each pair once or in both orders, the diagonal
            or not. With columns k and chance (overlap of two random sets of K) these are told.

    Raises:
        ValueError: missing columns, NaN, an empty table, a pair that is missing, or values out of range.
    """
    columns = ["first", "second", "overlap", "rank_correlation"]
    require_columns(agreement, columns, "agreement")
    require_finite(agreement, columns[2:], "agreement")
    if agreement.empty or not agreement["overlap"].between(0, 1).all():
        raise ValueError("agreement needs rows, and overlaps between 0 and 1")
    if agreement["rank_correlation"].abs().max() > 1 + 1e-6:
        raise ValueError("rank correlations must lie between -1 and 1")
    names = list(dict.fromkeys([*agreement["first"], *agreement["second"]]))
    labels = [escaped(name) for name in names]
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.2,
        subplot_titles=["overlap of the first K", "rank correlation of all"],
    )
    scales = (
        ("overlap", {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": 1}, 0.405),
        ("rank_correlation", {"colorscale": DIVERGING, "zmin": -1, "zmax": 1, "zmid": 0}, 1.005),
    )
    for column, (value, colours, place) in enumerate(scales, start=1):
        figure.add_trace(
            go.Heatmap(
                z=_symmetric(agreement, names, value),
                x=labels,
                y=labels,
                xgap=1,
                ygap=1,
                texttemplate="%{z:.2f}" if len(names) <= _COLUMNS_WITH_NUMBERS else None,
                textfont={"size": 12},
                colorbar={**colour_bar(""), "x": place, "xanchor": "left"},
                hovertemplate="%{y}<br>%{x}<br>" + value.replace("_", " ") + " %{z:.3f}<extra></extra>",
                **colours,
            ),
            row=1,
            col=column,
        )
    figure.update_annotations(font={"size": 13})
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    figure.update_layout(template=NAME, height=max(380, 230 + 44 * len(names)), margin={"t": 110})
    parts = (f"K = {_range_text(agreement, 'k', '.0f')}" if "k" in agreement else "", _chance_text(agreement))
    return titled(figure, title, joined(parts))


def criterion_stability(
    stability: pd.DataFrame, *, title: str = "stability of the criteria over halves of the data"
) -> go.Figure:
    """What two halves of the data agree on, for each criterion: a point per split, a line at their mean.

    Args:
        stability: criterion, split, overlap (a share), rank_correlation; with a column k it is told.

    Raises:
        ValueError: missing columns, NaN, an empty table, or a split that occurs twice for a criterion.
    """
    require_columns(stability, ["criterion", "split", "overlap", "rank_correlation"], "stability")
    require_finite(stability, ["overlap", "rank_correlation"], "stability")
    if stability.empty or stability.duplicated(["criterion", "split"]).any():
        raise ValueError("stability must hold each criterion and split once")
    labels = {"overlap": "overlap of the first K", "rank_correlation": "rank correlation of all"}
    criteria = list(dict.fromkeys(stability["criterion"]))
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06, subplot_titles=list(labels.values())
    )
    for i, name in enumerate(criteria):
        rows = stability[stability["criterion"] == name]
        for panel, value in enumerate(labels, start=1):
            colour = CLASSES[i % len(CLASSES)]
            figure.add_scatter(
                x=rows[value],
                y=[escaped(name)] * len(rows),
                row=1,
                col=panel,
                mode="markers",
                name=escaped(name),
                marker={"color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8, "opacity": 0.6},
                hovertemplate=f"{escaped(name)}<br>{labels[value]} %{{x:.3f}}<extra></extra>",
            )
            figure.add_scatter(
                x=[rows[value].mean()],
                y=[escaped(name)],
                row=1,
                col=panel,
                mode="markers",
                name=f"{escaped(name)}, mean",
                marker={"symbol": "line-ns", "size": 24, "line": {"color": MARK, "width": 3}},
                hovertemplate=f"{escaped(name)}<br>mean %{{x:.3f}}<extra></extra>",
            )
    figure.update_annotations(font={"size": 13})
    lowest = min(0.0, float(stability["rank_correlation"].min()))
    figure.update_xaxes(range=[-0.03, 1.03], col=1)
    figure.update_xaxes(range=[lowest - 0.03, 1.03], col=2)
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_layout(template=NAME, height=170 + 46 * len(criteria), margin={"t": 110}, showlegend=False)
    k = f"K = {_range_text(stability, 'k', '.0f')}" if "k" in stability else ""
    return titled(figure, title, joined((k, "points: splits  ·  lines: their means")))


def _symmetric(agreement: pd.DataFrame, names: list[str], value: str) -> np.ndarray:
    """The square of a table of pairs: 1 on the diagonal, each pair in both orders."""
    square = pd.DataFrame(np.nan, index=names, columns=names)
    for first, second, found in agreement[["first", "second", value]].itertuples(index=False):
        square.loc[first, second] = square.loc[second, first] = found
    values = square.to_numpy(copy=True)
    np.fill_diagonal(values, 1.0)
    if np.isnan(values).any():
        i, j = np.argwhere(np.isnan(values))[0]
        raise ValueError(f"agreement lacks the pair of {names[i]!r} and {names[j]!r}")
    return values


def _chance_text(agreement: pd.DataFrame) -> str:
    return f"overlap by chance: {_range_text(agreement, 'chance', '.2f')}" if "chance" in agreement else ""


def _range_text(table: pd.DataFrame, column: str, digits: str) -> str:
    low, high = (format(value, digits) for value in (table[column].min(), table[column].max()))
    return low if low == high else f"{low} to {high}"
