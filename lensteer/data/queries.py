"""Base queries without constraints: fit ∩ validation = fit ∩ test = validation ∩ test = ∅.

The splits are fixed in the data file, not drawn: vectors are fitted on ``fit``, layer and strength are chosen
on ``validation``, and what is reported comes from ``test``. Every validation and test query also has a word
that a good answer likely contains and one that it likely does not, for word inclusion and exclusion.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple, TypeVar, get_args

Split = Literal["fit", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
T = TypeVar("T")


class LikelyWords(NamedTuple):
    """A query, a word that its answer likely contains, and one that it likely does not."""

    query: str
    likely: str
    unlikely: str


def queries(split: Split, n: int | None = None) -> list[str]:
    """The base queries of one split, in their fixed order.

    Args:
        split: "fit" (120 queries), "validation" (56) or "test" (64).
        n: Only the first ``n``; all where None.

    Raises:
        ValueError: An unknown split, or an ``n`` below 1 or above what the split has.
    """
    return first_rows([row["query"] for row in _rows(split)], n, f"the split {split!r}")


def likely_words(split: Split, n: int | None = None) -> list[LikelyWords]:
    """The queries of a split with a likely and an unlikely word each ("validation" or "test").

    Raises:
        ValueError: The split "fit", which has none, an unknown split, or an ``n`` out of range.
    """
    if split == "fit":
        raise ValueError("the split 'fit' has no likely words; 'validation' and 'test' have")
    rows = [LikelyWords(row["query"], row["likely"], row["unlikely"]) for row in _rows(split)]
    return first_rows(rows, n, f"the split {split!r}")


def first_rows(rows: list[T], n: int | None, what: str) -> list[T]:
    """The first ``n`` of these rows, all where None, refusing to return fewer than were asked for."""
    if n is None:
        return rows
    if not 1 <= n <= len(rows):
        raise ValueError(f"n={n} of {what}: n must be from 1 to {len(rows)}, or None for all")
    return rows[:n]


def _rows(split: str) -> tuple[dict[str, Any], ...]:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, SPLITS))}")
    return tuple(row for row in read_jsonl("queries.jsonl") if row["split"] == split)


@cache
def read_jsonl(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of one of this package's JSON-lines files."""
    text = files("lensteer.data").joinpath(name).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())
