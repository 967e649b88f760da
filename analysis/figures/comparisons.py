"""Conditions side by side: confirmed success with intervals, and distributions of lengths."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from analysis.figures.template import (
    CLASSES,
    CONDITION_COLOURS,
    CONDITION_PATTERNS,
    INK,
    bar_marker,
    error_bars,
    escaped,
    new_figure,
)
from analysis.tables import CONDITIONS, in_order, one_instruction, require_columns, require_finite


def confirmation_bars(table: pd.DataFrame, *, title: str = "success on test prompts") -> go.Figure:
    """Success of every instruction under every condition, with bootstrap intervals.

    Args:
        table: as ``analysis.confirmation.confirm`` gives it.

    Raises:
        ValueError: missing columns, NaN, an empty table, or a condition that occurs twice for an instruction.
    """
    columns = ["instruction", "condition", "success", "success_low", "success_high"]
    require_columns(table, columns, "the table")
    require_finite(table, columns[2:], "the table")
    if table.empty or table.duplicated(columns[:2]).any():
        raise ValueError("the table must hold each instruction and condition once")
    figure = new_figure(title, _prompts_text(table), height=460)
    instructions = list(dict.fromkeys(table["instruction"]))
    for i, condition in enumerate(in_order(table["condition"])):
        rows = table[table["condition"] == condition]
        colour = CONDITION_COLOURS.get(condition, CLASSES[i % len(CLASSES)])
        figure.add_bar(
            x=[escaped(name) for name in rows["instruction"]],
            y=rows["success"],
            name=escaped(CONDITIONS.get(condition, condition)),
            error_y=error_bars(rows["success"], rows["success_low"], rows["success_high"], INK),
            marker=bar_marker(colour, CONDITION_PATTERNS.get(condition, "")),
            hovertemplate="%{x}, "
            + escaped(CONDITIONS.get(condition, condition))
            + "<br>success %{y:.2f}<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.06, margin={"t": 115})
    figure.update_xaxes(
        type="category",
        showgrid=False,
        categoryorder="array",
        categoryarray=[escaped(name) for name in instructions],
    )
    rate = table["success_low"].min() >= 0 and table["success_high"].max() <= 1
    figure.update_yaxes(title="success", range=[0, 1.02] if rate else None)
    return figure


def length_distributions(
    results: pd.DataFrame,
    *,
    value: str = "n_tokens",
    by: str = "condition",
    instruction: str | None = None,
    title: str | None = None,
) -> go.Figure:
    """Box plots of a length, every response a point, for each condition or each strength.

    Args:
        results: one row per response; filter to one layer first where strengths are compared.
        value: the column with the length (tokens, words, sentences).
        by: ``"condition"``, ``"strength"``, or any other column.
        instruction: which one to draw, where the table has several.

    Raises:
        ValueError: missing columns, NaN, no rows, or several instructions and none named.
    """
    require_columns(results, [value, by], "results")
    rows = one_instruction(results, instruction, "results")
    if rows.empty:
        raise ValueError("results hold no rows to draw")
    require_finite(rows, [value], "results")
    subject = f"{rows['instruction'].iloc[0]}: " if "instruction" in rows.columns else ""
    name = {"n_tokens": "tokens", "n_words": "words", "n_sentences": "sentences"}.get(value, value)
    figure = new_figure(title or f"{subject}length by {by}", "box: quartiles and median  ·  points: responses")
    for group in in_order(rows[by]):
        label = f"{group:g}" if isinstance(group, int | float) else CONDITIONS.get(group, str(group))
        figure.add_box(
            y=rows.loc[rows[by] == group, value],
            name=escaped(label),
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            marker={"size": 5, "color": CLASSES[0], "opacity": 0.55},
            line={"color": INK, "width": 1.5},
            fillcolor="rgba(0, 114, 178, 0.15)",
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title=by, type="category", showgrid=False)
    figure.update_yaxes(title=f"length in {name.replace('_', ' ')}", rangemode="tozero")
    return figure


def _prompts_text(table: pd.DataFrame) -> str:
    if "n" not in table.columns:
        return "bars: mean, with 95 % bootstrap intervals over prompts"
    low, high = int(table["n"].min()), int(table["n"].max())
    return f"mean over {low if low == high else f'{low} to {high}'} prompts, with bootstrap intervals"
