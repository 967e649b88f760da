"""Which layer and strength (or K and strength) to steer with, chosen on validation examples under a budget.

    per toward and method   max success over informative examples (y ≠ y_s)   s.t.   the budget of side costs;
                            no steering is always a candidate, and ties go to the weaker setting

Side costs are what a steering does where it should do nothing: to neutral texts, to examples whose features agree, and
to the probability that the response is a label at all. The tables of `analysis.focus_sweep` go in. Lensteer's own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.choice_selection import SETTING, UNSTEERED
from analysis.statistics import bootstrap_mean
from analysis.tables import require_columns, require_finite
from lensteer.data.focus import FocusExample
from lensteer.data.focus.examples import check_examples

_TIE = 12  # decimals that count in a comparison: sums of the same numbers in another order are a tie
_COLUMNS = (
    "toward example_id source informative success shift says_y probability_inside text_perplexity text_ratio".split()
)


@dataclass(frozen=True)
class FocusBudget:
    """What a steering may cost; None leaves a bound out, and all that are given must hold.

    ``text_ratio``: the mean perplexity of neutral texts is at most this multiple of the unsteered one.
    ``agreeing_drop``: accuracy on the examples whose features agree (y = y_s) falls by at most this much.
    ``inside_drop``: the probability of the labels, of all responses, falls by at most this much on average.
    """

    text_ratio: float | None = 1.5
    agreeing_drop: float | None = 0.05
    inside_drop: float | None = 0.1

    def __post_init__(self) -> None:
        if self.text_ratio is not None and not self.text_ratio >= 1:
            raise ValueError(f"text_ratio must be at least 1, got {self.text_ratio}")
        for name in ("agreeing_drop", "inside_drop"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")

    def holds(self, table: pd.DataFrame) -> pd.Series:
        """Whether each row of a summary is within the budget of the unsteered row, the first."""
        base = table.iloc[0]
        within = pd.Series(True, index=table.index)
        if self.text_ratio is not None:
            within &= table["text_ratio"].round(_TIE) <= self.text_ratio
        for column, drop in (("agreeing", self.agreeing_drop), ("probability_inside", self.inside_drop)):
            if drop is not None:
                within &= (base[column] - table[column]).round(_TIE) <= drop
        return within

    def __str__(self) -> str:
        parts = [
            ("perplexity of neutral texts at most {:g} times as high", self.text_ratio),
            ("accuracy where features agree at most {:g} lower", self.agreeing_drop),
            ("probability of the labels at most {:g} lower", self.inside_drop),
        ]
        bounds = [text.format(value) for text, value in parts if value is not None]
        return ", ".join(bounds) + " than without steering" if bounds else "no bounds"


def choose(
    results: pd.DataFrame,
    *,
    budget: FocusBudget | None = None,
    test: Mapping[str, Sequence[FocusExample]] | Sequence[FocusExample] | pd.DataFrame | None = None,
    name: str = "",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """All candidates, toward S and toward C, the best of each method marked; no steering is always one of them.

    The rule: the largest success on informative examples, among those within the budget. Ties go to the smaller
    \\|strength\\|, then to the smaller K and the lower layer, so that steering is chosen only where it wins.

    Args:
        results: of `focus_sweep` or `sweep_settings`, on validation examples.
        budget: what a steering may cost beside no steering. Default: `FocusBudget()`.
        test: examples, splits of them, or their results, that the choice will be reported on.
        name: of the model, for the warning where nothing is chosen.

    Returns:
        one row per toward, method and setting: toward, method, k, layer, strength; n (informative examples), success
        and shift on these (each with _low, _high: bootstrap over sources); agreeing (accuracy where y = y_s),
        accuracy_y (of all examples), probability_inside, text_perplexity, text_ratio, unsteered (its success),
        within_budget, chosen. The success of a chosen row is a maximum, and so too high: report that on test examples.

    Raises:
        ValueError: missing columns, NaN, no unsteered rows, an example twice in a setting, no informative examples,
            none whose features agree (where the budget bounds them), or test examples of the same source.
    """
    budget = budget or FocusBudget()
    _require_results(results, budget)
    if test is not None:
        require_disjoint_sources(results, test)
    options = {"level": level, "n_resamples": n_resamples, "seed": seed}
    tables = []
    for toward, own in results.groupby("toward", sort=False):
        base = own[own["method"] == UNSTEERED]
        methods = [name for name in dict.fromkeys(own["method"]) if name != UNSTEERED]
        tables += [_candidates(toward, m, base, own[own["method"] == m], budget, options) for m in methods]
    for table in tables:
        _warn_if_none(table, budget, name)
    return pd.concat(tables, ignore_index=True)


def chosen_row(candidates: pd.DataFrame, toward: str, method: str = "vector") -> Any:
    """The chosen candidate, as a named tuple; layer −1 and strength 0 are no steering."""
    rows = candidates[candidates["chosen"] & (candidates["toward"] == toward) & (candidates["method"] == method)]
    if len(rows) != 1:
        raise ValueError(f"the candidates hold {len(rows)} chosen rows of {method!r} toward {toward!r}")
    return next(rows.itertuples(index=False))


def require_disjoint_sources(
    first: Any, second: Any, names: tuple[str, str] = ("validation examples", "test examples")
) -> None:
    """Refuse examples, splits of them (by name), or their results, that were made from one source.

    Raises:
        ValueError: names how many sources are in both, and the first.
    """
    known = set(_sources(first))
    again = [source for source in _sources(second) if source in known]
    if again:
        raise ValueError(
            f"{len(again)} sources are in both the {names[0]} and the {names[1]} (first: {again[0]!r}); what is chosen "
            "or fitted on an input cannot be confirmed on it"
        )


def interval(
    name: str, values: Float[np.ndarray, " example"], sources: Sequence[str], **options: Any
) -> dict[str, float]:
    """The mean of some values as columns ``name``, with _low and _high; NaN for none, or for one that is not finite.

    Examples of one source are resampled together.
    """
    values = np.asarray(values, dtype=float)
    usable = values.size > 0 and bool(np.isfinite(values).all())
    found = bootstrap_mean(values, groups=sources, **options) if usable else (math.nan,) * 3
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _candidates(
    toward: str, method: str, base: pd.DataFrame, own: pd.DataFrame, budget: FocusBudget, options: dict[str, Any]
) -> pd.DataFrame:
    """Every setting of a method beside no steering, in the order in which ties are decided."""
    groups = [((0, -1, 0.0), base), *own.groupby(SETTING[1:], sort=False)]
    groups.sort(key=lambda group: (abs(group[0][2]), group[0][0], group[0][1], -group[0][2]))
    lines = []
    for setting, rows in groups:
        sure, agreeing = rows[rows["informative"]], rows[~rows["informative"]]
        lines.append(
            {
                **{"toward": toward, "method": method, **dict(zip(SETTING[1:], setting, strict=True)), "n": len(sure)},
                **interval("success", sure["success"].to_numpy(), sure["source"], **options),
                **interval("shift", sure["shift"].to_numpy(), sure["source"], **options),
                **{"agreeing": agreeing["says_y"].mean(), "accuracy_y": rows["says_y"].mean()},
                "probability_inside": rows["probability_inside"].mean(),
                **{"text_perplexity": rows["text_perplexity"].iloc[0], "text_ratio": rows["text_ratio"].iloc[0]},
            }
        )
    table = pd.DataFrame(lines).assign(unsteered=lines[0]["success"])
    table["within_budget"] = budget.holds(table)
    best = table["success"].where(table["within_budget"]).round(_TIE)
    table["chosen"] = table.index == best.idxmax()
    return table


def _warn_if_none(table: pd.DataFrame, budget: FocusBudget, name: str) -> None:
    none, rest = table.iloc[0], table.iloc[1:]
    if none["chosen"]:
        within = rest[rest["within_budget"]]
        best = f"of which the best has {within['success'].max():.2f}" if len(within) else f"({budget})"
        whose = f"{name}: " if name else ""
        warnings.warn(
            f"{whose}no steering was chosen for {none['method']!r} toward {none['toward']}: success is "
            f"{none['success']:.2f} without, and {len(within)} of {len(rest)} settings are within the budget, {best}",
            stacklevel=3,
        )


def _require_results(results: pd.DataFrame, budget: FocusBudget) -> None:
    require_columns(results, [*_COLUMNS, *SETTING], "results")
    require_finite(results, ["k", "layer", "strength", "success"], "results")
    if not results["informative"].any():
        raise ValueError("in no row of results do y and y_s differ, so none shows which feature decides")
    if budget.agreeing_drop is not None and results["informative"].all():
        raise ValueError(
            "results hold no examples whose features agree (y = y_s), which agreeing_drop bounds; add some, or use "
            "FocusBudget(agreeing_drop=None)"
        )
    if (twice := results.duplicated(["toward", *SETTING, "example_id"])).any():
        row = results[twice].iloc[0]
        raise ValueError(f"results hold example {row['example_id']!r} twice for one setting of {row['method']!r}")
    for toward, own in results.groupby("toward"):
        unsteered = own["method"] == UNSTEERED
        if not unsteered.any() or unsteered.all():
            raise ValueError(
                f"results toward {toward} need rows without steering (method 'none') and rows of a method; they have "
                f"{list(dict.fromkeys(own['method']))}"
            )


def _sources(given: Any) -> list[str]:
    if hasattr(given, "columns"):
        require_columns(given, ["source"], "the results")
        return list(dict.fromkeys(given["source"]))
    parts = given.values() if isinstance(given, Mapping) else [given]
    return list(dict.fromkeys(example.source for part in parts for example in check_examples(part)))
