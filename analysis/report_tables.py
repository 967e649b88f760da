"""DataFrames as HTML tables that a reader can take in: one precision per column, intervals merged, all escaped."""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise

import numpy as np
import pandas as pd

_NOTHING = "–"


def table_html(table: pd.DataFrame, caption: str = "", digits: int = 3) -> str:
    """The table as HTML.

    Columns ``x``, ``x_low`` and ``x_high`` become one. Numbers of a column share their decimals, as
    many as its largest value needs for ``digits`` figures (rates count as 1.00). A first column of
    names shows a repeated name once. An index is shown unless it is unnamed whole numbers.

    Raises:
        TypeError: not a DataFrame.
        ValueError: a column name that occurs twice, or digits below 1.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"a report's table must be a pandas DataFrame, got {type(table).__name__}")
    if digits < 1:
        raise ValueError(f"digits must be at least 1, got {digits}")
    if any(name is not None for name in table.index.names) or not pd.api.types.is_integer_dtype(table.index):
        names = [name if name is not None else "" for name in table.index.names]
        table = table.reset_index(names=names, allow_duplicates=True)
    if table.columns.duplicated().any():
        raise ValueError(f"column names must be distinct, got {list(table.columns)}")
    intervals = [c for c in table.columns if {f"{c}_low", f"{c}_high"} <= set(table.columns)]
    ends = {f"{column}{end}" for column in intervals for end in ("_low", "_high")}
    columns = [column for column in table.columns if column not in ends]
    cells = [_texts(table, column, digits, column in intervals) for column in columns]
    first = cells[0] if cells else []
    starts = [True, *(a != b for a, b in pairwise(first))]
    grouped = bool(columns) and not _is_number(table[columns[0]]) and not all(starts)
    if grouped:
        cells[0] = [text if start else "" for text, start in zip(first, starts, strict=True)]
    classes = [' class="number"' if _is_number(table[column]) else "" for column in columns]
    head = "".join(f"<th{c}>{_heading(name)}</th>" for c, name in zip(classes, columns, strict=True))
    body = "\n".join(
        ('<tr class="group">' if grouped and starts[i] else "<tr>")
        + "".join(f"<td{c}>{column[i]}</td>" for c, column in zip(classes, cells, strict=True))
        + "</tr>"
        for i in range(len(table))
    )
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{note}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _texts(table: pd.DataFrame, column: object, digits: int, interval: bool) -> list[str]:
    """The cells of one column, escaped."""
    if not _is_number(table[column]):
        return [escape(_word(value)) for value in table[column]]
    names = [column, f"{column}_low", f"{column}_high"] if interval else [column]
    values = table[names].to_numpy(dtype=float, na_value=np.nan)
    if column == "p_value":
        return [_p_value(row[0]) for row in values]
    decimals = _decimals(values, digits)
    return [
        _number(row[0], decimals)
        + (
            f' <span class="interval">[{_number(row[1], decimals)}, {_number(row[2], decimals)}]</span>'
            if interval and not math.isnan(row[0])
            else ""
        )
        for row in values
    ]


def _decimals(values: np.ndarray, digits: int) -> int:
    """Decimals that give the largest value ``digits`` figures; none for a column of whole numbers."""
    finite = np.abs(values[np.isfinite(values)])
    if not finite.size or (finite == np.round(finite)).all():
        return 0
    exponent = math.floor(math.log10(finite.max()))
    exponent = 0 if exponent == -1 else exponent  # 0.83 and 1.00 are both rates: two decimals for three figures
    return max(0, digits - 1 - exponent)


def _number(value: float, decimals: int) -> str:
    if math.isnan(value):
        return _NOTHING
    if value != 0 and decimals and abs(value) < 0.5 * 10**-decimals:
        return f"{value:.1e}".replace("e-0", "e-").replace("-", "−")  # not zero: say how small
    text = f"{value:.{decimals}f}"
    return text.replace("-", "−")


def _p_value(value: float) -> str:
    return escape("<0.001") if value < 0.001 else _number(value, 3)


def _word(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return _NOTHING
    return str(value)


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _heading(column: object) -> str:
    return escape(str(column).replace("_", " "))
