"""A study of key elements on a tiny model: every number in it again by the calls it is made of, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import analysis.element_study as module
from analysis.choice_selection import choose_setting, confirm_choice, optimism
from analysis.element_study import ElementSize, ElementStudy, add_to_report, element_study, short_table
from analysis.key_elements import criteria
from analysis.patching import activation_patching, attribution_patching
from analysis.report import Report
from lensteer.answers import Question, answer_pairs
from lensteer.contrast import contrast
from lensteer.evaluate.multiple_choice import multiple_choice
from lensteer.hooks import Add
from lensteer.methods import contrastive, iti, sadi
from lensteer.positions import STEPS
from lensteer.steering import Steering

SIZE = ElementSize(ks=(1, 3), strengths=(1.0, 4.0), layers=(1, 2), patched_heads=5, patched_pairs=3, random_seeds=2)
SMALLEST = ElementSize(ks=(2,), strengths=(4.0,), layers=(1,), patched_heads=3, patched_pairs=2)
QUIET: dict[str, Any] = {"progress": False}
SETTING = ["method", "k", "layer", "strength"]


def ask(start: int, n: int) -> list[Question]:
    words = ("good", "bad", "fine")
    return [Question(f"Item {i} is", words[: 2 + i % 2], (i % 2,)) for i in range(start, start + n)]


QUESTIONS = {"fit": ask(0, 8), "validation": ask(20, 5), "test": ask(40, 6)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(llama: Any, folder: Path) -> ElementStudy:
    return element_study(llama.model, QUESTIONS, folder, name="items", by="correct", size=SIZE, **QUIET)


@pytest.fixture(scope="module")
def seen(llama: Any) -> Any:
    return contrast(llama.model, answer_pairs(QUESTIONS["fit"]), ["z", "resid_post"], **QUIET)


# --- what is in it -------------------------------------------------------------------------------------------------


def test_every_question_was_asked_under_every_setting(study: ElementStudy) -> None:
    over_k = {(k, -1, s) for k in SIZE.ks for s in SIZE.strengths}
    expected = {
        "none": {(0, -1, 0.0)},
        **dict.fromkeys(("SADI head", "random head", "fixed head"), over_k),
        "ITI": {(k, -1, 5 * s) for k, _, s in over_k},
        "CAA": {(0, layer, s) for layer in SIZE.layers for s in SIZE.strengths},
    }
    for split, table in (("validation", study.validation), ("test", study.test)):
        assert set(table["split"]) == {split}
        assert {
            name: set(zip(own.k, own.layer, own.strength, strict=True)) for name, own in table.groupby("method")
        } == (expected)
        for _, own in table.groupby([*SETTING, "seed"]):
            assert own["prompt"].tolist() == [question.prompt for question in QUESTIONS[split]]
        assert set(table.loc[table["method"] == "random head", "seed"]) == {0, 1}
    assert not set(study.validation["prompt"]) & set(study.test["prompt"])
    assert len(study.results) == len(study.validation) + len(study.test)
    assert (study.name, study.by) == ("items", "correct")


def test_unsteered_rows_are_a_plain_multiple_choice_call(llama: Any, study: ElementStudy) -> None:
    for split, table in (("validation", study.validation), ("test", study.test)):
        require_same(table[table["method"] == "none"], multiple_choice(llama.model, QUESTIONS[split], **QUIET))


def require_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    for column in ("correct", "correct_normalised", "exact", "said_inside", "probability_inside"):
        assert found[column].tolist() == pytest.approx(expected[column].tolist(), abs=1e-5), column


def test_steered_rows_are_what_each_method_gives_on_its_own(llama: Any, study: ElementStudy, seen: Any) -> None:
    fitted = sadi.from_contrast(seen)
    clean = fitted.read(llama.model, [question.prompt for question in QUESTIONS["test"]])
    makers: dict[str, Callable[[int, float], Steering]] = {
        "SADI head": lambda k, s: fitted.steering(k, s, clean=clean),
        "random head": lambda k, s: fitted.random(1).steering(k, s, clean=clean),
        "fixed head": fitted.fixed,
        "ITI": lambda k, s: iti.from_contrast(seen, **QUIET).steering(k, 5 * s, tokens="last"),
        "CAA": lambda layer, s: contrastive.caa(seen).add(layer, s, tokens="last"),
    }
    for method, make in makers.items():
        place, where = (2, "layer") if method == "CAA" else (3, "k")
        strength = 20.0 if method == "ITI" else 4.0
        own = study.test[(study.test["method"] == method) & (study.test["strength"] == strength)]
        own = own[(own[where] == place) & (own["seed"] == int(method == "random head"))]
        require_same(own, multiple_choice(llama.model, QUESTIONS["test"], make(place, 4.0), **QUIET))


def test_the_choice_is_that_of_the_validation_questions(study: ElementStudy) -> None:
    tables = (study.validation, study.test)
    pd.testing.assert_frame_equal(study.candidates, choose_setting(study.validation, by="correct"))
    pd.testing.assert_frame_equal(study.confirmed, confirm_choice(*tables, by="correct"))
    pd.testing.assert_frame_equal(study.optimism, optimism(*tables, by="correct"))
    assert study.confirmed["method"].tolist() == ["none", "SADI head", "random head", "fixed head", "ITI", "CAA"]
    tried = {tuple(row) for row in study.candidates[SETTING].itertuples(index=False)}
    assert {tuple(row) for row in study.confirmed[SETTING].iloc[1:].itertuples(index=False)} <= tried
    for row in study.confirmed.itertuples():
        own = study.test[(study.test["method"] == (row.method if row.strength else "none"))]
        own = own[(own["k"] == row.k) & (own["layer"] == row.layer) & (own["strength"] == row.strength)]
        assert row.accuracy == pytest.approx(own["correct"].mean())
        assert row.n == len(QUESTIONS["test"])


def test_the_scores_of_heads_are_those_of_each_criterion(llama: Any, study: ElementStudy, seen: Any) -> None:
    pairs = answer_pairs(QUESTIONS["fit"])
    expected = dict(criteria(seen, "head", ("signed", "abs", "effect_size", "abs_auroc"), **QUIET).scores)
    expected["probe"] = iti.from_contrast(seen, **QUIET).accuracy
    expected["attribution"] = attribution_patching(llama.model, pairs, **QUIET).abs()
    assert list(study.found.scores) == list(expected)
    for name, scores in expected.items():
        torch.testing.assert_close(study.found.scores[name], scores.double(), rtol=1e-5, atol=1e-6)
    few = pairs[: SIZE.patched_pairs]
    patched = activation_patching(llama.model, few, sample=SIZE.patched_heads, **QUIET)
    table = study.patching.table
    assert table[["layer", "element"]].equals(patched[["layer", "element"]]) and len(table) == SIZE.patched_heads
    assert table["effect"].tolist() == pytest.approx(patched["effect"].tolist(), abs=1e-5)
    attribution = attribution_patching(llama.model, few, **QUIET)
    wanted = [attribution[i, j].item() for i, j in zip(table["layer"], table["element"], strict=True)]
    assert table["attribution"].tolist() == pytest.approx(wanted, abs=1e-5)


# --- again, and other elements -------------------------------------------------------------------------------------


def test_a_second_run_reads_its_folder_and_never_runs_the_model(
    llama: Any, study: ElementStudy, folder: Path, forwards: Any
) -> None:
    said: list[str] = []
    with forwards(llama) as calls:
        again = element_study(
            llama.model, QUESTIONS, folder, name="items", by="correct", size=SIZE, say=said.append, **QUIET
        )
    assert calls == []
    for name in ("validation", "test", "candidates", "confirmed", "optimism"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(study, name))
    pd.testing.assert_frame_equal(again.patching.table, study.patching.table)
    assert all(torch.equal(again.found.scores[name], scores) for name, scores in study.found.scores.items())
    assert [message.split(":")[0] for message in said] == ["items", "items"]
    assert "8 right and wrong answers" in said[0] and "5 validation and 6 test questions" in said[1]


def test_other_pairs_or_seeds_are_patched_anew(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        module, "activation_patching", lambda *a, **more: calls.append(a) or activation_patching(*a, **more)
    )
    pairs = answer_pairs(QUESTIONS["fit"])
    plan = [(pairs, SMALLEST, 0), (pairs[1:], SMALLEST, 0), (pairs, replace(SMALLEST, patched_heads=4), 0)]
    plan += [(pairs, replace(SMALLEST, patched_pairs=3), 0), (pairs, SMALLEST, 1)]
    for own, size, seed in [*plan, *plan]:
        module._patching(llama.model, own, size, tmp_path, seed, False)
    assert len(calls) == len(plan)


def test_several_elements_have_a_grid_each_and_the_controls_are_of_the_first(llama: Any, tmp_path: Path) -> None:
    size = replace(SMALLEST, elements=("neuron", "head"))
    found = element_study(llama.model, QUESTIONS, tmp_path, size=size, **QUIET)
    assert found.by == "exact"
    assert found.confirmed["method"].tolist() == ["none", "SADI neuron", "SADI head", "random neuron", "ITI", "CAA"]
    pd.testing.assert_frame_equal(found.candidates, choose_setting(found.validation, by="exact"))
    titles = figure_count(add_to_report(Report("Heads"), found))
    assert titles == 6  # a map for each of the two elements


@pytest.mark.parametrize("tokens", ["last", STEPS])
def test_every_method_acts_at_the_same_tokens(llama: Any, seen: Any, tmp_path: Path, tokens: Any) -> None:
    size, fitted, probes = replace(SMALLEST, tokens=tokens), sadi.from_contrast(seen), iti.from_contrast(seen, **QUIET)
    clean = fitted.read(llama.model, [question.prompt for question in QUESTIONS["test"]])
    expected = {
        "SADI head": fitted.steering(2, 4.0, clean=clean, tokens=tokens),
        "random head": fitted.random(0).steering(2, 4.0, clean=clean, tokens=tokens),
        "fixed head": fitted.fixed(2, 4.0, tokens=tokens),
        "ITI": probes.steering(2, 20.0, tokens=tokens),
        "CAA": contrastive.caa(seen).add(1, 4.0, tokens=tokens),
    }
    made = module._settings(llama.model, seen, probes, size, 0, tmp_path)(QUESTIONS["test"])
    assert [setting.method for setting in made] == ["none", *expected]
    for setting in made[1:]:
        assert setting.steering.content_hash() == expected[setting.method].content_hash(), setting.method


def test_elements_have_numbers_of_their_own_and_neurons_of_a_plain_mlp_a_fixed_push(gpt2: Any, tmp_path: Path) -> None:
    read = contrast(gpt2.model, answer_pairs(QUESTIONS["fit"]), ["z", "neuron", "resid_post"], **QUIET)
    probes = iti.from_contrast(read, **QUIET)
    for ks, heads in (({"neuron": (2, 200), "head": (3,)}, {3}), ({"neuron": (2, 5)}, {2, 5})):
        size = replace(SMALLEST, elements=("neuron",), ks=ks)
        size.require_possible(gpt2.model)
        made = module._settings(gpt2.model, read, probes, size, 0, tmp_path)(QUESTIONS["test"])
        found = {name: {own.k for own in made if own.method == name} for name in [own.method for own in made]}
        over = set(ks["neuron"])
        expected = {"SADI neuron": over, "random neuron": over, "fixed neuron": over, "ITI": heads}
        assert found == {"none": {0}, **expected, "CAA": {0}}


# --- how it is shown -----------------------------------------------------------------------------------------------


def figure_count(report: Report) -> int:
    return report.html().count("<figure>")


def test_the_short_table_says_what_was_chosen_and_what_it_gives(study: ElementStudy) -> None:
    rows = {
        "method": ["none", "SADI head", "CAA", "ITI"],
        "k": [0, 4, 0, 0],
        "layer": [-1, -1, 0, -1],
        "strength": [0.0, 1.5, 2.0, 0.0],
        "accuracy": [0.5, 0.625, 0.25, 0.5],
        "accuracy_low": [0.25, 0.5, 0.125, 0.25],
        "accuracy_high": [0.75, 0.875, 0.5, 0.75],
        "difference": [0.0, 0.125, -0.25, 0.0],
        "difference_low": [0.0, -0.125, -0.5, 0.0],
        "difference_high": [0.0, 0.375, 0.0, 0.0],
        "said_inside": [1.0, 0.75, 0.5, 1.0],
    }
    table = short_table(replace(study, confirmed=pd.DataFrame(rows)))
    assert list(table) == ["method", "at", "correct", "against none", "inside the options"]
    assert table["at"].tolist() == ["", "K = 4, 1.5", "layer 0, 2", ""]
    assert table.iloc[1].tolist()[2:] == ["0.62 [0.50, 0.88]", "+0.12 [-0.12, +0.38]", "0.75"]
    assert "exact" in short_table(replace(study, by="exact"))
    assert short_table(study)["method"].tolist() == study.confirmed["method"].tolist()


@pytest.mark.parametrize(("by", "meaning"), [("exact", "of all it could say"), ("correct", "of the options")])
def test_the_report_says_what_was_scored_and_has_its_figures(study: ElementStudy, by: str, meaning: str) -> None:
    report = add_to_report(Report("Heads"), replace(study, by=by))
    page = report.html()
    assert "Key elements: heads for items" in page
    assert f"<strong>{by}</strong>" in page and meaning in page
    assert page.count("<table") == 2 and figure_count(report) == 5
    for method in study.confirmed["method"]:
        assert method in page


def test_a_model_of_few_heads_has_a_report_as_well(study: ElementStudy) -> None:
    few = {name: scores[:1] for name, scores in study.found.scores.items()}
    report = add_to_report(Report("Heads"), replace(study, found=replace(study.found, scores=few)))
    assert figure_count(report) == 5


# --- errors --------------------------------------------------------------------------------------------------------


def bad(**splits: Any) -> dict[str, Any]:
    return {name: own for name, own in (QUESTIONS | splits).items() if own is not None}


@pytest.mark.parametrize(
    ("questions", "options", "message"),
    [
        (bad(test=None), {}, "need the splits fit, validation, test; test is missing"),
        (bad(fit=None, validation=None), {}, "fit, validation is missing"),
        (bad(test=ask(24, 6)), {}, r"1 prompts are in both the validation questions and the test questions.*Item 24"),
        (bad(validation=ask(6, 4)), {}, "2 prompts are in both the fit questions and the validation questions"),
        (bad(test=[Question(" item  3 IS", ("a", "b"), 0)]), {}, "both the fit questions and the test questions"),
        (bad(fit=[]), {}, "no questions were given"),
        (bad(test=[Question("Long " * 40, ("a", "b"), 0)]), {}, r"question 0 .*context of 128"),
        (bad(fit=[Question("All right:", ("a", "b"), (0, 1))]), {}, "nothing to contrast"),
        (QUESTIONS, {"by": "said"}, r"by must be one of .*'exact', 'correct'.*, got 'said'"),
        (QUESTIONS, {"size": replace(SIZE, elements=())}, r"elements must be some of .*, got \(\)"),
        (QUESTIONS, {"size": replace(SIZE, elements=("head", "heads"))}, "'heads'"),
        (QUESTIONS, {"size": replace(SIZE, ks=(1, 17))}, "has 16 heads, so K is 1 to 16"),
        (QUESTIONS, {"size": replace(SIZE, ks=())}, r"ks \(\)"),
        (QUESTIONS, {"size": replace(SIZE, ks={"neuron": (1,)})}, r"ks \(\) of 'head': .* 16 heads"),
        (QUESTIONS, {"size": replace(SIZE, ks={"head": (1,), "nerve": (1,)})}, "'nerve'"),
        (QUESTIONS, {"size": replace(SIZE, elements=("hidden",), ks={"hidden": (129,), "head": (1,)})}, "is 1 to 128"),
        (QUESTIONS, {"size": replace(SIZE, elements=("neuron",), ks=(17,))}, "of 'head', for ITI: .* 16 heads"),
        (QUESTIONS, {"size": replace(SIZE, tokens="all")}, "tokens must be 'last' or STEPS, .* got 'all'"),
        (QUESTIONS, {"size": replace(SIZE, layers=(0, 4))}, r"layers \(0, 4\): .* has layers 0 to 3"),
        (QUESTIONS, {"size": replace(SIZE, strengths=(1.0, 0.0))}, "strengths must be positive"),
        (QUESTIONS, {"size": replace(SIZE, patched_heads=2)}, "patched_heads=2 .* three heads"),
        (QUESTIONS, {"size": replace(SIZE, patched_pairs=0)}, "patched_pairs=0"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    llama: Any, seen: Any, tmp_path: Path, forwards: Any, questions: Any, options: Any, message: str
) -> None:  # seen: what points the model has has been looked up
    with forwards(llama) as calls, pytest.raises(ValueError, match=message):
        element_study(llama.model, questions, tmp_path, **{"size": SIZE, **options}, **QUIET)
    assert calls == []


def test_something_else_than_questions_is_refused(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="question 0 is 'What'"):
        element_study(llama.model, bad(test=["What"]), tmp_path, size=SIZE, **QUIET)


def test_a_model_that_is_being_steered_is_refused(llama: Any, tmp_path: Path, forwards: Any) -> None:
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.ones(32), 2.0))])
    with forwards(llama) as calls, steering.on(llama.model), pytest.raises(ValueError, match="is being steered"):
        element_study(llama.model, QUESTIONS, tmp_path, size=SIZE, **QUIET)
    assert calls == []
