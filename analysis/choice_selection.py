"""Which setting (K or layer, strength) of each method to use, chosen on validation questions and reported on others.

    choose_setting    per method  argmax accuracy(setting) on validation;  no steering is always a candidate
    confirm_choice    the chosen settings on test questions, each against no steering, question by question
    optimism          max over settings of test accuracy − test accuracy of the setting chosen on validation

The tables of `analysis.choice_sweep` go in: one row per setting and question. A best-of-grid accuracy is read on the
questions that chose it in many published tables, and is too high by chance alone; `optimism` says by how much. Where
a setting was run with several seeds (random elements), a question's scores are averaged over them first, so that the
question stays the unit that is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analysis.confirmation import require_disjoint_prompts
from analysis.statistics import bootstrap_mean, bootstrap_means, is_binary, mcnemar, paired_bootstrap, resampled_means
from analysis.tables import require_columns, require_finite, require_split

SETTING = ["method", "k", "layer", "strength"]
UNSTEERED = "none"
"""The method of the rows without steering: k = 0, layer −1, strength 0."""
_NOTHING = (0, -1, 0.0)
_TIE = 1e-9  # sums of the same numbers in another order are a tie


def choose_setting(
    validation: pd.DataFrame,
    *,
    by: str = "correct",
    tolerance: float = 0.0,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """All candidates of every method, the best one marked; no steering is a candidate of each.

    Ties go to the smaller \\|strength\\|, then to the smaller K, the shallower layer and the positive strength, so that
    steering is chosen only where it wins.

    Args:
        by: the score, such as "correct", "correct_normalised" or "exact"; larger is better.
        tolerance: what counts as a tie, such as 0.01: the weakest setting within it of the best is chosen.

    Returns:
        method, k, layer, strength, n (questions), accuracy (with _low, _high: bootstrap over questions), unsteered,
        chosen. The accuracy of a chosen row is a maximum, and so too high: report that of `confirm_choice`.

    Raises:
        ValueError: missing columns; NaN; test rows in a ``split`` column; no unsteered rows or nothing else; a setting
            that lacks a question or has one twice; a tolerance that is negative.
    """
    scores = _scores(validation, by, "validation")
    _require_tolerance(tolerance)
    means, low, high = bootstrap_means(scores.to_numpy(), level=level, n_resamples=n_resamples, seed=seed)
    tables = []
    for method in _methods(scores):
        rows = _candidates(scores, method)
        table = pd.DataFrame([scores.index[row][1:] for row in rows], columns=SETTING[1:])
        table.insert(0, "method", method)
        table["n"] = scores.shape[1]
        table["accuracy"], table["accuracy_low"], table["accuracy_high"] = means[rows], low[rows], high[rows]
        table["unsteered"] = means[rows[0]]
        best = _first_of_best(means[rows][None], tolerance)[0]
        table["chosen"] = np.arange(len(rows)) == best
        tables.append(table.sort_values(SETTING[1:], kind="stable"))
    return pd.concat(tables, ignore_index=True)


def confirm_choice(
    validation: pd.DataFrame,
    test: pd.DataFrame,
    *,
    by: str = "correct",
    tolerance: float = 0.0,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Choose on the validation questions and report on the test questions: one row for no steering and each method.

    Args:
        validation: results of every setting of the grids.
        test: results on other questions, of the chosen settings and no steering at least.
        by, tolerance: as in `choose_setting`.

    Returns:
        method, k, layer, strength (of the choice), n (test questions), validation (accuracy there), accuracy and
        difference to no steering on the same questions (each with _low, _high), p_value (McNemar, exact, two-sided;
        NaN for graded scores), and the means of probability_inside and said_inside where the table has them.

    Raises:
        ValueError: as `choose_setting`; prompts in both tables; a chosen setting that was not run on the
            test questions.
    """
    chosen = choose_setting(validation, by=by, tolerance=tolerance, n_resamples=1)
    chosen = chosen[chosen["chosen"]]
    scores = _scores(test, by, "test")
    require_disjoint_prompts(validation, test)
    options: dict[str, Any] = {"level": level, "n_resamples": n_resamples, "seed": seed}
    base = scores.loc[(UNSTEERED, *_NOTHING)].to_numpy()
    shares = [column for column in ("probability_inside", "said_inside") if column in test]
    beside = test.groupby(SETTING)[shares].mean() if shares else None
    found = {UNSTEERED: (UNSTEERED, *_NOTHING)}
    expected = {UNSTEERED: float(chosen["unsteered"].iloc[0])}
    for row in chosen.itertuples():
        nothing = row.strength == 0
        found[row.method] = (UNSTEERED if nothing else row.method, row.k, row.layer, row.strength)
        expected[row.method] = row.accuracy
        if found[row.method] not in scores.index:
            raise ValueError(
                f"{_shown(found[row.method])} was chosen on the validation questions but not run on the test "
                "questions; run it there as well"
            )
    lines = []
    for method, setting in found.items():
        own = scores.loc[setting].to_numpy()
        rate, change = bootstrap_mean(own, **options), paired_bootstrap(own, base, **options)
        testable = method != UNSTEERED and is_binary(own) and is_binary(base)
        lines.append(
            {
                **dict(zip(SETTING, (method, *setting[1:]), strict=True)),
                "n": len(own),
                "validation": expected[method],
                **dict(zip(("accuracy", "accuracy_low", "accuracy_high"), rate, strict=True)),
                **dict(zip(("difference", "difference_low", "difference_high"), change, strict=True)),
                "p_value": mcnemar(own, base).p_value if testable else math.nan,
                **(beside.loc[setting].to_dict() if beside is not None else {}),
            }
        )
    return pd.DataFrame(lines)


def optimism(
    validation: pd.DataFrame,
    test: pd.DataFrame,
    *,
    by: str = "correct",
    tolerance: float = 0.0,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """By how much choosing on the test questions would flatter each method.

        optimism = max_s accuracy_test(s) − accuracy_test(s*),   s* chosen on the validation questions

    The interval is a bootstrap over both sets of questions in which both choices are made anew in every resample. A
    maximum over resampled means is larger still than the one over the means, because it is taken over noise twice;
    the resamples are therefore moved as a whole so that their mean is the estimate, and cut at 0.

    Args:
        test: results of the whole grid, the same settings as in ``validation``.

    Returns:
        method, settings (tried, no steering included), n, best (accuracy of the setting that the test questions
        choose), honest (of the one that the validation questions choose), optimism (with _low, _high).

    Raises:
        ValueError: as `confirm_choice`; other settings in one table than in the other; fewer than one resample.
    """
    _require_tolerance(tolerance)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    before, after = _scores(validation, by, "validation"), _scores(test, by, "test")
    require_disjoint_prompts(validation, test)
    odd = before.index.symmetric_difference(after.index)
    if len(odd):
        raise ValueError(
            f"validation and test must hold the same settings; {len(odd)} are in one only (first: {_shown(odd[0])})"
        )
    after = after.loc[before.index]
    # Row 0 is the tables as they are, the rest are resamples; both sets of questions are drawn anew.
    drawn = [
        np.concatenate([table.to_numpy().mean(1)[None], resampled_means(table.to_numpy(), n_resamples, seed + i)])
        for i, table in enumerate((before, after))
    ]
    lines = []
    for method in _methods(before):
        rows = _candidates(before, method)
        choice = _first_of_best(drawn[0][:, rows], tolerance)
        honest = np.take_along_axis(drawn[1][:, rows], choice[:, None], axis=1)[:, 0]
        best = drawn[1][:, rows].max(1)
        gaps = best - honest
        low, high = np.quantile(gaps[1:] - gaps[1:].mean() + gaps[0], [(1 - level) / 2, (1 + level) / 2])
        lines.append(
            {
                "method": method,
                "settings": len(rows),
                "n": after.shape[1],
                "best": best[0],
                "honest": honest[0],
                "optimism": gaps[0],
                "optimism_low": max(0.0, low),
                "optimism_high": max(0.0, high),
            }
        )
    return pd.DataFrame(lines)


def _scores(table: pd.DataFrame, by: str, split: str) -> pd.DataFrame:
    """One row per setting and one column per question, after every check; seeds are averaged.

    Within a method, rows come in the order in which ties are decided.
    """
    require_columns(table, [*SETTING, "question_id", "prompt", by], split)
    require_split(table, split, split)
    require_finite(table, ["k", "layer", "strength", by], split)
    unsteered = table["method"] == UNSTEERED
    nothing = np.logical_and.reduce([table[name] == value for name, value in zip(SETTING[1:], _NOTHING, strict=True)])
    wrong = (unsteered & ~nothing) | (~unsteered & (table["strength"] == 0))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise ValueError(
            f"{split} has rows of {_shown(tuple(row[SETTING]))}; no steering is method 'none' with k=0, layer=-1 and "
            "strength=0, and nothing else is"
        )
    if not unsteered.any() or unsteered.all():
        raise ValueError(
            f"{split} needs rows without steering (method 'none') and rows of a method; it has methods "
            f"{list(dict.fromkeys(table['method']))}"
        )
    runs = [*SETTING, "seed"] if "seed" in table else SETTING
    if (twice := table.duplicated([*runs, "question_id"])).any():
        row = table[twice].iloc[0]
        raise ValueError(
            f"{split} has {int(twice.sum())} rows that repeat a setting and question; first: question "
            f"{row['question_id']} of {_shown(tuple(row[SETTING]))}"
        )
    n = table["question_id"].nunique()
    sizes = table.groupby(runs).size()
    if (short := sizes[sizes < n]).size:
        raise ValueError(
            f"{_shown(short.index[0][:4])} has {short.iloc[0]} of the {n} {split} questions; settings are compared on "
            "the same questions"
        )
    values = table.assign(**{by: table[by].astype(float)})
    wide = values.pivot_table(index=SETTING, columns="question_id", values=by, aggfunc="mean")
    seen = {name: i for i, name in enumerate(dict.fromkeys(table["method"]))}
    order = sorted(wide.index, key=lambda s: (seen[s[0]], abs(s[3]), s[1], s[2], -s[3]))
    return wide.loc[order]


def _methods(scores: pd.DataFrame) -> list[str]:
    return [name for name in dict.fromkeys(scores.index.get_level_values(0)) if name != UNSTEERED]


def _candidates(scores: pd.DataFrame, method: str) -> Int[np.ndarray, "candidate"]:
    """Row numbers of no steering and of a method's settings, in the order in which ties are decided."""
    names = scores.index.get_level_values(0)
    return np.concatenate([np.flatnonzero(names == UNSTEERED), np.flatnonzero(names == method)])


def _first_of_best(means: Float[np.ndarray, "draw candidate"], tolerance: float) -> Int[np.ndarray, "draw"]:
    return (means >= means.max(1, keepdims=True) - tolerance - _TIE).argmax(1)


def _require_tolerance(tolerance: float) -> None:
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must not be negative (a share of the questions, such as 0.01), got {tolerance}")


def _shown(setting: Sequence[Any]) -> str:
    method, k, layer, strength = setting
    where = [f"K={k}"] * int(k != 0) + [f"layer {layer}"] * int(layer != -1)
    return f"{method!r} ({', '.join([*where, f'strength {strength:g}'])})"
