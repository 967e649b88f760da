"""Decision rules: which layer and strength to steer at, from a table of validation results.

    choose       max success  s.t.  exp(mean log-perplexity rise) ≤ ratio  and  degenerate share rise ≤ rise
    paper_rule   smallest l with max s(l),  s(l) = accuracy(l) if f(l) ≤ b else 0,  l = −1 (no steering), 0 …
    words_rule   max accuracy over the (layer, strength) with f = 0;  first label in string order on ties

f(l) is the share of flagged responses. "No steering" (layer −1, strength 0) is a candidate of the first
two, so each of them may answer that steering does not pay. The success of a chosen candidate is the
maximum over many, and so too high: report the one from ``analysis.confirmation.confirm``, on other
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.choices import Choice, Selection
from analysis.confirmation import confirm
from analysis.statistics import bootstrap_means
from analysis.tables import (
    UNSTEERED_LAYER,
    log_perplexity,
    require_columns,
    require_finite,
    require_layer_matches_condition,
    require_split,
)

__all__ = ["Budget", "Choice", "Selection", "choose", "confirm", "paper_rule", "words_rule"]

_CANDIDATE = ["instruction", "layer", "strength"]
_TIE = 12  # decimals that count in a comparison: sums of the same numbers in another order are a tie


@dataclass(frozen=True)
class Budget:
    """What steering may cost in fluency, against the unsteered responses to the same prompts.

    ``perplexity_ratio``: the geometric mean perplexity may be at most this multiple of the unsteered
    one (the mean log-perplexity may rise by its logarithm). ``degenerate_rise``: the share of
    degenerate responses may rise by at most this much.
    """

    perplexity_ratio: float = 4.0
    degenerate_rise: float = 0.1

    def __post_init__(self) -> None:
        if not self.perplexity_ratio >= 1:
            raise ValueError(f"perplexity_ratio must be at least 1, got {self.perplexity_ratio}")
        if not 0 <= self.degenerate_rise <= 1:
            raise ValueError(f"degenerate_rise must lie between 0 and 1, got {self.degenerate_rise}")


def choose(
    results: pd.DataFrame,
    *,
    budget: Budget | None = None,
    baseline: str = "none",
    steered: str = "steered",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Selection:
    """Best success within the fluency budget, per instruction, with bootstrap intervals over prompts.

    No steering is always a candidate and always within the budget. Ties go to the smaller |strength|,
    then to the shallower layer, then to the positive strength. Rows of other conditions are left out;
    for steering on top of the instruction in text, pass ``baseline="text", steered="text+steered"``.

    A response without a perplexity (NaN: an empty one) is accepted only where it is flagged
    ``degenerate``, so that it counts as damage; it is left out of the mean log-perplexity.

    Returns:
        Selection; ``candidates`` has layer, strength, n, success (with _low, _high), perplexity
        (geometric mean), perplexity_ratio, degenerate (share), within_budget, chosen.

    Raises:
        ValueError: missing columns; NaN; test rows in a ``split`` column; an instruction without
            baseline rows; a candidate that lacks a prompt which others have, or has one twice.
    """
    budget = budget or Budget()
    rows = _rows(results, baseline, steered, ["perplexity", "degenerate"])
    rows["log_perplexity"] = log_perplexity(rows, "results")
    _require_same_prompts(rows)
    table = _candidates(rows, ["log_perplexity", "degenerate"], level, n_resamples, seed)
    table["perplexity_ratio"] = np.exp(table["log_perplexity"] - _unsteered(table, "log_perplexity"))
    table["perplexity"] = np.exp(table.pop("log_perplexity"))
    rise = table["degenerate"] - _unsteered(table, "degenerate")
    table["within_budget"] = (table["layer"] == UNSTEERED_LAYER) | (
        (table["perplexity_ratio"].round(_TIE) <= budget.perplexity_ratio)
        & (rise.round(_TIE) <= budget.degenerate_rise)
    )
    order = pd.DataFrame(
        {
            "instruction": table["instruction"],
            "success": -table["success"].round(_TIE),
            "size": table["strength"].abs(),
            "layer": table["layer"],
            "strength": -table["strength"],
        }
    )[table["within_budget"]]
    best = order.sort_values(["success", "size", "layer", "strength"]).drop_duplicates("instruction")
    return _selection(table.assign(chosen=table.index.isin(best.index)), rows)


def paper_rule(
    results: pd.DataFrame,
    *,
    flag: str = "degenerate",
    allowed: float | Literal["unsteered"] = 0.0,
    use_filter: bool = True,
    instructions: Sequence[str] | None = None,
    baseline: str = "none",
    steered: str = "steered",
    seed: int = 0,
) -> Selection:
    """The layer rule of Stolfo et al. (ICLR 2025, arXiv 2410.12877) for format instructions, exactly.

    ``s(l) = accuracy(l) if f(l) ≤ b else 0``, for l = −1 as well; ``l*`` is the smallest l that attains
    max s. So ties go to no steering, then to the shallowest layer; with b = 0 one flagged response
    vetoes a layer; where all are vetoed the answer is −1; and where −1 itself is vetoed, any unflagged
    layer with a success wins.

    Args:
        results: rows of ``baseline`` (layer −1) and of ``steered`` at one strength.
        flag: boolean column of flagged responses. The paper's flag is a GPT-2 perplexity of the
            response alone *below* 2.5: ``results.assign(flagged=results["gpt2_perplexity"] < 2.5)``,
            where NaN is not flagged.
        allowed: b; ``"unsteered"`` takes the flagged share without steering (the paper's choice for
            base models).
        use_filter: False gives the plain arg-max of the accuracy, with the same tie rule.
        instructions: names that must get an answer; one without rows gets −1. Default: those in the table.
        seed: of the bootstrap intervals; the decision has no randomness.

    Raises:
        ValueError: missing columns; NaN; test rows in a ``split`` column; no rows at layer −1 for an
            instruction that has others; more than one strength for an instruction (the rule is about
            layers only).
    """
    if allowed != "unsteered" and not (isinstance(allowed, int | float) and 0 <= allowed <= 1):
        raise ValueError(f"allowed must be a share between 0 and 1 or 'unsteered', got {allowed!r}")
    rows = _rows(results, baseline, steered, [flag], may_be_empty=instructions is not None)
    table = _candidates(rows, [flag], seed=seed).rename(columns={flag: "flagged"})
    strengths = table[table["layer"] != UNSTEERED_LAYER].groupby("instruction")["strength"].unique()
    for name, found in strengths.items():
        if len(found) > 1:
            raise ValueError(
                f"the layer rule needs one strength; {name!r} has {sorted(found.tolist())}: filter the table"
            )
    table["allowed"] = _unsteered(table, "flagged") if allowed == "unsteered" else float(allowed)
    passes = (table["flagged"] <= table["allowed"]) | (not use_filter)
    table["score"] = table["success"].where(passes, 0.0)
    best = table.groupby("instruction")["score"].idxmax()  # the first of equals: rows are in order of layer
    return _selection(table.assign(chosen=table.index.isin(best)), rows, instructions)


def words_rule(
    results: pd.DataFrame,
    *,
    flag: str = "degenerate",
    baseline: str = "none",
    steered: str = "steered",
    seed: int = 0,
) -> Selection:
    """The (layer, strength) rule of Stolfo et al. (ICLR 2025, arXiv 2410.12877) for words.

    Among the steered candidates without a single flagged response, the best mean success. On ties the
    first label in *string* order, label = ``f"{layer}_{strength:g}"``: "26_40" before "28_40", but
    "24_100" before "24_40". No steering is no candidate here, and is the answer only where every
    candidate has a flagged response. ``instruction`` names the task ("include", "exclude"): one setting
    is chosen for all of its words.

    Raises:
        ValueError: missing columns; NaN; test rows in a ``split`` column; an instruction without
            baseline rows.
    """
    rows = _rows(results, baseline, steered, [flag])
    table = _candidates(rows, [flag], seed=seed).rename(columns={flag: "flagged"})
    table["label"] = [f"{layer}_{c:g}" for layer, c in zip(table["layer"], table["strength"], strict=True)]
    unsteered = table["layer"] == UNSTEERED_LAYER
    place = np.select([~unsteered & (table["flagged"] == 0), unsteered], [0, 1], default=2)
    order = table[["instruction", "label"]].assign(place=place, loss=-table["success"])
    best = order.sort_values(["place", "loss", "label"]).drop_duplicates("instruction")
    return _selection(table.assign(chosen=table.index.isin(best.index)), rows)


def _rows(
    results: pd.DataFrame, baseline: str, steered: str, damage: list[str], may_be_empty: bool = False
) -> pd.DataFrame:
    """The validation rows of the two conditions, checked."""
    require_columns(results, [*_CANDIDATE, "condition", "prompt_id", "success", *damage], "results")
    require_split(results, "validation", "results")
    rows = results[results["condition"].isin([baseline, steered])].copy()
    if rows.empty and not may_be_empty:
        found = list(results["condition"].unique())
        raise ValueError(f"the results have no rows of condition {baseline!r} or {steered!r}; they have {found}")
    require_layer_matches_condition(rows, baseline, "results")
    flags = [column for column in damage if column != "perplexity"]  # log_perplexity checks that one
    require_finite(rows, ["layer", "strength", "success", *flags], "results")
    rows[flags] = rows[flags].astype(float)
    with_baseline = set(rows.loc[rows["condition"] == baseline, "instruction"])
    without = [name for name in dict.fromkeys(rows["instruction"]) if name not in with_baseline]
    if without:
        raise ValueError(f"no rows without steering (layer -1, condition {baseline!r}) for {without}")
    return rows


def _candidates(
    rows: pd.DataFrame, means: list[str], level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """One row per candidate, ordered by instruction (first seen first), layer and strength."""
    groups = rows.sort_values("prompt_id", kind="stable").groupby(_CANDIDATE)
    table = groups[means].mean().assign(n=groups.size(), success=np.nan, success_low=np.nan, success_high=np.nan)
    values = {key: group.to_numpy(dtype=float) for key, group in groups["success"]}
    for _, same in table.groupby("n"):  # candidates with the same number of prompts share their resamples
        stacked = np.stack([values[key] for key in same.index])
        columns = bootstrap_means(stacked, level=level, n_resamples=n_resamples, seed=seed)
        table.loc[same.index, ["success", "success_low", "success_high"]] = np.stack(columns, axis=1)
    table = table.reset_index()[[*_CANDIDATE, "n", "success", "success_low", "success_high", *means]]
    seen = {name: i for i, name in enumerate(dict.fromkeys(rows["instruction"]))}
    return table.sort_values("instruction", key=lambda c: c.map(seen), kind="stable", ignore_index=True)


def _unsteered(table: pd.DataFrame, column: str) -> pd.Series:
    """The unsteered candidate's value of ``column``, on every row of its instruction."""
    unsteered = table[table["layer"] == UNSTEERED_LAYER].set_index("instruction")
    return table["instruction"].map(unsteered[column])


def _selection(table: pd.DataFrame, rows: pd.DataFrame, instructions: Sequence[str] | None = None) -> Selection:
    """Choices from the ``chosen`` rows; an instruction without one gets no steering."""
    picked = table.assign(unsteered=_unsteered(table, "success"))[table["chosen"]].set_index("instruction")
    names = dict.fromkeys(rows["instruction"] if instructions is None else instructions)
    return Selection(tuple(_choice(name, picked) for name in names), table)


def _choice(name: str, picked: pd.DataFrame) -> Choice:
    if name not in picked.index:
        return Choice(name, UNSTEERED_LAYER, 0.0, np.nan, (np.nan, np.nan), np.nan, 0)
    row = picked.loc[name]
    interval = (float(row["success_low"]), float(row["success_high"]))
    return Choice(
        instruction=name,
        layer=int(row["layer"]),
        strength=float(row["strength"]),
        success=float(row["success"]),
        interval=interval,
        unsteered=float(row["unsteered"]),
        n=int(row["n"]),
    )


def _require_same_prompts(rows: pd.DataFrame) -> None:
    """Every candidate of an instruction on the same prompts, once each."""
    twice = rows.duplicated([*_CANDIDATE, "prompt_id"])
    if twice.any():
        row = rows[twice].iloc[0]
        raise ValueError(
            f"{int(twice.sum())} rows repeat a candidate and prompt; first: {row['instruction']!r} at layer "
            f"{row['layer']}, strength {row['strength']:g}, prompt {row['prompt_id']}"
        )
    prompts = rows.groupby("instruction")["prompt_id"].nunique()
    counts = rows.groupby(_CANDIDATE).size().reset_index(name="n")
    short = counts[counts["n"] < counts["instruction"].map(prompts)]
    if len(short):
        row = short.iloc[0]
        raise ValueError(
            f"{row['instruction']!r} at layer {row['layer']}, strength {row['strength']:g} has {row['n']} "
            f"of the {prompts[row['instruction']]} prompts; candidates are compared on the same prompts"
        )
