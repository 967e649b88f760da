"""Splits of a chosen predictivity: how well the value s of a spurious feature tells the label.

    rho(s) = P(Y = y_s | S = s),   the same for every s;   train rho = 1/N with N labels, so that s tells nothing

| split | of the n rows with value s |
|---|---|
| iid, high, low | round(rho n) have the label y_s, the others equally the other labels |
| flipped | round(rho n) have the *next* label after y_s, the others equally the other labels (y_s among them) |
| shifted_… | likewise, with values of s that training never shows |

Always y_s means the label that s was given for training. "Next" is the cyclic shift (y_s + 1) mod N: the paper does not
say which label; this one differs from y_s everywhere and keeps balanced labels balanced, since every label is the next
of one other. Counts are exact, not drawn: a share that is no whole number is rounded, and a row more than equal parts
goes to the label after, so that labels stay balanced where every label belongs to one value.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Definition 2 and section 4.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.task import FocusTask

Cell: TypeAlias = tuple[str, str]
"""A value of the spurious feature and a label."""

T = TypeVar("T")

TWO_LABELS: Mapping[str, float] = {"iid": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.9}
"""Test split -> rho with two labels. The paper prints them for SHANS; those of SS follow from its Table 4."""

THREE_LABELS: Mapping[str, float] = {"iid": 1 / 3, "high": 0.9, "low": 0.1, "flipped": 0.9}
"""Test split -> rho for SMNLI, as in the paper."""


def next_label(label: str, labels: Sequence[str]) -> str:
    """(y_s + 1) mod N: of two labels the other one."""
    return labels[(labels.index(label) + 1) % len(labels)]


def cell_counts(
    n: int, meaning: Mapping[str, str], labels: Sequence[str], rho: float, flipped: bool = False
) -> dict[Cell, int]:
    """How many rows of every (value, label) a split needs; see the module's table.

    Args:
        n: rows of each value.
        meaning: value -> y_s.
        rho: the share with the label y_s, or, if ``flipped``, with the next one.

    Raises:
        ValueError: an ``n`` below 1, or a ``rho`` outside [0, 1].
    """
    if n < 1:
        raise ValueError(f"n={n} rows of each value: it must be at least 1")
    if not 0 <= rho <= 1:
        raise ValueError(f"rho={rho} is a share; it must be from 0 to 1")
    counts = {}
    for value, y_s in meaning.items():
        tied = next_label(y_s, labels) if flipped else y_s
        start = labels.index(tied)
        others = [labels[(start + step) % len(labels)] for step in range(1, len(labels))]
        counts[value, tied] = round(rho * n)
        each, more = divmod(n - counts[value, tied], len(others))
        counts |= {(value, label): each + (i < more) for i, label in enumerate(others)}
    return counts


def cells_of(examples: Iterable[FocusExample]) -> dict[Cell, list[FocusExample]]:
    """The examples by spurious value and label."""
    cells: dict[Cell, list[FocusExample]] = {}
    for example in examples:
        cells.setdefault((example.s, example.y), []).append(example)
    return cells


def draw(
    pool: Sequence[FocusExample],
    counts: Mapping[Cell, int],
    *,
    split: str,
    rho: float,
    seed: int = 0,
    one_per_source: bool = False,
) -> list[FocusExample]:
    """Exactly these counts from a pool, without replacement, in random order.

    Args:
        split, rho: written into the examples, the split into their ids as well; the draw depends on split and seed.
        one_per_source: whether at most one example of a source is taken (one keyword for each sentence).

    Raises:
        ValueError: too few rows in a cell; names every such cell and how many are missing.
    """
    cells, taken = cells_of(pool), set[str]()
    drawn: list[FocusExample] = []
    missing = []
    for (value, label), count in counts.items():
        rows = shuffled(cells.get((value, label), []), f"{seed}\n{split}\n{value}\n{label}")
        free = [row for row in rows if not (one_per_source and row.source in taken)][:count]
        taken |= {row.source for row in free}
        drawn += free
        if len(free) < count:
            missing.append(f"{count - len(free)} of the {count} rows with ({value}, {label}) are missing")
    if missing:
        raise ValueError(
            f"the split {split!r} cannot reach rho={rho:.3g} with the rows there are: {'; '.join(missing)}. Give more "
            "rows, or ask for fewer"
        )
    # The same row may be drawn for several splits; an id is unique in the whole data set.
    return [replace(row, id=f"{row.id}-{split}", split=split, rho=rho) for row in shuffled(drawn, f"{seed}\n{split}")]


def shuffled(rows: Sequence[T], key: str) -> list[T]:
    """The rows in an order that depends on the key only."""
    mixed = list(rows)
    random.Random(key).shuffle(mixed)  # a string seeds the same in every process
    return mixed


def balanced_split(
    task: FocusTask,
    pool: Sequence[FocusExample],
    meaning: Mapping[str, str],
    n: int | None,
    *,
    split: str,
    seed: int = 0,
    one_per_source: bool = False,
) -> list[FocusExample]:
    """A split for training: rho = 1/N, balanced labels, so that neither feature tells anything of the other.

    Args:
        n: rows in all; None for as many as the pool allows.

    Raises:
        ValueError: an ``n`` that the values cannot share equally, or more than the pool has.
    """
    rho = 1 / len(task.labels)
    each = rows_per_value(pool, meaning, task.labels, {"iid": rho}, n, split, one_per_source)
    counts = cell_counts(each, meaning, task.labels, rho)
    return draw(pool, counts, split=split, rho=rho, seed=seed, one_per_source=one_per_source)


def held_out_splits(
    task: FocusTask,
    pool: Sequence[FocusExample],
    meaning: Mapping[str, str],
    rhos: Mapping[str, float],
    n: int | None,
    *,
    prefix: str = "",
    seed: int = 0,
    one_per_source: bool = False,
) -> dict[str, list[FocusExample]]:
    """The test splits of one pool, each drawn from the whole of it.

    Args:
        meaning: value -> y_s, for the values that these splits show.
        rhos: split -> rho, as `TWO_LABELS`; "flipped" ties the values to the next labels.
        n: rows of each split; None for as many as the pool allows in all of them.
        prefix: of the names, such as "shifted_".

    Raises:
        ValueError: as `balanced_split`.
    """
    each = rows_per_value(pool, meaning, task.labels, rhos, n, f"{prefix}test", one_per_source)
    made = {}
    for name, rho in rhos.items():
        flipped, split = name == "flipped", prefix + name
        counts = cell_counts(each, meaning, task.labels, rho, flipped)
        of_y_s = (1 - rho) / (len(task.labels) - 1) if flipped else rho
        made[split] = draw(pool, counts, split=split, rho=of_y_s, seed=seed, one_per_source=one_per_source)
    return made


def rows_per_value(
    pool: Sequence[FocusExample],
    meaning: Mapping[str, str],
    labels: Sequence[str],
    rhos: Mapping[str, float],
    n: int | None,
    what: str,
    one_per_source: bool,
) -> int:
    """``n`` shared out over the values; where None, the most that the pool has for every rho.

    Raises:
        ValueError: an ``n`` that cannot be shared out equally, or a pool that allows nothing.
    """
    if n is not None:
        if n < 1 or n % len(meaning):
            raise ValueError(
                f"{n} examples for {what!r}: it must be a positive multiple of {len(meaning)}, the number of values "
                f"({', '.join(meaning)}), which share them equally"
            )
        return n // len(meaning)
    cells = {cell: len(rows) for cell, rows in cells_of(pool).items()}
    sources = Counter(label for _, label in {(row.source, row.y) for row in pool})
    for each in range(len(pool) // len(meaning), 0, -1):
        for name, rho in rhos.items():
            counts = cell_counts(each, meaning, labels, rho, name == "flipped")
            if any(count > cells.get(cell, 0) for cell, count in counts.items()):
                break
            needed: Counter[str] = Counter()
            for (_, label), count in counts.items():
                needed[label] += count
            if one_per_source and any(needed[label] > sources[label] for label in labels):
                break
        else:
            return each
    shown = ", ".join(f"{cells.get((value, label), 0)} ({value}, {label})" for value in meaning for label in labels)
    raise ValueError(f"{what!r}: no split can be made from the rows there are, {shown}")
