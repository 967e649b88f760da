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
goes to the label after, so that labels stay balanced where every label belongs to one value. Examples of a test split
carry the rho that was reached; where rounding moves it by more than `ROUNDING`, a warning says which n reaches it.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Definition 2 and section 4.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.splits import rho_of
from lensteer.data.focus.task import FocusTask

Cell: TypeAlias = tuple[str, str]
"""A value of the spurious feature and a label."""

T = TypeVar("T")

TWO_LABELS: Mapping[str, float] = {"iid": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.9}
"""Test split -> rho with two labels. The paper prints them for SHANS; those of SS follow from its Table 4."""

THREE_LABELS: Mapping[str, float] = {"iid": 1 / 3, "high": 0.9, "low": 0.1, "flipped": 0.9}
"""Test split -> rho for SMNLI, as in the paper."""

ROUNDING = 0.02
"""How far the rho of a split may be from the one that was asked for before a warning says so."""


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
        split: written into the examples and their ids; the draw depends on it and the seed.
        rho: what is to be reached, for the error; the examples carry what is, P(Y = y_s) of the drawn.
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
    found = rho_of(drawn) if drawn else rho
    return [replace(row, id=f"{row.id}-{split}", split=split, rho=found) for row in shuffled(drawn, f"{seed}\n{split}")]


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

    Returns:
        examples that carry 1/N, which a number of rows for each value that N does not divide misses by part of a row;
        by more than `ROUNDING`, they carry what was reached.

    Raises:
        ValueError: an ``n`` that the values cannot share equally, or more than the pool has.

    Warns:
        UserWarning: rounding moves rho by more than `ROUNDING`.
    """
    rho = 1 / len(task.labels)
    each = rows_per_value(pool, meaning, task.labels, {"iid": rho}, n, split, one_per_source)
    counts = cell_counts(each, meaning, task.labels, rho)
    drawn = draw(pool, counts, split=split, rho=rho, seed=seed, one_per_source=one_per_source)
    if _warn_of_rounding(each, meaning, task.labels, {"iid": rho}, {"iid": split}):
        return drawn
    return [replace(example, rho=rho) for example in drawn]


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
    warn: bool = True,
) -> dict[str, list[FocusExample]]:
    """The test splits of one pool, each drawn from the whole of it.

    Args:
        meaning: value -> y_s, for the values that these splits show.
        rhos: split -> rho, as `TWO_LABELS`; "flipped" ties the values to the next labels.
        n: rows of each split; None for as many as the pool allows in all of them.
        prefix: of the names, such as "shifted_".
        warn: whether to say that rounding moves rho.

    Returns:
        examples that carry the rho that was reached, P(Y = y_s): in "flipped" what the next label leaves to y_s.

    Raises:
        ValueError: as `balanced_split`.

    Warns:
        UserWarning: as `balanced_split`, once for all splits.
    """
    each = rows_per_value(pool, meaning, task.labels, rhos, n, f"{prefix}test", one_per_source)
    made = {}
    for name, rho in rhos.items():
        flipped, split = name == "flipped", prefix + name
        counts = cell_counts(each, meaning, task.labels, rho, flipped)
        of_y_s = _of_y_s(rho, task.labels, flipped)
        made[split] = draw(pool, counts, split=split, rho=of_y_s, seed=seed, one_per_source=one_per_source)
    if warn:
        _warn_of_rounding(each, meaning, task.labels, rhos, {name: prefix + name for name in rhos})
    return made


def _of_y_s(rho: float, labels: Sequence[str], flipped: bool) -> float:
    """P(Y = y_s) where ``rho`` is the share of y_s, or, if ``flipped``, of the label after it."""
    return (1 - rho) / (len(labels) - 1) if flipped else rho


def _warn_of_rounding(
    each: int,
    meaning: Mapping[str, str],
    labels: Sequence[str],
    rhos: Mapping[str, float],
    shown: Mapping[str, str],
) -> bool:
    """Whether ``each`` rows of a value cannot have these rhos, nearly; then a warning has said so.

    Args:
        shown: what the splits of ``rhos`` are called.
    """

    def reached(each: int, name: str) -> float:
        counts = cell_counts(each, meaning, labels, rhos[name], name == "flipped")
        return sum(counts[cell] for cell in meaning.items()) / (each * len(meaning))

    asked = {name: _of_y_s(rho, labels, name == "flipped") for name, rho in rhos.items()}
    missed = [name for name in rhos if abs(reached(each, name) - asked[name]) > ROUNDING + 1e-9]
    if not missed:
        return False
    exact = (
        k for k in range(each + 1, each + 1001) if all(abs(reached(k, name) - asked[name]) < 1e-9 for name in rhos)
    )
    more = next(exact, None)
    warnings.warn(
        f"{each * len(meaning)} examples cannot have the rho, P(Y = y_s), that was asked for: "
        + ", ".join(f"{shown[name]!r} has {reached(each, name):.3g} (asked: {asked[name]:.3g})" for name in missed)
        + (f"; {more * len(meaning)} can" if more else ""),
        stacklevel=4,
    )
    return True


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
