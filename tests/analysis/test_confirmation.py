from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.layer_selection import Choice, choose, confirm
from analysis.statistics import bootstrap_mean, mcnemar, paired_bootstrap

CHOICE = Choice("bullets", 8, 1.0, 0.9, (0.7, 1.0), 0.1, 10)
NONE = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
STEERED = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]


@pytest.fixture
def validation(rows, table):
    prompts = [f"validation question {i}" for i in range(4)]
    return table(rows(-1, [0, 0, 0, 0], prompts=prompts), rows(8, [1, 1, 1, 0], prompts=prompts))


@pytest.fixture
def held_out(rows, table):
    return table(
        rows(8, STEERED, perplexity=[8.0, 32.0, 16.0, 16.0, 16.0, 16.0]),
        rows(8, NONE, condition="random", perplexity=12.0),
        rows(-1, NONE),
        rows(-1, [1.0] * 6, condition="text", prompts=[f"question {i} Use bullets." for i in range(6)]),
    )


def test_the_table_has_each_condition_in_order_with_its_scores(validation, held_out):
    result = confirm(choose(validation), validation, held_out)
    assert result["condition"].tolist() == ["none", "steered", "random", "text"]
    assert result["layer"].tolist() == [-1, 8, 8, -1]
    assert result["n"].tolist() == [6, 6, 6, 6]
    steered = result.set_index("condition").loc["steered"]
    assert tuple(steered[["success", "success_low", "success_high"]]) == bootstrap_mean(np.array(STEERED))
    assert steered["perplexity"] == pytest.approx(16.0)
    assert steered["perplexity_median"] == 16.0
    assert steered["degenerate"] == 0.0


def test_every_condition_is_compared_with_none_prompt_by_prompt(validation, held_out):
    shuffled = held_out.sample(frac=1, random_state=0)
    result = confirm(CHOICE, validation, shuffled).set_index("condition")
    expected = paired_bootstrap(np.array(STEERED), np.array(NONE))
    assert tuple(result.loc["steered", ["difference", "difference_low", "difference_high"]]) == expected
    assert result.loc["steered", "p_value"] == mcnemar(np.array(STEERED), np.array(NONE)).p_value == 0.125
    assert result.loc["random", "p_value"] == 1.0
    assert result.loc["none", "difference"] == 0.0
    assert math.isnan(result.loc["none", "p_value"])


def test_several_random_directions_for_one_prompt_count_as_one(rows, table, validation, held_out):
    second = table(rows(8, [1.0] * 6, condition="random", perplexity=12.0))
    both = table(held_out.to_dict("records"), second.to_dict("records"))
    row = confirm(CHOICE, validation, both).set_index("condition").loc["random"]
    assert row["n"] == 6
    assert row["success"] == pytest.approx((1 / 6 + 1) / 2)
    assert math.isnan(row["p_value"])


def test_prompts_in_both_tables_are_refused(validation, held_out):
    validation.loc[0, "prompt"] = "  Question   3\n"
    with pytest.raises(ValueError, match=r"1 prompts are in both .*first: 'question 3'"):
        confirm(CHOICE, validation, held_out)


def test_splits_that_contradict_their_table_are_refused(validation, held_out):
    with pytest.raises(ValueError, match="validation must hold validation rows only"):
        confirm(CHOICE, validation.assign(split="test"), held_out)
    with pytest.raises(ValueError, match="test must hold test rows only"):
        confirm(CHOICE, validation, held_out.assign(split="validation"))


def test_steered_rows_at_another_setting_than_the_choice_are_refused(validation, held_out):
    other = Choice("bullets", 9, 1.0, 0.9, (0.7, 1.0), 0.1, 10)
    with pytest.raises(ValueError, match="steered at layer 8, strength 1; the choice is layer 9, strength 1"):
        confirm(other, validation, held_out)
    unsteered = held_out[held_out["condition"] != "steered"]
    with pytest.raises(ValueError, match="no steered rows for 'bullets'"):
        confirm(CHOICE, validation, unsteered)


def test_a_choice_of_no_steering_needs_no_steered_rows(validation, held_out):
    nothing = Choice("bullets", -1, 0.0, 0.5, (0.0, 1.0), 0.5, 10)
    unsteered = held_out[held_out["condition"].isin(["none", "text"])]
    assert confirm(nothing, validation, unsteered)["condition"].tolist() == ["none", "text"]


def test_a_condition_on_other_prompts_than_none_is_refused(validation, held_out):
    short = held_out.drop(index=held_out.index[held_out["condition"] == "random"][:1])
    with pytest.raises(ValueError, match="'random' and 'none' of 'bullets' were run on different prompts: 1"):
        confirm(CHOICE, validation, short)


def test_missing_reference_and_nan_are_refused(validation, held_out):
    with pytest.raises(ValueError, match="no rows of condition 'none' for 'bullets'"):
        confirm(CHOICE, validation, held_out[held_out["condition"] != "none"])
    with pytest.raises(ValueError, match="column 'success'"):
        confirm(CHOICE, validation, held_out.assign(success=math.nan))
