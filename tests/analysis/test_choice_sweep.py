"""Choosing (K, strength) on multiple choice: tables with answers known by hand, and a tiny model end to end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis import choice_sweep as module
from analysis.choice_selection import choose_setting, confirm_choice, optimism
from analysis.choice_sweep import Setting, choice_sweep, grid, unsteered
from analysis.pairs_curve import pairs_curve, take_pairs
from analysis.statistics import bootstrap_mean, mcnemar, paired_bootstrap
from lensteer.answers import Question, answer_pairs
from lensteer.contrast import contrast
from lensteer.evaluate.multiple_choice import multiple_choice
from lensteer.hooks import Add
from lensteer.methods import sadi
from lensteer.positions import STEPS, at
from lensteer.steering import Steering


def rows(method: str, correct: list[float], split: str = "validation", **setting: Any) -> pd.DataFrame:
    """One setting's rows: a score per question."""
    n = len(correct)
    where = {"k": 0, "layer": -1, "strength": 0.0, "seed": 0, **setting}
    texts = [f"{split} question {i}" for i in range(n)]
    return pd.DataFrame({"method": method, **where, "question_id": range(n), "prompt": texts, "correct": correct})


def joined(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def validation() -> pd.DataFrame:
    return joined(
        rows("A", [1, 1, 0, 0], k=1, strength=2.0),
        rows("A", [1, 1, 1, 0], k=1, strength=4.0),
        rows("none", [1, 0, 0, 0]),
        rows("A", [1, 0, 1, 0], k=2, strength=1.0),
        rows("B", [0, 1, 0, 0], layer=3, strength=1.0),
    )


@pytest.fixture
def held_out() -> pd.DataFrame:
    return joined(
        rows("none", [1, 1, 0, 0, 0, 0, 0, 0], "test"),
        rows("A", [1, 1, 1, 1, 1, 1, 0, 0], "test", k=1, strength=2.0),
        rows("A", [0, 1, 1, 1, 0, 0, 0, 0], "test", k=1, strength=4.0),
        rows("A", [1, 1, 0, 0, 0, 0, 0, 0], "test", k=2, strength=1.0),
        rows("B", [1, 1, 1, 0, 0, 0, 0, 0], "test", layer=3, strength=1.0),
    )


# --- choosing ------------------------------------------------------------------------------------------------------


def picked(table: pd.DataFrame) -> dict[str, tuple[int, int, float]]:
    chosen = table[table["chosen"]]
    assert not chosen["method"].duplicated().any()
    return {row.method: (row.k, row.layer, row.strength) for row in chosen.itertuples()}


def test_the_best_setting_of_each_method_is_chosen_and_no_steering_wins_ties(validation: pd.DataFrame) -> None:
    table = choose_setting(validation)
    assert picked(table) == {"A": (1, -1, 4.0), "B": (0, -1, 0.0)}
    accuracy = table.set_index(["method", "k", "layer", "strength"])["accuracy"].to_dict()
    assert accuracy == {
        **{("A", 0, -1, 0.0): 0.25, ("A", 1, -1, 2.0): 0.5, ("A", 1, -1, 4.0): 0.75, ("A", 2, -1, 1.0): 0.5},
        **{("B", 0, -1, 0.0): 0.25, ("B", 0, 3, 1.0): 0.25},
    }
    assert (table["unsteered"] == 0.25).all() and (table["n"] == 4).all()
    best = table[table["chosen"]].iloc[0]
    assert tuple(best[["accuracy", "accuracy_low", "accuracy_high"]]) == bootstrap_mean(np.array([1.0, 1, 1, 0]))


def test_ties_go_to_the_smaller_strength_then_the_smaller_k_then_the_positive_strength() -> None:
    none = rows("none", [0, 0])
    one = {"correct": [1, 0]}
    table = joined(none, *(rows("A", **one, k=k, strength=s) for k, s in [(1, 3.0), (4, 2.0), (2, -2.0), (2, 2.0)]))
    assert picked(choose_setting(table)) == {"A": (2, -1, 2.0)}
    layers = joined(none, *(rows("A", **one, layer=i, strength=1.0) for i in (9, 4, 7)))
    assert picked(choose_setting(layers)) == {"A": (0, 4, 1.0)}


def test_within_the_tolerance_the_weakest_setting_is_chosen(validation: pd.DataFrame) -> None:
    assert picked(choose_setting(validation, tolerance=0.25))["A"] == (2, -1, 1.0)
    assert picked(choose_setting(validation, tolerance=0.5))["A"] == (0, -1, 0.0)
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        choose_setting(validation, tolerance=-0.1)


def test_the_order_of_the_rows_does_not_matter(validation: pd.DataFrame, held_out: pd.DataFrame) -> None:
    shuffled, other = (table.sample(frac=1, random_state=1) for table in (validation, held_out))
    order = ["method", "k", "layer", "strength"]
    for rule in (confirm_choice, optimism):
        first, second = (rule(*tables).sort_values("method") for tables in ((validation, held_out), (shuffled, other)))
        pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))
    found = choose_setting(shuffled).sort_values(order).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, choose_setting(validation).sort_values(order).reset_index(drop=True))


def test_another_score_may_decide(validation: pd.DataFrame) -> None:
    scores = validation.assign(exact=1.0 * (validation["method"] == "B"))
    assert picked(choose_setting(scores, by="exact")) == {"A": (0, -1, 0.0), "B": (0, 3, 1.0)}


def test_seeds_are_averaged_before_the_choice() -> None:
    lucky = rows("random", [1, 1], k=1, strength=1.0, seed=0)
    table = joined(rows("none", [1, 0]), lucky, rows("random", [0, 0], k=1, strength=1.0, seed=1))
    chosen = choose_setting(table)
    assert chosen["accuracy"].tolist() == [0.5, 0.5]
    assert picked(chosen) == {"random": (0, -1, 0.0)}


# --- confirming ----------------------------------------------------------------------------------------------------


def test_the_choice_is_reported_on_the_test_questions_against_no_steering(
    validation: pd.DataFrame, held_out: pd.DataFrame
) -> None:
    inside = held_out.assign(probability_inside=0.5, said_inside=held_out["method"] == "A")
    table = confirm_choice(validation, inside).set_index("method")
    assert list(table.index) == ["none", "A", "B"]
    assert tuple(table.loc["A", ["k", "layer", "strength", "n", "validation"]]) == (1, -1, 4.0, 8, 0.75)
    steered, none = np.array([0.0, 1, 1, 1, 0, 0, 0, 0]), np.array([1.0, 1, 0, 0, 0, 0, 0, 0])
    own = table.loc["A"]
    assert tuple(own[["accuracy", "accuracy_low", "accuracy_high"]]) == bootstrap_mean(steered)
    assert tuple(own[["difference", "difference_low", "difference_high"]]) == paired_bootstrap(steered, none)
    assert own["p_value"] == mcnemar(steered, none).p_value == 1.0
    assert (own["probability_inside"], own["said_inside"]) == (0.5, 1.0)
    assert tuple(table.loc["B", ["k", "layer", "strength", "accuracy", "difference"]]) == (0, -1, 0.0, 0.25, 0.0)
    assert tuple(table.loc["none", ["validation", "accuracy", "difference"]]) == (0.25, 0.25, 0.0)
    assert math.isnan(table.loc["none", "p_value"])


def test_the_test_table_needs_the_chosen_settings_only(validation: pd.DataFrame, held_out: pd.DataFrame) -> None:
    few = held_out[(held_out["method"] == "none") | (held_out["strength"] == 4.0)]
    assert confirm_choice(validation, few)["accuracy"].tolist() == [0.25, 0.375, 0.25]
    with pytest.raises(ValueError, match=r"'A' \(K=1, strength 4\) was chosen .* not run on the test"):
        confirm_choice(validation, held_out[held_out["strength"] < 4.0])


# --- optimism ------------------------------------------------------------------------------------------------------


def test_optimism_is_the_best_on_the_test_questions_less_the_confirmed_accuracy(
    validation: pd.DataFrame, held_out: pd.DataFrame
) -> None:
    table = optimism(validation, held_out).set_index("method")
    columns = ["settings", "n", "best", "honest", "optimism"]
    assert tuple(table.loc["A", columns]) == (4, 8, 0.75, 0.375, 0.375)
    assert tuple(table.loc["B", columns]) == (2, 8, 0.375, 0.25, 0.125)
    assert (table["optimism_low"] <= table["optimism"]).all() and (table["optimism"] <= table["optimism_high"]).all()
    assert (table["optimism_low"] >= 0).all()


def test_a_grid_that_changes_nothing_has_no_optimism() -> None:
    tables = [
        joined(rows("none", own, split), rows("A", own, split, k=1, strength=1.0))
        for split, own in (("validation", [1, 0, 1]), ("test", [0, 1, 1, 0]))
    ]
    assert optimism(*tables)[["optimism", "optimism_low", "optimism_high"]].to_numpy().tolist() == [[0, 0, 0]]


def test_choosing_among_coin_flips_on_the_test_questions_flatters_and_the_number_says_so() -> None:
    draw = np.random.default_rng(0)

    def flips(split: str) -> pd.DataFrame:
        tossed = [draw.integers(0, 2, 200).tolist() for _ in range(41)]
        steered = [rows("A", own, split, k=k, strength=1.0) for k, own in enumerate(tossed[1:], start=1)]
        return joined(rows("none", tossed[0], split), *steered)

    validation, test = flips("validation"), flips("test")
    (row,) = optimism(validation, test).to_dict("records")
    # The best of 41 rates of 200 flips lies about 2.2 standard deviations (0.035) above 0.5; nothing is there to find.
    assert row["best"] == pytest.approx(0.576, abs=0.03)
    assert row["honest"] == pytest.approx(0.5, abs=0.1)
    assert row["optimism_low"] < 0.08 < row["optimism_high"]
    assert row["optimism_low"] > 0


# --- bad tables ----------------------------------------------------------------------------------------------------


def test_tables_that_cannot_decide_are_refused(validation: pd.DataFrame, held_out: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"lacks the columns \['exact'\]"):
        choose_setting(validation, by="exact")
    with pytest.raises(ValueError, match="NaN, infinite or non-numeric values in column 'correct'"):
        choose_setting(validation.assign(correct=math.nan))
    with pytest.raises(ValueError, match="needs rows without steering"):
        choose_setting(validation[validation["method"] != "none"])
    with pytest.raises(ValueError, match=r"needs rows without steering .* and rows of a method"):
        choose_setting(validation[validation["method"] == "none"])
    with pytest.raises(ValueError, match="no steering is method 'none'"):
        choose_setting(joined(validation, rows("C", [1, 1, 1, 1], k=1)))
    with pytest.raises(ValueError, match="no steering is method 'none'"):
        choose_setting(joined(validation, rows("none", [1, 1, 1, 1], k=1)))
    with pytest.raises(ValueError, match=r"'A' \(K=1, strength 2\) has 3 of the 4 validation questions"):
        choose_setting(validation.drop(index=1))
    with pytest.raises(ValueError, match=r"1 rows that repeat a setting and question; first: question 1 of 'A'"):
        choose_setting(joined(validation, validation.iloc[[1]]))
    with pytest.raises(ValueError, match="validation must hold validation rows only"):
        choose_setting(validation.assign(split="test"))
    with pytest.raises(ValueError, match="test must hold test rows only"):
        confirm_choice(validation, held_out.assign(split="validation"))


@pytest.mark.parametrize("rule", [confirm_choice, optimism])
def test_questions_in_both_tables_are_refused(rule: Any, validation: pd.DataFrame, held_out: pd.DataFrame) -> None:
    same = held_out.assign(prompt=held_out["prompt"].replace("test question 2", " VALIDATION  question 3\n"))
    with pytest.raises(ValueError, match=r"1 prompts are in both .*VALIDATION  question 3"):
        rule(validation, same)


def test_optimism_needs_the_same_grid_in_both_tables(validation: pd.DataFrame, held_out: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"same settings; 1 are in one only \(first: 'B' \(layer 3, strength 1\)\)"):
        optimism(validation, held_out[held_out["method"] != "B"])


@pytest.mark.parametrize(("options", "message"), [({"n_resamples": 0}, "n_resamples"), ({"level": 1.0}, "level")])
def test_an_interval_of_nothing_is_refused(
    options: dict[str, Any], message: str, validation: pd.DataFrame, held_out: pd.DataFrame
) -> None:
    for rule in (confirm_choice, optimism):
        with pytest.raises(ValueError, match=f"{message} must"):
            rule(validation, held_out, **options)


# --- sweeping a model ----------------------------------------------------------------------------------------------

TEXTS = ["One and one is", "Grass is", "The sea is full of", "Up is not", "A cat says", "Snow is", "Two is"]
OPTIONS = [
    ("two", "three"),
    ("green", "red", "a tree"),
    ("water", "sand"),
    ("down", "up"),
    ("meow", "woof"),
    ("white", "black"),
    ("one", "more"),
]
QUESTIONS = [Question(TEXTS[i], OPTIONS[i], (i % 2,), group="odd" if i % 2 else "even") for i in range(len(TEXTS))]
QUIET: dict[str, Any] = {"progress": False}


def push(layer: int, strength: float) -> Steering:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(layer))
    return Steering([(f"blocks.{layer}.hook_resid_post", at(Add(vector, strength), STEPS))])


@pytest.fixture(scope="module")
def heads(llama: Any) -> sadi.SADI:
    asked = [Question(f"Say {i}:", ("yes", "no"), (i % 2,)) for i in range(6)]
    return sadi.fit(llama.model, answer_pairs(asked), "head", progress=False)


@pytest.fixture(scope="module")
def settings(llama: Any, heads: sadi.SADI) -> Any:
    """What an analyst writes: a frozen grid, made for the questions at hand, beside settings that hold for all."""

    def make(questions: Any) -> list[Setting]:
        clean = heads.read(llama.model, [q.prompt for q in questions], prompt_format="plain")
        frozen = grid("SADI", lambda k, s: heads.steering(k, s, clean=clean), ks=[1, 3], strengths=[2.0, 6.0])
        return [unsteered(), *frozen, *grid("CAA", push, layers=[1, 2], strengths=[-3, 3])]

    return make


@pytest.fixture(scope="module")
def expected(llama: Any, settings: Any) -> pd.DataFrame:
    """One setting at a time, one question at a time."""
    tables = []
    for i, question in enumerate(QUESTIONS):
        for setting in settings([question]):
            (found,) = multiple_choice(llama.model, [question], setting.steering, **QUIET).to_dict("records")
            odds = [v for j, v in enumerate(found["log_likelihoods"]) if j in question.right]
            others = [v for j, v in enumerate(found["log_likelihoods"]) if j not in question.right]
            where = {key: getattr(setting, key) for key in ("method", "k", "layer", "strength")}
            names = ["correct", "correct_normalised", "exact", "probability_inside", "said_inside"]
            scores = {name: found[name] for name in names}
            tables.append({**where, "question_id": i, **scores, "log_odds": max(odds) - max(others)})
    return pd.DataFrame(tables)


def require_equal(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    order = ["method", "k", "layer", "strength", "question_id"]
    first, second = (t.sort_values(order).reset_index(drop=True)[list(expected)] for t in (found, expected))
    pd.testing.assert_frame_equal(first, second, rtol=1e-4, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("size", [1, 3, 32])
def test_a_sweep_equals_one_setting_and_one_question_at_a_time(
    llama: Any, settings: Any, expected: pd.DataFrame, size: int
) -> None:
    found = choice_sweep(llama.model, settings, QUESTIONS, chunk_size=size, **QUIET)
    require_equal(found, expected)
    assert found["log_odds"].round(4).nunique() > 40  # the settings do differ
    assert found["prompt"].tolist() == TEXTS * 9
    assert found["group"].tolist() == ["even", "odd", "even", "odd", "even", "odd", "even"] * 9
    assert found["method"].drop_duplicates().tolist() == ["none", "SADI", "CAA"]


def test_settings_may_be_a_list_with_a_row_for_every_question(
    llama: Any, settings: Any, expected: pd.DataFrame
) -> None:
    require_equal(choice_sweep(llama.model, settings(QUESTIONS), QUESTIONS, chunk_size=3, **QUIET), expected)


def test_a_sweep_goes_from_questions_to_a_reported_choice(llama: Any, settings: Any) -> None:
    validation, test = (choice_sweep(llama.model, settings, part, **QUIET) for part in (QUESTIONS[:4], QUESTIONS[4:]))
    report = confirm_choice(validation, test)
    assert report["method"].tolist() == ["none", "SADI", "CAA"]
    assert {"probability_inside", "said_inside"} <= set(report)
    assert optimism(validation, test)["settings"].tolist() == [5, 5]


def calls_of(monkeypatch: pytest.MonkeyPatch, fail_at: int = 99) -> list[int]:
    """How many settings every run of a chunk is asked for; one call may fail, as if it had been killed."""
    run, calls = module.multiple_choice_grid, []

    def counting(model: Any, questions: Any, steerings: Any, **options: Any) -> Any:
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append(len(steerings))
        return run(model, questions, steerings, **options)

    monkeypatch.setattr(module, "multiple_choice_grid", counting)
    return calls


def test_a_killed_sweep_goes_on_where_it_stopped(
    llama: Any, settings: Any, expected: pd.DataFrame, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"chunk_size": 3, "cache": tmp_path, **QUIET}
    with monkeypatch.context() as patch:
        calls = calls_of(patch, fail_at=2)
        with pytest.raises(KeyboardInterrupt):
            choice_sweep(llama.model, settings, QUESTIONS, **options)
        assert calls == [9, 9]
    with monkeypatch.context() as patch:
        calls = calls_of(patch)
        require_equal(choice_sweep(llama.model, settings, QUESTIONS, **options), expected)
        assert calls == [9]
    with monkeypatch.context() as patch:
        calls = calls_of(patch)
        require_equal(choice_sweep(llama.model, settings, QUESTIONS, **options), expected)
        assert calls == []
        more = [unsteered(), *grid("CAA", push, layers=[2, 3], strengths=[3])]
        choice_sweep(llama.model, more, QUESTIONS, **options)
        assert calls == [1, 1, 1]  # one of the three is new
        choice_sweep(llama.model, more, QUESTIONS, length="characters", **options)
        assert calls == [1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" + b, lambda b: b.replace(b"exact", b"x")]
)
def test_a_damaged_cache_is_run_again(
    llama: Any, settings: Any, expected: pd.DataFrame, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    options = {"chunk_size": 3, "cache": tmp_path, **QUIET}
    choice_sweep(llama.model, settings, QUESTIONS, **options)
    files = sorted(tmp_path.glob("*"))
    assert len(files) == 3
    files[0].write_bytes(damage(files[0].read_bytes()))
    calls = calls_of(monkeypatch)
    require_equal(choice_sweep(llama.model, settings, QUESTIONS, **options), expected)
    assert len(calls) == 1


def test_steerings_that_do_the_same_are_run_once(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(monkeypatch)
    same = [unsteered(), Setting("other", k=1, strength=1.0), *grid("CAA", push, layers=[1], strengths=[2, 3])]
    choice_sweep(llama.model, same, QUESTIONS, **QUIET)
    assert calls == [3]


def test_a_question_with_right_options_only_has_no_log_odds(llama: Any) -> None:
    found = choice_sweep(llama.model, [unsteered()], [Question("Say", ("a", "b"), (0, 1))], **QUIET)
    assert math.isnan(found["log_odds"].item()) and found["correct"].item()


def test_bad_sweeps_are_refused_before_any_work(llama: Any, settings: Any, forwards: Any, tmp_path: Any) -> None:
    model, long = llama.model, Question("x" * 127, ("yes", "no"), (0,))
    clean = [Setting("SADI", 1, -1, 2.0, settings(QUESTIONS)[1].steering)]
    (tmp_path / "file").write_text("")
    for setting in settings(QUESTIONS):
        setting.steering.points(model)  # a model's points are looked at once, with passes of their own
    with forwards(llama) as calls:
        for arguments, message in (
            (([], QUESTIONS), "no settings were given"),
            (([unsteered()], []), "no questions"),
            (([unsteered(), unsteered()], QUESTIONS), r"2 settings have the same name \(method='none', k=0"),
            ((clean, QUESTIONS[:2]), "7 prompts, but 2"),
            (([unsteered()], [*QUESTIONS, long]), "question 7"),
        ):
            with pytest.raises(ValueError, match=message):
                choice_sweep(model, *arguments, **QUIET)
        wide = Steering([("blocks.1.hook_resid_post", Add(torch.ones(5)))])
        with pytest.raises(ValueError, match=r"shape \(5,\)"):
            choice_sweep(model, [Setting("wide", layer=1, strength=1.0, steering=wide)], QUESTIONS, **QUIET)
        with pytest.raises(ValueError, match="chunk_size must be at least 1"):
            choice_sweep(model, [unsteered()], QUESTIONS, chunk_size=0, **QUIET)
        with pytest.raises(OSError, match="cannot write"):
            choice_sweep(model, [unsteered()], QUESTIONS, cache=tmp_path / "file", **QUIET)
        with push(1, 2.0).on(model), pytest.raises(ValueError, match="being steered"):
            choice_sweep(model, [unsteered()], QUESTIONS, cache=tmp_path, **QUIET)
    assert calls == []
    with pytest.raises(ValueError, match="must always give the same"):
        changing = iter([[unsteered()], [Setting("other", k=1, strength=1.0)]])
        choice_sweep(model, lambda _: next(changing), QUESTIONS, chunk_size=4, **QUIET)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: [push(1, 1.0)], r"setting 0 is of type Steering, not Setting; give a steering a name: Setting\("),
        (
            lambda: [unsteered(), grid("A", push, ks=1, strengths=1)],
            r"setting 1 is of type list, not Setting; .*put a star before it",
        ),
        (lambda: {"A": push(1, 1.0)}, r"settings must be a list such as .*, got dict"),
        (lambda: push(1, 1.0), r"settings must be a list such as .*, got Steering"),
        (unsteered, r"settings must be a list such as .*, got Setting"),
        (lambda: lambda chunk: [None], r"setting 0 is of type NoneType, not Setting"),
    ],
)
def test_what_is_no_list_of_settings_is_refused(llama: Any, settings: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        choice_sweep(llama.model, settings(), QUESTIONS, **QUIET)


def test_settings_may_come_from_a_generator(llama: Any) -> None:
    found = choice_sweep(llama.model, iter([unsteered()]), QUESTIONS[:3], chunk_size=2, **QUIET)
    require_equal(found, choice_sweep(llama.model, [unsteered()], QUESTIONS[:3], **QUIET))


def test_a_grid_of_one_value_needs_no_list() -> None:
    assert [setting.label for setting in grid("A", push, ks=4, strengths=1.0)] == [("A", 4, -1, 1.0, 0)]
    for options in ({"ks": "4"}, {"ks": [1.5]}, {"layers": ["x"]}):
        with pytest.raises(TypeError, match=r"in the grid of 'A' must be a list of whole numbers, or one"):
            grid("A", push, strengths=1, **options)
    with pytest.raises(TypeError, match=r"strengths='big' in the grid of 'A' must be a list of numbers, or one"):
        grid("A", push, ks=1, strengths="big")  # type: ignore[arg-type]


def test_a_grid_is_every_place_with_every_strength() -> None:
    found = grid("CAA", push, layers=iter([0, 2]), strengths=iter([1, -2]))
    assert [setting.label[1:4] for setting in found] == [(0, 0, 1.0), (0, 0, -2.0), (0, 2, 1.0), (0, 2, -2.0)]
    assert found[3].steering.content_hash() == push(2, -2.0).content_hash()
    by_k = grid("ITI", push, ks=[3], strengths=[2], seed=5)
    assert by_k[0].label == ("ITI", 3, -1, 2.0, 5)


def test_bad_grids_are_refused() -> None:
    for options, message in (
        ({"strengths": [1]}, "over ks= or over layers="),
        ({"strengths": [1], "ks": [1], "layers": [1]}, "over ks= or over layers="),
        ({"strengths": [], "ks": [1]}, "needs values"),
        ({"strengths": [1], "ks": []}, "needs values"),
        ({"strengths": [1], "ks": [0]}, "K=0 .* too small"),
        ({"strengths": [1], "layers": [-1]}, "layer=-1 .* too small"),
        ({"strengths": [0.0], "ks": [1]}, "no steering is a setting of its own"),
        ({"strengths": [math.inf], "ks": [1]}, "strength inf"),
    ):
        with pytest.raises(ValueError, match=message):
            grid("A", push, **options)
    with pytest.raises(ValueError, match="without steering"):
        grid("none", push, ks=[1], strengths=[1])


# --- number of pairs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(llama: Any) -> Any:
    asked = [Question(f"Say {i}:", ("yes", "no"), (i % 2,)) for i in range(6)]
    return contrast(llama.model, answer_pairs(asked), ["z", "resid_post"], **QUIET)


def test_some_pairs_of_a_contrast_are_as_if_only_these_had_been_read(llama: Any, seen: Any) -> None:
    part = take_pairs(seen, [1, 4])
    alone = contrast(llama.model, [seen.pairs[1], seen.pairs[4]], ["z", "resid_post"], **QUIET)
    for site in ("z", "resid_post"):
        for found, expected in zip(part.activations(site), alone.activations(site), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert part.metadata == alone.metadata
    assert list(part.pairs) == list(alone.pairs)


def mean_difference(part: Any) -> Steering:
    positive, negative = part.activations("resid_post")
    vector = (positive - negative).mean(1)[2]
    return Steering([("blocks.2.hook_resid_post", at(Add(vector, 2.0), STEPS))])


def test_every_point_of_the_curve_is_a_fit_on_so_many_pairs(
    llama: Any, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []

    def make(part: Any) -> Steering:
        parts.append(list(part.pairs))
        return mean_difference(part)

    calls = calls_of(monkeypatch)
    table = pairs_curve(
        llama.model, seen, make, QUESTIONS, n_pairs=[2, 4, 6], seeds=[0, 1], by="log_odds", n_resamples=50, **QUIET
    )
    assert table[["n_pairs", "seed"]].apply(tuple, axis=1).tolist() == [
        (0, 0),
        (2, 0),
        (2, 1),
        (4, 0),
        (4, 1),
        (6, 0),
        (6, 1),
    ]
    assert set(parts[0]) < set(parts[1]) < set(parts[2])  # a seed's draws are nested
    assert parts[0] != parts[3]
    assert calls == [1 + 5]  # all pairs give one fit, whatever the seed
    for row, pairs in zip(table.iloc[[1, 3, 5, 2, 4, 6]].to_dict("records"), parts, strict=True):
        steering = mean_difference(contrast(llama.model, pairs, "resid_post", **QUIET))
        alone = choice_sweep(llama.model, [Setting("x", k=2, strength=5.0, steering=steering)], QUESTIONS, **QUIET)
        assert row["accuracy"] == pytest.approx(alone["log_odds"].mean(), abs=1e-4)
        assert row["low"] <= row["accuracy"] <= row["high"]
    unsteered_odds = choice_sweep(llama.model, [unsteered()], QUESTIONS, **QUIET)["log_odds"].mean()
    assert table["accuracy"][0] == pytest.approx(unsteered_odds, abs=1e-4)


def test_draws_may_hold_every_kind_of_pair_in_its_share(llama: Any, seen: Any) -> None:
    # Kinds: four of the six pairs and two of them, so a share of 2 : 1.
    kinds = {pair: "rare" if i in (1, 4) else "common" for i, pair in enumerate(seen.pairs)}
    parts = []

    def make(part: Any) -> Steering:
        parts.append([kinds[pair] for pair in part.pairs])
        return mean_difference(part)

    options = {"n_pairs": [3, 6], "by": "log_odds", "n_resamples": 50, **QUIET}
    for balance, least, most in ((kinds.__getitem__, 1, 1), (None, 0, 2)):
        parts.clear()
        pairs_curve(llama.model, seen, make, QUESTIONS[:2], seeds=range(10), balance=balance, **options)
        found = {part.count("rare") for part in parts if len(part) == 3}
        assert (min(found), max(found)) == (least, most)
        assert {part.count("rare") for part in parts if len(part) == 6} == {2}


def test_a_curve_of_frozen_steerings_makes_them_for_the_questions_at_hand(llama: Any, seen: Any) -> None:
    def make(part: Any) -> Any:
        fitted = sadi.from_contrast(part)

        def steering(questions: Any) -> Steering:
            clean = fitted.read(llama.model, [q.prompt for q in questions], prompt_format="plain")
            return fitted.steering(2, 5.0, clean=clean)

        return steering

    options = {"n_pairs": [6], "seeds": [0], "n_resamples": 50, **QUIET}
    table = pairs_curve(llama.model, seen, make, QUESTIONS, chunk_size=3, by="log_odds", **options)
    steering = make(seen)(QUESTIONS)
    alone = choice_sweep(llama.model, [Setting("x", k=2, strength=5.0, steering=steering)], QUESTIONS, **QUIET)
    assert table["accuracy"][1] == pytest.approx(alone["log_odds"].mean(), abs=1e-4)


def test_bad_curves_are_refused(llama: Any, seen: Any, forwards: Any) -> None:
    def make(part: Any) -> Steering:
        raise AssertionError("nothing may be fitted")

    with forwards(llama) as calls:
        for options, message in (
            ({"n_pairs": [7]}, "n_pairs=7: there are 6 pairs"),
            ({"n_pairs": [0]}, "n_pairs=0"),
            ({"n_pairs": []}, "needs numbers of pairs and seeds"),
            ({"n_pairs": [2], "seeds": []}, "needs numbers of pairs and seeds"),
        ):
            with pytest.raises(ValueError, match=message):
                pairs_curve(llama.model, seen, make, QUESTIONS, **options)
        again = [*QUESTIONS, Question(" say  3:", ("a", "b"), (0,))]
        with pytest.raises(ValueError, match=r"1 of the 8 questions .* ' say  3:'"):
            pairs_curve(llama.model, seen, make, again, n_pairs=[2])
    assert calls == []
    moments = contrast(llama.model, list(seen.pairs), "z", reduce="moments", **QUIET)
    with pytest.raises(ValueError, match="only moments were kept"):
        pairs_curve(llama.model, moments, make, QUESTIONS, n_pairs=[2])
    with pytest.raises(ValueError, match="by='mc1'"):
        pairs_curve(llama.model, seen, lambda part: push(1, 1.0), QUESTIONS, n_pairs=[2], by="mc1", **QUIET)
