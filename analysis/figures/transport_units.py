"""Activation transport, unit by unit: samples before and after, spreads of both sides, and the way to go by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.template import (
    CLASSES,
    INK,
    NAME,
    PATTERNS,
    SYMBOLS,
    bar_marker,
    escaped,
    joined,
    new_figure,
    titled,
)
from analysis.tables import require_columns, require_finite

_SIDES = {"source": CLASSES[1], "target": CLASSES[0], "transported": CLASSES[2]}
_ACROSS = 3
_MOST_POINTS = 4000  # a browser draws so many without delay


def unit_histograms(
    samples: pd.DataFrame, *, bins: int = 16, title: str = "source, target and transported source"
) -> go.Figure:
    """One panel per unit: source and target filled, the transported source as an outline over them.

    Args:
        samples: hook, unit, side ("source", "target", "transported") and value, as `unit_samples` gives them; units
            are drawn in the order in which they first occur.

    Raises:
        TypeError: a Transport instead of its table.
        ValueError: missing columns, NaN, no rows, or less than two bins.
    """
    _require_table(samples, "unit_samples(maps, top_units(maps))")
    require_columns(samples, ["hook", "unit", "side", "value"], "samples")
    require_finite(samples, ["value"], "samples")
    if samples.empty or bins < 2:
        raise ValueError(f"histograms need samples and two bins or more; got {len(samples)} rows and {bins} bins")
    units = list(samples.groupby(["hook", "unit"], sort=False))
    across, down = min(_ACROSS, len(units)), -(-len(units) // _ACROSS)
    figure = make_subplots(
        rows=down,
        cols=across,
        horizontal_spacing=0.07,
        vertical_spacing=min(0.3 / down, 0.17),
        subplot_titles=[f"{escaped(_short(hook))}, unit {unit}" for (hook, unit), _ in units],
    )
    for number, (_, rows) in enumerate(units):
        place = {"row": number // across + 1, "col": number % across + 1}
        edges = _edges(rows["value"].to_numpy(dtype=float), bins)
        for side, colour in _SIDES.items():
            values = rows.loc[rows["side"] == side, "value"].to_numpy(dtype=float)
            if not len(values):
                continue
            share = np.histogram(values, edges)[0] / len(values)
            filled = side != "transported"
            figure.add_scatter(
                # A step for every bin, down to zero at both ends.
                x=np.repeat(edges, 2),
                y=np.concatenate([[0], np.repeat(share, 2), [0]]),
                mode="lines",
                name=side,
                legendgroup=side,
                showlegend=number == 0,
                fill="tozeroy" if filled else None,
                fillcolor=f"rgba{(*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 0.25)}",
                line={"color": colour, "width": 1.2 if filled else 2.5, "dash": "solid" if filled else "dash"},
                hovertemplate=f"{side}<br>value %{{x:.3g}}: share %{{y:.2f}}<extra></extra>",
                **place,
            )
    figure.update_annotations(font={"size": 12})
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_yaxes(title="share of samples", col=1)
    figure.update_xaxes(nticks=5)
    figure.update_xaxes(title="activation", row=down)
    figure.update_layout(template=NAME, height=150 + 210 * down, margin={"t": 130})
    figure.update_layout(legend={"y": 1 + 0.14 / down})  # above the titles of the panels
    return titled(figure, title, "one panel per unit; dashed: the source after its map")


def std_scatter(
    units: pd.DataFrame, *, by: str = "kind", seed: int = 0, title: str = "spread of source and target"
) -> go.Figure:
    """Each unit at the standard deviation of its source (across) and of its target (up), both logarithmic.

    A unit on the line is as wide on both sides, and a shift alone would carry it over; off the line the slope matters.
    Of many thousand units a random part is drawn.

    Args:
        units: source_std, target_std and the column ``by`` that tells classes apart, as `unit_table` gives them.
        seed: of the part that is drawn.

    Raises:
        TypeError: a Transport instead of its table.
        ValueError: missing columns, NaN, or no unit that varies on both sides.
    """
    _require_table(units, "unit_table(maps)")
    require_columns(units, ["source_std", "target_std", by], "units")
    require_finite(units, ["source_std", "target_std"], "units")
    varies = units[(units["source_std"] > 0) & (units["target_std"] > 0)]
    if varies.empty:
        raise ValueError("no unit varies on both sides; there is nothing to draw on logarithmic axes")
    drawn = varies.sample(min(len(varies), _MOST_POINTS), random_state=seed).sort_index()
    part = f"{len(drawn)} of {len(units)} units" if len(drawn) < len(units) else f"{len(units)} units"
    figure = new_figure(title, joined((part, "line: equal spread")), height=560)
    for number, (name, rows) in enumerate(drawn.groupby(by, sort=False)):
        figure.add_trace(
            go.Scattergl(
                x=rows["source_std"],
                y=rows["target_std"],
                mode="markers",
                name=escaped(name),
                marker={
                    "color": CLASSES[number % len(CLASSES)],
                    "symbol": SYMBOLS[number % len(SYMBOLS)],
                    "size": 5,
                    "opacity": 0.45,
                },
                hovertemplate=f"{escaped(name)}<br>source %{{x:.3g}}, target %{{y:.3g}}<extra></extra>",
            )
        )
    both = drawn[["source_std", "target_std"]].to_numpy()
    ends = [float(both.min()) / 1.3, float(both.max()) * 1.3]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": INK, "width": 1.2}, showlegend=False, hoverinfo="skip"
    )
    axis = {
        "type": "log",
        "range": [float(np.log10(end)) for end in ends],
        "dtick": 1 if ends[1] / ends[0] > 30 else "D2",
    }
    figure.update_xaxes(title="standard deviation of the source", **axis)
    figure.update_yaxes(title="standard deviation of the target", **axis)
    figure.update_layout(margin={"t": 115}, legend={"itemsizing": "constant"})
    return figure


def transport_cost(
    table: pd.DataFrame, *, value: str = "distance", share: bool = False, title: str = "transport cost by layer"
) -> go.Figure:
    """The squared distance that the maps are to bridge in every layer, stacked by kind of site.

    Args:
        table: hook, layer and the value, as `Transport.table` gives them.
        value: the column to stack, such as "distance" (squared Wasserstein, summed over units).
        share: of the sum over all layers.

    Raises:
        TypeError: a Transport instead of its table.
        ValueError: missing columns, no rows in layers, NaN, negative values, or a hook that occurs twice.
    """
    _require_table(table, "maps.table()")
    require_columns(table, ["hook", "layer", value], "the table")
    rows = table[table["layer"].notna() & (table["layer"].astype(float) >= 0)]
    require_finite(rows, ["layer", value], "the table")
    if rows.empty or rows["hook"].duplicated().any():
        raise ValueError("the table must hold sites of layers, each once")
    if (rows[value] < 0).any():
        raise ValueError(f"values of {value!r} must not be negative to be stacked")
    rows = rows.assign(kind=[_without_layer(hook) for hook in rows["hook"]])
    total = float(rows[value].sum()) if share else 1.0
    figure = new_figure(title, f"stacked by kind of site, {rows['hook'].nunique()} sites", height=440)
    for number, (kind, own) in enumerate(rows.groupby("kind", sort=False)):
        figure.add_bar(
            x=own["layer"].astype(int),
            y=own[value] / (total or 1.0),
            name=escaped(kind),
            marker=bar_marker(CLASSES[number % len(CLASSES)], PATTERNS[number % len(PATTERNS)], outline=0),
            hovertemplate=f"{escaped(kind)}<br>layer %{{x}}: %{{y:.3g}}<extra></extra>",
        )
    names = {"distance": "squared distance, source to target", "shift": "move of the mean (norm)"}
    figure.update_layout(barmode="stack", bargap=0.15, margin={"t": 115})
    figure.update_xaxes(title="layer", dtick=1 if rows["layer"].nunique() <= 12 else None, showgrid=False)
    figure.update_yaxes(title="share of the " * share + names.get(value, value), rangemode="tozero")
    return figure


def _require_table(given: object, table: str) -> None:
    if hasattr(given, "maps"):
        raise TypeError(f"a {type(given).__name__} was given, its table is wanted: {table}")


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    reach = (high - low) or abs(low) or 1.0
    return np.linspace(low - 0.02 * reach, high + 0.02 * reach, bins + 1)


def _short(hook: str) -> str:
    """ "layer 3, ln1" of "blocks.3.ln1.hook_out"."""
    _, layer, rest = hook.split(".", 2) if hook.startswith("blocks.") else ("", "", hook)
    name = rest.replace(".hook_out", "").replace("hook_", "")
    return f"layer {layer}, {name}" if layer else name


def _without_layer(hook: str) -> str:
    parts = hook.split(".", 2)
    return parts[2] if parts[0] == "blocks" and len(parts) == 3 else hook
