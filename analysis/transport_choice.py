"""Which strength and support of each transport to use, chosen on validation prompts and confirmed on test prompts.

    choose    per method  max success  s.t.  mean over texts of PPL(steered) − PPL(unsteered) < rise  and
                                             degenerate share − unsteered share ≤ rise;  no steering is a candidate

The budget on neutral text is the paper's (Rodriguez et al., ICLR 2025, Section 4.1: an increase below 1); that on
degenerate responses is lensteer's own. The tables of `analysis.transport_sweep` go in. Several
random controls of one setting are averaged prompt by prompt first, so that the prompt stays the unit.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.choices import Choice
from analysis.confirmation import confirm, require_disjoint_prompts
from analysis.statistics import bootstrap_mean, paired_bootstrap
from analysis.tables import log_perplexity, require_columns, require_finite, require_split

SETTING = ["method", "condition", "support", "strength"]
_TEXTS = [
    *("text_perplexity", "text_perplexity_median", "text_perplexity_q25", "text_perplexity_q75"),
    *("text_rise", "text_rise_low", "text_rise_high"),
]
_TIE = 12  # decimals that count in a comparison: sums of the same numbers in another order are a tie


@dataclass(frozen=True)
class TransportBudget:
    """What a transport may cost; None leaves a bound out, and all that are given must hold.

    ``text_rise``: the mean perplexity of neutral texts rises by less than this. ``text_ratio``: it is at most this
    multiple of the unsteered one; for models and texts whose perplexity is far from the paper's 14.
    ``degenerate_rise``: the share of degenerate responses rises by at most this much.
    """

    text_rise: float | None = 1.0
    text_ratio: float | None = None
    degenerate_rise: float | None = 0.1

    def __post_init__(self) -> None:
        if self.text_rise is None and self.text_ratio is None:
            raise ValueError("a budget needs text_rise or text_ratio; without one, the strongest damage would do")
        if self.text_rise is not None and not self.text_rise > 0:
            raise ValueError(f"text_rise must be positive, got {self.text_rise}")
        if self.text_ratio is not None and not self.text_ratio >= 1:
            raise ValueError(f"text_ratio must be at least 1, got {self.text_ratio}")
        if self.degenerate_rise is not None and not 0 <= self.degenerate_rise <= 1:
            raise ValueError(f"degenerate_rise must lie between 0 and 1, got {self.degenerate_rise}")

    def holds(self, table: pd.DataFrame) -> pd.Series:
        """Whether each row of a summary, with its degenerate_rise, is within the budget."""
        within = pd.Series(True, index=table.index)
        if self.text_rise is not None:
            within &= table["text_rise"] < self.text_rise
        if self.text_ratio is not None:
            unsteered = table["text_perplexity"] - table["text_rise"]
            within &= (table["text_perplexity"] / unsteered).round(_TIE) <= self.text_ratio
        if self.degenerate_rise is not None:
            within &= table["degenerate_rise"].round(_TIE) <= self.degenerate_rise
        return within

    def rise_from(self, unsteered: float) -> float:
        """How far the perplexity of neutral texts may rise from its unsteered value."""
        absolute = math.inf if self.text_rise is None else self.text_rise
        return min(absolute, math.inf if self.text_ratio is None else (self.text_ratio - 1) * unsteered)

    def __str__(self) -> str:
        parts = []
        if self.text_rise is not None:
            parts.append(f"perplexity of neutral texts less than {self.text_rise:g} higher")
        if self.text_ratio is not None:
            parts.append(f"perplexity of neutral texts at most {self.text_ratio:g} times as high")
        if self.degenerate_rise is not None:
            parts.append(f"degenerate share at most {self.degenerate_rise:g} higher")
        return ", ".join(parts) + " than without steering"


def transport_summary(
    results: pd.DataFrame, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """One row per method, condition, support and strength: effect beside damage.

    Returns:
        n (prompts); success (mean, with _low and _high: bootstrap over prompts; _median, _q25, _q75); difference to
        no steering on the same prompts (with _low, _high); perplexity of the responses (geometric mean; _median,
        _q25, _q75); shares degenerate and repeated; and, where the results have them, the columns of the neutral
        texts and ``untouched``.

    Raises:
        ValueError: missing columns; NaN; a method without rows of condition "none"; a setting that was run on other
            prompts than those.
    """
    columns = [*SETTING, "prompt_id", "success", "perplexity", "degenerate", "repeated"]
    require_columns(results, columns, "results")
    require_finite(results, ["strength", "success", "degenerate"], "results")
    rows = results.assign(log_perplexity=log_perplexity(results, "results"))
    options: dict[str, Any] = {"level": level, "n_resamples": n_resamples, "seed": seed}
    lines = []
    for method, own in rows.groupby("method", sort=False):
        base = _per_prompt(own[own["condition"] == "none"])
        if base.empty:
            raise ValueError(f"no rows without steering (condition 'none') for {method!r}")
        for setting, group in own.groupby(SETTING, sort=False):
            lines.append({**dict(zip(SETTING, setting, strict=True)), **_line(setting, group, base, options)})
    return pd.DataFrame(lines)


def _per_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    measures = ["success", "log_perplexity", "degenerate", "repeated"]
    return rows.astype(dict.fromkeys(("degenerate", "repeated"), float)).groupby("prompt_id")[measures].mean()


def _line(setting: tuple, group: pd.DataFrame, base: pd.DataFrame, options: dict[str, Any]) -> dict[str, float]:
    scores = _per_prompt(group)
    if not scores.index.equals(base.index):
        odd = scores.index.symmetric_difference(base.index)
        raise ValueError(
            f"{setting[0]!r} ({setting[1]}, support {setting[2]}, strength {setting[3]:g}) was run on other prompts "
            f"than no steering: {len(odd)} prompt ids are in one only (first: {odd[0]!r})"
        )
    success = scores["success"].to_numpy()
    line: dict[str, float] = {"n": len(scores)}
    line |= dict(zip(("success", "success_low", "success_high"), bootstrap_mean(success, **options), strict=True))
    line |= _band("success", scores["success"])
    change = paired_bootstrap(success, base["success"].to_numpy(), **options)
    line |= dict(zip(("difference", "difference_low", "difference_high"), change, strict=True))
    perplexities = np.exp(group["log_perplexity"].dropna())
    line["perplexity"] = float(np.exp(scores["log_perplexity"].mean()))
    line |= _band("perplexity", perplexities)
    line |= {name: float(scores[name].mean()) for name in ("degenerate", "repeated")}
    for name in (*_TEXTS, "untouched"):
        if name in group:
            line[name] = float(group[name].mean())
    return line


def _band(name: str, values: pd.Series) -> dict[str, float]:
    """Median and the 25-75 band."""
    low, middle, high = values.quantile([0.25, 0.5, 0.75]) if len(values) else (math.nan,) * 3
    return {f"{name}_median": middle, f"{name}_q25": low, f"{name}_q75": high}


def choose_strength(validation: pd.DataFrame, *, budget: TransportBudget | None = None, seed: int = 0) -> pd.DataFrame:
    """The best success of each method within the budget; ties go to the weaker strength, then to the first support.

    Returns:
        The rows of `transport_summary` of the conditions "none" and "steered", with degenerate_rise, within_budget
        and chosen. No steering is always within the budget, and is chosen where nothing else is better; a warning
        then says why (`why_unsteered`). The success of a chosen row is a maximum, and so too high:
        report that of `confirm_strength`.

    Raises:
        ValueError: as `transport_summary`; test rows in a ``split`` column; results of a sweep without texts.
    """
    budget = budget or TransportBudget()
    table = _choose(validation, budget, seed)
    for reason in why_unsteered(table, budget).values():
        warnings.warn(reason, stacklevel=2)
    return table


def _choose(validation: pd.DataFrame, budget: TransportBudget, seed: int) -> pd.DataFrame:
    require_split(validation, "validation", "validation")
    if "text_rise" not in validation:
        raise ValueError("validation has no column text_rise to hold against the budget; sweep with texts=[…]")
    table = transport_summary(validation[validation["condition"].isin(["none", "steered"])], seed=seed)
    unsteered = table[table["condition"] == "none"].set_index("method")["degenerate"]
    table["degenerate_rise"] = table["degenerate"] - table["method"].map(unsteered)
    table["within_budget"] = (table["condition"] == "none") | budget.holds(table)
    order = table[["method"]].assign(loss=-table["success"].round(_TIE), size=table["strength"].abs())
    order = order[table["within_budget"]].sort_values(["loss", "size"], kind="stable")
    return table.assign(chosen=table.index.isin(order.drop_duplicates("method").index))


def why_unsteered(candidates: pd.DataFrame, budget: TransportBudget) -> dict[str, str]:
    """Why no steering was chosen, by method: the bounds that every setting breaks, or that none has more success.

    Args:
        candidates: as `choose_strength` gives them, under the same budget.
    """
    chosen = candidates[candidates["chosen"] & (candidates["condition"] == "none")]
    steered = candidates[candidates["condition"] == "steered"]
    reasons = {}
    for none in chosen.itertuples():
        own = steered[steered["method"] == none.method]
        within = own[own["within_budget"]]
        if own.empty:
            why = "no steered setting was run"
        elif len(within):
            why = (
                f"within the budget the most success is {within['success'].max():.2f}, and {none.success:.2f} without "
                "steering"
            )
        else:
            broken = _broken_bounds(own, budget, float(none.text_perplexity))
            why = "; ".join(broken) or f"no setting keeps all bounds at once ({budget})"
        reasons[str(none.method)] = f"no steering was chosen for {none.method!r}: {why}"
    return reasons


def _broken_bounds(settings: pd.DataFrame, budget: TransportBudget, unsteered: float) -> list[str]:
    """Each bound that all settings of a method break, against the one that comes nearest to it."""
    on_text = "the perplexity of neutral texts"
    rise, ratio = settings["text_rise"].min(), settings["text_perplexity"].min() / unsteered
    worse = settings["degenerate_rise"].min()
    broken = []
    if budget.text_rise is not None and rise >= budget.text_rise:
        line = f"{on_text} rises by {rise:.3g} or more, text_rise={budget.text_rise:g} is the bound"
        if budget.text_ratio is None:
            # The bound of the paper is for a model whose texts have perplexity 14.
            line += f" (unsteered: {unsteered:.3g}; TransportBudget(text_rise=None, text_ratio=2.0) lets it double)"
        broken.append(line)
    if budget.text_ratio is not None and round(ratio, _TIE) > budget.text_ratio:
        broken.append(f"{on_text} is {ratio:.3g} times as high or more, text_ratio={budget.text_ratio:g} is the bound")
    if budget.degenerate_rise is not None and round(worse, _TIE) > budget.degenerate_rise:
        bound = f"degenerate_rise={budget.degenerate_rise:g} is the bound"
        broken.append(f"the share of degenerate responses rises by {worse:.3g} or more, {bound}")
    return broken


def confirm_strength(
    validation: pd.DataFrame, test: pd.DataFrame, *, budget: TransportBudget | None = None, seed: int = 0
) -> pd.DataFrame:
    """Choose on the validation prompts and report on the test prompts: none, steered and random, for each method.

    Args:
        test: results on other prompts, of no steering, the chosen setting of each method, and its controls.

    Returns:
        The table of `analysis.confirmation.confirm` by method, with the support, the success that the choice was made
        on (validation), and the columns of the neutral texts where the test results have them.

    Raises:
        ValueError: as `choose_strength` and `confirm`: prompts in both tables, test rows at another strength or
            support than chosen, a method without test rows.
    """
    require_columns(test, [*SETTING, "layer", "prompt"], "test")
    require_disjoint_prompts(validation, test)
    chosen = _choose(validation, budget or TransportBudget(), seed)  # whoever chose has been told why none was
    chosen = chosen[chosen["chosen"]].set_index("method")
    choices = []
    for method, row in chosen.iterrows():
        own = validation[(validation["method"] == method) & (validation["condition"] == row["condition"])]
        steered = row["condition"] == "steered"
        run = test[(test["method"] == method) & (test["condition"] != "none")]
        if steered and (other := set(run["support"]) - {row["support"]}):
            raise ValueError(
                f"test rows of {method!r} have support {sorted(other)}; the choice is support {row['support']}"
            )
        layer = int(own["layer"].iloc[0]) if steered else -1
        interval = (row["success_low"], row["success_high"])
        unsteered = row["success"] - row["difference"]
        choices.append(Choice(str(method), layer, row["strength"], row["success"], interval, unsteered, int(row["n"])))
    called = {"method": "instruction"}
    table = confirm(choices, validation.rename(columns=called), test.rename(columns=called), seed=seed)
    table = table.rename(columns={"instruction": "method"}).drop(columns="layer")
    table.insert(2, "support", chosen["support"].reindex(table["method"]).to_numpy())
    table.loc[table["condition"] == "none", "support"] = "none"
    expected = chosen["success"].reindex(table["method"]).to_numpy()
    table.insert(5, "validation", np.where(table["condition"] == "steered", expected, np.nan))
    found = test.groupby(["method", "condition"])[[name for name in _TEXTS if name in test]].mean()
    return table.join(found, on=["method", "condition"])
