"""A study on a tiny model: which rows it makes, what it chooses and confirms, what it writes, and that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import analysis.study
import lensteer as ls
from analysis.layer_selection import Budget
from analysis.study import Size, Study, saved_files, study
from analysis.tasks import Task
from lensteer import data
from lensteer.data import Instruction
from lensteer.methods.instruction import InstructionVectors
from lensteer.steering import Steering

SIZE = Size(pairs=4, validation=3, test=4, layers=(1, 2), max_new_tokens=4, random_seeds=2)
ANY_COST = Budget(perplexity_ratio=1e9, degenerate_rise=1.0)
PLAIN: set[str] = set()  # what the model says without steering


def changed(responses: Any) -> list[bool]:
    return [response not in PLAIN for response in responses]


SHOUT = Task(Instruction("shout", "format", ("Shout!",)), changed, strengths=(1.0, 2.0))
OCEAN = Task(
    data.exclude_word("ocean"),
    lambda responses: [ok / 2 for ok in changed(responses)],
    "add",
    strengths=(-2.0,),
    fit_on=data.include_word("ocean"),
)
NEVER = Task(Instruction("never", "length", ("Be brief.",)), lambda r: [0] * len(r), "add", strengths=(1.0,))


@pytest.fixture(scope="module")
def model(fresh: Any) -> Any:
    """A tiny Llama with room for the data's queries, one token a byte."""
    case = fresh("llama", max_position_embeddings=512)
    queries = [*data.queries("validation", 3), *data.queries("test", 4)]
    PLAIN.update(ls.generate(case.model, queries, max_new_tokens=4, progress=False)["response"])
    return case


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def done(model: Any, folder: Path) -> Study:
    return study(model.model, [SHOUT, OCEAN, NEVER], folder, size=SIZE, budget=ANY_COST, progress=False)


def test_vectors_are_fitted_on_the_fitting_queries_of_what_each_task_fits_on(model: Any, done: Study) -> None:
    for task in (SHOUT, OCEAN, NEVER):
        pairs = data.instruction_pairs(task.fit_on or task.instruction, SIZE.pairs)
        alone = ls.instruction.fit(model.model, pairs, progress=False)
        torch.testing.assert_close(done.vectors[task.name].direction, alone.direction, rtol=1e-3, atol=1e-4)
        assert done.vectors[task.name].name == task.name


def test_the_validation_table_is_every_candidate_on_the_validation_queries(done: Study) -> None:
    table = done.validation
    assert set(table["split"]) == {"validation"}
    assert table["prompt"].drop_duplicates().tolist() == data.queries("validation", 3)
    cells = table.groupby("instruction")[["condition", "layer", "strength"]].apply(
        lambda rows: set(rows.itertuples(index=False, name=None))
    )
    steered = {("steered", layer, s) for layer in (1, 2) for s in (1.0, 2.0)}
    assert cells["shout"] == {("none", -1, 0.0), *steered}
    assert cells["exclude:ocean"] == {("none", -1, 0.0), ("steered", 1, -2.0), ("steered", 2, -2.0)}
    assert len(table) == 3 * (5 + 3 + 3)
    assert table["success"].notna().all()


def test_the_choice_is_the_best_validation_success(done: Study) -> None:
    for task in (SHOUT, OCEAN):
        rows = done.validation[done.validation["instruction"] == task.name]
        best = rows.groupby(["layer", "strength"])["success"].mean()
        choice = done.selection[task.name]
        assert choice.steered
        assert best[(choice.layer, choice.strength)] == best.max() == pytest.approx(choice.success)
    assert not done.selection["never"].steered


def test_the_test_table_has_every_control_of_a_chosen_steering(done: Study) -> None:
    table, choice = done.test, done.selection["shout"]
    assert set(table["split"]) == {"test"}
    assert table["prompt"].drop_duplicates().tolist() == data.queries("test", 4)
    own = table[table["instruction"] == "shout"]
    counts = own.groupby("condition").size().to_dict()
    assert counts == {"none": 4, "steered": 4, "random": 8, "text": 4, "text+steered": 4}
    for condition in ("steered", "random", "text+steered"):
        rows = own[own["condition"] == condition]
        assert set(zip(rows["layer"], rows["strength"], strict=True)) == {(choice.layer, choice.strength)}
    unsteered = table[table["instruction"] == "never"]
    assert set(unsteered["condition"]) == {"none", "text"}


def test_the_test_responses_are_those_of_the_conditions(model: Any, done: Study) -> None:
    queries, choice = data.queries("test", 4), done.selection["shout"]
    vectors = done.vectors["shout"]
    steering = vectors.set_projection(choice.layer, choice.strength)
    texts = [data.with_text(q, SHOUT.instruction) for q in queries]
    runs: dict[str, list[tuple[list[str], Any]]] = {
        "none": [(queries, None)],
        "steered": [(queries, steering)],
        "random": [(queries, vectors.random(i).set_projection(choice.layer, choice.strength)) for i in (0, 1)],
        "text": [(texts, None)],
        "text+steered": [(texts, steering)],
    }
    own = done.test[done.test["instruction"] == "shout"]
    for condition, calls in runs.items():
        expected = [
            response
            for prompts, edits in calls
            for response in ls.generate(model.model, prompts, edits, max_new_tokens=4, progress=False)["response"]
        ]
        assert own.loc[own["condition"] == condition, "response"].tolist() == expected


def test_the_confirmation_has_a_row_for_every_condition_and_the_results_hold_both_splits(done: Study) -> None:
    rows = done.confirmed.groupby("instruction")["condition"].apply(list)
    assert rows["shout"] == ["none", "steered", "random", "text", "text+steered"]
    assert rows["never"] == ["none", "text"]
    assert set(done.confirmed["n"]) == {4}
    assert len(done.results) == len(done.validation) + len(done.test)
    assert done.results["split"].value_counts().to_dict() == {
        "validation": len(done.validation),
        "test": len(done.test),
    }


def test_vectors_and_chosen_steerings_are_saved_and_can_be_used(model: Any, done: Study, folder: Path) -> None:
    assert {p.name for p in (folder / "vectors").iterdir()} == {
        "shout.safetensors",
        "exclude-ocean.safetensors",
        "never.safetensors",
    }
    assert {p.name for p in (folder / "steering").iterdir()} == {"shout.safetensors", "exclude-ocean.safetensors"}
    assert len(saved_files(done, folder)) == 5
    loaded = InstructionVectors.load(folder / "vectors" / "exclude-ocean.safetensors")
    assert torch.equal(loaded.direction, done.vectors["exclude:ocean"].direction)
    steering = Steering.load(folder / "steering" / "exclude-ocean.safetensors", model.model)
    responses = ls.generate(model.model, data.queries("test", 4), steering, max_new_tokens=4, progress=False)
    own = done.test[(done.test["instruction"] == "exclude:ocean") & (done.test["condition"] == "steered")]
    assert responses["response"].tolist() == own["response"].tolist()


def test_a_second_run_in_the_folder_repeats_nothing_and_finds_the_same(
    model: Any, done: Study, folder: Path, forwards: Any
) -> None:
    with forwards(model) as calls:
        again = study(model.model, [SHOUT, OCEAN, NEVER], folder, size=SIZE, budget=ANY_COST, progress=False)
    assert calls == []
    pd.testing.assert_frame_equal(again.results, done.results)
    pd.testing.assert_frame_equal(again.confirmed, done.confirmed)


def test_a_study_that_was_killed_goes_on_where_it_was(
    model: Any, done: Study, tmp_path: Path, forwards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [SHOUT, OCEAN, NEVER]

    def stop(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), forwards(model) as before:
        patch.setattr(analysis.study, "choose", stop)
        study(model.model, tasks, tmp_path, size=SIZE, budget=ANY_COST, progress=False)
    with forwards(model) as after:
        resumed = study(model.model, tasks, tmp_path, size=SIZE, budget=ANY_COST, progress=False)
    assert before and after
    with forwards(model) as whole:
        study(model.model, tasks, tmp_path / "other", size=SIZE, budget=ANY_COST, progress=False)
    assert len(before) + len(after) == len(whole)
    pd.testing.assert_frame_equal(resumed.results, done.results, rtol=1e-3)


def test_another_choice_in_the_same_folder_leaves_no_old_steering_behind(model: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": SIZE, "budget": ANY_COST, "progress": False}
    study(model.model, [SHOUT], tmp_path, **options)
    assert (tmp_path / "steering" / "shout.safetensors").is_file()
    never = replace(SHOUT, check=lambda r: [0] * len(r))
    done = study(model.model, [never], tmp_path, **options)
    assert not done.selection["shout"].steered
    assert not (tmp_path / "steering" / "shout.safetensors").exists()


def test_names_become_file_names(model: Any, tmp_path: Path) -> None:
    word = Task(data.include_word("and/or"), changed, "add", strengths=(2.0,))
    done = study(model.model, [word], tmp_path, size=SIZE, budget=ANY_COST, progress=False)
    assert [p.name for p in (tmp_path / "vectors").iterdir()] == ["include-and-or.safetensors"]
    assert all(path.parent.parent == tmp_path for path in saved_files(done, tmp_path))


def test_what_starts_is_told(model: Any, tmp_path: Path) -> None:
    said: list[str] = []
    study(model.model, [SHOUT], tmp_path, size=SIZE, budget=ANY_COST, progress=False, say=said.append)
    assert [text.split()[0] for text in said] == ["fitting", "sweeping", "confirming"]
    assert "5 candidates on 3 validation queries" in said[1]


def broken(responses: Any) -> Any:
    raise ImportError('language needs the extra: pip install "lensteer[eval]"')


BAD: list[tuple[type[Exception], str, Callable[[], list[Task]], dict[str, Any]]] = [
    (ValueError, r"tasks, each of another name; got \[\]", lambda: [], {}),
    (ValueError, r"\['shout', 'shout'\]", lambda: [SHOUT, SHOUT], {}),
    (ValueError, "layers .*LlamaForCausalLM has layers 0 to 3", lambda: [SHOUT], {"layers": (1, 4)}),
    (ValueError, "layers .*LlamaForCausalLM has layers 0 to 3", lambda: [SHOUT], {"layers": (-1, 2)}),
    (ValueError, "layers", lambda: [SHOUT], {"layers": ()}),
    (ValueError, "n=9999", lambda: [SHOUT], {"validation": 9999}),
    (ValueError, "n=9999", lambda: [SHOUT], {"test": 9999}),
    (ValueError, "n=9999", lambda: [SHOUT], {"pairs": 9999}),
    (ImportError, r"lensteer\[eval\]", lambda: [SHOUT, replace(NEVER, check=broken)], {}),
]


@pytest.mark.parametrize(("error", "message", "tasks", "size"), BAD)
def test_what_cannot_work_is_refused_before_any_work(
    model: Any, tmp_path: Path, forwards: Any, error: Any, message: str, tasks: Any, size: dict[str, Any]
) -> None:
    with forwards(model) as calls, pytest.raises(error, match=message):
        study(model.model, tasks(), tmp_path, size=replace(SIZE, **size), progress=False)
    assert calls == []
    assert list(tmp_path.iterdir()) == []
