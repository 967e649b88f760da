"""Tables of focus accuracy: by split, over repeats, over splits; and how often the focus instruction flips the answer.

    by split      accuracy of one kind of instruction on one split, with a bootstrap interval over their sources
    over repeats  the mean over seeds, and their standard deviation (n − 1 in the denominator): run noise
    over splits   mean ± population standard deviation of the split means: how much accuracy depends on how predictive
                  the spurious feature is. It is not run noise; read it from the table over repeats.
    flip rate     share of the examples with y ≠ y_s on which the answer under focus(S) is not that under focus(C)

Results are those of `lensteer.evaluate.focus_accuracy`, one below the other, with columns that tell methods apart
(``by``, such as "model", "method", "steering") and, where a method was trained several times, a column "repeat".
Examples of one source (a context that is asked four times) are resampled together; without a column "source" each is
its own.
`always_y` is the accuracy of an oracle that answers y whatever it is told: 1 where the kind asks for y, and else the
predictivity of the spurious feature in that split. A method that scores no more on focus(S) does not steer.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 5 and Tables 4 to 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from analysis.statistics import bootstrap_mean, bootstrap_means
from analysis.tables import require_columns, require_finite
from lensteer.data.focus.instructions import Kind

_STANDARD = ("iid", "high", "low", "flipped")
SPLITS = (*_STANDARD, *(f"shifted_{split}" for split in _STANDARD), "seen", "unseen")
"""Splits in the order in which they are shown; others follow as found."""

_NEEDED = ("example_id", "split", "kind", "y", "target", "correct")


def focus_by_split(
    results: pd.DataFrame,
    by: Sequence[str] = ("model",),
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of every method, repeat, split and kind.

    Args:
        by: the columns that tell methods apart; () for none.

    Returns:
        the columns ``by``, `repeat` where the results have it, `split`, `kind`, `accuracy`, `low` and `high`
        (percentile bootstrap over sources, the same resamples for all kinds), `n` (examples), `always_y`.

    Raises:
        TypeError: not a DataFrame, or ``by`` one text.
        ValueError: missing columns, no rows, an unknown kind, an example twice in one cell (a column lacks in ``by``),
            or examples of a split that were not asked under all of its kinds.
    """
    results, by = _checked(results, by, _NEEDED)
    lines = []
    for cells, split, rows in _groups(results, [*by, *_repeat(results)]):
        right = _matrix(rows, "correct", split)
        found = _accuracies(rows, right, level=level, n_resamples=n_resamples, seed=seed)
        lines += [{**cells, "split": split, **line} for line in found]
    return pd.DataFrame(lines)


def focus_over_repeats(
    results: pd.DataFrame,
    by: Sequence[str] = ("model",),
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of every method, split and kind: mean and spread over repeats.

    The largest `std` of a method is what the captions of the paper's tables state.

    Returns:
        the columns ``by``, `split`, `kind`, `accuracy` (mean over repeats), `low` and `high` (percentile bootstrap over
        sources of each example's mean over repeats), `std` (over the accuracies of the repeats, n − 1 in the
        denominator; NaN for one), `repeats`, `n` (examples), `always_y`.

    Raises:
        TypeError, ValueError: as `focus_by_split`; repeats with different examples.
    """
    results, by = _checked(results, by, _NEEDED)
    if not _repeat(results):
        results = results.assign(repeat=0)
    lines = []
    for cells, split, rows in _groups(results, by):
        each = {repeat: _matrix(own, "correct", split) for repeat, own in rows.groupby("repeat", sort=False)}
        first, *others = each.values()
        if any(not first.index.equals(one.index) or not first.columns.equals(one.columns) for one in others):
            raise ValueError(
                f"the repeats {list(each)} of split {split!r} ({cells}) have different examples or kinds; use "
                "focus_by_split, or name what tells them apart in by="
            )
        stacked = np.stack([one.to_numpy(dtype=float) for one in each.values()])
        means = pd.DataFrame(stacked.mean(axis=0), first.index, first.columns)
        spread = stacked.mean(axis=2).std(axis=0, ddof=1) if others else np.full(len(first), np.nan)
        more = {"std": spread, "repeats": [len(each)] * len(first)}
        found = _accuracies(rows, means, more, level=level, n_resamples=n_resamples, seed=seed)
        lines += [{**cells, "split": split, **line} for line in found]
    return pd.DataFrame(lines)


def focus_table(
    results: pd.DataFrame, by: Sequence[str] = ("model",), *, splits: Sequence[str] | None = None
) -> pd.DataFrame:
    """Mean and population standard deviation of the split means of every method and kind (Tables 4 and 5 there).

    `std` says how much accuracy depends on the predictivity of the spurious feature, not how much it varies from run to
    run: an always-y oracle has 0 on the kinds that ask for y and a large one on the others.

    Args:
        splits: which ones. By default the paper's, iid, high, low and flipped, as many as there are, so that shifted
            ones do not count; all where there is none of these, as for BBQ.

    Returns:
        the columns ``by``, `kind`, `mean`, `std`, `splits` (their number); `wide` puts it as the paper does.

    Raises:
        TypeError, ValueError: as `focus_by_split`; a method or kind without one of the splits.
    """
    if splits is None and "split" in results:
        there = set(results["split"])
        splits = [split for split in _STANDARD if split in there] or None
    means = _split_means(results, by, splits)
    lines = [
        {**cells, "kind": kind, "mean": own.mean(), "std": own.std(ddof=0), "splits": len(own)}
        for cells, kind, own in means
    ]
    return pd.DataFrame(lines)


def seen_unseen_table(
    results: pd.DataFrame, by: Sequence[str] = ("model",), *, splits: tuple[str, str] = ("seen", "unseen")
) -> pd.DataFrame:
    """Accuracy of every method and kind on spurious features that were trained with, and on others (Table 6 there).

    Args:
        splits: the names of the two splits.

    Returns:
        the columns ``by``, `kind`, `seen`, `unseen`; `wide` puts it as the paper does.

    Raises:
        TypeError, ValueError: as `focus_table`.
    """
    means = _split_means(results, by, splits)
    lines = [{**cells, "kind": kind, "seen": own[splits[0]], "unseen": own[splits[1]]} for cells, kind, own in means]
    return pd.DataFrame(lines)


def wide(table: pd.DataFrame, *, decimals: int = 3) -> pd.DataFrame:
    """What `focus_table` or `seen_unseen_table` gave, as texts: a row per method, a column per kind.

    Raises:
        ValueError: another table.
    """
    pair = ["mean", "std"] if "mean" in table else ["seen", "unseen"]
    require_columns(table, ["kind", *pair], "the table")
    sign = "±" if "mean" in table else "/"
    texts = [f"{a:.{decimals}f} {sign} {b:.{decimals}f}" for a, b in table[pair].itertuples(index=False)]
    names = [column for column in table.columns if column not in ("kind", "splits", *pair)]
    shown = table[names].assign(kind=table["kind"], text=texts)
    if not names:
        return shown.set_index("kind")[["text"]].T.reset_index(drop=True).rename_axis(columns=None)
    spread = shown.pivot(index=names, columns="kind", values="text").rename_axis(columns=None)
    order = list(dict.fromkeys(shown[names].itertuples(index=False, name=None)))
    return spread.loc[order if len(names) > 1 else [one for (one,) in order], in_order(table["kind"], get_args(Kind))]


def flip_rates(
    results: pd.DataFrame,
    by: Sequence[str] = ("model",),
    *,
    kinds: tuple[str, str] = ("focus(C)", "focus(S)"),
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How often an example's answer differs between two kinds, on those whose features stand for different labels.

    Returns:
        the columns ``by``, `repeat` where the results have it, `split`, `flip_rate`, `low`, `high`, `followed` (share
        that answers y under the first kind and y_s under the second: a flip the right way), `n` (examples with
        y ≠ y_s; the rates are NaN where there are none).

    Raises:
        TypeError, ValueError: as `focus_by_split`; results without one of the two kinds.
    """
    needed = (*_NEEDED, "y_s", "predicted", "says_y", "says_y_s")
    results, by = _checked(results, by, needed)
    for kind in kinds:
        if kind not in set(results["kind"]):
            raise ValueError(f"a flip rate compares {kinds[0]!r} with {kinds[1]!r}; results have no rows of {kind!r}")
    lines = []
    for cells, split, rows in _groups(results, [*by, *_repeat(results)]):
        own = rows[(rows["y"] != rows["y_s"]) & rows["kind"].isin(kinds)]
        line = {**cells, "split": split}
        if own.empty:
            lines.append({**line, **dict.fromkeys(("flip_rate", "low", "high", "followed"), np.nan), "n": 0})
            continue
        said, y, y_s = (_matrix(own, column, split).reindex(kinds) for column in ("predicted", "says_y", "says_y_s"))
        if said.isna().any(axis=None):
            raise ValueError(f"examples of split {split!r} ({cells}) were not asked under both of {kinds}")
        flipped = (said.loc[kinds[0]] != said.loc[kinds[1]]).to_numpy(dtype=float)
        groups = _sources(own, said)
        rate = bootstrap_mean(flipped, groups=groups, level=level, n_resamples=n_resamples, seed=seed)
        followed = (y.loc[kinds[0]].astype(bool) & y_s.loc[kinds[1]].astype(bool)).mean()
        interval = {"flip_rate": rate.estimate, "low": rate.low, "high": rate.high}
        lines.append({**line, **interval, "followed": followed, "n": len(flipped)})
    return pd.DataFrame(lines)


def in_order(values: pd.Series, known: Sequence[str]) -> list[Any]:
    """Distinct values: the known ones in their order, the others as found."""
    found = values.drop_duplicates().tolist()
    return [value for value in known if value in found] + [value for value in found if value not in known]


def _checked(results: pd.DataFrame, by: Sequence[str], needed: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    if isinstance(by, str):
        raise TypeError(f"by must be several columns, got the text {by!r}; write by=({by!r},)")
    if list(by) == ["model"] and isinstance(results, pd.DataFrame) and "model" not in results:
        raise ValueError("results lack the column 'model', which tells models apart; use results.assign(model='FIT')")
    require_columns(results, [*by, *needed], "results")
    if results.empty:
        raise ValueError("results hold no rows")
    require_finite(results, ["correct"], "results")
    unknown = [kind for kind in results["kind"].drop_duplicates() if kind not in get_args(Kind)]
    if unknown:
        raise ValueError(f"results hold the kind {unknown[0]!r}; kinds are {', '.join(get_args(Kind))}")
    cell = [*by, *_repeat(results), "split", "kind", "example_id"]
    twice = results[results.duplicated(cell)]
    if len(twice):
        row = twice.iloc[0]
        others = [c for c in ("model", "method", "steering", "repeat", "seed") if c in results and c not in cell]
        raise ValueError(
            f"the example {row['example_id']!r} of split {row['split']!r} occurs twice under {row['kind']!r}; name the "
            f"columns that tell its rows apart in by={tuple(by)}" + (f", such as {others}" if others else "")
        )
    return results.assign(correct=results["correct"].astype(float)), list(by)


def _repeat(results: pd.DataFrame) -> list[str]:
    return ["repeat"] if "repeat" in results.columns else []


def _groups(results: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], Any, pd.DataFrame]]:
    """The rows of every combination of the columns, split by split."""
    whole: Any = [((), results)]
    groups = results.groupby(list(columns), sort=False, dropna=False) if columns else whole
    for values, own in groups:
        for split in in_order(own["split"], SPLITS):
            yield dict(zip(columns, values, strict=True)), split, own[own["split"] == split]


def _matrix(rows: pd.DataFrame, column: str, split: Any) -> pd.DataFrame:
    """A column as [kind, example], kinds in the order of the paper's tables, examples by their id."""
    matrix = rows.pivot(index="kind", columns="example_id", values=column)
    missing = matrix.isna()
    if missing.any(axis=None):
        kind = missing.any(axis=1).idxmax()
        raise ValueError(
            f"the example {missing.loc[kind].idxmax()!r} of split {split!r} was not asked under {kind!r}, as others of "
            "its split were; ask all of them under the same kinds"
        )
    return matrix.loc[in_order(rows["kind"], get_args(Kind))]


def _accuracies(
    rows: pd.DataFrame, means: pd.DataFrame, more: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    """For every kind of a matrix [kind, example] its mean, interval and the oracle's; ``more`` holds values by kind."""
    bounds = bootstrap_means(means.to_numpy(dtype=float), groups=_sources(rows, means), **options)
    oracle = (rows["target"] == rows["y"]).groupby(rows["kind"]).mean()
    for place, (kind, accuracy, low, high) in enumerate(zip(means.index, *bounds, strict=True)):
        own = {name: values[place] for name, values in (more or {}).items()}
        counts = {"n": means.shape[1], "always_y": oracle[kind]}
        yield {"kind": kind, "accuracy": accuracy, "low": low, "high": high, **own, **counts}


def _sources(rows: pd.DataFrame, matrix: pd.DataFrame) -> list[Any] | None:
    """What the examples of a matrix's columns were made from."""
    if "source" not in rows:
        return None
    known = dict(zip(rows["example_id"], rows["source"], strict=True))
    return [known[example] for example in matrix.columns]


def _split_means(
    results: pd.DataFrame, by: Sequence[str], splits: Sequence[str] | None
) -> Iterator[tuple[dict[str, Any], str, pd.Series]]:
    """For every method and kind its accuracies, by split: the mean over repeats of the mean over examples."""
    results, by = _checked(results, by, _NEEDED)
    wanted = in_order(results["split"], SPLITS) if splits is None else list(splits)
    results = results[results["split"].isin(wanted)]
    if results.empty:
        raise ValueError(f"results have no rows of the splits {wanted}")
    groups = results.groupby(by, sort=False, dropna=False) if by else [((), results)]
    for values, own in groups:
        cells = dict(zip(by, values, strict=True))
        each = own.groupby([*_repeat(own), "split", "kind"])["correct"].mean()
        means = each.groupby(["split", "kind"]).mean().unstack("split").reindex(columns=wanted)
        for kind in in_order(own["kind"], get_args(Kind)):
            missing = means.columns[means.loc[kind].isna()].tolist()
            if missing:
                raise ValueError(f"{cells or 'results'} has no rows of the split {missing[0]!r} under {kind!r}")
            yield cells, kind, means.loc[kind].astype(float)
