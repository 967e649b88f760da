"""Base and tuned model side by side, in a table for the terminal and a section of a report."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from conftest import make_case
from focus_cases import TASK, examples, roomy

from analysis.focus_report import add_focus_to_report, packaged_results, short_comparison, short_table, side_by_side
from analysis.report import Report

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def results() -> Any:
    models = {name: make_case("llama", seed, **roomy("llama")).model for seed, name in enumerate(("base", "FIT"))}
    return side_by_side(models, TASK, examples(6), progress=False)


def test_models_stand_side_by_side_kind_by_kind(results: Any) -> None:
    table = short_table(results)
    assert list(table.columns) == ["kind", "base", "FIT", "always by sentiment"]
    own = results.query("model == 'FIT' and kind == 'focus(S)'")["correct"].mean()
    assert table.set_index("kind").loc["focus(S)", "FIT"].startswith(f"{own:.2f} [")
    assert table["always by sentiment"].tolist() == ["1.00"] * 4 + ["0.50"] * 2


def test_the_section_has_a_table_and_a_radar(results: Any) -> None:
    page = add_focus_to_report(Report("x"), results).html()
    assert "Focus instructions" in page
    assert "scatterpolar" in page
    assert "6 test sentences" in page


def test_a_comparison_says_where_nothing_was_chosen_and_what_its_last_column_is() -> None:
    rates = {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75, "flips": 0, "agreeing": 1, "text_ratio": 1.5}
    row = {"model": "base", "split": "iid", "toward": "S", "k": 0, "layer": -1, "strength": 0.0, **rates}
    changes = [
        {"condition": "prompt"},
        {"condition": "vector"},
        {"condition": "vector", "layer": 18, "strength": 2.0},
        {"condition": "SADI heads", "k": 4, "strength": 1.0},
        {"condition": "AcT mean", "strength": 0.25},
    ]
    table = short_comparison(pd.DataFrame([{**row, **change} for change in changes]))
    assert table["at"].tolist() == ["", "none chosen", "layer 18, +2", "K 4, +1", "+0.25"]
    assert table["texts, times base"].tolist() == ["1.50"] * 5
    assert table["accuracy"].tolist() == ["0.50 [0.25, 0.75]"] * 5


def test_the_packaged_adapter_is_for_the_default_model_only(llama: Any) -> None:
    assert packaged_results(llama.model, 1, progress=False) is None


@pytest.mark.slow
def test_the_packaged_adapter_follows_focus_instructions_where_the_base_does_not(smollm2: Any) -> None:
    found = packaged_results(smollm2.model, 6, progress=False)
    assert found is not None
    right = found.groupby(["model", "kind"])["correct"].mean()
    assert right["FIT", "focus(S)"] >= 0.8
    assert right["FIT", "focus(C)"] >= 0.8
    sure = found[found["informative"]].groupby(["model", "kind"])["correct"].mean()
    assert min(sure["base", "focus(S)"], sure["base", "focus(C)"]) < 0.7
