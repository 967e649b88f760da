"""Focus instructions in a report: base and tuned model side by side, and the page of a comparison with steering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.figures import focus_comparison_bars, focus_radar
from analysis.focus_tables import focus_by_split
from analysis.report import Report
from lensteer.data.focus import FocusExample, FocusTask, sentiment
from lensteer.evaluate.focus import focus_accuracy
from lensteer.methods.focus import EXAMPLE, load, read_adapter
from lensteer.models import fingerprint

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from analysis.focus_study import FocusComparison


def packaged_results(
    model: TransformerBridge,
    n: int = 12,
    *,
    progress: bool = True,
    say: Callable[[str], Any] = lambda message: None,
) -> pd.DataFrame | None:
    """Focus accuracy of the default model and of the packaged adapter, where keywords tell the other label.

    Args:
        n: test sentences of the split "flipped".
        say: is told what starts, for a terminal.

    Returns:
        the rows of `focus_accuracy`, with a column ``model``; None where the adapter was trained on another model, or
        without the extra `train`.
    """
    if find_spec("peft") is None or read_adapter(EXAMPLE).base["weights"] != fingerprint(model)["weights"]:
        return None
    say(f"focus: asking {n} sentences of the model as it is, and with the packaged adapter")
    data = sentiment()
    models = {"base": model, "FIT": load(EXAMPLE, model)}
    return side_by_side(models, data.task, data.tests["flipped"][:n], progress=progress)


def side_by_side(
    models: Mapping[str, TransformerBridge], task: FocusTask, examples: list[FocusExample], **options: Any
) -> pd.DataFrame:
    """`focus_accuracy` of several models, one below the other, told apart by a column ``model``."""
    return pd.concat(
        [focus_accuracy(model, task, examples, **options).assign(model=name) for name, model in models.items()],
        ignore_index=True,
    )


def short_table(results: pd.DataFrame) -> pd.DataFrame:
    """Kinds of instructions by models, for a terminal: accuracy with its interval."""
    table = focus_by_split(results)
    cells = [f"{row.accuracy:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in table.itertuples()]
    wide = table.assign(cell=cells).pivot(index="kind", columns="model", values="cell")
    wide = wide.loc[list(dict.fromkeys(table["kind"])), list(dict.fromkeys(table["model"]))]
    oracle = table.drop_duplicates("kind").set_index("kind")["always_y"]
    return wide.assign(**{"always by sentiment": [f"{oracle[kind]:.2f}" for kind in wide.index]}).reset_index()


def add_focus_to_report(report: Report, results: pd.DataFrame) -> Report:
    """The section on focus instructions."""
    n = results["example_id"].nunique()
    report.section("Focus instructions")
    report.text(
        "Every sentence has a sentiment and one of two keywords, which stand for a label each. A **focus instruction** "
        "says which of the two decides. *base* is the model as it is, *FIT* the one that the packaged adapter makes of "
        "it. Keywords are found by matching words, so a good score on focus(S) shows that the instruction is followed, "
        "not that a meaning is."
    )
    table = focus_by_split(results).rename(columns={"low": "accuracy_low", "high": "accuracy_high"})
    report.table(table, caption=f"{n} test sentences, most of which have a keyword of the other label.")
    return report.figure(focus_radar(results))


def short_comparison(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison for a terminal: answers by the feature steered to, what flipped, and what it costs.

    The last column is the perplexity of neutral texts over that of the first model without steering.
    """
    shown = table[["model", "split", "toward", "condition"]].copy()
    at = [_where(row) for row in table.itertuples()]
    parts = table[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy()
    shown["at"] = at
    shown["accuracy"] = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in parts]
    for name, words in (
        ("flips", "flips"),
        ("agreeing", "agreeing"),
        ("text_ratio", f"texts, times {table['model'].iloc[0]}"),
    ):
        shown[words] = [f"{value:.2f}" for value in table[name]]
    return shown


def _where(row: Any) -> str:
    """Where a condition steers, and how much."""
    if row.condition in ("empty", "prompt"):
        return ""
    if not row.strength:
        return "none chosen"
    place = [f"layer {int(row.layer)}"] * (row.layer >= 0) + [f"K {int(row.k)}"] * (row.k > 0)
    return ", ".join([*place, f"{row.strength:+g}"])


def comparison_report(found: FocusComparison) -> Report:
    """The page of a comparison of focus instruction tuning with steering."""
    report = Report(f"Focus: {found.task}", {"task": found.task, "models": ", ".join(found.vectors)})
    report.section("Prompt, vector, both").text(
        "Each model is told to focus by the **prompt**, by a focus **vector** on the empty prompt, by both, or not at "
        "all; beside them **random** vectors as long, and other ways of steering. *toward S* counts answers by the "
        "spurious feature, *toward C* by the core one. Vectors, layers and strengths were chosen on validation "
        f"examples under the budget ({found.budget})."
    )
    for toward in ("S", "C"):
        for split in dict.fromkeys(found.table["split"]):
            report.figure(focus_comparison_bars(found.table, toward=toward, split=split))
    report.table(found.table, caption="Test examples; 95 % bootstrap intervals.")
    report.section("How the choice was made").table(found.candidates.query("chosen"), caption="On validation examples.")
    if len(found.leakage):
        report.section("Do the vectors point from label to label?")
        report.table(found.leakage, caption="Cosine with the difference of two labels' unembeddings, by layer.")
    return report
