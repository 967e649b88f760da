from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from analysis.layer_selection import Budget, choose, paper_rule, words_rule
from analysis.statistics import bootstrap_mean

FLAG_FIRST = [True, False, False, False]


# The paper's layer rule ----------------------------------------------------------------------------


def test_paper_rule_takes_the_layer_with_the_best_accuracy(rows, table):
    results = table(rows(-1, [0, 0, 0, 1]), rows(6, [0, 1, 0, 1]), rows(8, [1, 1, 0, 1]), rows(10, [0, 0, 0, 0]))
    choice = paper_rule(results)["bullets"]
    assert (choice.layer, choice.strength, choice.success, choice.unsteered, choice.n) == (
        8,
        1.0,
        0.75,
        0.25,
        4,
    )
    assert choice.interval == bootstrap_mean(np.array([1.0, 1, 0, 1]))[1:]


def test_paper_rule_gives_ties_to_no_steering_first(rows, table):
    results = table(rows(6, [1, 0, 0, 0]), rows(-1, [0, 0, 0, 1]), rows(8, [0, 1, 0, 0]))
    assert paper_rule(results)["bullets"].layer == -1
    assert not paper_rule(results)["bullets"].steered


def test_paper_rule_gives_ties_between_layers_to_the_shallowest_whatever_the_order_of_rows(rows, table):
    results = table(rows(10, [1, 0]), rows(8, [0, 1]), rows(-1, [0, 0]), rows(9, [1, 0]))
    assert paper_rule(results)["bullets"].layer == 8


def test_one_flagged_response_vetoes_a_layer(rows, table):
    results = table(rows(-1, [0] * 4), rows(6, [1, 1, 1, 1], degenerate=FLAG_FIRST), rows(8, [0, 0, 0, 1]))
    assert paper_rule(results)["bullets"].layer == 8
    assert paper_rule(results, use_filter=False)["bullets"].layer == 6


def test_no_steering_can_be_vetoed_itself_and_then_loses_to_a_worse_layer(rows, table):
    results = table(rows(-1, [1, 1, 1, 0], degenerate=FLAG_FIRST), rows(6, [0, 0, 1, 0]))
    assert paper_rule(results)["bullets"].layer == 6
    assert paper_rule(results, use_filter=False)["bullets"].layer == -1


def test_where_everything_is_vetoed_the_answer_is_no_steering(rows, table):
    results = table(rows(-1, [0, 0, 0, 1], degenerate=FLAG_FIRST), rows(6, [1, 1, 1, 1], degenerate=FLAG_FIRST))
    choice = paper_rule(results)["bullets"]
    assert (choice.layer, choice.strength) == (-1, 0.0)


def test_a_vetoed_no_steering_still_wins_the_tie_at_zero(rows, table):
    results = table(rows(-1, [1, 1], degenerate=[True, False]), rows(6, [0, 0]))
    assert paper_rule(results)["bullets"].layer == -1


def test_the_unsteered_flagged_share_can_be_what_is_allowed(rows, table):
    one, two = FLAG_FIRST, [True, True, False, False]
    results = table(
        rows(-1, [0, 0, 0, 0], degenerate=one),
        rows(6, [0, 0, 1, 0], degenerate=one),
        rows(8, [1, 1, 1, 1], degenerate=two),
    )
    assert paper_rule(results, allowed="unsteered")["bullets"].layer == 6
    assert paper_rule(results, allowed=0.25)["bullets"].layer == 6
    assert paper_rule(results, allowed=0.5)["bullets"].layer == 8
    assert paper_rule(results, allowed=0.0)["bullets"].layer == -1


def test_the_allowed_share_is_that_of_each_instruction_alone(rows, table):
    results = table(
        rows(-1, [0, 0], degenerate=[True, False], instruction="json"),
        rows(6, [1, 1], degenerate=[True, False], instruction="json"),
        rows(-1, [0, 0], instruction="title"),
        rows(6, [1, 1], degenerate=[True, False], instruction="title"),
    )
    selection = paper_rule(results, allowed="unsteered")
    assert {choice.instruction: choice.layer for choice in selection} == {"json": 6, "title": -1}


def test_an_instruction_without_rows_is_not_steered(rows, table):
    results = table(rows(-1, [0]), rows(6, [1]))
    selection = paper_rule(results, instructions=["bullets", "quotation"])
    assert selection["bullets"].layer == 6
    assert (selection["quotation"].layer, selection["quotation"].n) == (-1, 0)
    assert math.isnan(selection["quotation"].success)
    nothing = paper_rule(results.iloc[:0], instructions=["quotation"])
    assert [choice.layer for choice in nothing] == [-1]


def test_paper_rule_reads_the_flag_from_the_column_that_is_named(rows, table):
    results = table(rows(-1, [0, 0]), rows(6, [1, 1]), rows(8, [1, 0]))
    results["gpt2_perplexity"] = [
        9.0,
        9.0,
        2.4,
        9.0,
        math.nan,
        2.5,
    ]  # NaN and 2.5 are not
    flagged = results.assign(flagged=results["gpt2_perplexity"] < 2.5)
    assert paper_rule(flagged, flag="flagged")["bullets"].layer == 8


def test_paper_rule_shows_the_table_that_it_decided_on(rows, table):
    results = table(rows(8, [1, 1, 1, 1], degenerate=FLAG_FIRST), rows(-1, [0, 0, 0, 1]), rows(6, [1, 0, 0, 1]))
    candidates = paper_rule(results).candidates
    assert candidates["layer"].tolist() == [-1, 6, 8]
    assert candidates["success"].tolist() == [0.25, 0.5, 1.0]
    assert candidates["flagged"].tolist() == [0.0, 0.0, 0.25]
    assert candidates["score"].tolist() == [0.25, 0.5, 0.0]
    assert candidates["chosen"].tolist() == [False, True, False]


def test_paper_rule_against_a_plain_loop_on_random_tables(rows, table):
    rng = np.random.default_rng(0)
    for _ in range(40):
        success = {layer: rng.integers(0, 2, 4).tolist() for layer in (-1, 5, 7, 9, 11)}
        flags = {layer: (rng.random(4) < 0.15).tolist() for layer in success}
        results = table(*(rows(layer, success[layer], degenerate=flags[layer]) for layer in success))
        for allowed, b in ((0.0, 0.0), ("unsteered", sum(flags[-1]) / 4)):
            best, best_score = None, -1.0
            for layer in sorted(success):
                score = sum(success[layer]) / 4 if sum(flags[layer]) / 4 <= b else 0.0
                if score > best_score:
                    best, best_score = layer, score
            assert paper_rule(results.sample(frac=1, random_state=1), allowed=allowed)["bullets"].layer == best


# The paper's rule for words ------------------------------------------------------------------------


def test_words_rule_takes_the_best_candidate_without_a_flagged_response(rows, table):
    results = table(
        rows(-1, [0, 0, 0, 1]),
        rows(28, [0, 1, 1, 0], strength=-60.0),
        rows(28, [1, 1, 1, 0], strength=-100.0),
        rows(28, [1, 1, 1, 1], strength=-120.0, degenerate=FLAG_FIRST),
    )
    choice = words_rule(results)["bullets"]
    assert (choice.layer, choice.strength) == (28, -100.0)


def test_words_rule_breaks_ties_by_the_labels_in_string_order(rows, table):
    tie = [1, 0, 1, 0]
    layers = table(rows(-1, [0] * 4), rows(28, tie, strength=40.0), rows(26, tie, strength=40.0))
    assert words_rule(layers)["bullets"].layer == 26
    strengths = table(rows(-1, [0] * 4), rows(24, tie, strength=40.0), rows(24, tie, strength=100.0))
    assert words_rule(strengths)["bullets"].strength == 100.0  # "24_100" < "24_40"


def test_words_rule_steers_even_where_no_steering_is_better(rows, table):
    results = table(rows(-1, [1, 1]), rows(24, [1, 0], strength=40.0))
    assert words_rule(results)["bullets"].layer == 24


def test_words_rule_answers_no_steering_where_every_candidate_is_flagged(rows, table):
    results = table(rows(-1, [0, 0]), rows(24, [1, 1], strength=40.0, degenerate=[True, False]))
    assert words_rule(results)["bullets"].layer == -1


# lensteer's own rule -------------------------------------------------------------------------------


def test_choose_takes_the_best_success_within_the_budget(rows, table):
    results = table(
        rows(-1, [0, 0, 0, 0], perplexity=10.0),
        rows(8, [1, 1, 0, 0], perplexity=19.0),
        rows(9, [1, 1, 1, 1], perplexity=21.0),  # more than twice the unsteered perplexity
        rows(10, [1, 1, 1, 0], perplexity=11.0, degenerate=FLAG_FIRST),  # a quarter degenerate
    )
    assert choose(results, budget=Budget(perplexity_ratio=2.0))["bullets"].layer == 8
    assert choose(results, budget=Budget(perplexity_ratio=2.5))["bullets"].layer == 9
    assert choose(results, budget=Budget(2.0, degenerate_rise=0.25))["bullets"].layer == 10
    assert choose(results, budget=Budget(perplexity_ratio=1.0))["bullets"].layer == -1


def test_the_budget_compares_geometric_means(rows, table):
    results = table(
        rows(-1, [0, 0], perplexity=[5.0, 20.0]),  # geometric mean 10
        rows(8, [1, 1], perplexity=[1.0, 400.0]),  # geometric mean 20
    )
    candidates = choose(results, budget=Budget(perplexity_ratio=2.0)).candidates
    assert candidates["perplexity"].tolist() == pytest.approx([10.0, 20.0])
    assert candidates["perplexity_ratio"].tolist() == pytest.approx([1.0, 2.0])
    assert candidates["within_budget"].tolist() == [True, True]
    assert choose(results, budget=Budget(perplexity_ratio=1.99))["bullets"].layer == -1


def test_degenerate_responses_count_above_those_of_the_unsteered_model(rows, table):
    half = [True, True, False, False]
    results = table(rows(-1, [0, 0, 0, 0], degenerate=half), rows(8, [1, 0, 0, 0], degenerate=half))
    assert choose(results, budget=Budget(degenerate_rise=0.0))["bullets"].layer == 8


def test_choose_gives_ties_to_less_steering_then_to_the_shallower_layer_then_to_plus(rows, table):
    tie = [1, 0, 0, 1]
    assert choose(table(rows(8, tie), rows(-1, tie)))["bullets"].layer == -1
    base = rows(-1, [0] * 4)
    smaller = table(base, rows(6, tie, strength=2.0), rows(8, tie, strength=-1.0))
    assert choose(smaller)["bullets"].strength == -1.0
    shallower = table(base, rows(8, tie, strength=1.0), rows(6, tie, strength=-1.0))
    assert choose(shallower)["bullets"].layer == 6
    positive = table(base, rows(6, tie, strength=-1.0), rows(6, tie, strength=1.0))
    assert choose(positive)["bullets"].strength == 1.0


def test_graded_scores_that_differ_only_by_rounding_are_a_tie(rows, table):
    results = table(rows(-1, [0.0] * 3), rows(8, [0.1, 0.2, 0.3]), rows(9, [0.3, 0.2, 0.1]))
    assert choose(results)["bullets"].layer == 8


def test_an_empty_response_counts_as_damage_and_not_as_fluency(rows, table):
    flags = [True, False, False, False]
    results = table(
        rows(-1, [0, 0, 0, 0]),
        rows(8, [1, 1, 1, 0], perplexity=[math.nan, 10.0, 10.0, 10.0], degenerate=flags),
    )
    assert choose(results)["bullets"].layer == -1
    tolerant = choose(results, budget=Budget(degenerate_rise=0.3))
    assert tolerant["bullets"].layer == 8
    assert tolerant.candidates["perplexity"].tolist() == pytest.approx([10.0, 10.0])


def test_choose_reports_bootstrap_intervals_that_its_seed_fixes(rows, table):
    rng = np.random.default_rng(0)
    results = table(rows(-1, [0.0] * 30), rows(8, rng.integers(0, 2, 30).tolist()))
    first, again = choose(results, seed=3), choose(results.sample(frac=1, random_state=0), seed=3)
    assert first["bullets"] == again["bullets"]
    low, high = first["bullets"].interval
    assert low < first["bullets"].success < high
    narrow = choose(results, seed=3, level=0.5)["bullets"].interval
    assert low < narrow[0] < narrow[1] < high


def test_choose_answers_for_each_instruction_in_the_order_of_the_table(rows, table):
    results = table(
        rows(-1, [0, 0], instruction="title"),
        rows(8, [1, 0], instruction="title"),
        rows(-1, [1, 0], instruction="bullets"),
        rows(8, [0, 0], instruction="bullets"),
    )
    summary = choose(results).table()
    assert summary["instruction"].tolist() == ["title", "bullets"]
    assert summary["layer"].tolist() == [8, -1]
    assert summary["unsteered"].tolist() == [0.0, 0.5]


def test_choose_can_steer_on_top_of_the_instruction_in_text(rows, table):
    results = table(
        rows(-1, [0, 0]),
        rows(8, [1, 1]),
        rows(-1, [1, 0], condition="text"),
        rows(12, [1, 1], condition="text+steered"),
    )
    choice = choose(results, baseline="text", steered="text+steered")["bullets"]
    assert (choice.layer, choice.unsteered) == (12, 0.5)


# Bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [choose, paper_rule, words_rule])
@pytest.mark.parametrize("column", ["success", "degenerate", "strength"])
def test_nan_is_refused_by_name(rule, column, rows, table):
    results = table(rows(-1, [0, 0]), rows(8, [1, 1])).astype({column: object})
    results.loc[3, column] = math.nan
    with pytest.raises(ValueError, match=f"column '{column}' \\(row 3"):
        rule(results)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_perplexity_that_is_none_is_refused(value, rows, table):
    results = table(rows(-1, [0, 0]), rows(8, [1, 1], perplexity=[10.0, value]))
    with pytest.raises(ValueError, match="'perplexity' that are not finite and positive"):
        choose(results)


@pytest.mark.parametrize("rule", [choose, paper_rule, words_rule])
def test_selection_refuses_test_rows(rule, rows, table):
    results = table(rows(-1, [0, 0]), rows(8, [1, 1])).assign(split="validation")
    assert len(rule(results)) == 1
    results.loc[2, "split"] = "test"
    with pytest.raises(ValueError, match="must hold validation rows only"):
        rule(results)


@pytest.mark.parametrize("rule", [choose, paper_rule, words_rule])
def test_an_instruction_without_its_unsteered_rows_is_refused(rule, rows, table):
    with pytest.raises(ValueError, match=r"no rows without steering .* for \['bullets'\]"):
        rule(table(rows(8, [1, 1])))


def test_other_mistakes_get_one_clear_error(rows, table):
    base, good = rows(-1, [0, 0]), rows(8, [1, 1])
    with pytest.raises(ValueError, match=r"lacks the columns \['success'\]"):
        choose(table(base).drop(columns="success"))
    with pytest.raises(TypeError, match="pandas DataFrame, got list"):
        choose(base)
    with pytest.raises(ValueError, match="layer 9, strength 1 has 1 of the 2 prompts"):
        choose(table(base, good, rows(9, [1])))
    with pytest.raises(ValueError, match="2 rows repeat a candidate and prompt; first: 'bullets' at layer 8"):
        choose(table(base, good, good))
    with pytest.raises(ValueError, match="layer and condition disagree"):
        choose(table(base, rows(-1, [1, 1], condition="steered")))
    with pytest.raises(ValueError, match=r"one strength; 'bullets' has \[1.0, 2.0\]"):
        paper_rule(table(base, good, rows(8, [1, 1], strength=2.0)))
    with pytest.raises(ValueError, match="allowed must be a share"):
        paper_rule(table(base, good), allowed=1.5)
    with pytest.raises(ValueError, match="no rows of condition"):
        choose(table(rows(-1, [1], condition="text")))
    with pytest.raises(ValueError, match="no choice for 'json'"):
        choose(table(base, good))["json"]
    with pytest.raises(ValueError, match="perplexity_ratio must be at least 1"):
        Budget(perplexity_ratio=0.5)
    with pytest.raises(ValueError, match="degenerate_rise must lie between 0 and 1"):
        Budget(degenerate_rise=-0.1)


def test_the_results_table_is_left_as_it_was(rows, table):
    results = table(rows(-1, [0, 0]), rows(8, [1, 1]))
    before = results.copy()
    choose(results)
    paper_rule(results)
    words_rule(results)
    pd.testing.assert_frame_equal(results, before)
