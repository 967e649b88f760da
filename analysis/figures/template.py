"""The one look of all figures: a plotly template registered as "lensteer", and its colours.

White background and dark type of 12 points or more, so that a figure reads the same on screen and in
print. Signed quantities are red-blue with zero in the middle, others go from white to one dark hue, and
classes have the colour-blind safe colours of Okabe and Ito. No figure speaks by colour alone: a number,
a marker or a pattern repeats what the colour says.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

NAME = "lensteer"
DIVERGING = "RdBu"  # red below zero, blue above; the caller puts zero in the middle
# Pale enough at its end for dark numbers in the cells, which then need no second colour.
SEQUENTIAL = [[0.0, "#ffffff"], [0.25, "#dceaf6"], [0.5, "#b3d3eb"], [0.75, "#7fb5dc"], [1.0, "#4695c8"]]
CLASSES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"]
PATTERNS = ["", "/", "x", ".", "\\", "-", "+"]
DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
CONDITION_COLOURS = {
    "none": "#9a9a9a",
    "steered": "#0072B2",
    "random": "#E69F00",
    "text": "#009E73",
    "text+steered": "#CC79A7",
}
CONDITION_PATTERNS = {"random": ".", "text": "/", "text+steered": "x"}
INK, GRID, MARK = "#1f2430", "#e3e6eb", "#000000"
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
MONOSPACE = "'JetBrains Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def bar_marker(colour: str, pattern: str = "", outline: float = 1) -> dict[str, Any]:
    """Bars of one colour with a white pattern over it, which tells them apart without colours too."""
    over = {"fillmode": "overlay", "fgcolor": "white", "fgopacity": 0.9, "size": 7}
    return {"color": colour, "line": {"color": INK, "width": outline}, "pattern": {"shape": pattern, **over}}


def _template() -> go.layout.Template:
    axis = {
        "showgrid": True,
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": INK,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": INK,
        "title": {"standoff": 10, "font": {"size": 13}},
        "automargin": True,
    }
    layout = {
        "font": {"family": FONT, "size": 13, "color": INK},
        "title": {
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 8},
            "yref": "container",
            "y": 0.97,
            "yanchor": "top",
            "font": {"size": 16},
            "subtitle": {"font": {"size": 13, "color": "#4d5566"}},
        },
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": CLASSES,
        "xaxis": axis,
        "yaxis": axis,
        "coloraxis": {"colorbar": colour_bar("")},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        # plotly's "share" button would upload the data to a server
        "modebar": {"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
        "hoverlabel": {"font": {"size": 13}, "align": "left"},
        "margin": {"l": 70, "r": 30, "t": 90, "b": 60},
    }
    return go.layout.Template(layout=layout)


def colour_bar(title: str) -> dict[str, object]:
    """A slim colour bar with its title on top."""
    return {
        "title": {"text": title, "side": "top", "font": {"size": 13}},
        "thickness": 14,
        "outlinewidth": 0,
        "ticks": "outside",
        "tickfont": {"size": 12},
    }


def error_bars(value: pd.Series, low: pd.Series, high: pd.Series, colour: str) -> dict[str, object]:
    """Intervals around values, for a trace's ``error_y``."""
    reach = {"array": high - value, "arrayminus": value - low}
    return {"type": "data", "symmetric": False, **reach, "color": colour, "thickness": 1.5, "width": 4}


def new_figure(title: str, subtitle: str = "", *, height: int = 420) -> go.Figure:
    """An empty figure in the common look; texts are shown as they are, not as markup."""
    figure = go.Figure()
    figure.update_layout(template=NAME, height=height)
    if not subtitle:
        figure.update_layout(margin={"t": 60})
    return titled(figure, title, subtitle)


def titled(figure: go.Figure, title: str, subtitle: str = "") -> go.Figure:
    """Set title and subtitle, with markup escaped."""
    figure.update_layout(title={"text": escaped(title), "subtitle": {"text": escaped(subtitle)}})
    return figure


def escaped(text: object) -> str:
    """Text for a plotly label: plotly reads ``<b>`` and the like as markup, and tokens look like that."""
    return html.escape(str(text), quote=False)


def joined(parts: Iterable[str]) -> str:
    """The parts that are not empty, with a dot between them."""
    return "  ·  ".join(part for part in parts if part)


pio.templates[NAME] = _template()
