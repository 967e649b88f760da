"""Transports over strengths and supports: what is run, what is measured, how it is summarised, chosen and confirmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lensteer as ls
from analysis.transport_choice import TransportBudget, choose_strength, confirm_strength, transport_summary
from analysis.transport_support import untouched
from analysis.transport_sweep import strength_sweep, support_sweep
from lensteer import evaluate

SOURCE = ["The sea is calm.", "Ships sail at night on the water.", "A wave!", "Tides rise and fall twice."]
TARGET = ["The kitchen is warm.", "Bread is baked at dawn in the oven.", "A pan!", "Soup boils on the stove."]
PROMPTS = ["A quiet day", "Nobody knew why", "So"]
TEXTS = ["It rained in the morning.", "The bus was late again.", "She put the keys away."]
QUICK: dict[str, Any] = {"max_new_tokens": 4, "progress": False}


def check(responses: Any) -> list[bool]:
    return [len(set(text)) % 2 == 0 for text in responses]


@pytest.fixture(scope="module")
def fitted(llama: Any) -> dict[str, Any]:
    return {
        method: ls.transport.fit(llama.model, SOURCE, TARGET, method, "attention", support=(0, 100), progress=False)
        for method in ("linear", "mean")
    }


@pytest.fixture(scope="module")
def results(llama: Any, fitted: dict[str, Any]) -> pd.DataFrame:
    options = {"strengths": (0, 0.5, 2.0), "supports": ["default", None], "texts": TEXTS, **QUICK}
    return strength_sweep(llama.model, fitted, PROMPTS, check, **options)


def test_every_setting_is_run_once_on_every_prompt_beside_no_steering(results: pd.DataFrame) -> None:
    assert len(results) == 2 * (1 + 2 * 2 * 2) * len(PROMPTS)
    settings = results.drop_duplicates(["method", "condition", "support", "strength"])
    assert set(settings.loc[settings["condition"] == "none", "support"]) == {"none"}
    for method in ("linear", "mean"):
        own = settings[settings["method"] == method]
        for condition in ("steered", "random"):
            found = own.loc[own["condition"] == condition, ["support", "strength"]].to_numpy().tolist()
            assert found == [["0-100", 0.5], ["0-100", 2.0], ["everywhere", 0.5], ["everywhere", 2.0]]
    assert set(results.loc[results["condition"] == "random", "seed"]) == {0}
    assert set(results.loc[results["condition"] != "random", "seed"]) == {-1}
    assert set(results["layer"]) == {-1, 0}


@pytest.mark.parametrize("condition", ["none", "steered", "random"])
@pytest.mark.parametrize("support", ["0-100", "everywhere"])
def test_responses_and_perplexities_are_those_of_each_setting_alone(
    llama: Any, fitted: dict[str, Any], results: pd.DataFrame, condition: str, support: str
) -> None:
    for method, transport in fitted.items():
        own = transport.random(0) if condition == "random" else transport
        steering = own.steering(2.0, support=None if support == "everywhere" else (0, 100))
        wanted = (results["method"] == method) & (results["condition"] == condition)
        if condition != "none":
            wanted &= (results["support"] == support) & (results["strength"] == 2.0)
        rows, steering = results[wanted], steering if condition != "none" else None
        alone = ls.generate(
            llama.model, PROMPTS, steering, max_new_tokens=4, prompt_format="plain", batch_size=1, progress=False
        )
        assert rows["response"].tolist() == alone["response"].tolist()
        assert rows["success"].tolist() == check(alone["response"])
        texts = evaluate.text_perplexity(llama.model, TEXTS, steering, progress=False)["perplexity"]
        before = evaluate.text_perplexity(llama.model, TEXTS, progress=False)["perplexity"]
        assert rows["text_perplexity"].tolist() == pytest.approx([texts.mean()] * 3, rel=1e-4)
        assert rows["text_rise"].tolist() == pytest.approx([(texts - before).mean()] * 3, rel=1e-3, abs=1e-6)
        assert rows["text_perplexity_median"].iloc[0] == pytest.approx(texts.median(), rel=1e-4)
        assert rows["text_rise_low"].iloc[0] <= rows["text_rise"].iloc[0] <= rows["text_rise_high"].iloc[0]


def test_a_second_run_reads_everything_from_the_folder(
    llama: Any, fitted: dict[str, Any], tmp_path: Path, forwards: Any
) -> None:
    options = {"strengths": [1.0], "supports": [(0, 100), (20, 80)], "controls": 1, "cache": tmp_path, **QUICK}
    first = support_sweep(llama.model, fitted, PROMPTS, check, texts=TEXTS, **options)
    with forwards(llama) as calls:
        second = support_sweep(llama.model, fitted, PROMPTS, check, texts=TEXTS, **options)
    assert calls == []
    pd.testing.assert_frame_equal(first, second)


def test_a_support_sweep_tells_what_each_support_left_alone(llama: Any, fitted: dict[str, Any]) -> None:
    own = fitted["linear"]
    table = support_sweep(llama.model, own, PROMPTS, check, supports=[(40, 60), (0, 100), None], **QUICK)
    assert table["support"].drop_duplicates().tolist() == ["none", "40-60", "0-100", "everywhere"]
    assert table.loc[table["support"] == "none", "untouched"].isna().all()
    for label, support in (("40-60", (40, 60)), ("0-100", (0, 100)), ("everywhere", None)):
        alone = untouched(llama.model, own.steering(support=support), PROMPTS, progress=False)
        expected = np.average(alone["untouched"], weights=alone["values"])
        assert table.loc[table["support"] == label, "untouched"].tolist() == pytest.approx([expected] * 3)
    assert len(support_sweep.__kwdefaults__["supports"]) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strengths": [0.0]}, "some besides 0"),
        ({"supports": ["narrow"]}, "'narrow' is unknown"),
        ({"supports": []}, "supports must be a list"),
        ({"supports": [(60, 40)]}, r"60.*40"),
        ({"controls": -1}, "controls=-1"),
        ({"texts": "one text"}, "texts must be a list"),
        ({"texts": ["fine", " "]}, "not empty"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_batch(
    llama: Any, fitted: dict[str, Any], forwards: Any, changes: dict[str, Any], said: str
) -> None:
    with forwards(llama) as calls, pytest.raises(ValueError, match=said):
        strength_sweep(llama.model, fitted, PROMPTS, check, **{**QUICK, **changes})
    assert calls == []
    with pytest.raises(ValueError, match="no transports"):
        strength_sweep(llama.model, {}, PROMPTS, check, **QUICK)


def test_a_text_too_short_to_score_is_named(llama: Any, gpt2: Any) -> None:
    own = ls.transport.fit(gpt2.model, SOURCE, TARGET, "mean", "attention", progress=False)
    with pytest.raises(ValueError, match=r"text 1 has no perplexity.*'b'"):
        strength_sweep(gpt2.model, own, PROMPTS[:1], check, strengths=[1.0], texts=["ab c", "b"], **QUICK)


def rows_of(
    success: list[float],
    *,
    condition: str = "steered",
    strength: float = 1.0,
    rise: float = 0.0,
    method: str = "linear",
    support: str = "everywhere",
    degenerate: float = 0.0,
    seed: int = -1,
    prompts: str = "validation",
) -> list[dict[str, Any]]:
    """One setting of a results table; the neutral texts have perplexity 20 without steering."""
    none = condition == "none"
    return [
        {
            "method": method,
            "condition": condition,
            "layer": -1 if none else 3,
            "support": "none" if none else support,
            "strength": 0.0 if none else strength,
            "seed": seed,
            "prompt_id": i,
            "prompt": f"{prompts} {i}",
            "response": "text",
            "success": value,
            "perplexity": 4.0 + i,
            "degenerate": i < degenerate * len(success),
            "repeated": 0.25,
            "text_perplexity": 20 + rise,
            "text_rise": rise,
        }
        for i, value in enumerate(success)
    ]


NONE = rows_of([0, 0, 0, 1], condition="none")


def table(*settings: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for setting in settings for row in setting])


def test_the_summary_has_means_bands_intervals_and_paired_differences() -> None:
    seeds = (rows_of([1, 0, 0, 0], condition="random", seed=i) for i in (0, 1))
    found = transport_summary(table(NONE, rows_of([1, 0.5, 0.5, 1], rise=2.5), *seeds))
    assert found["condition"].tolist() == ["none", "steered", "random"]
    steered = found.iloc[1]
    assert steered["n"] == 4 and steered["success"] == 0.75 and steered["success_median"] == 0.75
    assert (steered["success_q25"], steered["success_q75"]) == (0.5, 1.0)
    assert steered["success_low"] < 0.75 < steered["success_high"]
    assert steered["difference"] == pytest.approx(0.5)
    assert steered["perplexity"] == pytest.approx((4 * 5 * 6 * 7) ** 0.25)
    assert (steered["repeated"], steered["text_rise"], steered["text_perplexity"]) == (0.25, 2.5, 22.5)
    assert found.iloc[2]["n"] == 4  # two controls on the same prompts are four prompts, not eight
    assert found.iloc[0]["difference"] == 0


def test_a_summary_needs_the_same_prompts_and_no_steering() -> None:
    with pytest.raises(ValueError, match="no rows without steering"):
        transport_summary(table(rows_of([1.0])))
    with pytest.raises(ValueError, match=r"'linear' \(steered, support everywhere, strength 1\).*3 prompt ids"):
        transport_summary(table(NONE, rows_of([1.0])))
    with pytest.raises(ValueError, match="lacks the columns"):
        transport_summary(table(NONE).drop(columns="repeated"))


def test_the_best_effect_within_the_budget_is_chosen_and_ties_go_to_the_weaker() -> None:
    validation = table(
        NONE,
        rows_of([0, 0, 1, 1], strength=0.25, rise=0.4),
        rows_of([0, 1, 1, 1], strength=0.75, rise=0.9),
        rows_of([1, 1, 1, 0], strength=0.5, rise=0.8),
        rows_of([1, 1, 1, 1], strength=1.0, rise=1.0),
        rows_of([1, 1, 1, 1], strength=1.5, rise=0.1, degenerate=0.5),
    )

    def choice(**changes: Any) -> float:
        found = choose_strength(validation, budget=TransportBudget(**changes))
        [strength] = found.loc[found["chosen"], "strength"]
        assert found["within_budget"].tolist()[0]
        return float(strength)

    assert choice() == 0.5  # at 1.0 the rise is not below 1
    assert choice(text_rise=1.01) == 1.0
    with pytest.warns(UserWarning, match="no steering was chosen"):
        assert choice(text_rise=0.3) == 0.0
    assert choice(degenerate_rise=None) == 1.5
    assert choice(text_rise=None, text_ratio=1.05) == 1.0  # 21 is 1.05 × 20
    assert choice(text_rise=None, text_ratio=1.049) == 0.5


def test_negative_effects_leave_no_steering_chosen_for_that_method_only() -> None:
    other = {"method": "mean"}
    validation = table(
        NONE, rows_of([0, 0, 0, 0]), rows_of([0, 0, 0, 1], condition="none", **other), rows_of([1] * 4, **other)
    )
    with pytest.warns(UserWarning, match="no steering was chosen for 'linear': within the budget"):
        found = choose_strength(validation)
    assert found.loc[found["chosen"], ["method", "condition"]].to_numpy().tolist() == [
        ["linear", "none"],
        ["mean", "steered"],
    ]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({}, r"rises by 2.5 or more, text_rise=1 is the bound \(unsteered: 20; .*text_rise=None, text_ratio=2.0"),
        (
            {"text_rise": None, "text_ratio": 1.1, "degenerate_rise": None},
            "is 1.12 times as high or more, text_ratio=1.1 is the bound$",
        ),
        ({"text_rise": 50}, "degenerate responses rises by 0.25 or more, degenerate_rise=0.1 is the bound$"),
        ({"text_rise": 3, "degenerate_rise": 0.3}, "keeps all bounds at once"),
        ({"text_rise": 50, "degenerate_rise": None}, "the most success is 0.25, and 0.25 without"),
    ],
)
def test_where_no_steering_is_chosen_the_bound_that_failed_is_named(budget: dict[str, Any], said: str) -> None:
    validation = table(
        NONE,
        rows_of([0, 0, 0, 1], strength=0.5, rise=2.5, degenerate=0.5),
        rows_of([0, 0, 0, 1], strength=1.0, rise=9.0, degenerate=0.25),
    )
    with pytest.warns(UserWarning, match=f"no steering was chosen for 'linear': .*{said}"):
        choose_strength(validation, budget=TransportBudget(**budget))


def test_a_choice_needs_a_budget_that_can_be_held_against_the_results() -> None:
    with pytest.raises(ValueError, match="no column text_rise"):
        choose_strength(table(NONE, rows_of([1] * 4)).drop(columns="text_rise"))
    with pytest.raises(ValueError, match="split column also has"):
        choose_strength(table(NONE).assign(split="test"))
    for wrong in ({"text_rise": 0}, {"text_ratio": 0.9}, {"degenerate_rise": 2}, {"text_rise": None}):
        with pytest.raises(ValueError, match="|".join(wrong)):
            TransportBudget(**wrong)
    assert str(TransportBudget(1.0, 1.5)).count(",") == 2


def test_the_choice_is_confirmed_on_other_prompts_beside_its_control() -> None:
    validation = table(NONE, rows_of([1, 1, 1, 1], rise=0.5))
    test = {"prompts": "test"}
    held = table(
        rows_of([0, 0, 1, 0], condition="none", **test),
        rows_of([1, 0, 1, 1], rise=0.7, **test),
        rows_of([0, 0, 1, 0], condition="random", seed=0, rise=0.2, **test),
    )
    found = confirm_strength(validation, held)
    assert found["condition"].tolist() == ["none", "steered", "random"]
    assert found["support"].tolist() == ["none", "everywhere", "everywhere"]
    assert found["success"].tolist() == [0.25, 0.75, 0.25]
    assert found["difference"].tolist() == [0.0, 0.5, 0.0]
    assert found["text_rise"].tolist() == [0.0, 0.7, 0.2]
    assert found["validation"].iloc[1] == 1.0 and found["validation"].isna().tolist() == [True, False, True]


def test_prompts_of_both_splits_and_settings_that_were_not_chosen_are_refused() -> None:
    validation = table(NONE, rows_of([1, 1, 1, 1]))
    none = rows_of([0, 0, 1, 0], condition="none", prompts="test")
    with pytest.raises(ValueError, match="in both the validation results and the test results"):
        confirm_strength(validation, validation)
    with pytest.raises(ValueError, match="the choice is layer 3, strength 1"):
        confirm_strength(validation, table(none, rows_of([1] * 4, strength=0.5, prompts="test")))
    with pytest.raises(ValueError, match=r"support \['0-100'\]; the choice is support everywhere"):
        confirm_strength(validation, table(none, rows_of([1] * 4, support="0-100", prompts="test")))
