"""Sweeps of focus vectors against plain hooks, and choices from tables whose right answer is known by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import focus_toy
import numpy as np
import oracles
import pandas as pd
import pytest
import torch

from analysis.focus_choice import FocusBudget, choose, chosen_row, interval, require_disjoint_sources
from analysis.focus_runs import FocusRun, answers, text_perplexities
from analysis.focus_sweep import focus_sweep, sweep_settings, vector_settings
from analysis.statistics import bootstrap_mean
from lensteer import evaluate
from lensteer.hooks import Add
from lensteer.methods.focus_vectors import after_instruction, vectors
from lensteer.positions import at
from lensteer.steering import Steering

TASK = focus_toy.TASK
TRAIN, VALIDATION = focus_toy.examples(), focus_toy.examples("validation")
TEXTS = ["It rained in the morning.", "The bus was late."]
QUIET: dict[str, Any] = {"progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:no steering was chosen")


@pytest.fixture(scope="module")
def case(fresh: Any) -> Any:
    return fresh("llama", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def directions(case: Any) -> Any:
    return vectors(case.model, TASK, TRAIN, templates=(0,), **QUIET)


@pytest.fixture(scope="module")
def swept(case: Any, directions: Any) -> pd.DataFrame:
    options = {"layers": [1, 3], "strengths": (0.5, 2.0), "texts": TEXTS}
    return focus_sweep(case.model, TASK, VALIDATION, directions, **options, **QUIET)  # type: ignore[arg-type]


def odds(case: Any, example: Any, changes: Any = ()) -> tuple[float, str]:
    """Log-odds of y_s against y on the empty prompt, and the answer, from plain hooks."""
    ids = case.tokenizer(TASK.prompt(example))["input_ids"]
    logs = oracles.next_log_probs(case.hf, ids, changes, len(ids))
    place = {label: case.tokenizer.convert_tokens_to_ids(label) for label in TASK.labels}
    best = max(TASK.labels, key=lambda label: float(logs[place[label]]))
    return float(logs[place[example.y_s]] - logs[place[example.y]]), best


# --- the sweep -----------------------------------------------------------------------------------------------------


def test_every_layer_and_strength_is_a_plain_hook_on_the_empty_prompt(
    case: Any, directions: Any, swept: pd.DataFrame
) -> None:
    assert len(swept) == 2 * (1 + 4) * len(VALIDATION)
    examples = {example.id: example for example in VALIDATION}
    for row in swept.itertuples():
        example = examples[row.example_id]
        assert (row.source, row.kind, row.informative) == (example.source, "empty", example.y != example.y_s)
        changes = []
        if row.method == "vector":
            vector = directions.direction[row.layer] * directions.difference_norm[row.layer]
            changes = [oracles.Change("resid_post", row.layer, oracles.add(vector, row.strength), "last")]
        expected, answer = odds(case, example, changes)
        assert row.log_odds == pytest.approx(expected, abs=1e-4)
        assert row.shift == pytest.approx(expected - odds(case, example)[0], abs=2e-4)
        assert row.predicted == answer
        assert row.success == (answer == (example.y_s if row.toward == "S" else example.y))
    strengths = swept.groupby("toward")["strength"].unique()
    assert sorted(strengths["S"]) == [0, 0.5, 2] and sorted(strengths["C"]) == [-2, -0.5, 0]


def test_the_side_cost_is_the_perplexity_of_texts_under_each_setting(
    case: Any, directions: Any, swept: pd.DataFrame
) -> None:
    bare = evaluate.text_perplexity(case.model, TEXTS, **QUIET)["perplexity"].mean()
    for (_, method, layer, strength), rows in swept.groupby(["toward", "method", "layer", "strength"]):
        steering = directions.add(layer, strength) if method == "vector" else None
        expected = evaluate.text_perplexity(case.model, TEXTS, steering, **QUIET)["perplexity"].mean()
        np.testing.assert_allclose(rows["text_perplexity"], expected, rtol=1e-5)
        np.testing.assert_allclose(rows["text_ratio"], expected / bare, rtol=1e-5)


def test_a_place_counted_from_the_beginning_of_prompts_is_every_token_of_a_text(case: Any, directions: Any) -> None:
    where = after_instruction(case.model, TASK)
    steerings = {"after": directions.add(1, 2.0, tokens=where), "all": directions.add(1, 2.0, tokens="all")}
    found = text_perplexities(case.model, TEXTS, steerings, FocusRun(progress=False))
    assert found["after"] == found["all"] != text_perplexities(case.model, TEXTS, {0: Steering()}, FocusRun())[0]
    last = Steering([("blocks.1.hook_resid_post", at(Add(torch.ones(32)), "last"))])
    plain = evaluate.text_perplexity(case.model, TEXTS, last, **QUIET)["perplexity"].mean()
    assert text_perplexities(case.model, TEXTS, {0: last}, FocusRun())[0] == pytest.approx(plain)


def test_a_second_sweep_runs_nothing_and_a_damaged_line_runs_again(
    case: Any, directions: Any, swept: pd.DataFrame, tmp_path: Any, forwards: Any
) -> None:
    options = {"layers": [1, 3], "strengths": (0.5, 2.0), "texts": TEXTS, "cache": tmp_path, "chunk_size": 4}
    first = focus_sweep(case.model, TASK, VALIDATION, directions, **options, **QUIET)
    compared = ["log_odds", "shift", "text_perplexity", "text_ratio", "probability_inside"]
    pd.testing.assert_frame_equal(first.drop(columns=compared), swept.drop(columns=compared))
    np.testing.assert_allclose(first[compared], swept[compared], atol=1e-4)
    with forwards(case) as calls:
        again = focus_sweep(case.model, TASK, VALIDATION, directions, **options, **QUIET)
    assert calls == []
    pd.testing.assert_frame_equal(first, again)
    files = sorted(tmp_path.glob("focus-*.jsonl"))
    assert len(files) == math.ceil(len(VALIDATION) / 4)
    files[0].write_bytes(b"\xff not a line\n" + files[0].read_bytes()[:50])
    with forwards(case) as calls:
        mended = focus_sweep(case.model, TASK, VALIDATION, directions, **options, **QUIET)
    assert calls and all(rows <= 4 for rows, _ in calls)
    pd.testing.assert_frame_equal(first, mended)
    more = {**options, "strengths": (0.5, 2.0, 4.0)}
    focus_sweep(case.model, TASK, VALIDATION, directions, **more, **QUIET)
    kept = [json.loads(line) for path in tmp_path.glob("focus-*.jsonl") for line in path.read_text().splitlines()[-1:]]
    assert all({"key", "rows"} == set(record) for record in kept)


def test_one_text_in_two_splits_is_read_once(case: Any, forwards: Any) -> None:
    again = [replace(example, id=f"{example.id}-b", split="other") for example in VALIDATION]
    with forwards(case) as alone:
        answers(case.model, TASK, VALIDATION, {"none": Steering()}, FocusRun(progress=False))
    with forwards(case) as calls:
        table = answers(case.model, TASK, [*VALIDATION, *again], {"none": Steering()}, FocusRun(progress=False))
    assert calls == alone
    assert len(table) == 2 * len(VALIDATION)
    one, other = (table[table["split"] == split]["log_odds"].to_numpy() for split in ("validation", "other"))
    np.testing.assert_array_equal(one, other)


def test_where_directions_lead_and_how_strongly_is_checked(case: Any, directions: Any) -> None:
    back = vectors(case.model, TASK, TRAIN, positive="focus(C)", negative="focus(S)", templates=(0,), **QUIET)
    with pytest.raises(ValueError, match=r"leads toward 'focus\(C\)', which asks for y"):
        vector_settings(back)
    for strengths in ((), (1.0, 0.0), (-1.0,)):
        with pytest.raises(ValueError, match="strengths must be positive"):
            vector_settings(directions, strengths=strengths)
    settings = vector_settings(directions, strengths=[1.0])
    assert [one.layer for one in settings["S"]] == [0, 1, 2, 3] and settings["C"][2].strength == -1


def test_what_cannot_be_swept_is_refused_before_any_work(case: Any, directions: Any, forwards: Any) -> None:
    with forwards(case) as calls:
        with pytest.raises(ValueError, match="1 sources are in both the validation examples and the test examples"):
            shared = replace(VALIDATION[0], id="other", split="test", source=VALIDATION[0].source)
            focus_sweep(case.model, TASK, VALIDATION, directions, test=[shared], **QUIET)
        agreeing = [example for example in VALIDATION if not example.informative]
        with pytest.raises(ValueError, match="y and y_s differ in none of the examples"):
            focus_sweep(case.model, TASK, agreeing, directions, **QUIET)
        with pytest.raises(ValueError, match=r"some of \('S', 'C'\); got \['X'\]"):
            sweep_settings(case.model, TASK, VALIDATION, {"X": []}, FocusRun())  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="no settings"):
            sweep_settings(case.model, TASK, VALIDATION, {"S": []}, FocusRun())
        with pytest.raises(ValueError, match="texts must be a list of texts"):
            focus_sweep(case.model, TASK, VALIDATION, directions, texts=[""], **QUIET)
        with pytest.raises(ValueError, match="chunk_size must be at least 1"):
            focus_sweep(case.model, TASK, VALIDATION, directions, chunk_size=0, **QUIET)
        with pytest.raises(ValueError, match="layer 7 is out of range"):
            focus_sweep(case.model, TASK, VALIDATION, directions, layers=[7], **QUIET)
    assert calls == []


def test_a_steered_model_is_refused_with_a_cache(case: Any, tmp_path: Any) -> None:
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.ones(32)))])
    with steering.on(case.model), pytest.raises(ValueError, match="no cache key knows of"):
        answers(case.model, TASK, VALIDATION, {"none": Steering()}, FocusRun(tmp_path))


# --- the choice ----------------------------------------------------------------------------------------------------


def rows(toward: str, method: str, success: list[float], **setting: Any) -> pd.DataFrame:
    """One setting on four informative examples and two whose features agree."""
    where = {"k": 0, "layer": -1, "strength": 0.0, "seed": 0, "shift": 0.0, "text_ratio": 1.0, **setting}
    agreeing = where.pop("agreeing", [1, 1])
    inside = where.pop("inside", 0.9)
    right = [*success, *agreeing]
    n = len(right)
    return pd.DataFrame(
        {
            **{
                "toward": toward,
                "method": method,
                **where,
                "example_id": range(n),
                "source": [f"s{i}" for i in range(n)],
            },
            "informative": [True] * len(success) + [False] * len(agreeing),
            "says_y": [1.0 - s if toward == "S" else s for s in success] + agreeing,
            **{"success": right, "probability_inside": inside, "text_perplexity": 20 * where["text_ratio"]},
        }
    )


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.concat(
        [
            rows("S", "none", [0, 0, 1, 0]),
            rows("S", "vector", [1, 1, 1, 1], layer=2, strength=8.0, text_ratio=3.0),
            rows("S", "vector", [1, 1, 1, 0], layer=2, strength=2.0, shift=1.5),
            rows("S", "vector", [1, 1, 1, 0], layer=1, strength=2.0),
            rows("S", "vector", [1, 1, 1, 0], layer=0, strength=4.0),
            rows("S", "vector", [1, 1, 1, 1], layer=0, strength=1.0, agreeing=[1, 0]),
            rows("S", "vector", [1, 1, 1, 1], layer=1, strength=1.0, inside=0.7),
            rows("C", "none", [1, 1, 0, 1]),
            rows("C", "vector", [1, 1, 0, 1], layer=2, strength=-2.0),
        ],
        ignore_index=True,
    )


def test_the_most_success_within_the_budget_is_chosen_and_ties_go_to_the_weaker(table: pd.DataFrame) -> None:
    with pytest.warns(UserWarning, match="^FIT: no steering was chosen for 'vector' toward C: .* 1 of 1 settings are"):
        candidates = choose(table, name="FIT")
    best = chosen_row(candidates, "S")
    assert (best.layer, best.strength, best.success, best.unsteered, best.n) == (1, 2.0, 0.75, 0.25, 4)
    assert (best.success, best.success_low, best.success_high) == bootstrap_mean(np.array([1.0, 1, 1, 0]))
    assert (best.agreeing, best.accuracy_y, best.text_ratio) == (1.0, 0.5, 1.0)
    none = chosen_row(candidates, "C")
    assert (none.layer, none.strength, none.success) == (-1, 0.0, 0.75)
    within = candidates[candidates["toward"] == "S"].set_index(["layer", "strength"])["within_budget"]
    assert [key for key, inside in within.items() if not inside] == [(0, 1.0), (1, 1.0), (2, 8.0)]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (FocusBudget(text_ratio=None), (2, 8.0)),
        (FocusBudget(agreeing_drop=None), (0, 1.0)),
        (FocusBudget(inside_drop=0.2), (1, 1.0)),
        (FocusBudget(None, None, None), (0, 1.0)),
    ],
)
def test_each_bound_of_the_budget_can_be_left_out(
    table: pd.DataFrame, budget: FocusBudget, expected: tuple[int, float]
) -> None:
    best = chosen_row(choose(table, budget=budget), "S")
    assert (best.layer, best.strength) == expected
    assert "no bounds" in str(FocusBudget(None, None, None)) and "1.5 times" in str(FocusBudget())


def test_methods_are_chosen_by_themselves_and_the_order_of_rows_does_not_matter(table: pd.DataFrame) -> None:
    heads = rows("S", "SADI heads", [1, 1, 0, 0], k=4, strength=2.0)
    both = pd.concat([table, heads], ignore_index=True)
    one, other = (choose(own.reset_index(drop=True)) for own in (both, both.sample(frac=1, random_state=0)))
    order = ["toward", "method", "k", "layer", "strength"]
    first, second = (own.sort_values(order).reset_index(drop=True) for own in (one, other))
    pd.testing.assert_frame_equal(first, second)
    assert chosen_row(one, "S", "SADI heads").k == 4
    with pytest.raises(ValueError, match="0 chosen rows of 'ITI' toward 'S'"):
        chosen_row(one, "S", "ITI")


def test_a_steering_that_breaks_the_model_is_never_chosen(table: pd.DataFrame) -> None:
    broken = rows("S", "vector", [1, 1, 1, 1], layer=3, strength=0.5, shift=math.nan, text_ratio=math.inf)
    candidates = choose(pd.concat([table, broken], ignore_index=True))
    own = candidates[candidates["layer"] == 3].iloc[0]
    assert math.isnan(own["shift"]) and not own["within_budget"] and not own["chosen"]


def test_a_choice_is_not_reported_on_what_it_was_made_on(table: pd.DataFrame) -> None:
    seen = focus_toy.example(0, "a", "b", "test", source="s3")
    with pytest.raises(ValueError, match=r"1 sources are in both the validation examples .*first: 's3'"):
        choose(table, test=[seen])
    with pytest.raises(ValueError, match="6 sources are in both"):
        choose(table, test=table)
    choose(table, test=[focus_toy.example(0, "a", "b", "test")])
    with pytest.raises(ValueError, match=r"both the fit and the test .*first: 'train-0'"):
        require_disjoint_sources(TRAIN, TRAIN[:1], ("fit", "test"))


def test_tables_that_cannot_be_chosen_from_are_refused(table: pd.DataFrame) -> None:
    for change, said in (
        (table.drop(columns="shift"), "lacks the columns"),
        (table.assign(success=math.nan), "NaN"),
        (table[~table["informative"]], "in no row of results"),
        (table[table["informative"]], "no examples whose features agree"),
        (table[table["method"] != "none"], "need rows without steering"),
        (table[table["method"] == "none"], "rows of a method"),
        (pd.concat([table, table.tail(1)]), "twice for one setting of 'vector'"),
    ):
        with pytest.raises(ValueError, match=said):
            choose(change)
    choose(table[table["informative"]], budget=FocusBudget(agreeing_drop=None))
    with pytest.raises(ValueError, match="text_ratio must be at least 1"):
        FocusBudget(text_ratio=0.9)
    for name in ("agreeing_drop", "inside_drop"):
        with pytest.raises(ValueError, match=f"{name} must lie between 0 and 1"):
            FocusBudget(**{name: 1.5})
    assert all(math.isnan(value) for value in interval("x", np.zeros(0), []).values())
