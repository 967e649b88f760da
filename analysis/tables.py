"""Checks that every reader of a results table needs, each with one clear error.

A results table has one row per (candidate, prompt); a candidate is a (layer, strength), and (-1, 0.0) is "no
steering". Rules and figures call these before they compute, so that NaN never turns silently into a decision.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

UNSTEERED_LAYER = -1
_TEXT = ("instruction", "condition", "prompt", "response", "finish_reason", "split")

# The conditions of a results table, in the order they are shown, and how they are called in words.
CONDITIONS = {
    "none": "no steering",
    "steered": "steered",
    "random": "random direction",
    "text": "instruction in text",
    "text+steered": "text and steering",
}


def in_order(values: pd.Series) -> list:
    """Distinct values: numbers by size; else known conditions in their usual order and the rest as found."""
    found = values.drop_duplicates().tolist()
    if pd.api.types.is_numeric_dtype(values):
        return sorted(found)
    return [name for name in CONDITIONS if name in found] + [name for name in found if name not in CONDITIONS]


def require_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table without these columns.

    Raises:
        TypeError: not a DataFrame.
        ValueError: columns missing; names them and the ones that are there.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{what} must be a pandas DataFrame, got {type(table).__name__}")
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"{what} lacks the columns {missing}; it has {list(table.columns)}")


def require_finite(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse missing, NaN or infinite values in these columns, naming the column and the first row.

    Raises:
        ValueError: the first column with such a value.
    """
    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        bad = ~np.isfinite(values)
        if bad.any():
            first = int(bad.argmax())
            raise ValueError(
                f"{what} has {int(bad.sum())} NaN, infinite or non-numeric values in column {column!r} "
                f"(row {table.index[first]!r}: {table[column].iloc[first]!r}); score or drop these rows first"
            )


def require_layer_matches_condition(table: pd.DataFrame, baseline: str, what: str) -> None:
    """Refuse a baseline row with a layer, and a steered row without one.

    Raises:
        ValueError: rows where the two disagree.
    """
    unsteered = table["layer"] == UNSTEERED_LAYER
    wrong = unsteered != (table["condition"] == baseline)
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(
            f"{what} has {int(wrong.sum())} rows whose layer and condition disagree: layer -1 belongs to "
            f"condition {baseline!r} and no other (first: layer {row['layer']}, {row['condition']!r})"
        )


def one_instruction(table: pd.DataFrame, instruction: str | None, what: str) -> pd.DataFrame:
    """The rows of one instruction; ``None`` will do where the table has only one.

    Raises:
        ValueError: an unknown instruction, or several and none named.
    """
    if "instruction" not in table.columns:
        return table
    known = list(dict.fromkeys(table["instruction"]))
    if instruction is None:
        if len(known) > 1:
            raise ValueError(f"{what} holds several instructions; name one with instruction=: {known}")
        return table
    if instruction not in known:
        raise ValueError(f"{what} has no instruction {instruction!r}; it has {known}")
    return table[table["instruction"] == instruction]


def one_of(table: pd.DataFrame, column: str, name: str | None) -> pd.DataFrame:
    """The rows of one value of a column; ``None`` will do where there is only one.

    Raises:
        ValueError: an unknown value, or several and none named.
    """
    known = list(dict.fromkeys(table[column]))
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        raise ValueError(f"name one {column} with {column}=: {known}, got {name!r}")
    return table[table[column] == name]


def require_split(table: pd.DataFrame, split: str, what: str) -> None:
    """Refuse rows of another split, where the table has a ``split`` column.

    Raises:
        ValueError: rows of another split.
    """
    if "split" in table.columns and (table["split"] != split).any():
        other = [value for value in table["split"].unique() if value != split]
        raise ValueError(f"{what} must hold {split} rows only; its split column also has {other}")


def log_perplexity(table: pd.DataFrame, what: str) -> pd.Series:
    """Natural logarithm of the ``perplexity`` column; NaN where a degenerate response has none.

    Raises:
        ValueError: a perplexity that is not finite and positive, or NaN on a row that is not ``degenerate``.
    """
    values = pd.to_numeric(table["perplexity"], errors="coerce").astype(float)
    excused = values.isna() & table["degenerate"].astype(bool)
    bad = ~(np.isfinite(values) & (values > 0)) & ~excused
    if bad.any():
        raise ValueError(
            f"{what} has {int(bad.sum())} values in column 'perplexity' that are not finite and positive "
            f"(row {bad.idxmax()!r}: {table['perplexity'][bad].iloc[0]!r}); only degenerate rows may have NaN"
        )
    return np.log(values)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as .parquet (with pyarrow) or .csv, whole or not at all.

    Raises:
        ValueError: another ending, or a table that parquet cannot hold (a column of mixed types).
        ImportError: .parquet without pyarrow.
        OSError: the folder cannot be written, or the disk is full.
    """
    from lensteer.storage import write_atomically

    path = Path(path)
    if table_ending(path) == ".parquet":
        buffer = io.BytesIO()
        with _parquet_needs_pyarrow():
            table.to_parquet(buffer, index=False)
        return write_atomically(path, buffer.getvalue())
    # Text is always quoted: a response may hold a lone carriage return, which csv would take for the end of a row.
    return write_atomically(path, table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode())


def read_table(path: str | Path) -> pd.DataFrame:
    """Read what `write_table` wrote. A response stays text, also "", "None" and "12".

    Raises:
        ValueError: another ending, or a file that is not such a table.
        ImportError: .parquet without pyarrow.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    ending = table_ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        if ending == ".parquet":
            with _parquet_needs_pyarrow():
                return pd.read_parquet(path)
        kinds: Any = dict.fromkeys(_TEXT, str)
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=kinds)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    text = [column for column in _TEXT if column in table]
    return table.assign(**{column: table[column].fillna("") for column in text})


def table_ending(path: Path) -> str:
    """Which of the two kinds of table a path names.

    Raises:
        ValueError: another ending.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"a results table is a .parquet or .csv file, not {path.name!r}")
    return path.suffix


@contextmanager
def _parquet_needs_pyarrow() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError('a .parquet table needs pyarrow: pip install "lensteer[eval]", or use a .csv file') from error
