"""One self-contained HTML file: text, tables, figures and side-by-side responses, in the order added.

    (Report("Instruction steering", {"model": "smollm2-135m-instruct"})
        .section("What was chosen")
        .text("Layer and strength were chosen on 12 validation prompts.")
        .table(confirmed, caption="Test prompts")
        .figure(layer_strength_map(candidates))
        .texts(results, conditions=("none", "steered", "text"))
        .save("report.html"))

The file opens offline: styles are inside, plotly.js is inside once, nothing is fetched. Every text is
escaped, so a model's response cannot become markup. It is written to a temporary file first and moved
into place when it is whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from numbers import Real
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analysis.report_style import STYLE
from analysis.report_tables import table_html
from analysis.tables import CONDITIONS, in_order, one_instruction, require_columns
from lensteer.storage import write_atomically


class Report:
    """Builds a report piece by piece; every method returns the report, so calls chain.

    Args:
        title: shown on top and in the browser's tab.
        facts: what the results come from (model, revision, dtype, versions, seed, data hash, command),
            shown below it.
    """

    def __init__(self, title: str, facts: Mapping[str, object] | None = None) -> None:
        self.title = title
        self.facts = dict(facts or {})
        self._pieces: list[str] = []
        self._sections: list[str] = []
        self._has_figures = False

    def section(self, title: str) -> Self:
        """Start a section; it appears in the contents."""
        self._sections.append(title)
        return self._add(f'<h2 id="section-{len(self._sections)}">{escape(title)}</h2>')

    def text(self, text: str) -> Self:
        """Paragraphs, separated by blank lines; ``**bold**`` and backticks for code are understood."""
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
        return self._add("\n".join(f"<p>{_inline(part)}</p>" for part in paragraphs))

    def table(self, table: pd.DataFrame, caption: str = "", *, digits: int = 3) -> Self:
        """A table. Columns ``x``, ``x_low``, ``x_high`` become one: the value with its interval behind it.

        Args:
            digits: significant figures of numbers that are not whole.
        """
        return self._add(table_html(table, caption, digits))

    def figure(self, figure: go.Figure, caption: str = "") -> Self:
        """A plotly figure, as wide as the page and still interactive."""
        self._has_figures = True
        body = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            include_mathjax=False,
            config={"responsive": True, "displaylogo": False, "showSendToCloud": False},
        )
        note = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure>{body}{note}</figure>")

    def texts(
        self,
        results: pd.DataFrame,
        *,
        conditions: Sequence[str] | None = None,
        instruction: str | None = None,
        limit: int | None = 6,
        caption: str = "",
    ) -> Self:
        """Responses side by side: one block per prompt, one column per condition, ✓ or ✗ where success is known.

        Args:
            results: columns prompt_id, prompt, condition, response; success if there is one. One row
                per prompt and condition, at one setting.
            conditions: which ones, in this order. Default: those in the table, in their usual order.
            instruction: which one to show, where the table has several.
            limit: the number of prompts to show, the first ones; None for all.

        Raises:
            ValueError: missing columns, a condition that the table lacks, or several responses for one
                prompt and condition.
        """
        require_columns(results, ["prompt_id", "prompt", "condition", "response"], "results")
        rows = one_instruction(results, instruction, "results")
        found = set(rows["condition"])
        wanted = list(conditions) if conditions is not None else in_order(rows["condition"])
        if missing := [condition for condition in wanted if condition not in found]:
            raise ValueError(f"results have no rows of conditions {missing}; they have {sorted(found)}")
        rows = rows[rows["condition"].isin(wanted)]
        if rows.duplicated(["prompt_id", "condition"]).any():
            raise ValueError("several responses for one prompt and condition; filter to one layer and strength")
        blocks = [
            _side_by_side(group.set_index("condition"), wanted)
            for _, group in list(rows.groupby("prompt_id", sort=False))[:limit]
        ]
        note = f"<p class='note'>{_inline(caption)}</p>" if caption else ""
        return self._add(note + "\n".join(blocks))

    def html(self) -> str:
        """The whole page as a string."""
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>" if self._has_figures else ""
        facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in self.facts.items())
        links = "".join(
            f'<li><a href="#section-{i}">{escape(title)}</a></li>' for i, title in enumerate(self._sections, start=1)
        )
        return "\n".join(
            (
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n{script}\n</head>\n<body>\n<main>",
                f"<header><h1>{escape(self.title)}</h1>",
                f"<dl>{facts}</dl>" if facts else "",
                "</header>",
                f"<nav><ol>{links}</ol></nav>" if len(self._sections) > 1 else "",
                *self._pieces,
                "</main>\n</body>\n</html>\n",
            )
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; the folder is made if need be. What stood at ``path`` stays whole until then.

        Raises:
            OSError: the folder cannot be written, or the disk is full; nothing is left behind.
        """
        return write_atomically(Path(path), self.html().encode("utf-8"))

    def _add(self, piece: str) -> Self:
        self._pieces.append(piece)
        return self


def _inline(text: str) -> str:
    """Escaped text with ``**bold**`` and `code`."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)


def _side_by_side(rows: pd.DataFrame, conditions: Sequence[str]) -> str:
    """One prompt and its responses; the prompt is that of the plainest condition."""
    shown = next(c for c in conditions if c in rows.index)
    prompt = _plain(rows.loc[shown, "prompt"])
    columns = "".join(_column(condition, rows) for condition in conditions)
    return (
        f'<section class="texts"><p class="prompt">{escape(prompt)}</p>'
        f'<div class="columns" style="--columns: {len(conditions)}">{columns}</div></section>'
    )


def _column(condition: str, rows: pd.DataFrame) -> str:
    heading = escape(CONDITIONS.get(condition, condition))
    if condition not in rows.index:
        return f"<div><h4>{heading}</h4><p class='empty'>not run</p></div>"
    row = rows.loc[condition]
    response = str(row["response"])
    body = f"<p class='response'>{escape(response)}</p>" if response.strip() else "<p class='empty'>empty response</p>"
    return f"<div><h4>{heading}{_badge(row.get('success'))}</h4>{body}</div>"


def _badge(success: object) -> str:
    """✓, ✗ or the score itself."""
    if not isinstance(success, Real | np.bool_) or pd.isna(success):
        return ""
    success = float(success)
    if success in (0, 1):
        return "<span class='yes'>✓ followed</span>" if success else "<span class='no'>✗ not followed</span>"
    return f"<span class='score'>{success:.2f}</span>"


def _plain(prompt: object) -> str:
    """A chat prompt as its messages' text."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence):
        return "\n".join(str(m.get("content", m)) if isinstance(m, Mapping) else str(m) for m in prompt)
    return str(prompt)
