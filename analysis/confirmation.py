"""The chosen settings on test prompts, beside their controls: what may be reported.

    difference = mean over test prompts of  success(condition) − success(none),  bootstrapped in pairs

A selection rule takes the best of many, so its own score is too high; here every number comes from
prompts that the rule has not seen. Overlap between validation and test prompts is refused, not warned
about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.choices import Choice
from analysis.statistics import bootstrap_mean, geometric_mean, is_binary, mcnemar, paired_bootstrap
from analysis.tables import in_order, log_perplexity, require_columns, require_finite, require_split


def confirm(
    choices: Choice | Iterable[Choice],
    validation: pd.DataFrame,
    test: pd.DataFrame,
    *,
    reference: str = "none",
    steered: str = "steered",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per (instruction, condition) of the test rows, each against ``reference`` on the same prompts.

    Conditions come in the order none, steered, random, text, text+steered, then any others as found.
    Several rows for one prompt and condition (random directions from several seeds, say) are averaged
    before anything else, so that the prompt stays the unit; ``p_value`` is then NaN, as it is for
    graded scores.

    Args:
        choices: a Selection, its choices, or one Choice. Test rows of other instructions are left out.
        validation: the results that the choices were made on; only their prompts are read.
        test: results for the chosen settings and the controls, on other prompts.
        reference: the condition that the others are compared with: "text" where the instruction stands in the text.
        steered: the condition that was chosen; "text+steered" goes with the reference "text".

    Returns:
        Columns instruction, condition, layer, strength, n (prompts), success (with _low, _high),
        perplexity (geometric mean), perplexity_median, degenerate (share), difference (with _low,
        _high), p_value (McNemar exact, two-sided). The reference's own difference is 0 and its p_value
        NaN.

    Raises:
        ValueError: prompts in both tables (by text, blanks and case aside); wrong ``split`` values;
            missing columns; NaN; steered rows at another layer or strength than chosen; an instruction
            or its reference without test rows; a condition that was run on other prompts than the
            reference.
    """
    chosen = [choices] if isinstance(choices, Choice) else list(choices)
    require_columns(validation, ["prompt"], "validation")
    damage = ["perplexity", "degenerate"]
    columns = ["instruction", "condition", "layer", "strength", "prompt_id", "prompt", "success", *damage]
    require_columns(test, columns, "test")
    require_split(validation, "validation", "validation")
    require_split(test, "test", "test")
    require_disjoint_prompts(validation, test)
    require_finite(test, ["layer", "strength", "success", "degenerate"], "test")
    test = test.assign(log_perplexity=log_perplexity(test, "test"))
    rows = []
    for choice in chosen:
        group = test[test["instruction"] == choice.instruction]
        if not (group["condition"] == reference).any():
            raise ValueError(f"test has no rows of condition {reference!r} for {choice.instruction!r}")
        _require_chosen_setting(choice, group, steered)
        base = _per_prompt(group, reference)
        rows += [
            _row(group, condition, reference, base, {"level": level, "n_resamples": n_resamples, "seed": seed})
            for condition in in_order(group["condition"])
        ]
    return pd.DataFrame(rows)


def require_disjoint_prompts(
    validation: pd.DataFrame, test: pd.DataFrame, names: tuple[str, str] = ("validation results", "test results")
) -> None:
    """Refuse prompts that stand in both tables; blanks and upper or lower case make no difference.

    Args:
        names: what the tables are called in the error.

    Raises:
        ValueError: names how many, and the first.
    """
    seen = set(validation["prompt"].map(normalised_prompt))
    again = test["prompt"].map(normalised_prompt).isin(seen)
    if again.any():
        overlap = test.loc[again, "prompt"].drop_duplicates()
        raise ValueError(
            f"{len(overlap)} prompts are in both the {names[0]} and the {names[1]} "
            f"(first: {overlap.iloc[0]!r}); a choice must be confirmed on prompts that it was not made on"
        )


def normalised_prompt(prompt: Any) -> str:
    """What two prompts have in common that differ in blanks or in upper and lower case only."""
    return " ".join(str(prompt).split()).casefold()  # of a chat, its messages as text


def _require_chosen_setting(choice: Choice, group: pd.DataFrame, steered: str) -> None:
    edited = group[group["layer"] >= 0]
    other = edited[(edited["layer"] != choice.layer) | (edited["strength"] != choice.strength)]
    if len(other):
        row = other.iloc[0]
        raise ValueError(
            f"test rows of {choice.instruction!r} are steered at layer {row['layer']}, "
            f"strength {row['strength']:g}; the choice is layer {choice.layer}, strength {choice.strength:g}"
        )
    if choice.steered and not (group["condition"] == steered).any():
        raise ValueError(f"test has no {steered} rows for {choice.instruction!r}, which was chosen to be steered")


def _per_prompt(group: pd.DataFrame, condition: str) -> pd.DataFrame:
    rows = group[group["condition"] == condition]
    return rows.groupby("prompt_id")[["success", "log_perplexity", "degenerate"]].mean()


def _row(group: pd.DataFrame, condition: str, reference: str, base: pd.DataFrame, options: dict) -> dict[str, object]:
    rows = group[group["condition"] == condition]
    scores = _per_prompt(group, condition)
    if not scores.index.equals(base.index):
        odd = scores.index.symmetric_difference(base.index)
        raise ValueError(
            f"conditions {condition!r} and {reference!r} of {rows['instruction'].iloc[0]!r} were run on "
            f"different prompts: {len(odd)} prompt ids are in one only (first: {odd[0]!r})"
        )
    success, reference_success = scores["success"].to_numpy(), base["success"].to_numpy()
    rate = bootstrap_mean(success, **options)
    change = paired_bootstrap(success, reference_success, **options)
    once = len(rows) == len(scores) and condition != reference
    testable = once and is_binary(success) and is_binary(reference_success)
    perplexities = rows["perplexity"].dropna()
    return {
        "instruction": rows["instruction"].iloc[0],
        "condition": condition,
        "layer": _single(rows["layer"]),
        "strength": _single(rows["strength"]),
        "n": len(scores),
        "success": rate.estimate,
        "success_low": rate.low,
        "success_high": rate.high,
        "perplexity": geometric_mean(perplexities.to_numpy()),
        "perplexity_median": float(perplexities.median()),
        "degenerate": float(scores["degenerate"].mean()),
        "difference": change.estimate,
        "difference_low": change.low,
        "difference_high": change.high,
        "p_value": mcnemar(success, reference_success).p_value if testable else math.nan,
    }


def _single(values: pd.Series) -> float:
    """The one value of these rows, NaN where they differ."""
    return values.iloc[0] if values.nunique() == 1 else math.nan
