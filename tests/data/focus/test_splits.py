"""`FocusData`: what it refuses, and what its report measures."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest

from lensteer.data.focus import KINDS, FocusData, bbq, hans, nli, sentiment

# P(Y = y_s) by split: what always answering y scores on the focus(S) kinds.
RHO = {
    "ss": {"iid": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.1},
    "smnli": {"iid": 0.3, "high": 0.9, "low": 0.1, "flipped": 0.0},  # 10 examples a genre: 1/3 and 1/20 are rounded
    "shans": {"iid": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.1},
}


@pytest.fixture(scope="module")
def data() -> dict[str, FocusData]:
    return {found.task.name: found for found in (sentiment(), nli(), hans(), bbq())}


def accuracy(found: FocusData, split: str, kind: str, answer: str) -> float:
    """Focus accuracy of a model that always answers y, or always y_s."""
    asked = [found.task.ask(example, kind) for example in found.tests[split]]  # type: ignore[arg-type]
    return sum(getattr(each.example, answer) == each.target for each in asked) / len(asked)


@pytest.mark.parametrize("name", ["ss", "shans", "smnli", "bbq"])
def test_answering_y_always_scores_rho_where_the_spurious_feature_is_asked_for(
    data: dict[str, FocusData], name: str
) -> None:
    found = data[name]
    for split, rows in found.tests.items():
        rho = sum(row.y == row.y_s for row in rows) / len(rows)
        expected = 0.25 if name == "bbq" else RHO[name][split.removeprefix("shifted_")]
        assert rho == pytest.approx(expected)
        for kind in KINDS:
            asks_y_s = kind.startswith("focus(S)")
            assert accuracy(found, split, kind, "y") == pytest.approx(rho if asks_y_s else 1)
            assert accuracy(found, split, kind, "y_s") == pytest.approx(1 if asks_y_s else rho)


@pytest.mark.parametrize("name", ["ss", "shans", "smnli"])
def test_training_data_have_balanced_labels_and_features_that_tell_nothing_of_each_other(
    data: dict[str, FocusData], name: str
) -> None:
    report = data[name].report().set_index("split")
    n_labels = len(data[name].task.labels)
    for split in ("train", "validation"):
        row = report.loc[split]
        assert row["rho"] == pytest.approx(1 / n_labels)
        shares = [row[column] for column in report if column.startswith("share of")]
        assert shares == pytest.approx([1 / n_labels] * n_labels)
        shown = [row[column] for column in report if column.startswith("rho of") and not math.isnan(row[column])]
        assert shown == pytest.approx([1 / n_labels] * len(shown))
        for pair in ("(Y, S)", "(Y_S, C)"):
            assert row[f"bits {pair}"] == pytest.approx(0, abs=1e-12)
            assert row[f"V {pair}"] == pytest.approx(0, abs=1e-9) and row[f"p {pair}"] == pytest.approx(1)


def test_the_report_has_a_row_for_each_split_and_measures_dependence(data: dict[str, FocusData]) -> None:
    report = data["ss"].report()
    assert list(report["split"]) == ["train", "validation", "iid", "high", "low", "flipped"]
    high = report.set_index("split").loc["high"]
    assert high["bits (Y, S)"] == pytest.approx(1 + 0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert high["V (Y, S)"] == pytest.approx(0.8) and high["p (Y, S)"] < 1e-6
    assert (high["rho of pineapple"], high["rho of bayesian"]) == pytest.approx((0.9, 0.9))
    shifted = data["smnli"].report().set_index("split").loc["shifted_high"]
    assert math.isnan(shifted["rho of travel"]) and shifted["rho of verbatim"] == pytest.approx(0.9)


def test_of_several_features_the_report_says_rho_for_each_and_of_free_text_no_label_shares() -> None:
    report = bbq().report()
    assert {"rho of age", "rho of hobby", "share of 1"} <= set(report)
    free = bbq(free=True).report()
    assert not [name for name in free if name.startswith(("share", "bits"))]
    pd.testing.assert_series_equal(free["rho"], report["rho"])


@pytest.mark.parametrize("name", ["ss", "shans", "smnli", "bbq"])
def test_no_source_is_in_two_of_training_validation_and_test(data: dict[str, FocusData], name: str) -> None:
    found = data[name]
    test = {row.source for rows in found.tests.values() for row in rows}
    train, validation = ({row.source for row in rows} for rows in (found.train, found.validation))
    assert not train & test and not validation & test and not train & validation


def test_a_source_in_two_parts_is_refused(data: dict[str, FocusData]) -> None:
    found = data["ss"]
    other = replace(found.train[0], id="other")
    with pytest.raises(ValueError, match=r"the source 'ss-train-\d+' is in train and in test; keep it in one"):
        replace(found, tests={**found.tests, "iid": [*found.tests["iid"], other]})


def test_ids_are_unique_in_the_whole_data_set(data: dict[str, FocusData]) -> None:
    for found in data.values():
        ids = [row.id for rows in found.splits().values() for row in rows]
        assert len(set(ids)) == len(ids)
    with pytest.raises(ValueError, match=r"two examples have the id"):
        replace(data["ss"], tests={**data["ss"].tests, "again": data["ss"].tests["iid"]})


def test_an_empty_split_and_an_example_of_another_task_are_refused(data: dict[str, FocusData]) -> None:
    with pytest.raises(ValueError, match=r"the split 'validation' of 'ss' has no examples"):
        replace(data["ss"], validation=[])
    with pytest.raises(ValueError, match=r"'ss' reads \['text'\]"):
        replace(data["ss"], validation=data["smnli"].validation)


def test_its_repr_says_the_sizes(data: dict[str, FocusData]) -> None:
    assert repr(data["ss"]) == "FocusData('ss': train 240, validation 60, iid 80, high 80, low 80, flipped 80)"
