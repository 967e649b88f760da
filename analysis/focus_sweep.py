"""Which layer and strength of a focus vector to use: a sweep over both on validation examples, and the choice.

    toward S   empty prompt, v_l added with a positive strength     success: the answer is y_s
    toward C   empty prompt, v_l added with a negative strength     success: the answer is y
    shift      log_odds − log_odds without steering,   log_odds = log p(y_s) − log p(y)

The prompts name no feature: what is added has to. Success and shift are read on the *informative* examples, y ≠ y_s;
on the others both features ask for one answer, so an error there is damage. A sweep of other steerings (heads, maps)
goes the same way by `sweep_settings`. All of this is lensteer's own; Lamb et al. (ICML 2025, arXiv 2410.22944) steer by
prompts alone.

    results = focus_sweep(model, task, validation, vectors, test=test, cache="runs")
    candidates = choose(results)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.choice_selection import SETTING, UNSTEERED
from analysis.choice_settings import Setting, checked_settings, grid, unsteered
from analysis.focus_choice import require_disjoint_sources
from analysis.focus_runs import FocusRun, answers, text_perplexities
from lensteer import data
from lensteer.data.focus import CORE_KINDS, FocusExample, FocusTask
from lensteer.methods.directions import Directions, Unit
from lensteer.positions import STEPS, Tokens

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Toward = Literal["S", "C"]
SUCCESS: dict[str, str] = {"S": "says_y_s", "C": "says_y"}
"""Where steering is to lead -> the column that says whether it did."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def vector_settings(
    directions: Directions,
    *,
    layers: Iterable[int] | None = None,
    strengths: Iterable[float] = STRENGTHS,
    unit: Unit = "difference",
    tokens: Tokens = STEPS,
    method: str = "vector",
    seed: int = 0,
) -> dict[Toward, list[Setting]]:
    """Every layer with every strength; toward C the strengths are negative.

    Args:
        directions: from `focus_vectors.vectors`, from a prompt that asks for y to one that asks for y_s.
        layers: None is all that have a direction.
        strengths: positive, in ``unit``.

    Raises:
        ValueError: directions that lead to a kind that asks for y, no layers, a strength that is not positive, or as
            `Directions.add`.
    """
    if directions.metadata.get("positive") in CORE_KINDS:
        raise ValueError(
            f"{directions.name!r} leads toward {directions.metadata['positive']!r}, which asks for y; a positive "
            "strength must lead toward S, so fit it the other way round"
        )
    sizes = [float(strength) for strength in strengths]
    if not sizes or not all(size > 0 for size in sizes):
        raise ValueError(f"strengths must be positive (toward C they are taken negative), got {sizes}")
    alive = [layer for layer, u in zip(directions.layers, directions.direction, strict=True) if u.any()]
    chosen = alive if layers is None else list(layers)

    def make(layer: int, strength: float) -> Any:
        return directions.add(layer, strength, unit=unit, tokens=tokens)

    return {
        "S": grid(method, make, layers=chosen, strengths=sizes, seed=seed),
        "C": grid(method, make, layers=chosen, strengths=[-size for size in sizes], seed=seed),
    }


def focus_sweep(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    directions: Directions,
    *,
    layers: Iterable[int] | None = None,
    strengths: Iterable[float] = STRENGTHS,
    unit: Unit = "difference",
    tokens: Tokens = STEPS,
    test: Mapping[str, Sequence[FocusExample]] | Sequence[FocusExample] = (),
    texts: Sequence[str] | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Every layer and strength of a focus vector on the empty prompts of validation examples, toward S and toward C.

    Args:
        examples: of the validation split.
        layers, strengths, unit, tokens: as in `vector_settings`.
        test: what the choice will be reported on, also as splits; refused if it shares a source with the examples.
        texts: neutral texts. Default: `data.neutral_sentences`.
        cache: a folder that keeps finished chunks.
        options: of `FocusRun`: ``batch_size=``, ``chunk_size=``, ``max_tokens=``.

    Returns:
        the table of `sweep_settings`.

    Raises:
        ValueError: as `vector_settings` and `sweep_settings`; validation and test examples of one source.
    """
    if len(test):
        require_disjoint_sources(examples, test)
    settings = vector_settings(directions, layers=layers, strengths=strengths, unit=unit, tokens=tokens)
    run = FocusRun(cache=None if cache is None else Path(cache), progress=progress, **options)
    return sweep_settings(model, task, examples, settings, run, texts=texts)


def sweep_settings(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    settings: Mapping[Toward, Sequence[Setting]],
    run: FocusRun,
    *,
    texts: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Any steerings on the empty prompts, each for what it is to lead toward, beside no steering.

    Args:
        settings: "S" and "C" -> what is tried; no steering need not be among it.

    Returns:
        one row per setting and example: toward, method, k, layer, strength, seed; what `answers` gives; success,
        shift; and, the same on all rows of a setting, text_perplexity and text_ratio (over no steering).

    Raises:
        ValueError: something else than S and C, no settings, two of one name, examples without an informative one,
            texts that are not texts, a steering that does not fit, or as `answers`.
    """
    checked = require_informative(task.require(examples), "the examples")
    if not settings or not set(settings) <= SUCCESS.keys():
        raise ValueError(f"settings must say what they lead toward, some of {tuple(SUCCESS)}; got {list(settings)}")
    tried = {
        (toward, *one.label): one.steering
        for toward, own in settings.items()
        for one in [unsteered(), *checked_settings(model, own, len(checked))]
    }
    texts = data.neutral_sentences() if texts is None else texts
    costs = text_perplexities(model, texts, tried, run)
    found = answers(model, task, checked, tried, run)
    return with_effects(found, costs, ["toward", *SETTING, "seed"])


def with_effects(
    found: pd.DataFrame, costs: Mapping[Any, float], names: Sequence[str], base: str = UNSTEERED
) -> pd.DataFrame:
    """The rows of `answers`, whose steerings are named by tuples, with success, shift and cost.

    Args:
        costs: name of a steering -> perplexity of texts.
        names: of the columns that the tuples become; the first is toward, the second says what was run.
        base: what the second says of the rows that the others are compared with, example by example.
    """
    import pandas as pd

    labels = list(found["steering"])
    table = pd.concat([pd.DataFrame(labels, columns=list(names)), found.drop(columns="steering")], axis=1)
    table["success"] = np.where(table["toward"] == "S", table[SUCCESS["S"]], table[SUCCESS["C"]]).astype(bool)
    which = ["toward", "example_id"]
    before = table[table[names[1]] == base].set_index(which)["log_odds"]
    table["shift"] = table["log_odds"].to_numpy() - before.reindex(pd.MultiIndex.from_frame(table[which])).to_numpy()
    unsteered_cost = {label[0]: costs[label] for label in dict.fromkeys(labels) if label[1] == base}
    table["text_perplexity"] = [costs[label] for label in labels]
    return table.assign(text_ratio=[costs[label] / unsteered_cost[label[0]] for label in labels])


def require_informative(examples: list[FocusExample], what: str) -> list[FocusExample]:
    """Refuse examples in which the two features never disagree.

    Raises:
        ValueError: says how many there are.
    """
    if not any(example.informative for example in examples):
        raise ValueError(
            f"y and y_s differ in none of {what} ({len(examples)} of them), so none shows which feature decides"
        )
    return examples
