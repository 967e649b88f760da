"""Tables of focus accuracy from oracles whose numbers are known: one always says y, one y_s, one what is asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.focus_tables import flip_rates, focus_by_split, focus_over_repeats, focus_table, seen_unseen_table, wide
from analysis.statistics import bootstrap_mean
from lensteer.data.focus import CORE_KINDS, KINDS

SPURIOUS = KINDS[4:]
# Share of examples with y = y_s by the mapping of training, as the specification has them for two labels.
PREDICTIVITY = {"iid": 0.5, "high": 0.9, "low": 0.25, "flipped": 0.1}


def results(
    says: str, predictivity: dict[str, float] = PREDICTIVITY, *, n: int = 40, **columns: object
) -> pd.DataFrame:
    """What an oracle gets that answers "y", "y_s" or the "target" of every example."""
    rows = []
    for split, rho in predictivity.items():
        for i in range(n):
            y = "ab"[i % 2]
            y_s = y if i < round(rho * n) else "ba"[i % 2]
            for kind in KINDS:
                target = y if kind in CORE_KINDS else y_s
                said = {"y": y, "y_s": y_s, "target": target}[says]
                rows.append(
                    {
                        **{"example_id": f"{split} {i}", "split": split, "kind": kind, "y": y, "y_s": y_s},
                        **{"target": target, "predicted": said, "correct": said == target},
                        **{"says_y": said == y, "says_y_s": said == y_s, **columns},
                    }
                )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def oracles() -> pd.DataFrame:
    return pd.concat([results(says, model=f"always {says}") for says in ("y", "y_s", "target")], ignore_index=True)


def accuracies(table: pd.DataFrame, model: str) -> dict[tuple[str, str], float]:
    own = table[table["model"] == model]
    return {(row.split, row.kind): row.accuracy for row in own.itertuples()}


def test_an_always_y_oracle_scores_the_predictivity_on_what_asks_for_y_s_and_its_mirror_the_other_way(oracles) -> None:
    table = focus_by_split(oracles)
    y, y_s, target = (accuracies(table, f"always {says}") for says in ("y", "y_s", "target"))
    for split, rho in PREDICTIVITY.items():
        for kind in KINDS:
            core = kind in CORE_KINDS
            assert y[split, kind] == pytest.approx(1.0 if core else rho)
            assert y_s[split, kind] == pytest.approx(rho if core else 1.0)
            assert target[split, kind] == 1.0
    assert table["always_y"].tolist() == [y[key] for key in zip(table["split"], table["kind"], strict=True)]


def test_the_table_by_split_has_its_rows_in_the_papers_order(oracles) -> None:
    shuffled = oracles.sample(frac=1, random_state=0)
    table = focus_by_split(shuffled)
    assert len(table) == 3 * 4 * 6
    first = table[table["model"] == table["model"].iloc[0]]
    assert list(dict.fromkeys(first["split"])) == list(PREDICTIVITY)
    assert first["kind"].tolist() == list(KINDS) * 4
    assert table.columns.tolist() == "model split kind accuracy low high n always_y".split()
    assert (table["n"] == 40).all()
    merged = table.merge(focus_by_split(oracles), on=["model", "split", "kind"])
    np.testing.assert_allclose(merged["accuracy_x"], merged["accuracy_y"])
    np.testing.assert_allclose(merged["low_x"], merged["low_y"])


def test_intervals_are_those_of_the_bootstrap(oracles) -> None:
    table = focus_by_split(oracles, seed=3, level=0.9, n_resamples=500)
    row = table[(table["model"] == "always y") & (table["split"] == "low") & (table["kind"] == "focus(S)")].iloc[0]
    own = oracles[(oracles["model"] == "always y") & (oracles["split"] == "low") & (oracles["kind"] == "focus(S)")]
    right = own.sort_values("example_id")["correct"].to_numpy(dtype=float)
    expected = bootstrap_mean(right, seed=3, level=0.9, n_resamples=500)
    assert (row["accuracy"], row["low"], row["high"]) == pytest.approx(tuple(expected))
    assert row["low"] < row["accuracy"] < row["high"]


def test_examples_of_one_source_count_as_one_in_the_intervals() -> None:
    one_each = results("y", n=10)
    four_each = pd.concat([one_each.assign(example_id=one_each["example_id"] + f" {i}") for i in range(4)])
    four_each["source"] = four_each["example_id"].str.rsplit(" ", n=1).str[0]
    for summarise in (focus_by_split, focus_over_repeats):
        wanted, found = (summarise(one, by=()) for one in (one_each, four_each))
        assert (found["n"] == 4 * wanted["n"]).all()
        for column in ("accuracy", "low", "high"):
            np.testing.assert_allclose(found[column], wanted[column])
    asked = four_each.assign(predicted=four_each["target"])
    asked["says_y"], asked["says_y_s"] = (asked["predicted"] == asked[name] for name in ("y", "y_s"))
    alone = asked[asked["example_id"].str.endswith(" 0")].drop(columns="source")
    flips = [flip_rates(one, by=())[["flip_rate", "low", "high"]] for one in (asked, alone)]
    np.testing.assert_allclose(*flips)


def test_methods_are_told_apart_by_any_columns_or_none(oracles) -> None:
    one = oracles[oracles["model"] == "always y"]
    assert focus_by_split(one, by=()).columns[0] == "split"
    both = pd.concat([one.assign(steering=[name] * len(one)) for name in ("none", ("add", 3))])
    table = focus_by_split(both, by=("model", "steering"))
    assert list(dict.fromkeys(table["steering"])) == ["none", ("add", 3)] and len(table) == 48


def test_the_spread_over_repeats_is_that_of_runs() -> None:
    runs = [("y", 0), ("target", 1), ("target", 2)]
    table = pd.concat([results(says, model="m", repeat=repeat) for says, repeat in runs])
    found = focus_over_repeats(table)
    for row in found.itertuples():
        each = [1.0 if row.kind in CORE_KINDS else PREDICTIVITY[row.split], 1.0, 1.0]
        assert row.accuracy == pytest.approx(np.mean(each))
        assert row.std == pytest.approx(np.std(each, ddof=1))
        assert (row.repeats, row.n) == (3, 40)
        assert row.low <= row.accuracy <= row.high
    # The examples are resampled, not the runs: each example's mean over runs is one value.
    row = found[(found["split"] == "low") & (found["kind"] == "focus(S)")].iloc[0]
    values = np.array([1.0] * 10 + [2 / 3] * 30)
    expected = bootstrap_mean(values)
    assert row["low"] == pytest.approx(expected.low, abs=0.02)
    assert row["high"] == pytest.approx(expected.high, abs=0.02)
    by_split = focus_by_split(table)
    assert by_split["repeat"].tolist()[::24] == [0, 1, 2] and len(by_split) == 3 * 24


def test_one_run_has_no_spread(oracles) -> None:
    table = focus_over_repeats(oracles)
    assert table["std"].isna().all() and (table["repeats"] == 1).all()
    alone = focus_by_split(oracles)
    pd.testing.assert_frame_equal(table[alone.columns], alone)


def test_repeats_with_other_examples_are_refused() -> None:
    table = pd.concat([results("y", model="m", repeat=0), results("y", model="m", repeat=1, n=20)])
    with pytest.raises(ValueError, match=r"the repeats \[0, 1\] of split 'iid' .*have different examples"):
        focus_over_repeats(table)


def test_the_papers_table_is_mean_and_population_deviation_over_splits(oracles) -> None:
    table = focus_table(oracles)
    rho = np.array(list(PREDICTIVITY.values()))
    own = table[table["model"] == "always y"].set_index("kind")
    assert own.index.tolist() == list(KINDS)
    assert own.loc[list(CORE_KINDS), "mean"].tolist() == [1.0] * 4 and (own.loc[list(CORE_KINDS), "std"] == 0).all()
    assert own.loc["focus(S)", "mean"] == pytest.approx(0.4375)  # the specification's number
    assert own.loc["focus(S)", "std"] == pytest.approx(rho.std())
    assert (table["splits"] == 4).all()
    three_labels = results("y", {"iid": 1 / 3, "high": 0.9, "low": 0.1, "flipped": 0.05}, n=60, model="m")
    assert focus_table(three_labels)["mean"].iloc[-1] == pytest.approx(0.346, abs=5e-4)  # likewise
    two = focus_table(oracles, splits=("high", "low"))
    assert two[two["model"] == "always y"]["mean"].iloc[-1] == pytest.approx((0.9 + 0.25) / 2)


def test_only_the_papers_splits_count_unless_others_are_named_or_there_are_none() -> None:
    standard = results("y", model="m")
    shifted = results("y", {f"shifted_{split}": 0.1 for split in PREDICTIVITY}, model="m")
    both = focus_table(pd.concat([standard, shifted]))
    pd.testing.assert_frame_equal(both, focus_table(standard))
    assert (both["splits"] == 4).all()
    named = focus_table(pd.concat([standard, shifted]), splits=["iid", "shifted_iid"])
    assert named["mean"].iloc[-1] == pytest.approx((PREDICTIVITY["iid"] + 0.1) / 2)
    some = focus_table(pd.concat([results("y", {"low": 0.25, "iid": 0.5}, model="m"), shifted]))
    assert (some["splits"] == 2).all() and some["mean"].iloc[-1] == pytest.approx(0.375)
    other = focus_table(results("y", {"unseen": 0.5, "seen": 0.25}, model="m"))
    assert (other["splits"] == 2).all() and other["mean"].iloc[-1] == pytest.approx(0.375)


def test_repeats_are_averaged_before_splits() -> None:
    table = focus_table(pd.concat([results(says, model="m", repeat=says) for says in ("y", "target")]))
    each = (np.array(list(PREDICTIVITY.values())) + 1) / 2
    row = table[table["kind"] == "focus(S)"].iloc[0]
    assert (row["mean"], row["std"]) == pytest.approx((each.mean(), each.std()))


def test_the_same_table_in_words(oracles) -> None:
    shown = wide(focus_table(oracles))
    assert shown.index.tolist() == ["always y", "always y_s", "always target"]
    assert shown.columns.tolist() == list(KINDS)
    assert shown.loc["always y", "empty"] == "1.000 ± 0.000"
    assert shown.loc["always y", "focus(S)"] == "0.438 ± 0.303"
    more = oracles.assign(method="FIT")
    assert wide(focus_table(more, by=("model", "method"))).loc[("always y_s", "FIT"), "focus(S)"] == "1.000 ± 0.000"
    one = oracles[oracles["model"] == "always y"]
    alone = wide(focus_table(one, by=()), decimals=1)
    assert alone.shape == (1, 6) and alone["focus(S)"].iloc[0] == "0.4 ± 0.3" and alone.columns.tolist() == list(KINDS)


def test_seen_and_unseen_stand_side_by_side() -> None:
    table = results("y", {"unseen": 0.5, "seen": 0.25}, model="m")
    found = seen_unseen_table(table)
    assert found.columns.tolist() == ["model", "kind", "seen", "unseen"]
    assert found[["seen", "unseen"]].iloc[-1].tolist() == [0.25, 0.5]
    assert wide(found).loc["m"].tolist() == ["1.000 / 1.000"] * 4 + ["0.250 / 0.500"] * 2
    renamed = table.assign(split=table["split"].map({"seen": "test", "unseen": "held out"}))
    pd.testing.assert_frame_equal(seen_unseen_table(renamed, splits=("test", "held out")), found)
    with pytest.raises(ValueError, match=r"has no rows of the split 'unseen' under 'empty'"):
        seen_unseen_table(table[table["split"] == "seen"])


def test_flips_are_counted_on_informative_examples_only(oracles) -> None:
    found = flip_rates(oracles)
    informative = {split: round((1 - rho) * 40) for split, rho in PREDICTIVITY.items()}
    assert found["n"].tolist() == list(informative.values()) * 3
    rates = found.groupby("model")[["flip_rate", "followed"]].mean()
    assert rates.loc["always target"].tolist() == [1.0, 1.0]
    assert rates.loc["always y"].tolist() == rates.loc["always y_s"].tolist() == [0.0, 0.0]
    backwards = flip_rates(oracles, kinds=("focus(S)", "focus(C)"))
    wrong = backwards[backwards["model"] == "always target"]
    assert (wrong["flip_rate"] == 1).all() and (wrong["followed"] == 0).all()  # it flips, the wrong way


def test_a_split_without_informative_examples_has_no_flip_rate() -> None:
    found = flip_rates(results("target", {"iid": 0.5, "same": 1.0}, model="m"))
    assert found["n"].tolist() == [20, 0]
    assert np.isnan(found["flip_rate"].iloc[1]) and np.isnan(found["followed"].iloc[1])
    assert (found["low"].iloc[0], found["high"].iloc[0]) == (1.0, 1.0)


ONE = results("y", {"iid": 0.5}, n=4, model="m")


@pytest.mark.parametrize("table", [focus_by_split, focus_over_repeats, focus_table, seen_unseen_table, flip_rates])
@pytest.mark.parametrize(
    ("rows", "options", "error", "words"),
    [
        (ONE.drop(columns="target"), {}, ValueError, r"results lacks the columns \['target'\]"),
        (ONE.drop(columns="model"), {}, ValueError, r"use results.assign\(model='FIT'\)"),
        (ONE, {"by": ("method",)}, ValueError, r"results lacks the columns \['method'\]"),
        (ONE, {"by": "model"}, TypeError, r"by must be several columns, got the text 'model'; write by=\('model',\)"),
        (ONE.iloc[:0], {}, ValueError, r"results hold no rows"),
        (ONE.assign(kind="fS"), {}, ValueError, r"results hold the kind 'fS'; kinds are empty, "),
        (ONE.assign(correct=np.nan), {}, ValueError, r"NaN"),
        (
            pd.concat([ONE.assign(steering=i) for i in range(2)]),
            {},
            ValueError,
            r"the example 'iid 0' of split 'iid' occurs twice under 'empty'; name the columns.*such as \['steering'\]",
        ),
        ([1, 2], {}, TypeError, r"results must be a pandas DataFrame, got list"),
    ],
)
def test_results_that_cannot_be_tabled_are_refused(table, rows, options, error, words) -> None:
    with pytest.raises(error, match=words):
        table(rows, **options)


def test_examples_that_were_not_asked_everything_are_refused(oracles) -> None:
    for table in (focus_by_split, focus_over_repeats):
        with pytest.raises(ValueError, match=r"the example 'iid 0' of split 'iid' was not asked under 'empty'"):
            table(ONE.iloc[1:])
    with pytest.raises(ValueError, match=r"was not asked under 'focus\(S\)'"):
        flip_rates(ONE.drop(index=ONE.index[(ONE["kind"] == "focus(S)") & (ONE["example_id"] == "iid 3")]))
    with pytest.raises(
        ValueError, match=r"compares 'focus\(C\)' with 'focus\(S\)'; results have no rows of 'focus\(S\)"
    ):
        flip_rates(ONE[ONE["kind"] != "focus(S)"])
    uneven = oracles[~((oracles["model"] == "always y_s") & (oracles["split"] == "low"))]
    with pytest.raises(ValueError, match=r"'always y_s'.* has no rows of the split 'low' under 'empty'"):
        focus_table(uneven)
    with pytest.raises(ValueError, match=r"results have no rows of the splits \['test'\]"):
        focus_table(oracles, splits=["test"])
    with pytest.raises(ValueError, match=r"the table lacks the columns"):
        wide(focus_by_split(oracles))
