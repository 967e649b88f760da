"""A whole comparison of prompts, vectors and rivals on two tiny models, and what its table says of each row."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import focus_toy
import numpy as np
import pandas as pd
import pytest
import torch

from analysis.choice_settings import Setting, unsteered
from analysis.focus_choice import FocusBudget
from analysis.focus_conditions import comparison_table, conditions
from analysis.focus_rivals import act_settings, sadi_settings
from analysis.focus_size import FocusSize
from analysis.focus_study import FocusComparison, focus_study
from analysis.statistics import bootstrap_mean
from analysis.tables import read_table
from lensteer import evaluate
from lensteer.answers import AnswerPair
from lensteer.evaluate.focus import focus_accuracy
from lensteer.hooks import Add
from lensteer.methods import sadi, transport
from lensteer.methods.directions import Directions
from lensteer.methods.focus_pairs import focus_pairs
from lensteer.methods.focus_vectors import label_leakage, vectors
from lensteer.positions import STEPS
from lensteer.steering import Steering

TASK = focus_toy.TASK
TRAIN, VALIDATION = focus_toy.examples(), focus_toy.examples("validation")
TEST = [*focus_toy.examples("iid"), *focus_toy.examples("flipped", cells=(("a", "b", 2), ("b", "a", 3)))]
TEXTS = ["It rained in the morning.", "The bus was late.", "She put the keys away.", "He sat down."]
SIZE = FocusSize(
    layers=(1, 2),
    templates=(0, 1),
    strengths=(1.0, 4.0),
    heads=(2,),
    head_strengths=(4.0,),
    transports=("mean",),
    transport_strengths=(1.0,),
    controls=2,
    texts=2,
)
LAX = FocusBudget(None, None, None)
CONDITIONS = ["empty", "prompt", "vector", "prompt + vector", "random", "SADI heads", "AcT mean"]
pytestmark = pytest.mark.filterwarnings("ignore:no steering was chosen", "ignore:no unit differs enough")


@pytest.fixture(scope="module")
def models(fresh: Any) -> dict[str, Any]:
    return {name: fresh("llama", seed=i, max_position_embeddings=1024) for i, name in enumerate(("base", "FIT"))}


def run(models: dict[str, Any], folder: Path, **changes: Any) -> FocusComparison:
    options = {"size": SIZE, "budget": LAX, "texts": TEXTS, "progress": False, **changes}
    sets = [options.pop(name, own) for name, own in (("training", TRAIN), ("validation", VALIDATION), ("test", TEST))]
    return focus_study({name: case.model for name, case in models.items()}, TASK, *sets, folder, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("focus")


@pytest.fixture(scope="module")
def done(models: dict[str, Any], folder: Path) -> FocusComparison:
    return run(models, folder)


def test_every_condition_of_every_model_is_run_on_every_test_split(done: FocusComparison) -> None:
    found = done.table.groupby(["model", "split", "toward"])["condition"].agg(set)
    assert len(found) == 2 * 2 * 2
    for (model, _, toward), names in found.items():
        chosen = done.chosen[model, toward, "vector"]
        assert names == set(CONDITIONS) - (set() if chosen.strength else {"random"})
    first = done.table[(done.table["model"] == "FIT") & (done.table["split"] == "iid") & (done.table["toward"] == "S")]
    assert first["condition"].tolist() == [name for name in CONDITIONS if name in set(first["condition"])]
    assert done.table["model"].tolist() == sorted(done.table["model"])[::-1]  # base, then FIT
    assert set(done.validation["split"]) == {"validation"} and set(done.results["split"]) == {"iid", "flipped"}
    assert done.table[done.table["condition"] == "random"]["seeds"].tolist().count(2) > 0


@pytest.mark.parametrize(("toward", "kind"), [("S", "focus(S)"), ("C", "focus(C)")])
@pytest.mark.parametrize("condition", CONDITIONS[:4])
def test_a_row_is_focus_accuracy_under_its_prompt_and_steering(
    models: dict[str, Any], done: FocusComparison, toward: Any, kind: Any, condition: str
) -> None:
    for name, case in models.items():
        setting = done.chosen[name, toward, "vector"]
        steering = setting.steering if "vector" in condition else None
        told = (kind,) if "prompt" in condition else ("empty",)
        empty = focus_accuracy(case.model, TASK, TEST, kinds=("empty",), progress=False)
        table = focus_accuracy(case.model, TASK, TEST, steering, kinds=told, progress=False)
        says = table["says_y_s" if toward == "S" else "says_y"]
        before = empty["says_y_s" if toward == "S" else "says_y"]
        for split in ("iid", "flipped"):
            own, sure = table["split"] == split, (table["split"] == split) & table["informative"]
            chosen = (done.table["model"] == name) & (done.table["split"] == split) & (done.table["toward"] == toward)
            [row] = done.table[chosen & (done.table["condition"] == condition)].to_dict("records")
            expected = bootstrap_mean(says[own].to_numpy(float))
            assert tuple(row[key] for key in ("accuracy", "accuracy_low", "accuracy_high")) == pytest.approx(expected)
            assert row["accuracy_informative"] == pytest.approx(says[sure].mean())
            assert row["flips"] == pytest.approx((says & ~before)[sure].mean())
            assert (row["n"], row["n_informative"]) == (own.sum(), sure.sum())
            assert row["shift"] == pytest.approx((odds(table) - odds(empty))[sure].mean(), abs=1e-4)
            assert row["accuracy_y"] == pytest.approx(table["says_y"][own].mean())
            if split == "flipped":
                assert math.isnan(row["agreeing"])
            else:
                assert row["agreeing"] == pytest.approx(table["says_y"][own & ~table["informative"]].mean())


def odds(table: pd.DataFrame) -> pd.Series:
    values = np.array(table["log_likelihoods"].tolist())
    place = {label: i for i, label in enumerate(TASK.labels)}
    rows = np.arange(len(table))
    return pd.Series(values[rows, table["y_s"].map(place)] - values[rows, table["y"].map(place)])


def test_side_costs_are_those_of_other_texts_over_the_first_model_without_steering(
    models: dict[str, Any], done: FocusComparison
) -> None:
    bare = evaluate.text_perplexity(models["base"].model, TEXTS[2:], progress=False)["perplexity"].mean()
    for name, case in models.items():
        steering = done.chosen[name, "S", "vector"].steering
        for condition, own in (("prompt", None), ("prompt + vector", steering)):
            expected = evaluate.text_perplexity(case.model, TEXTS[2:], own, progress=False)["perplexity"].mean()
            chosen = (done.table["model"] == name) & (done.table["toward"] == "S")
            rows = done.table[chosen & (done.table["condition"] == condition)]
            np.testing.assert_allclose(rows["text_perplexity"], expected, rtol=1e-5)
            np.testing.assert_allclose(rows["text_ratio"], expected / bare, rtol=1e-5)
    first = done.validation["text_perplexity"].iloc[0]
    assert first != pytest.approx(bare)  # the choice was made on other texts


def test_the_random_controls_are_as_long_and_averaged_example_by_example(done: FocusComparison) -> None:
    rows = done.results[done.results["condition"] == "random"]
    assert not rows.empty and set(rows["seed"]) == {0, 1}
    group = next(iter(rows.groupby(["model", "split", "toward"])))
    per_example = group[1].groupby("example_id", sort=False)["success"].mean()
    key = dict(zip(("model", "split", "toward"), group[0], strict=True))
    table = done.table[(done.table[list(key)] == pd.Series(key)).all(axis=1) & (done.table["condition"] == "random")]
    assert table["accuracy"].iloc[0] == pytest.approx(per_example.mean())
    fitted, setting = done.vectors[key["model"]], done.chosen[key["model"], key["toward"], "vector"]
    tried = conditions(
        {(t, "vector"): setting for t in ("S", "C")}, fitted, controls=2, unit="difference", tokens=STEPS
    )
    lengths = [
        float(edit.edit.vector.norm()) * abs(edit.strength)
        for one in tried
        for _, edit in one.setting.steering
        if one.condition in ("vector", "random")
    ]
    assert len(lengths) == 6 and max(lengths) == pytest.approx(min(lengths), rel=1e-5)


def test_each_model_has_its_own_vectors_and_their_leakage(models: dict[str, Any], done: FocusComparison) -> None:
    for name, case in models.items():
        alone = vectors(case.model, TASK, TRAIN, templates=(0, 1), layers=(1, 2), progress=False)
        torch.testing.assert_close(done.vectors[name].direction, alone.direction)
        own = done.leakage[done.leakage["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, label_leakage(case.model, alone, TASK), check_exact=False, rtol=1e-4)
        best = done.chosen[name, "S", "vector"]
        if best.strength:
            assert best.steering.content_hash() == done.vectors[name].add(best.layer, best.strength).content_hash()


def test_files_hold_the_vectors_and_the_chosen_steerings(done: FocusComparison, folder: Path) -> None:
    assert all(path.is_file() for path in done.files)
    loaded = Directions.load(folder / "vectors" / "base.safetensors")
    assert torch.equal(loaded.direction, done.vectors["base"].direction)
    for (name, toward, method), setting in done.chosen.items():
        path = folder / "steering" / f"{name}-{toward}-{method.replace(' ', '-')}.safetensors"
        assert path.exists() == bool(setting.strength)
        if setting.strength:
            assert Steering.load(path).content_hash() == setting.steering.content_hash()


def test_a_second_run_computes_nothing_and_says_the_same(
    models: dict[str, Any], done: FocusComparison, folder: Path, forwards: Any
) -> None:
    said: list[str] = []
    with forwards(models["base"]) as calls, forwards(models["FIT"]) as others:
        again = run(models, folder, say=said.append)
    assert calls == [] and others == []
    pd.testing.assert_frame_equal(again.table, done.table)
    pd.testing.assert_frame_equal(again.results, done.results)
    assert again.files == done.files and len(said) == 6 and said[3].startswith("FIT: fitting on 10 examples")


def test_an_interrupted_study_goes_on_where_it_stopped(
    models: dict[str, Any], done: FocusComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analysis import focus_runs

    plain, calls = focus_runs.focus_accuracy_grid, []

    def killed(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*given, **options)

    monkeypatch.setattr(focus_runs, "focus_accuracy_grid", killed)
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path, chunk_size=4)
    monkeypatch.setattr(
        focus_runs, "focus_accuracy_grid", lambda *given, **o: calls.append(given) or plain(*given, **o)
    )
    calls.clear()
    again = run(models, tmp_path, chunk_size=4)
    asked = [tuple(example.id for example in given[2]) for given in calls if given[0] is models["base"].model]
    assert sum(len(ids) for ids in asked if ids[0].startswith("validation")) == len(VALIDATION) - 8
    compared = ["accuracy", "flips", "shift", "text_ratio"]
    np.testing.assert_allclose(again.table[compared], done.table[compared], atol=1e-4)


def test_tables_are_written_and_read_again(done: FocusComparison, tmp_path: Path) -> None:
    for ending in (".csv", ".parquet"):
        paths = done.save(tmp_path, ending=ending)  # type: ignore[arg-type]
        assert paths[0].name == f"focus-table{ending}" and len(paths) == 5
        read = read_table(paths[0])
        assert read["condition"].tolist() == done.table["condition"].tolist()
        np.testing.assert_allclose(read["accuracy"], done.table["accuracy"])


def test_a_study_is_one_line(done: FocusComparison) -> None:
    assert "\n" not in repr(done) and repr(done).startswith("FocusComparison('toy', base toward S: ")
    assert f"{len(TEST)} test examples" in repr(done) and len(repr(done)) < 250


def test_where_nothing_is_chosen_the_conditions_run_without(models: dict[str, Any], done: Any, folder: Path) -> None:
    strict = run(models, folder, budget=FocusBudget(text_ratio=1.0, agreeing_drop=0.0, inside_drop=0.0))
    kept = {key for key, setting in strict.chosen.items() if not setting.strength}
    assert kept
    for name, toward, method in kept:
        if method != "vector":
            continue
        own = strict.table[(strict.table["model"] == name) & (strict.table["toward"] == toward)]
        by = own.set_index(["split", "condition"])
        for split in ("iid", "flipped"):
            assert by.loc[(split, "vector"), "accuracy"] == by.loc[(split, "empty"), "accuracy"]
            assert by.loc[(split, "vector"), ["layer", "strength"]].tolist() == [-1, 0]
        assert "random" not in set(own["condition"]) and "no vector" in repr(strict)
        assert not (folder / "steering" / f"{name}-{toward}-vector.safetensors").exists()


# --- rivals --------------------------------------------------------------------------------------------------------


def test_heads_toward_c_are_those_of_swapped_pairs(models: dict[str, Any]) -> None:
    model = models["base"].model
    found = sadi_settings(model, TASK, TRAIN, ks=[3], strengths=[4.0], progress=False)
    sure = [example for example in TRAIN if example.informative]
    for toward, right, wrong in (("S", "y_s", "y"), ("C", "y", "y_s")):
        pairs = [AnswerPair(TASK.prompt(e), getattr(e, right), getattr(e, wrong)) for e in sure]
        fitted = sadi.fit(model, pairs, "head", progress=False)
        expected = fitted.steering(3, 4.0, mode="live", tokens=STEPS)
        [setting] = found[toward]  # type: ignore[index]
        assert setting.steering.content_hash() == expected.content_hash()
        assert (setting.method, setting.k, setting.strength) == ("SADI heads", 3, 4.0)


def test_transports_go_from_one_instruction_to_the_other_and_back(models: dict[str, Any], tmp_path: Path) -> None:
    model = models["base"].model
    options: dict[str, Any] = {"strengths": [0.5, 1.0], "templates": (0,), "cache": tmp_path, "progress": False}
    found = act_settings(model, TASK, TRAIN, "mean", **options)
    up, down = zip(*focus_pairs(TASK, TRAIN, templates=(0,)), strict=True)
    sides = {"S": (down, up), "C": (up, down)}
    for toward, (source, target) in sides.items():
        texts = [[asked.prompt for asked in side] for side in (source, target)]
        expected = transport.fit(model, *texts, "mean", "attention", progress=False)
        for setting in found[toward]:  # type: ignore[index]
            assert setting.steering.content_hash() == expected.steering(setting.strength).content_hash()
    again = act_settings(model, TASK, TRAIN, "mean", **options)
    assert len(list(tmp_path.glob("maps-*.safetensors"))) == 2
    for one, other in zip(found["S"], again["S"], strict=True):
        assert one.steering.content_hash() == other.steering.content_hash()


# --- refusals ------------------------------------------------------------------------------------------------------


SHARED = replace(VALIDATION[0], id="again", split="iid", source=VALIDATION[0].source)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": [*TEST, SHARED]}, "1 sources are in both the validation examples and the test examples"),
        ({"validation": TRAIN}, "10 sources are in both the training examples and the validation examples"),
        ({"training": [e for e in TRAIN if (e.y, e.y_s) != ("a", "b")]}, r"have \(y='a', y_s='b'\)"),
        ({"test": [e for e in TEST if not e.informative]}, "none of the test examples"),
        ({"texts": TEXTS[:3]}, "4 different texts are needed, half for the choice; got 3"),
        ({"texts": [*TEXTS[:3], TEXTS[0]]}, "got 3"),
        ({"size": replace(SIZE, heads=(99,))}, r"heads=\(99,\): 'base' has 16 heads"),
        ({"size": replace(SIZE, layers=(0, 9))}, "layer 9 is out of range"),
        ({"size": replace(SIZE, site="nowhere")}, "no hook point"),
        (
            {"budget": FocusBudget(), "validation": [e for e in VALIDATION if e.informative]},
            "in all validation examples y and y_s differ",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused_before_any_work(
    models: dict[str, Any], tmp_path: Path, forwards: Any, changes: dict[str, Any], said: str
) -> None:
    with forwards(models["base"]) as calls, pytest.raises(ValueError, match=said):
        run(models, tmp_path, **changes)
    assert calls == [] and list(tmp_path.iterdir()) == []


def test_models_are_a_mapping_of_bridges_that_nobody_steers(models: dict[str, Any], tmp_path: Path) -> None:
    model = models["base"].model
    for given in (model, {}, [model]):
        with pytest.raises(TypeError, match="models must be a mapping"):
            focus_study(given, TASK, TRAIN, VALIDATION, TEST, tmp_path, size=SIZE, texts=TEXTS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a TransformerBridge"):
        focus_study({"base": models["base"].hf}, TASK, TRAIN, VALIDATION, TEST, tmp_path, size=SIZE, texts=TEXTS)
    with pytest.raises(ValueError, match="must differ as names of files"):
        run({"a b": models["base"], "a-b": models["FIT"]}, tmp_path)
    steering = Steering([("blocks.1.hook_resid_post", Add(torch.ones(32)))])
    with steering.on(model), pytest.raises(ValueError, match="'base' is being steered"):
        run(models, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strengths": ()}, "strengths must be positive numbers"),
        ({"head_strengths": (0.0,)}, "head_strengths must be positive"),
        ({"tokens": "all"}, "tokens must be 'steps' or 'after_instruction'"),
        ({"controls": -1}, "controls=-1"),
        ({"texts": 0}, "texts=0"),
        ({"transports": ("linear", "best")}, r"transports \['best'\] are unknown"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FocusSize(**changes)


def test_splits_may_share_examples_which_are_run_once(
    models: dict[str, Any], done: FocusComparison, folder: Path, forwards: Any
) -> None:
    iid = [example for example in TEST if example.split == "iid"]
    flipped = [example for example in TEST if example.split == "flipped"]
    again = replace(iid[1], split="flipped", rho=0.9)
    with forwards(models["base"]) as calls:
        found = run({"base": models["base"]}, folder, test={"iid": iid, "flipped": [*flipped, again]})
    assert calls == []  # nothing that was not run before
    one, other = (
        comparison.table[(comparison.table["model"] == "base") & (comparison.table["split"] == "iid")]
        for comparison in (found, done)
    )
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))
    sizes = found.table.groupby("split")["n"].first()
    assert (sizes["iid"], sizes["flipped"]) == (len(iid), len(flipped) + 1)
    with pytest.raises(ValueError, match=r"two test examples have the id 'iid-0' and are not the same"):
        run(models, folder, test={"iid": iid, "other": [replace(iid[0], y="b")]})
    with pytest.raises(ValueError, match="no test splits"):
        run(models, folder, test={})


def test_a_table_of_nothing_is_refused(done: FocusComparison) -> None:
    with pytest.raises(ValueError, match="no rows"):
        comparison_table(done.results.iloc[:0])
    with pytest.raises(ValueError, match="lacks the columns"):
        comparison_table(done.results.drop(columns="flipped"))


def test_vectors_may_act_after_the_instruction(models: dict[str, Any], tmp_path: Path) -> None:
    size = replace(SIZE, tokens="after_instruction", heads=(), transports=(), layers=(2,), strengths=(4.0,))
    found = run({"base": models["base"]}, tmp_path, size=size)
    assert set(found.candidates["method"]) == {"vector"}
    for setting in found.chosen.values():
        for _, edit in setting.steering:
            assert edit.tokens.start > 20
    none = {(t, "vector"): unsteered() for t in ("S", "C")}
    tried = conditions(none, found.vectors["base"], controls=2, unit="difference", tokens=STEPS)  # type: ignore[arg-type]
    assert [one.condition for one in tried] == CONDITIONS[:4] * 2
    assert all(isinstance(one.setting, Setting) for one in tried)
