"""Figures of transports: what stands in their traces, against the tables, and units against the maps and samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import lensteer as ls
from analysis import figures
from analysis.transport_units import kind_of_site, top_units, unit_samples, unit_table

HOOKS = ("blocks.0.attn.hook_out", "blocks.0.mlp.hook_out", "blocks.2.attn.hook_out")


@pytest.fixture(scope="module")
def fitted() -> ls.transport.Transport:
    """Three sites of five units; the last unit of the first site is a constant that does not move."""
    draw = torch.Generator().manual_seed(0)
    source = {hook: torch.randn(12, 5, generator=draw) * (1 + i) for i, hook in enumerate(HOOKS)}
    target = {hook: torch.randn(12, 5, generator=draw).exp() + 3 for hook in HOOKS}
    source[HOOKS[0]][:, 4] = target[HOOKS[0]][:, 4] = 2.0
    return ls.transport.from_activations(source, target, "linear")


@pytest.fixture
def summary() -> pd.DataFrame:
    """Two methods at two strengths beside no steering, and a control."""
    rows = [
        {"method": method, "condition": condition, "support": support, "strength": strength, "success": success}
        for method, condition, support, strength, success in (
            ("linear", "none", "none", 0.0, 0.1),
            ("linear", "steered", "0-100", 1.0, 0.8),
            ("linear", "steered", "0-100", 0.5, 0.4),
            ("linear", "random", "0-100", 1.0, 0.2),
            ("mean", "none", "none", 0.0, 0.1),
            ("mean", "steered", "everywhere", 0.5, 0.3),
            ("mean", "steered", "everywhere", 1.0, 0.6),
        )
    ]
    table = pd.DataFrame(rows).assign(n=6)
    table["success_low"], table["success_high"] = table["success"] - 0.1, table["success"] + 0.1
    table["text_perplexity"] = table["text_perplexity_median"] = 20 + 10 * table["strength"]
    table["text_perplexity_q25"] = table["text_perplexity_median"] - 2
    table["text_perplexity_q75"] = table["text_perplexity_median"] + 3
    table["chosen"] = (table["strength"] == 1.0) & (table["condition"] == "steered")
    return table


def named(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


def test_the_curves_begin_at_no_steering_and_grow_with_the_strength(summary: pd.DataFrame) -> None:
    figure = figures.strength_curves(summary)
    effect, damage = named(figure, "linear")
    assert list(effect.x) == [0.0, 0.5, 1.0] and list(effect.y) == [0.1, 0.4, 0.8]
    assert list(damage.y) == [20, 25, 30]
    assert [list(trace.y) for trace in named(figure, "linear, random")] == [[0.1, 0.2], [20, 30]]
    rings = named(figure, "chosen")
    assert list(rings[0].x) == [1.0, 1.0] and list(rings[0].y) == [0.8, 0.6]
    assert [line.y0 for line in figure.layout.shapes] == [0.1, 20]  # no steering, in both panels


def test_the_bands_are_intervals_and_quartiles(summary: pd.DataFrame) -> None:
    figure = figures.strength_curves(summary)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 3 * 2
    np.testing.assert_allclose(bands[0].y, [0.2, 0.5, 0.9, 0.7, 0.3, 0.0])
    np.testing.assert_allclose(bands[3].y, [23, 28, 33, 28, 23, 18])
    with pytest.raises(ValueError, match="success_median"):
        figures.strength_curves(summary, band="quartiles")
    with pytest.raises(ValueError, match="band must be"):
        figures.strength_curves(summary, band="wide")


def test_several_supports_of_a_method_are_lines_of_their_own(summary: pd.DataFrame) -> None:
    both = pd.concat(
        [summary, summary[summary["method"] == "mean"].replace("everywhere", "5-95").query("strength > 0")]
    )
    names = {trace.name for trace in figures.strength_curves(both).data if trace.name}
    assert {"linear", "mean, everywhere", "mean, 5-95"} <= names


def test_effect_against_perplexity_has_the_budget_and_every_setting(summary: pd.DataFrame) -> None:
    figure = figures.effect_perplexity(summary, text_rise=5)
    [mean] = named(figure, "mean")
    assert list(mean.x) == [20, 25, 30] and list(mean.y) == [0.1, 0.3, 0.6] and list(mean.text) == ["", "0.5", "1"]
    [none] = named(figure, "no steering")
    assert (none.x[0], none.y[0]) == (20, 0.1)
    assert figure.layout.shapes[0].x0 == 25
    with pytest.raises(ValueError, match="no steered rows"):
        figures.effect_perplexity(summary[summary["condition"] == "none"])


def test_supports_are_drawn_from_narrow_to_everywhere(summary: pd.DataFrame) -> None:
    none = summary.iloc[[0]]
    steered = summary.iloc[[1]]
    labels = ["everywhere", "0-100", "40-60", "5-95"]
    parts = [steered.assign(support=label, success=0.1 * i, untouched=0.2) for i, label in enumerate(labels)]
    table = pd.concat([none.assign(untouched=np.nan), *parts])
    figure = figures.support_curve(table)
    [effect, damage, share] = named(figure, "linear, λ = 1")
    assert list(effect.x) == ["40-60", "5-95", "0-100", "everywhere"]
    np.testing.assert_allclose(effect.y, [0.2, 0.3, 0.1, 0.0])
    assert list(share.y) == [0.2] * 4 and list(damage.y) == [30] * 4
    assert len(named(figures.support_curve(table.drop(columns="untouched")), "linear, λ = 1")) == 2
    with pytest.raises(ValueError, match="steered rows"):
        figures.support_curve(none)


def test_costs_of_units_are_those_of_the_definition(fitted: Any) -> None:
    table = unit_table(fitted)
    assert len(table) == 15 and set(table["kind"]) == {"attn.hook_out", "mlp.hook_out"}
    for hook in HOOKS:
        a, b = (np.sort(side.double().numpy(), axis=0) for side in fitted.samples[hook])
        maps, rows = fitted.maps[hook], table[table["hook"] == hook]
        left = ((b - maps.scale.numpy() * a - maps.shift.numpy()) ** 2).mean(0)
        spread = a.std(0, ddof=1) + b.std(0, ddof=1)
        width = np.abs(b.mean(0) - a.mean(0)) + spread
        moved = np.sqrt(((b - a) ** 2).mean(0))
        for unit in range(4 if hook == HOOKS[0] else 5):  # the last of the first site is the constant
            row = rows.iloc[unit]
            assert row["cost"] == pytest.approx(left[unit] / width[unit], rel=1e-4)
            assert row["root_cost"] == pytest.approx(np.sqrt(left[unit]) / width[unit], rel=1e-4)
            assert row["moved"] == pytest.approx(moved[unit] / spread[unit], rel=1e-4)
    constant = table[(table["hook"] == HOOKS[0]) & (table["unit"] == 4)]
    assert constant[["cost", "root_cost", "moved"]].to_numpy().tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("by", ["cost", "root_cost", "moved"])
def test_the_top_units_are_the_largest_in_order(fitted: Any, by: str) -> None:
    top, everything = top_units(fitted, 4, by=by), unit_table(fitted)
    assert top[by].tolist() == sorted(everything[by], reverse=True)[:4]
    with pytest.raises(ValueError, match="by must be one of"):
        top_units(fitted, by="size")
    with pytest.raises(ValueError, match="there are 15 units"):
        top_units(fitted, 16)


def test_samples_of_a_unit_are_its_columns_and_their_map(fitted: Any, tmp_path: Any) -> None:
    wanted = pd.DataFrame({"hook": [HOOKS[1]], "unit": [3]})
    found = unit_samples(fitted, wanted)
    source, target = (side[:, 3] for side in fitted.samples[HOOKS[1]])
    maps = fitted.maps[HOOKS[1]]
    for side, expected in (
        ("source", source),
        ("target", target),
        ("transported", maps.scale[3] * source + maps.shift[3]),
    ):
        np.testing.assert_allclose(found.loc[found["side"] == side, "value"], expected, rtol=1e-6)
    loaded = ls.transport.Transport.load(fitted.save(tmp_path / "maps.safetensors"))
    with pytest.raises(ValueError, match="holds no samples"):
        unit_samples(loaded, wanted)
    with pytest.raises(ValueError, match="unit 5 is out of range"):
        unit_samples(fitted, wanted.assign(unit=5))


def test_histograms_hold_the_share_of_samples_of_every_bin(fitted: Any) -> None:
    samples = unit_samples(fitted, top_units(fitted, 4))
    figure = figures.unit_histograms(samples, bins=8)
    assert len(figure.data) == 4 * 3
    for trace in figure.data:
        assert trace.y[0] == trace.y[-1] == 0
        assert sum(trace.y[1:-1:2]) == pytest.approx(1.0)  # no sample lies outside the bins
        assert len(trace.x) == len(trace.y) == 2 * 9
    assert figure.layout.annotations[0].text.startswith("layer ")
    with pytest.raises(ValueError, match="two bins or more"):
        figures.unit_histograms(samples, bins=1)


def test_the_spread_of_units_leaves_out_those_that_do_not_vary(fitted: Any) -> None:
    table = unit_table(fitted)
    figure = figures.std_scatter(table)
    assert sum(len(trace.x) for trace in figure.data if trace.mode == "markers") == 14
    [line] = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(line.x) == list(line.y)
    with pytest.raises(ValueError, match="no unit varies"):
        figures.std_scatter(table.assign(source_std=0.0))


def test_the_cost_by_layer_is_stacked_by_kind_of_site(fitted: Any) -> None:
    table = fitted.table()
    distance = table.set_index("hook")["distance"]
    figure = figures.transport_cost(table)
    found = {(trace.name, layer): y for trace in figure.data for layer, y in zip(trace.x, trace.y, strict=True)}
    assert found == {(kind_of_site(hook), int(hook.split(".")[1])): pytest.approx(distance[hook]) for hook in HOOKS}
    assert figure.layout.barmode == "stack"
    shares = figures.transport_cost(table, share=True)
    assert sum(y for trace in shares.data for y in trace.y) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="each once"):
        figures.transport_cost(pd.concat([table, table]))
    with pytest.raises(ValueError, match="must not be negative"):
        figures.transport_cost(table.assign(distance=-1.0))


def test_a_broken_setting_does_not_flatten_the_others(summary: pd.DataFrame) -> None:
    columns = [name for name in summary if name.startswith("text_perplexity")]
    broken = summary.copy()
    broken.loc[1, columns] = 4e5
    for figure, kind, place in (
        (figures.strength_curves(broken), "median", "yaxis2"),
        (figures.support_curve(broken), "mean", "yaxis2"),
        (figures.effect_perplexity(broken), "mean", "xaxis"),
    ):
        drawn = figure.layout[place]
        assert drawn.type == "log" and drawn.title.text == f"perplexity of neutral texts, {kind}"
        low, high = drawn.range
        assert low < np.log10(18) and high > np.log10(4e5)
        assert all(low <= np.log10(tick) <= high for tick in drawn.tickvals) and 2 <= len(drawn.tickvals) <= 8
    close = figures.effect_perplexity(summary).layout.xaxis
    assert list(close.ticktext) == ["20", "25", "30"]


def test_labels_that_would_collide_are_left_out_and_the_strongest_stays(summary: pd.DataFrame) -> None:
    close = summary.assign(success=0.5, text_perplexity=20 + 0.1 * summary["strength"])
    close.loc[1, "text_perplexity"] = 60
    close.loc[5, "text_perplexity"] = close.loc[6, "text_perplexity"]
    figure = figures.effect_perplexity(close)
    [linear], [mean] = named(figure, "linear"), named(figure, "mean")
    assert list(linear.text) == ["", "0.5", "1"] and list(mean.text) == ["", "", ""]
    close.loc[6, ["text_perplexity", "success"]] = 60, 0.54  # just where the label of the other line stands
    [linear] = named(figures.effect_perplexity(close), "linear")
    assert list(linear.text) == ["", "0.5", ""]
    assert list(mean.customdata) == [0, 0.5, 1]  # the strength still stands beside the pointer


def test_results_of_a_sweep_are_refused_by_the_figures_of_a_summary(summary: pd.DataFrame) -> None:
    for draw in (figures.strength_curves, figures.support_curve, figures.effect_perplexity):
        with pytest.raises(ValueError, match=r"transport_summary\(results\)"):
            draw(summary.assign(prompt_id=0))


def test_maps_are_refused_where_their_table_is_wanted(fitted: Any) -> None:
    for draw, said in (
        (figures.std_scatter, r"unit_table\(maps\)"),
        (figures.transport_cost, r"maps\.table\(\)"),
        (figures.unit_histograms, r"unit_samples\(maps, "),
    ):
        with pytest.raises(TypeError, match=said):
            draw(fitted)
