"""Per-token strip: a prompt that can be read, each token on the colour of its value."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from analysis.figures.template import DIVERGING, MONOSPACE, colour_bar, escaped, new_figure

_GAP = 0.35  # between cells, in characters


def projection_strip(
    tokens: Sequence[str],
    values: Float[np.ndarray, "pos"] | Sequence[float] | Any,
    *,
    title: str = "projection by token",
    name: str = "projection",
    limit: float | None = None,
    line_width: int = 84,
) -> go.Figure:
    """The tokens of one text in reading order, each with its value in colour and in figures.

    Red is negative, blue positive, zero in the middle. A cell holds one token and the value at the same
    position, and is as wide as the longer of the two; lines break at ``line_width`` characters and
    after tokens that end a line.

    Args:
        tokens: decoded tokens; ``analysis.geometry.token_projections`` gives them with their values.
        values: one number per token (array, tensor or list).
        limit: the value of full colour. Default: the 95th percentile of |value|, because the first
            token of most models is far beyond all others and would leave them white; its figures still
            say how far.

    Raises:
        ValueError: numbers of tokens and values that differ, none of them, NaN, or a limit that is not
            positive.
    """
    numbers = np.asarray(values.tolist() if hasattr(values, "tolist") else values, dtype=float)
    if numbers.shape != (len(tokens),) or not len(tokens):
        raise ValueError(f"{len(tokens)} tokens need as many values, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"values hold NaN or infinity, first at token {int((~np.isfinite(numbers)).argmax())}")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    scale = limit or float(np.quantile(np.abs(numbers), 0.95)) or 1.0
    words, figures = [visible(token) for token in tokens], _in_figures(numbers)
    widths = [max(_width(word), len(figure)) + 1.2 for word, figure in zip(words, figures, strict=True)]
    starts, lines = _layout(tokens, widths, line_width)
    figure = new_figure(title, height=120 + 46 * (max(lines) + 1))
    figure.add_trace(
        go.Bar(
            orientation="h",
            base=starts,
            x=[width - _GAP for width in widths],
            y=lines,
            width=0.88,
            text=[f"{escaped(word)}<br>{value}" for word, value in zip(words, figures, strict=True)],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="none",
            textfont={"family": MONOSPACE, "size": 12, "color": _ink(numbers, scale)},
            marker={
                "color": numbers,
                "colorscale": DIVERGING,
                "cmin": -scale,
                "cmax": scale,
                "cmid": 0,
                "line": {"color": "#b9c0cc", "width": 1},
                "colorbar": {**colour_bar(name), "len": 1.0},
            },
            customdata=[[i, escaped(repr(token))] for i, token in enumerate(tokens)],
            hovertemplate="token %{customdata[0]}: %{customdata[1]}<br>"
            + escaped(name)
            + " %{marker.color:.4g}<extra></extra>",
        )
    )
    right = max(max(start + width for start, width in zip(starts, widths, strict=True)), float(line_width))
    figure.update_xaxes(visible=False, range=[0, right], fixedrange=True)
    figure.update_yaxes(visible=False, range=[max(lines) + 0.5, -0.5], fixedrange=True)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 60, "b": 20}, showlegend=False)
    return figure


def visible(token: str) -> str:
    """A token as it is shown: line ends and tabs as signs, a token of blanks as ␣, outer blanks dropped."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "")
    return shown.strip() or "␣" * max(1, min(len(shown), 4))


def _layout(tokens: Sequence[str], widths: Sequence[float], line_width: int) -> tuple[list[float], list[int]]:
    """Where each cell starts, and on which line."""
    starts, lines, at, line = [], [], 0.0, 0
    for i, width in enumerate(widths):
        if at and (at + width > line_width or tokens[i - 1].endswith("\n")):
            at, line = 0.0, line + 1
        starts.append(at)
        lines.append(line)
        at += width
    return starts, lines


def _in_figures(values: Float[np.ndarray, "pos"]) -> list[str]:
    """All values with as many decimals as the middle one needs for two figures."""
    middle = float(np.median(np.abs(values)))
    decimals = 2 if middle < 1 else 1 if middle < 10 else 0
    return [f"{value:+.{decimals}f}".replace("-", "−") for value in values]


def _width(word: str) -> int:
    """Width in columns: East Asian characters take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in word)
    return len(word) + wide - sum(bool(unicodedata.combining(character)) for character in word)


def _ink(values: Float[np.ndarray, "pos"], scale: float) -> list[str]:
    return ["white" if abs(value) > 0.6 * scale else "black" for value in values]
