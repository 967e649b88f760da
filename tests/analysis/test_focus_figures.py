"""Figures of focus accuracy: what stands in their traces, against the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import figures
from analysis.focus_tables import focus_by_split, focus_over_repeats
from lensteer.data.focus import CORE_KINDS, KINDS

RHO = {"iid": 0.5, "high": 0.9}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    """Two runs of a method that always says y, two of one that does what it is told."""
    rows = [
        {
            **{"model": "<b>m</b>", "method": method, "repeat": repeat, "example_id": i, "split": split, "kind": kind},
            **{"y": "a", "y_s": y_s, "target": target, "predicted": said, "correct": said == target},
        }
        for method in ("SFT(y)", "FIT")
        for repeat in range(2)
        for split, rho in RHO.items()
        for i in range(20)
        for y_s in ["a" if i < rho * 20 else "b"]
        for kind in KINDS
        for target in ["a" if kind in CORE_KINDS else y_s]
        for said in ["a" if method == "SFT(y)" else target]
    ]
    return pd.DataFrame(rows)


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_a_radar_has_an_axis_for_each_kind_and_a_closed_line_for_each_split(results) -> None:
    figure = figures.focus_radar(results, by=("method",))
    assert [note.text for note in figure.layout.annotations] == ["SFT(y)", "FIT"]
    for split, rho in RHO.items():
        always_y, told = traces(figure, split)
        np.testing.assert_allclose(always_y.r, [1, 1, 1, 1, rho, rho, 1])
        np.testing.assert_allclose(told.r, 1.0)
        assert always_y.theta[0] == always_y.theta[-1] == "empty" and len(set(always_y.theta)) == 6
        assert always_y.theta[2] == "focus(C)<br>+ ignore(S)"
        assert (always_y.subplot, told.subplot) == ("polar", "polar2")
        assert (always_y.showlegend, told.showlegend) == (True, False)
    for polar in (figure.layout.polar, figure.layout.polar2):
        assert tuple(polar.radialaxis.range) == (0, 1)
        assert polar.angularaxis.categoryarray == always_y.theta[:-1]


def test_no_line_speaks_by_its_colour_alone(results) -> None:
    drawn = figures.focus_radar(results, by=("method",)).data[:2]
    assert len({trace.line.color for trace in drawn}) == len({trace.line.dash for trace in drawn}) == 2
    assert len({trace.marker.symbol for trace in drawn}) == 2
    bars = [t for t in figures.focus_bars(results, by=("method",), split="iid").data if t.type == "bar"]
    assert len({bar.marker.pattern.shape for bar in bars}) == 2


def test_figures_take_results_or_their_tables(results) -> None:
    by = ("model", "method")
    expected = figures.focus_radar(results, by=by)
    for table in (focus_over_repeats(results, by), focus_by_split(results, by)):
        figure = figures.focus_radar(table, by=by)
        for mine, other in zip(figure.data, expected.data, strict=True):
            np.testing.assert_allclose(mine.r, other.r)
        assert "mean of 2 repeats" in figure.layout.title.subtitle.text
    mean = focus_over_repeats(results, by)
    assert figures.focus_bars(mean, by=by, split="high") == figures.focus_bars(results, by=by, split="high")
    with pytest.raises(ValueError, match="several repeats; make it with focus_over_repeats"):
        figures.focus_bars(focus_by_split(results, by), by=by, split="high")


def test_texts_are_shown_as_they_are(results) -> None:
    marked = results[results["method"] == "FIT"].assign(split=lambda rows: rows["split"] + "<i>")
    figure = figures.focus_radar(marked, title="a <b>title")
    assert figure.layout.title.text == "a &lt;b&gt;title"
    assert figure.layout.annotations[0].text == "&lt;b&gt;m&lt;/b&gt;"
    assert {trace.name for trace in figure.data} == {"iid&lt;i&gt;", "high&lt;i&gt;"}
    bars = figures.focus_bars(marked, by=("model", "method"), split="iid<i>")
    assert bars.data[0].name == "&lt;b&gt;m&lt;/b&gt;, FIT"


def test_bars_are_accuracies_with_intervals_beside_what_always_y_scores(results) -> None:
    figure = figures.focus_bars(results, by=("method",), split="iid")
    table = focus_over_repeats(results, ("method",))
    table = table[table["split"] == "iid"]
    for name in ("SFT(y)", "FIT"):
        (bar,) = traces(figure, name)
        own = table[table["method"] == name]
        assert list(bar.x) == list(range(6)) and list(bar.customdata) == list(KINDS)
        np.testing.assert_allclose(bar.y, own["accuracy"])
        np.testing.assert_allclose(np.asarray(bar.y) + bar.error_y.array, own["high"])
        np.testing.assert_allclose(np.asarray(bar.y) - bar.error_y.arrayminus, own["low"])
    (mark,) = traces(figure, "always y")
    assert mark.line.dash == "dash"
    assert [y for y in mark.y if y is not None] == [1.0] * 8 + [0.5] * 4
    assert [x for x in mark.x if x is not None][:2] == [-0.46, 0.46]
    assert list(figure.layout.xaxis.ticktext)[2] == "focus(C)<br>+ ignore(S)"
    assert "split iid" in figure.layout.title.subtitle.text and "20 examples" in figure.layout.title.subtitle.text


def test_many_methods_are_laid_out_in_rows_of_three(results) -> None:
    many = pd.concat([results.assign(steering=f"v{i}") for i in range(7)])
    figure = figures.focus_radar(many, by=("method", "steering"))
    domains = [figure.layout[f"polar{i}" if i > 1 else "polar"].domain for i in range(1, 15)]
    assert len({tuple(domain.x) for domain in domains}) == 3 and len({tuple(domain.y) for domain in domains}) == 5
    lower, upper = domains[3].y, domains[0].y
    plot = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    assert (upper[0] - lower[1]) * plot > 90  # labels and titles between two rows, in pixels


def test_a_split_or_a_kind_that_one_method_lacks_is_left_out_there(results) -> None:
    table = focus_over_repeats(results, ("method",))
    table = table[~((table["method"] == "SFT(y)") & (table["split"] == "iid"))]
    figure = figures.focus_radar(table, by=("method",))
    (only,) = traces(figure, "iid")
    assert only.showlegend and only.subplot == "polar2"
    fewer = table[(table["method"] == "FIT") | (table["kind"] != "empty")]
    (bar,) = traces(figures.focus_bars(fewer, by=("method",), split="high"), "SFT(y)")
    assert list(bar.x) == [1, 2, 3, 4, 5]
    (gap,) = [t for t in figures.focus_radar(fewer, by=("method",)).data if t.subplot == "polar"]
    assert np.isnan(gap.r[0]) and np.isnan(gap.r[-1]) and not np.isnan(gap.r[1:-1]).any()


def test_one_method_and_one_split_need_no_names(results) -> None:
    one = results[(results["method"] == "FIT") & (results["split"] == "iid")].assign(split="")
    radar, bars = figures.focus_radar(one, by=()), figures.focus_bars(one, by=())
    assert [trace.name for trace in radar.data] == ["all"] and len(bars.data) == 2
    assert not bars.layout.title.subtitle.text.startswith("split")


@pytest.mark.parametrize("figure", [figures.focus_radar, figures.focus_bars])
def test_what_cannot_be_drawn_is_refused(results, figure) -> None:
    table = focus_over_repeats(results, ("method",))
    with pytest.raises(ValueError, match=r"the table lacks the columns \['model'\]"):
        figure(table)
    with pytest.raises(ValueError, match=r"results lacks the columns \['steering'\]"):
        figure(results, by=("steering",))
    with pytest.raises(TypeError, match=r"by must be several columns, got the text 'method'"):
        figure(results, by="method")
    with pytest.raises(ValueError, match="no rows to draw"):
        figure(table.iloc[:0], by=("method",))
    with pytest.raises(ValueError, match="NaN"):
        figure(table.assign(accuracy=np.nan), by=("method",))
    with pytest.raises(TypeError, match="must be a pandas DataFrame"):
        figure([1])
    with pytest.raises(ValueError, match=r"name one split with split=: \['iid', 'high'\], got None"):
        figures.focus_bars(results, by=("method",))
