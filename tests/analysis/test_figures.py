from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from analysis.figures import (
    confirmation_bars,
    cosine_map,
    layer_strength_map,
    length_distributions,
    projection_strip,
    separation_by_layer,
    success_fluency,
)
from analysis.figures.tokens import visible


@pytest.fixture
def candidates():
    """Two layers by two strengths; layer 10 at strength 2 is chosen, layer 12 at strength 2 is over the budget."""
    return pd.DataFrame(
        {
            "instruction": "bullets",
            "layer": [-1, 12, 10, 12, 10],
            "strength": [0.0, 1.0, 1.0, 2.0, 2.0],
            "success": [0.25, 0.5, 0.1, 0.9, 0.75],
            "success_low": [0.0, 0.3, 0.0, 0.7, 0.5],
            "success_high": [0.5, 0.7, 0.3, 1.0, 1.0],
            "perplexity": [10.0, 12.0, 11.0, 40.0, 15.0],
            "within_budget": [True, True, True, False, True],
            "chosen": [False, False, False, False, True],
        }
    )


@pytest.fixture
def confirmed():
    return pd.DataFrame(
        {
            "instruction": ["json", "json", "bullets", "bullets"],
            "condition": ["steered", "none", "steered", "none"],
            "n": 24,
            "success": [0.5, 0.1, 0.75, 0.25],
            "success_low": [0.3, 0.0, 0.5, 0.2],
            "success_high": [0.7, 0.2, 1.0, 0.5],
        }
    )


@pytest.fixture
def separation():
    rows = {"layer": [1, 0], "auroc": [0.9, 0.6], "effect_size": [2.0, 0.3], "split_half_cosine": [0.8, 0.1]}
    return pd.DataFrame(rows)


@pytest.fixture
def every_figure(candidates, confirmed, separation):
    return [
        layer_strength_map(candidates),
        success_fluency(candidates, perplexity_ratio=2.0),
        confirmation_bars(confirmed),
        length_distributions(pd.DataFrame({"condition": ["none"], "n_tokens": [3]})),
        cosine_map(pd.DataFrame([[1.0, 0.0], [0.0, 1.0]])),
        projection_strip(["a"], [1.0]),
        separation_by_layer(separation),
    ]


def test_every_figure_is_white_and_large_enough_to_read_in_print(every_figure):
    for figure in every_figure:
        assert isinstance(figure, go.Figure)
        template = figure.layout.template.layout
        assert template.paper_bgcolor == template.plot_bgcolor == "white"
        assert template.font.size >= 12
        sizes = [trace.textfont.size for trace in figure.data if getattr(trace, "textfont", None) is not None]
        assert all(size is None or size >= 12 for size in sizes)


def test_no_figure_offers_to_upload_its_data(every_figure):
    assert all("sendChartToCloud" in figure.layout.template.layout.modebar.remove for figure in every_figure)


# Layer x strength map ----------------------------------------------------------------------


def test_each_cell_of_the_map_is_its_candidate(candidates):
    heat = layer_strength_map(candidates).data[0]
    assert list(heat.x) == ["10", "12"]
    assert list(heat.y) == ["1", "2"]
    np.testing.assert_array_equal(heat.z, [[0.1, 0.5], [0.75, 0.9]])
    assert (heat.zmin, heat.zmax) == (0, 1)


def test_the_map_says_the_unsteered_value_and_outlines_the_chosen_point(candidates):
    figure = layer_strength_map(candidates)
    assert "no steering: 0.25" in figure.layout.title.subtitle.text
    assert "chosen: layer 10, strength 2" in figure.layout.title.subtitle.text
    corners = {(s.x0, s.x1, s.y0, s.y1) for s in figure.layout.shapes}
    assert corners == {(-0.5, 0.5, 0.5, 1.5)}  # first layer, second strength


def test_the_map_has_no_outline_where_no_steering_was_chosen(candidates):
    figure = layer_strength_map(candidates.assign(chosen=[True, False, False, False, False]))
    assert len(figure.layout.shapes) == 0
    assert "chosen: no steering" in figure.layout.title.subtitle.text


def test_candidates_over_the_budget_are_told_apart_without_colour(candidates):
    assert layer_strength_map(candidates).data[0].text == (["0.10", "0.50"], ["0.75", "(0.90)"])
    wide = pd.DataFrame({"layer": range(30), "strength": 1.0, "success": 0.5, "within_budget": [True, False] * 15})
    assert layer_strength_map(wide).data[0].text[0][:3] == ["", "×", ""]


def test_the_relative_map_is_diverging_around_no_steering(candidates):
    heat = layer_strength_map(candidates, relative=True).data[0]
    np.testing.assert_allclose(heat.z, [[-0.15, 0.25], [0.5, 0.65]])
    assert heat.zmid == 0
    assert heat.zmin == -heat.zmax
    assert heat.colorscale[0][1] == "rgb(103,0,31)"  # red below
    assert heat.colorscale[-1][1] == "rgb(5,48,97)"  # blue above
    assert heat.text[0] == ["−0.15", "+0.25"]


def test_a_missing_candidate_leaves_an_empty_cell(candidates):
    heat = layer_strength_map(candidates.drop(index=1)).data[0]
    assert math.isnan(heat.z[0][1])
    assert heat.text[0] == ["0.10", ""]


# Trade-off ----------------------------------------------------------------------


def by_name(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_the_trade_off_shows_every_candidate_at_its_perplexity_and_success(candidates):
    traces = by_name(success_fluency(candidates))
    within, over = traces["within the budget"], traces["over the budget"]
    assert set(zip(within.x, within.y, strict=True)) == {(11.0, 0.1), (15.0, 0.75), (12.0, 0.5)}
    assert list(zip(over.x, over.y, strict=True)) == [(40.0, 0.9)]
    assert within.marker.symbol != over.marker.symbol
    assert over.marker.size[0] > min(within.marker.size)  # stronger is larger


def test_the_trade_off_marks_the_unsteered_and_the_chosen_with_their_intervals(candidates):
    traces = by_name(success_fluency(candidates))
    unsteered, chosen = traces["no steering"], traces["chosen: layer 10, strength 2"]
    assert (unsteered.x[0], unsteered.y[0]) == (10.0, 0.25)
    assert (chosen.x[0], chosen.y[0]) == (15.0, 0.75)
    assert (chosen.error_y.arrayminus[0], chosen.error_y.array[0]) == (0.25, 0.25)


def test_the_budget_line_and_its_label_stand_at_the_same_perplexity(candidates):
    figure = success_fluency(candidates, perplexity_ratio=2.0)
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.shapes[0].x0 == 20.0
    assert 10 ** figure.layout.annotations[0].x == pytest.approx(20.0)


@pytest.mark.parametrize("spread", [1.05, 3.0, 40.0, 1e9])
def test_the_logarithmic_axis_has_a_few_round_ticks_for_any_range(candidates, spread):
    table = candidates.assign(perplexity=[10.0, 10.0, 10.0, 10.0 * spread, 10.0])
    ticks = success_fluency(table).layout.xaxis.tickvals
    assert 2 <= len(ticks) <= 12


# Token strip ----------------------------------------------------------------------

TOKENS = ["<|im_start|>", "user", "\n", "List", " three", " fruits", ".", "\t ", " 你好", "", "x" * 40, " end"]
VALUES = np.array([-90.0, 1.5, -2.5, 3.5, 0.0, 5.5, -6.5, 7.5, 8.5, -9.5, 10.5, 11.5])


def test_every_cell_of_the_strip_holds_its_own_token_and_value():
    bar = projection_strip(TOKENS, VALUES, line_width=40).data[0]
    assert list(bar.marker.color) == VALUES.tolist()
    for text, token, value in zip(bar.text, TOKENS, VALUES, strict=True):
        word, number = text.split("<br>")
        assert word == visible(token).replace("<", "&lt;").replace(">", "&gt;")
        assert number.replace("−", "-") == f"{value:+.1f}"
    assert [row[0] for row in bar.customdata] == list(range(len(TOKENS)))


def test_cells_keep_the_reading_order_and_never_overlap():
    bar = projection_strip(TOKENS, VALUES, line_width=40).data[0]
    cells = list(zip(bar.y, bar.base, bar.x, strict=True))
    assert cells == sorted(cells)
    for (line, start, width), (next_line, next_start, _) in pairwise(cells):
        if next_line == line:
            assert next_start >= start + width
        else:
            assert (next_line, next_start) == (line + 1, 0.0)


def test_a_line_breaks_after_a_token_that_ends_a_line():
    bar = projection_strip(["a", "b\n", "c"], [1.0, 2.0, 3.0]).data[0]
    assert list(bar.y) == [0, 0, 1]


def test_cells_are_wide_enough_for_their_texts():
    bar = projection_strip(TOKENS, VALUES, line_width=40).data[0]
    for text, width in zip(bar.text, bar.x, strict=True):
        word, number = (part.replace("&lt;", "<").replace("&gt;", ">") for part in text.split("<br>"))
        assert width >= max(len(word), len(number))


def test_the_strips_colours_have_zero_in_the_middle_and_survive_an_outlier():
    tokens = ["<s>", *[f"t{i}" for i in range(40)]]
    values = np.array([-1000.0, *np.linspace(-5, 5, 40)])
    marker = projection_strip(tokens, values).data[0].marker
    assert (marker.cmid, marker.cmin) == (0, -marker.cmax)
    assert marker.cmax <= 5
    assert projection_strip(tokens, values, limit=7.0).data[0].marker.cmax == 7.0


def test_the_strip_takes_tensors_and_all_zero_values():
    strip = projection_strip(["a", "b"], torch.zeros(2))
    assert list(strip.data[0].marker.color) == [0.0, 0.0]
    assert strip.data[0].marker.cmax > 0


def test_tokens_that_cannot_be_seen_get_a_sign():
    assert visible(" the") == "the"
    assert visible("\n\n") == "⏎⏎"
    assert visible("\t") == "⇥"
    assert visible("  ") == "␣␣"
    assert visible("") == "␣"


# Bars, lengths, cosines, layers ----------------------------------------------------------------------


def test_bars_have_the_tables_values_and_intervals_in_the_tables_order(confirmed):
    figure = confirmation_bars(confirmed)
    none, steered = figure.data
    assert (none.name, steered.name) == ("no steering", "steered")
    assert list(steered.x) == ["json", "bullets"]
    assert list(steered.y) == [0.5, 0.75]
    assert list(steered.error_y.array) == pytest.approx([0.2, 0.25])
    assert list(steered.error_y.arrayminus) == pytest.approx([0.2, 0.25])
    assert list(figure.layout.xaxis.categoryarray) == ["json", "bullets"]
    assert "24 prompts" in figure.layout.title.subtitle.text


def test_lengths_come_in_the_order_of_the_strengths_and_of_the_conditions(rows, table):
    results = table(rows(8, [1, 1], strength=10.0), rows(-1, [0, 0]), rows(8, [1, 1], strength=2.0))
    by_strength = length_distributions(results, by="strength")
    assert [box.name for box in by_strength.data] == ["0", "2", "10"]
    assert [list(box.y) for box in by_strength.data] == [[20, 21]] * 3
    by_condition = length_distributions(results)
    assert [box.name for box in by_condition.data] == ["no steering", "steered"]
    assert sorted(by_condition.data[1].y) == [20, 20, 21, 21]


def test_the_cosine_map_spans_minus_one_to_one_around_zero():
    matrix = pd.DataFrame([[1.0, -0.5], [-0.5, 1.0]], index=["a", "<b>"], columns=["a", "<b>"])
    figure = cosine_map(matrix)
    heat = figure.data[0]
    assert (heat.zmin, heat.zmid, heat.zmax) == (-1, 0, 1)
    assert list(heat.y) == ["a", "&lt;b&gt;"]
    assert figure.layout.yaxis.autorange == "reversed"  # the diagonal runs as in the table


def test_separation_draws_a_panel_per_measure_and_a_line_per_instruction(separation):
    both = pd.concat([separation.assign(instruction="json"), separation.assign(instruction="bullets")])
    figure = separation_by_layer(both, chosen=1)
    assert [(line.name, line.yaxis) for line in figure.data[:3]] == [("json", "y"), ("json", "y2"), ("json", "y3")]
    assert list(figure.data[0].x) == [0, 1]
    assert list(figure.data[0].y) == [0.6, 0.9]
    assert figure.data[0].line.dash != figure.data[3].line.dash
    assert sum(shape.x0 == 1 for shape in figure.layout.shapes) == 3
    assert len(separation_by_layer(separation, measures=["auroc"]).data) == 1


# Bad input ----------------------------------------------------------------------


@pytest.mark.parametrize("draw", [layer_strength_map, success_fluency])
def test_candidates_of_several_instructions_need_a_name(draw, candidates):
    both = pd.concat([candidates, candidates.assign(instruction="json")])
    assert draw(both, instruction="json").layout.title.text.startswith("json: ")
    with pytest.raises(ValueError, match=r"name one with instruction=: \['bullets', 'json'\]"):
        draw(both)
    with pytest.raises(ValueError, match="no instruction 'title'"):
        draw(both, instruction="title")


def test_wrong_tables_get_one_clear_error(candidates, confirmed, separation):
    with pytest.raises(ValueError, match=r"lacks the columns \['strength'\]"):
        layer_strength_map(candidates.drop(columns="strength"))
    with pytest.raises(ValueError, match="column 'success'"):
        layer_strength_map(candidates.assign(success=math.nan))
    with pytest.raises(ValueError, match="one for each layer and strength"):
        layer_strength_map(pd.concat([candidates, candidates]))
    with pytest.raises(ValueError, match="needs the unsteered row"):
        layer_strength_map(candidates.iloc[1:], relative=True)
    with pytest.raises(ValueError, match="needs the unsteered row"):
        success_fluency(candidates.iloc[1:], perplexity_ratio=2.0)
    with pytest.raises(ValueError, match="must be positive"):
        success_fluency(candidates.assign(perplexity=0.0))
    with pytest.raises(ValueError, match="each instruction and condition once"):
        confirmation_bars(pd.concat([confirmed, confirmed]))
    with pytest.raises(ValueError, match="between -1 and 1"):
        cosine_map(pd.DataFrame([[1.5]]))
    with pytest.raises(ValueError, match="a layer occurs twice"):
        separation_by_layer(pd.concat([separation, separation]))
    with pytest.raises(ValueError, match="no rows to draw"):
        length_distributions(pd.DataFrame({"condition": [], "n_tokens": []}))


def test_a_strip_with_other_numbers_of_values_than_tokens_is_refused():
    with pytest.raises(ValueError, match=r"2 tokens need as many values, got shape \(3,\)"):
        projection_strip(["a", "b"], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="first at token 1"):
        projection_strip(["a", "b"], [1.0, math.nan])
    with pytest.raises(ValueError, match="limit must be positive"):
        projection_strip(["a"], [1.0], limit=0.0)
