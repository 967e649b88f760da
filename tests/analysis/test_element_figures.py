"""Figures of key elements and of choices among their settings: what is drawn is what the table says."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from analysis.figures import (
    accuracy_by_pairs,
    choice_map,
    criterion_agreement,
    criterion_stability,
    element_map,
    layer_distribution,
    patching_comparison,
)

RED, BLUE = "rgb(103,0,31)", "rgb(5,48,97)"


@pytest.fixture
def scores():
    """Two criteria over 3 layers of 2 heads, shuffled; the first head of "signed" is layer 2, head 1."""
    values = {"signed": [[0.0, -3.0], [0.5, 1.0], [-0.5, 2.0]], "auroc": [[0.5, 0.1], [0.6, 0.7], [0.4, 0.9]]}
    rows = []
    for name, table in values.items():
        flat = np.array(table).flatten()
        ranks = (-flat).argsort().argsort() + 1
        rows += [(name, i // 2, i % 2, flat[i], ranks[i]) for i in range(6)]
    table = pd.DataFrame(rows, columns=["criterion", "layer", "element", "score", "rank"])
    return table.sample(frac=1, random_state=0)


@pytest.fixture
def counts():
    return pd.DataFrame({"criterion": ["b", "b", "a", "a"], "layer": [1, 0, 0, 2], "count": [3, 1, 0, 4]})


@pytest.fixture
def agreement():
    names = ["signed", "abs", "<probe>"]
    rows = [(*pair, 0.1 * i, 0.2 * i - 0.3, 4, 0.05) for i, pair in enumerate(combinations(names, 2), start=1)]
    return pd.DataFrame(rows, columns=["first", "second", "overlap", "rank_correlation", "k", "chance"])


@pytest.fixture
def stability():
    return pd.DataFrame(
        {
            "criterion": ["a", "a", "b", "b"],
            "split": [0, 1, 0, 1],
            "overlap": [0.5, 0.75, 1.0, 0.0],
            "rank_correlation": [0.2, 0.4, 0.9, -0.5],
            "k": 4,
        }
    )


@pytest.fixture
def candidates():
    """SADI over 2 K by 2 strengths, with K = 4 at strength 9 missing; CAA over layers."""
    return pd.DataFrame(
        {
            "method": ["SADI", "SADI", "SADI", "SADI", "CAA", "CAA"],
            "k": [0, 4, 1, 1, 0, 0],
            "layer": [-1, -1, -1, -1, -1, 10],
            "strength": [0.0, 2.0, 9.0, 2.0, 0.0, 1.0],
            "accuracy": [0.5, 0.625, 0.25, 0.5, 0.5, 0.5],
            "n": 40,
            "chosen": [False, True, False, False, True, False],
        }
    )


@pytest.fixture
def curve():
    rows = [(0, 0, 0.5), (10, 0, 0.5), (10, 1, 0.6), (50, 0, 0.7), (50, 1, 0.9)]
    table = pd.DataFrame(rows, columns=["n_pairs", "seed", "accuracy"])
    return table.assign(low=table["accuracy"] - 0.1, high=table["accuracy"] + 0.05)


@pytest.fixture
def comparison():
    return pd.DataFrame(
        {"layer": [0, 0, 1, 1], "element": [0, 1, 0, 1], "attribution": [1.0, 2.0, 3.0, 4.0], "effect": [1, 8, 4, 27]}
    )


@pytest.fixture
def every_figure(scores, counts, agreement, stability, candidates, curve, comparison):
    return [
        element_map(scores, criterion="signed", k=2),
        layer_distribution(counts),
        criterion_agreement(agreement),
        criterion_stability(stability),
        choice_map(candidates, method="SADI"),
        accuracy_by_pairs(curve),
        patching_comparison(comparison),
    ]


def test_every_figure_has_the_common_look(every_figure):
    for figure in every_figure:
        assert isinstance(figure, go.Figure)
        template = figure.layout.template.layout
        assert template.paper_bgcolor == template.plot_bgcolor == "white"
        assert "sendChartToCloud" in template.modebar.remove
        assert figure.layout.title.text and figure.layout.title.subtitle.text
        sizes = [trace.textfont.size for trace in figure.data if getattr(trace, "textfont", None) is not None]
        sizes += [note.font.size for note in figure.layout.annotations]
        assert all(size is None or size >= 12 for size in sizes)
        assert figure.to_json()


# Elements --------------------------------------------------------------------------------------------------------


def test_each_cell_of_the_map_is_its_element_with_zero_in_the_middle(scores):
    heat = element_map(scores, criterion="signed", limit=3.0).data[0]
    assert (list(heat.x), list(heat.y)) == ([0, 1, 2], [0, 1])
    np.testing.assert_array_equal(heat.z, [[0.0, 0.5, -0.5], [-3.0, 1.0, 2.0]])
    assert (heat.zmin, heat.zmid, heat.zmax) == (-3, 0, 3)
    assert (heat.colorscale[0][1], heat.colorscale[-1][1]) == (RED, BLUE)


def test_the_map_marks_the_first_elements(scores):
    figure = element_map(scores, criterion="signed", k=2)
    marks = figure.data[1]
    assert list(zip(marks.x, marks.y, strict=True)) == [(2, 1), (1, 1)]
    assert "the first 2" in figure.layout.title.subtitle.text
    assert len(element_map(scores, criterion="signed").data) == 1


def test_the_map_takes_a_table_of_one_ranking_without_a_criterion(scores):
    one = scores[scores["criterion"] == "signed"]
    first = one.drop(columns="criterion").nsmallest(2, "rank")
    figure = element_map(first, k=2)
    cells = figure.data[0].z
    assert np.isfinite(cells).sum() == 2 and np.nanmax(cells) == first["score"].max()
    assert figure.layout.title.text == "key elements: score of every head"
    with pytest.raises(ValueError, match=r"lacks the columns \['criterion'\]"):
        element_map(first, criterion="signed")


def test_the_middle_of_an_auroc_is_a_half_unless_told_otherwise(scores):
    heat = element_map(scores, criterion="auroc").data[0]
    assert heat.zmid == 0.5
    assert heat.zmax - 0.5 == pytest.approx(0.5 - heat.zmin)
    assert element_map(scores, criterion="auroc", centre=0.2).data[0].zmid == 0.2


def test_the_map_of_many_neurons_survives_outliers_and_of_equal_scores_draws():
    wide = pd.DataFrame({"criterion": "abs", "layer": 0, "element": range(1000), "score": 1.0})
    wide.loc[7, "score"] = 500.0
    heat = element_map(wide, element="neuron").data[0]
    assert (heat.zmax, heat.ygap) == (1.0, 0)
    assert element_map(wide.assign(score=0.0)).data[0].zmax > 0


def test_the_distribution_has_a_panel_of_bars_for_each_criterion(counts):
    figure = layer_distribution(counts)
    first, second = figure.data
    assert (list(first.x), list(first.y), list(second.x), list(second.y)) == ([0, 1], [1, 3], [0, 2], [0, 4])
    assert [note.text for note in figure.layout.annotations] == ["b", "a"]
    assert "K = 4" in figure.layout.title.subtitle.text


def test_agreement_is_symmetric_with_ones_on_the_diagonal(agreement):
    for table in (agreement, agreement.rename(columns={"first": "second", "second": "first"})):
        share, correlation = criterion_agreement(table).data
        order = [list(share.x).index(name) for name in ("signed", "abs", "&lt;probe&gt;")]
        expected = [[1.0, 0.1, 0.2], [0.1, 1.0, 0.3], [0.2, 0.3, 1.0]]
        np.testing.assert_allclose(np.array(share.z)[np.ix_(order, order)], expected)
        expected = [[1.0, -0.1, 0.1], [-0.1, 1.0, 0.3], [0.1, 0.3, 1.0]]
        np.testing.assert_allclose(np.array(correlation.z)[np.ix_(order, order)], expected)
        assert list(share.x) == list(share.y) == list(correlation.x)
    assert (share.zmin, share.zmax) == (0, 1)
    assert (correlation.zmin, correlation.zmid, correlation.zmax) == (-1, 0, 1)
    subtitle = criterion_agreement(agreement).layout.title.subtitle.text
    assert "K = 4" in subtitle and "overlap by chance: 0.05" in subtitle


def test_stability_shows_every_split_and_their_mean(stability):
    figure = criterion_stability(stability)
    points = {(trace.name, trace.xaxis): trace for trace in figure.data}
    assert list(points["a", "x"].x) == [0.5, 0.75]
    assert list(points["b", "x2"].x) == [0.9, -0.5]
    assert list(points["a, mean", "x"].x) == [0.625]
    assert list(points["b, mean", "x2"].x) == pytest.approx([0.2])
    assert figure.layout.xaxis2.range[0] < -0.5
    assert points["a", "x"].marker.symbol != points["b", "x"].marker.symbol


def test_patching_has_a_point_for_each_element_and_tells_the_rank_correlation(comparison):
    figure = patching_comparison(comparison)
    points = {trace.name: trace for trace in figure.data}
    assert (list(points["elements"].x), list(points["elements"].y)) == ([1, 2, 3, 4], [1, 8, 4, 27])
    assert list(points["elements"].marker.color) == [0, 0, 1, 1]
    assert list(points["equal"].x) == list(points["equal"].y) == [1, 27]
    # Ranks 1 3 2 4 against 1 2 3 4: 1 − 6·(0 + 1 + 1 + 0) / (4·15) = 0.8.
    assert "rank correlation 0.80" in figure.layout.title.subtitle.text
    constant = patching_comparison(comparison.assign(effect=0.0))
    assert "rank correlation nan" in constant.layout.title.subtitle.text


# Choices ---------------------------------------------------------------------------------------------------------


def test_each_cell_of_the_choice_map_is_its_setting_and_no_steering_is_white(candidates):
    figure = choice_map(candidates, method="SADI")
    heat = figure.data[0]
    assert (list(heat.x), list(heat.y)) == (["1", "4"], ["2", "9"])
    np.testing.assert_array_equal(heat.z, [[0.5, 0.625], [0.25, math.nan]])
    assert (heat.zmin, heat.zmid, heat.zmax) == (0.25, 0.5, 0.75)
    assert (heat.colorscale[0][1], heat.colorscale[-1][1]) == (RED, BLUE)
    assert heat.text == (["0.500", "0.625"], ["0.250", ""])
    assert heat.colorbar.ticktext[2] == "0.500 no steering" and heat.colorbar.tickvals[2] == 0.5
    assert "no steering: 0.500" in figure.layout.title.subtitle.text
    assert "40 questions" in figure.layout.title.subtitle.text


def test_the_choice_map_outlines_the_chosen_setting(candidates):
    figure = choice_map(candidates, method="SADI")
    corners = {(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes}
    assert corners == {(0.5, 1.5, -0.5, 0.5)}  # second K, first strength
    assert "chosen: K 4, strength 2" in figure.layout.title.subtitle.text
    nothing = choice_map(candidates, method="CAA")
    assert len(nothing.layout.shapes) == 0
    assert "chosen: no steering" in nothing.layout.title.subtitle.text
    assert nothing.layout.xaxis.title.text == "layer"


def test_the_choice_map_takes_what_the_choice_gives():
    from analysis.choice_selection import choose_setting

    def rows(method, k, strength, correct):
        texts = [f"q{i}" for i in range(4)]
        where = {"method": method, "k": k, "layer": -1, "strength": strength}
        return pd.DataFrame({**where, "question_id": range(4), "prompt": texts, "correct": correct})

    grid = [rows("A", k, s, [1, 1, k == 2, s == 3.0]) for k in (1, 2) for s in (1.0, 3.0)]
    figure = choice_map(choose_setting(pd.concat([rows("none", 0, 0.0, [1, 0, 0, 0]), *grid])))
    np.testing.assert_array_equal(figure.data[0].z, [[0.5, 0.75], [0.75, 1.0]])
    assert figure.data[0].zmid == 0.25
    assert "chosen: K 2, strength 3" in figure.layout.title.subtitle.text


def test_the_curve_is_the_mean_over_seeds_with_intervals_and_a_line_without_steering(curve):
    figure = accuracy_by_pairs(curve)
    points, line = figure.data
    assert (list(points.x), list(points.y)) == ([10, 10, 50, 50], [0.5, 0.6, 0.7, 0.9])
    assert list(line.x) == [10, 50]
    assert list(line.y) == pytest.approx([0.55, 0.8])
    assert list(line.error_y.array) == pytest.approx([0.05, 0.05])
    assert list(line.error_y.arrayminus) == pytest.approx([0.1, 0.1])
    assert figure.layout.shapes[0].y0 == figure.layout.shapes[0].y1 == 0.5
    assert "no steering: 0.500" in figure.layout.title.subtitle.text
    assert "mean of 2 draws" in figure.layout.title.subtitle.text


def test_the_curve_of_one_seed_has_no_points_of_single_seeds_and_methods_have_a_line_each(curve):
    one = curve[curve["seed"] == 0]
    assert len(accuracy_by_pairs(one).data) == 1
    both = pd.concat([one.assign(method="SADI"), one.assign(method="CAA")])
    lines = accuracy_by_pairs(both).data
    assert [line.name for line in lines] == ["SADI", "CAA"]
    assert lines[0].line.dash != lines[1].line.dash
    assert lines[0].marker.symbol != lines[1].marker.symbol


# Bad input -------------------------------------------------------------------------------------------------------


def test_wrong_element_tables_get_one_clear_error(scores, counts, agreement, stability, comparison):
    signed = scores[scores["criterion"] == "signed"]
    for draw, table, options, message in (
        (element_map, scores, {}, r"name one criterion with criterion=: \['"),
        (element_map, scores, {"criterion": "x"}, "got 'x'"),
        (element_map, signed.drop(columns="score"), {}, r"lacks the columns \['score'\]"),
        (element_map, signed.drop(columns="rank"), {"k": 1}, r"lacks the columns \['rank'\]"),
        (element_map, signed.assign(score=math.nan), {}, "column 'score'"),
        (element_map, pd.concat([signed, signed]), {}, "an element occurs twice"),
        (element_map, signed, {"k": 7}, "k=7: there are 6 elements"),
        (element_map, signed, {"limit": 0.0}, "limit must be positive"),
        (layer_distribution, counts.iloc[:0], {}, "each criterion and layer once"),
        (layer_distribution, pd.concat([counts, counts]), {}, "each criterion and layer once"),
        (criterion_agreement, agreement.iloc[1:], {}, "lacks the pair of"),
        (criterion_agreement, agreement.iloc[:0], {}, "needs rows"),
        (criterion_agreement, agreement.assign(overlap=2.0), {}, "between 0 and 1"),
        (criterion_agreement, agreement.assign(rank_correlation=2.0), {}, "between -1 and 1"),
        (criterion_agreement, agreement.assign(rank_correlation=math.nan), {}, "column 'rank_correlation'"),
        (criterion_stability, pd.concat([stability, stability]), {}, "each criterion and split once"),
        (patching_comparison, comparison.iloc[:1], {}, "two or more elements"),
        (patching_comparison, comparison.assign(effect=math.nan), {}, "column 'effect'"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(table, **options)


def test_wrong_choice_tables_get_one_clear_error(candidates, curve):
    sadi = candidates[candidates["method"] == "SADI"]
    both = pd.concat([sadi, sadi.iloc[[1]].assign(layer=3)])
    for draw, table, options, message in (
        (choice_map, candidates, {}, r"name one method with method=: \['SADI', 'CAA'\]"),
        (choice_map, candidates, {"method": "ITI"}, "got 'ITI'"),
        (choice_map, sadi[sadi["strength"] > 0], {}, "hold 0 and 3"),
        (choice_map, sadi[sadi["strength"] == 0], {}, "hold 1 and 0"),
        (choice_map, sadi.drop(columns="accuracy"), {}, r"lacks the columns \['accuracy'\]"),
        (choice_map, pd.concat([sadi, sadi.iloc[[1]]]), {}, "each k and strength once"),
        (choice_map, both, {}, "filter the table"),
        (accuracy_by_pairs, curve.iloc[:1], {}, "must hold steered rows"),
        (accuracy_by_pairs, pd.concat([curve, curve]), {}, "one for each number of pairs and seed"),
        (accuracy_by_pairs, curve.assign(low=math.nan), {}, "column 'low'"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(table, **options)
