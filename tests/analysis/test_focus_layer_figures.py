"""Figures of patching and of the comparison: what stands in their traces, against the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import figures


@pytest.fixture
def patched() -> pd.DataFrame:
    layers = range(4)
    tables = []
    for i, site in enumerate(("resid_post", "mlp_out")):
        flips = np.array([0.0, 0.2, 0.6, 0.8]) / (1 + i)
        table = pd.DataFrame({"site": site, "layer": layers, "n": 40, "flips": flips, "restored": flips * 1.2})
        for name in ("flips", "restored"):
            table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.1, table[name] + 0.2
        tables.append(table.assign(flips_positive=0.8))
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def compared() -> pd.DataFrame:
    rows = [
        {"model": model, "split": split, "toward": toward, "condition": condition, "accuracy": 0.1 * number}
        for model in ("base", "FIT <b>")
        for split in ("iid", "flipped")
        for toward in ("S", "C")
        for number, condition in enumerate(("empty", "prompt", "vector"), start=1)
    ]
    table = pd.DataFrame(rows).assign(n=50, n_informative=20)
    return table.assign(accuracy_low=table["accuracy"] - 0.05, accuracy_high=table["accuracy"] + 0.1, shift=-2.0)


def named(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_the_curve_has_a_line_and_a_band_for_each_site_in_both_panels(patched: pd.DataFrame) -> None:
    figure = figures.focus_patching_curve(patched.sample(frac=1, random_state=0))
    for site, scale in (("resid_post", 1), ("mlp_out", 2)):
        flips, restored = named(figure, site)
        assert list(flips.x) == [0, 1, 2, 3]
        np.testing.assert_allclose(flips.y, np.array([0.0, 0.2, 0.6, 0.8]) / scale)
        np.testing.assert_allclose(restored.y, np.array([0.0, 0.24, 0.72, 0.96]) / scale)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 4
    resid = next(trace for trace in bands if trace.legendgroup == "resid_post")
    np.testing.assert_allclose(resid.y, [0.2, 0.4, 0.8, 1.0, 0.7, 0.5, 0.1, -0.1])
    assert [shape.y0 for shape in figure.layout.shapes] == [0.8, 0.0, 1.0]
    assert "40 examples" in figure.layout.title.subtitle.text


def test_one_site_needs_no_legend_and_an_undefined_value_breaks_its_line_only(patched: pd.DataFrame) -> None:
    one = patched[patched["site"] == "resid_post"].copy()
    one.loc[one["layer"] == 1, ["restored", "restored_low", "restored_high"]] = np.nan
    figure = figures.focus_patching_curve(one)
    assert not any(trace.showlegend for trace in figure.data)
    flips, restored = named(figure, "resid_post")
    assert np.isnan(restored.y[1]) and not np.isnan(flips.y[1]) and not restored.connectgaps
    assert len([t for t in figure.data if t.fill == "toself"][1].y) == 6


def test_the_axes_follow_the_lines_and_not_a_band_without_an_end(patched: pd.DataFrame) -> None:
    figure = figures.focus_patching_curve(patched.assign(restored_high=1e6))
    assert tuple(figure.layout.yaxis2.range) == pytest.approx((-0.05, 1.05))


def test_bars_hold_one_direction_and_split_with_their_intervals(compared: pd.DataFrame) -> None:
    figure = figures.focus_comparison_bars(compared, toward="C", split="flipped")
    assert [trace.name for trace in figure.data] == ["base", "FIT &lt;b&gt;"]
    for trace in figure.data:
        assert list(trace.x) == ["empty", "prompt", "vector"]
        np.testing.assert_allclose(trace.y, [0.1, 0.2, 0.3])
        np.testing.assert_allclose(trace.error_y.array, 0.1)
        np.testing.assert_allclose(trace.error_y.arrayminus, 0.05)
    assert len({trace.marker.pattern.shape for trace in figure.data}) == 2  # not by colour alone
    assert "flipped" in figure.layout.title.subtitle.text and "toward C" in figure.layout.title.text
    assert "50 examples, 20 of them informative" in figure.layout.title.subtitle.text


def test_a_shift_may_be_negative(compared: pd.DataFrame) -> None:
    table = compared.assign(shift_low=-3.0, shift_high=-1.0)
    figure = figures.focus_comparison_bars(table, split="iid", value="shift")
    assert figure.layout.yaxis.range is None and list(figure.data[0].y) == [-2.0] * 3


def test_tables_that_cannot_be_drawn_are_refused(patched: pd.DataFrame, compared: pd.DataFrame) -> None:
    for table, said in (
        (patched.drop(columns="flips_low"), "lacks the columns"),
        (patched.assign(flips=np.nan), "NaN"),
        (patched.iloc[:0], "one at least"),
        (pd.concat([patched, patched]), "each layer of a site once"),
    ):
        with pytest.raises(ValueError, match=said):
            figures.focus_patching_curve(table)
    for changes, said in (
        ({}, "name one split"),
        ({"split": "high"}, "name one split.*'high'"),
        ({"toward": "X"}, "name one toward.*'X'"),
        ({"split": "iid", "value": "shift"}, "lacks the columns"),
    ):
        with pytest.raises(ValueError, match=said):
            figures.focus_comparison_bars(compared, **changes)
    with pytest.raises(ValueError, match="each condition of a model once"):
        figures.focus_comparison_bars(pd.concat([compared, compared]), split="iid")
    with pytest.raises(ValueError, match="NaN"):
        figures.focus_comparison_bars(compared.assign(accuracy_low=np.nan), split="iid")
