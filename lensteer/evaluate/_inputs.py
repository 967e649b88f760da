"""What every score shares: reading the responses, spreading arguments over them, warning once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def items_and_index(values: Sequence[Any] | pd.Series, name: str = "responses") -> tuple[list[Any], pd.Index]:
    """The values as a list, with a Series' own index and a RangeIndex for anything else.

    Raises:
        TypeError: if `values` is a single string, a DataFrame or no sequence at all.
    """
    import pandas as pd

    if isinstance(values, pd.DataFrame):
        raise TypeError(f'{name} is a DataFrame; pass one of its columns, for example df["response"]')
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__len__"):
        raise TypeError(f"{name} must be a sequence with one item per response, not {type(values).__name__}")
    items = list(values)
    index = values.index if isinstance(values, pd.Series) else pd.RangeIndex(len(items))
    return items, index


def texts_and_index(responses: Sequence[str] | pd.Series, name: str = "responses") -> tuple[list[str], pd.Index]:
    """As `items_and_index`, for responses that must be text.

    Raises:
        TypeError: if a response is not a string; the message names its place in the index.
    """
    items, index = items_and_index(responses, name)
    for label, item in zip(index, items, strict=True):
        if not isinstance(item, str):
            raise TypeError(f"{name}[{label!r}] is {item!r} ({type(item).__name__}), expected a string")
    return items, index


def lists_per_response(values: str | Sequence[Any] | pd.Series, n: int, name: str) -> list[list[str]]:
    """One list of strings per response, from one string, one list for all, or one list per response.

    Raises:
        TypeError: if an entry is neither a string nor a list of strings.
        ValueError: if lists are given for another number of responses than `n`.
    """
    if isinstance(values, str):
        return [[values]] * n
    rows, _ = items_and_index(values, name)
    if all(isinstance(row, str) for row in rows):
        return [rows] * n
    for row in rows:
        if isinstance(row, str) or not hasattr(row, "__iter__") or not all(isinstance(entry, str) for entry in row):
            raise TypeError(f"{name} holds {row!r}; give one string, one list of strings, or one list per response")
    if len(rows) != n:
        raise ValueError(f"{name} has {len(rows)} lists for {n} responses; give one list per response")
    return [list(row) for row in rows]


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, type], index: pd.Index) -> pd.DataFrame:
    """A DataFrame with exactly `columns` (name to dtype), also when there are no rows."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), columns=list(columns), index=index)
    return frame.astype(dict(columns))


def score(
    responses: Sequence[str] | pd.Series,
    columns: Mapping[str, type],
    measure: Callable[[str], Mapping[str, Any]],
) -> pd.DataFrame:
    """`measure` applied to each response, as a table."""
    texts, index = texts_and_index(responses)
    return table([measure(text) for text in texts], columns, index)


@cache
def warn_once(message: str) -> None:
    """Warn the first time that this message comes up in the process."""
    warnings.warn(message, UserWarning, stacklevel=4)
