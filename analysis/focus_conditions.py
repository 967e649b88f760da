"""What is compared on test examples, and the table of it: prompt, vector, both, controls and rivals.

| condition | prompt toward S / toward C | steering |
|---|---|---|
| ``"empty"`` | no focus instruction | none |
| ``"prompt"`` | focus(S) / focus(C) | none |
| ``"vector"`` | no focus instruction | the chosen focus vector |
| ``"prompt + vector"`` | focus(S) / focus(C) | the same |
| ``"random"`` | no focus instruction | random vectors of the same norm at the same layer, several seeds |
| ``"SADI heads"``, ``"AcT …"`` | no focus instruction | their chosen setting |

    accuracy       answer = y_s toward S, y toward C                  every example, and the informative ones alone
    flips          right now and not under "empty"                    informative examples, y ≠ y_s
    shift          log_odds − log_odds under "empty",  log_odds = log p(y_s) − log p(y)              the same
    side costs     agreeing (accuracy where y = y_s), accuracy_y, probability_inside, text_ratio

Everything here is lensteer's own; the kinds of instructions are those of Lamb et al. (ICML 2025, arXiv 2410.22944).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.choice_settings import Setting, unsteered
from analysis.focus_choice import interval
from analysis.focus_runs import FocusRun, answers, text_perplexities
from analysis.focus_sweep import Toward, with_effects
from analysis.tables import require_columns
from lensteer.data.focus import FocusExample, FocusTask, Kind
from lensteer.methods.directions import Directions, Unit
from lensteer.positions import Tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PROMPTS: dict[Toward, Kind] = {"S": "focus(S)", "C": "focus(C)"}
"""Where it is to lead -> the instruction that says so."""
VECTOR, EMPTY, RANDOM = "vector", "empty", "random"
CONDITIONS = (EMPTY, "prompt", VECTOR, "prompt + vector", RANDOM)
"""In the order in which tables show them; rivals follow."""
_UNTOLD: Kind = "empty"
_NAMES = ("toward", "condition", "k", "layer", "strength", "seed")
_GROUP = ["model", "split", "toward", "condition"]
_MEASURES = ["success", "flipped", "shift", "says_y", "probability_inside"]


def as_splits(
    task: FocusTask, test: Mapping[str, Sequence[FocusExample]] | Sequence[FocusExample]
) -> dict[str, list[FocusExample]]:
    """Split -> its test examples, checked; of a list, by the examples' own ``split``.

    Raises:
        ValueError: no splits, two examples of one id that are not the same input, or as `FocusTask.require`.
    """
    if isinstance(test, Mapping):
        splits = {str(name): task.require(own) for name, own in test.items()}
    else:
        splits = {}
        for example in task.require(test):
            splits.setdefault(example.split, []).append(example)
    if not splits:
        raise ValueError("no test splits were given; pass at least one")
    known: dict[str, FocusExample] = {}
    for example in (example for own in splits.values() for example in own):
        other = known.setdefault(example.id, example)
        if replace(example, split=other.split, rho=other.rho) != other:
            raise ValueError(f"two test examples have the id {example.id!r} and are not the same; ids must be unique")
    return splits


def distinct(splits: Mapping[str, Sequence[FocusExample]]) -> list[FocusExample]:
    """The examples of all splits, each once, as in the first split that has it."""
    found: dict[str, FocusExample] = {}
    for example in (example for own in splits.values() for example in own):
        found.setdefault(example.id, example)
    return list(found.values())


@dataclass(frozen=True)
class Condition:
    """One thing to compare: a name, the kind of instruction in the prompt, and a steering."""

    toward: Toward
    condition: str
    kind: Kind
    setting: Setting

    @property
    def label(self) -> tuple[Any, ...]:
        """What names it in a table; seeds are those of controls, else −1."""
        own = self.setting
        seed = own.seed if self.condition == RANDOM else -1
        return (self.toward, self.condition, own.k, own.layer, own.strength, seed)


def conditions(
    chosen: Mapping[tuple[Toward, str], Setting],
    directions: Directions,
    *,
    controls: int,
    unit: Unit,
    tokens: Tokens,
    seed: int = 0,
) -> list[Condition]:
    """All conditions of one model.

    Args:
        chosen: (toward, method) -> the chosen setting, `unsteered` where none was; "vector" is among the methods.
        directions: whose random controls are taken, with ``unit`` and ``tokens`` as in the setting.
        controls: seeds of random vectors; none where no vector was chosen.
    """
    found = []
    for toward, kind in PROMPTS.items():
        vector = chosen[toward, VECTOR]
        found += [Condition(toward, EMPTY, _UNTOLD, unsteered()), Condition(toward, "prompt", kind, unsteered())]
        found += [Condition(toward, VECTOR, _UNTOLD, vector), Condition(toward, "prompt + vector", kind, vector)]
        for own in range(seed, seed + controls if vector.strength else seed):
            steering = directions.random(own).add(vector.layer, vector.strength, unit=unit, tokens=tokens)
            setting = Setting(RANDOM, layer=vector.layer, strength=vector.strength, steering=steering, seed=own)
            found.append(Condition(toward, RANDOM, _UNTOLD, setting))
        others = [(name, own) for (where, name), own in chosen.items() if where == toward and name != VECTOR]
        found += [Condition(toward, name, _UNTOLD, own) for name, own in others]
    return found


def run_conditions(
    model: TransformerBridge,
    task: FocusTask,
    splits: Mapping[str, Sequence[FocusExample]],
    tried: Sequence[Condition],
    texts: Sequence[str],
    run: FocusRun,
) -> pd.DataFrame:
    """Every condition on every example; one that is in several splits is run once.

    Returns:
        one row per split, condition and example: toward, condition, k, layer, strength, seed; what `answers` gives;
        success, shift, flipped; and, the same on all rows of a condition, text_perplexity and text_ratio (over
        "empty").
    """
    examples = distinct(splits)
    parts = []
    for kind in dict.fromkeys(own.kind for own in tried):
        steerings = {own.label: own.setting.steering for own in tried if own.kind == kind}
        parts.append(answers(model, task, examples, steerings, run, kinds=(kind,)))
    costs = text_perplexities(model, texts, {own.label: own.setting.steering for own in tried}, run)
    table = with_effects(pd.concat(parts, ignore_index=True), costs, _NAMES, base=EMPTY)
    which = ["toward", "example_id"]
    before = table[table["condition"] == EMPTY].set_index(which)["success"]
    already = before.reindex(pd.MultiIndex.from_frame(table[which])).to_numpy(dtype=bool)
    table["flipped"] = table["success"].to_numpy() & ~already
    own = {split: {example.id for example in rows} for split, rows in splits.items()}
    return pd.concat([table[table["example_id"].isin(ids)].assign(split=split) for split, ids in own.items()])


def comparison_table(
    results: pd.DataFrame, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """One row per model, split, toward and condition; seeds of controls are averaged example by example first.

    Args:
        results: rows of `run_conditions` with a column ``model``.

    Returns:
        model, split, toward, condition, k, layer, strength, seeds (how many were averaged); n and accuracy (of all
        examples), n_informative and accuracy_informative, flips and shift of these, each with _low and _high
        (bootstrap over sources; NaN where a split has none); agreeing, accuracy_y, probability_inside,
        text_perplexity and text_ratio.

    Raises:
        ValueError: missing columns, or no rows.
    """
    require_columns(results, [*_GROUP, *_NAMES, *_MEASURES, "informative", "source", "text_ratio"], "results")
    if results.empty:
        raise ValueError("results hold no rows to summarise")
    options = {"level": level, "n_resamples": n_resamples, "seed": seed}
    lines = []
    for names, rows in results.groupby(_GROUP, sort=False):
        groups = rows.groupby("example_id", sort=False)
        each = groups[[*_MEASURES, "informative"]].mean().assign(source=groups["source"].first())
        sure = each[each["informative"] == 1]
        lines.append(
            {
                **dict(zip(_GROUP, names, strict=True)),
                **rows.iloc[0][["k", "layer", "strength"]].to_dict(),
                **{"seeds": rows["seed"].nunique(), "n": len(each)},
                **interval("accuracy", each["success"].to_numpy(), each["source"], **options),
                "n_informative": len(sure),
                **interval("accuracy_informative", sure["success"].to_numpy(), sure["source"], **options),
                **interval("flips", sure["flipped"].to_numpy(), sure["source"], **options),
                **interval("shift", sure["shift"].to_numpy(), sure["source"], **options),
                "agreeing": each.loc[each["informative"] == 0, "says_y"].mean(),
                **{"accuracy_y": each["says_y"].mean(), "probability_inside": each["probability_inside"].mean()},
                **{name: _mean(rows, name) for name in ("text_perplexity", "text_ratio")},
            }
        )
    place = {name: i for i, name in enumerate(dict.fromkeys([*CONDITIONS, *results["condition"]]))}
    groups = {key: i for i, key in enumerate(dict.fromkeys((line["model"], line["split"]) for line in lines))}
    lines.sort(key=lambda line: (groups[line["model"], line["split"]], line["toward"] != "S", place[line["condition"]]))
    return pd.DataFrame(lines)


def _mean(rows: pd.DataFrame, name: str) -> float:
    """Over the seeds; on the rows of one seed it is the same."""
    return float(np.mean(rows.groupby("seed")[name].first()))
