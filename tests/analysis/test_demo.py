"""The main job on a tiny model: the files it writes, a report that opens offline, and a second run that resumes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis.demo
import lensteer as ls
from analysis.demo import Finished, run_demo, short_table, study_report, sweep_report
from analysis.element_study import ElementSize
from analysis.layer_selection import Budget
from analysis.study import Size, study
from analysis.sweep import baseline, grid, sweep
from analysis.tables import read_table
from analysis.tasks import Task, named_task
from analysis.transport_study import TransportSize
from lensteer import data
from lensteer.data import Instruction
from lensteer.methods.instruction import InstructionVectors
from lensteer.steering import Steering

SMALL = Size(pairs=4, validation=2, test=3, layers=(20, 24), max_new_tokens=4)
SMALL_ELEMENTS = ElementSize(ks=(1, 2), strengths=(1.0,), layers=(14, 22), patched_heads=3, patched_pairs=2)
SMALL_TRANSPORT = TransportSize(
    methods=("mean",), support=None, strengths=(1.0,), validation=2, test=3, texts=2, max_new_tokens=4
)
FEW_QUESTIONS = {"fit": 4, "validation": 2, "test": 3}


class Page(HTMLParser):
    """What a browser would fetch, and the headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self.heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.heading = tag == "h2"
        if tag != "a":
            self.fetched += [value for key, value in attributes if key in ("src", "href", "data") and value]

    def handle_data(self, data: str) -> None:
        if self.heading:
            self.headings.append(data)
            self.heading = False


def require_opens_offline(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched == []
    assert not re.search(r"<script[^>]*\ssrc=|<link[^>]*href=|@import", text)
    assert text.count("plotly.js v") <= 1
    return page


@pytest.fixture(scope="module")
def model(fresh: Any) -> Any:
    return fresh("llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(analysis.demo, "_QUICK_SIZE", SMALL)
    patch.setattr(analysis.demo, "_QUICK_ELEMENTS", SMALL_ELEMENTS)
    patch.setattr(analysis.demo, "_QUICK_QUESTIONS", FEW_QUESTIONS)
    patch.setattr(analysis.demo, "_QUICK_TRANSPORT", SMALL_TRANSPORT)
    patch.setattr(analysis.demo, "_QUICK_SENTENCES", 4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def finished(model: Any, folder: Path) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return run_demo(model.model, folder, quick=True, progress=False)


def test_the_files_are_a_report_three_tables_and_the_tensors(finished: Finished, folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in finished.files]
    assert names[:4] == ["report.html", "results.parquet", "elements.parquet", "transport.parquet"]
    assert "transport/ocean-mean.safetensors" in names
    assert {f"vectors/{name}.safetensors" for name in analysis.demo.QUICK} <= set(names)
    assert all(path.is_file() for path in finished.files)
    for path in finished.files:
        if path.parent.name == "vectors":
            assert InstructionVectors.load(path).n_layers == 4
        if path.parent.name == "steering":
            assert len(Steering.load(path)) == 1


def test_the_results_file_holds_every_response(finished: Finished, folder: Path) -> None:
    table = read_table(folder / "results.parquet")
    pd.testing.assert_frame_equal(table, finished.study.results, check_dtype=False)
    assert set(table["split"]) == {"validation", "test"}


def test_the_elements_file_holds_every_setting_and_question(finished: Finished, folder: Path) -> None:
    table = read_table(folder / "elements.parquet")
    pd.testing.assert_frame_equal(table, finished.elements.results, check_dtype=False)
    assert finished.elements.name == analysis.demo.ELEMENT_TASK
    assert set(table["method"]) == {"none", "SADI head", "random head", "fixed head", "ITI", "CAA"}
    for split in ("validation", "test"):
        asked = [question.prompt for question in data.questions("sentiment", split, FEW_QUESTIONS[split])]
        own = table[table["split"] == split]
        assert own.loc[own["method"] == "none", "prompt"].tolist() == asked


def test_the_transport_file_holds_every_response(finished: Finished, folder: Path) -> None:
    table = read_table(folder / "transport.parquet")
    pd.testing.assert_frame_equal(table, finished.transport.results, check_dtype=False)
    openings = data.openings(5)
    for split, asked in (("validation", openings[:2]), ("test", openings[2:])):
        rows = table[(table["split"] == split) & (table["condition"] == "none")]
        assert rows["prompt"].tolist() == asked


def test_layers_are_at_the_same_depth_in_a_model_of_another_depth(finished: Finished) -> None:
    assert finished.study.size.layers == (2, 3)  # 20 and 24 of 30
    assert set(finished.study.validation["layer"]) == {-1, 2, 3}
    assert set(finished.elements.validation.query("method == 'CAA'")["layer"]) == {1, 2}  # 14 and 22 of 30
    assert analysis.demo._for_depth(SMALL, 30).layers == (20, 24)
    assert analysis.demo._for_depth(Size(layers=(0, 29)), 12).layers == (0, 11)
    assert analysis.demo._for_depth(Size(layers=(18, 21, 24, 26)), 1).layers == (0,)


def test_the_report_opens_offline_and_has_its_sections(finished: Finished, folder: Path) -> None:
    page = require_opens_offline(folder / "report.html")
    instructions = ["Confirmed on test queries", "How the choice was made", "The directions", "Texts"]
    parts = ["Key elements: heads for sentiment", "Activation transport: ocean"]
    assert page.headings == [*instructions, *parts]
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    for fact in ("LlamaForCausalLM", *analysis.demo.QUICK, "transformer-lens", "2 / 3"):
        assert fact in text


def test_a_second_run_resumes_and_says_the_same(
    model: Any, finished: Finished, folder: Path, small: None, forwards: Any
) -> None:
    said: list[str] = []
    with forwards(model) as calls:
        again = run_demo(model.model, folder, quick=True, progress=False, say=said.append)
    assert len(said) == 3 + 2 + 3
    assert len(calls) <= 1  # the token strip of the report
    pd.testing.assert_frame_equal(again.table, finished.table)
    pd.testing.assert_frame_equal(again.elements.confirmed, finished.elements.confirmed)
    pd.testing.assert_frame_equal(again.transport.confirmed, finished.transport.confirmed)
    assert again.files == finished.files


def test_the_short_table_has_a_line_for_every_condition(finished: Finished) -> None:
    table = finished.table
    assert len(table) == len(finished.study.confirmed)
    assert table["condition"].tolist() == finished.study.confirmed["condition"].tolist()
    assert (table.loc[table["condition"].isin(["none", "text"]), "at"] == "").all()
    confirmed = pd.DataFrame(
        {
            "instruction": ["shout", "shout"],
            "condition": ["none", "steered"],
            "layer": [-1, 7],
            "strength": [0.0, 1.5],
            "success": [0.125, 0.5],
            "success_low": [0.0, 0.25],
            "success_high": [0.3, 0.75],
            "perplexity": [5.04, 9.96],
            "degenerate": [0.0, 0.25],
        }
    )
    assert short_table(confirmed).iloc[1].tolist() == [
        "shout",
        "steered",
        "layer 7, 1.5",
        "0.50 [0.25, 0.75]",
        "10.0",
        "0.25",
    ]


def test_without_pyarrow_the_results_are_a_csv(
    model: Any, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(analysis.demo, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    monkeypatch.setattr(analysis.demo, "QUICK", ("very_short",))
    done = run_demo(model.model, tmp_path, quick=True, progress=False)
    assert done.files[1:4] == [tmp_path / f"{name}.csv" for name in ("results", "elements", "transport")]
    found = read_table(tmp_path / "results.csv")
    assert found["response"].tolist() == done.study.results["response"].tolist()
    choices = read_table(tmp_path / "elements.csv")
    assert choices["prompt"].tolist() == done.elements.results["prompt"].tolist()


LENGTH = Task(Instruction("brief", "length", ("Be brief.",)), lambda r: [0] * len(r), "add", strengths=(2.0,))
FORMAT = Task(Instruction("shout", "format", ("Shout!",)), lambda r: [0] * len(r), strengths=(2.0,))


@pytest.mark.parametrize("tasks", [[LENGTH], [FORMAT], [LENGTH, FORMAT]])
def test_a_report_of_tasks_that_the_published_rule_does_not_cover_and_that_chose_nothing(
    model: Any, tmp_path: Path, tasks: list[Task]
) -> None:
    size = Size(pairs=4, validation=2, test=2, layers=(1,), max_new_tokens=3)
    done = study(model.model, tasks, tmp_path, size=size, progress=False)
    assert not any(choice.steered for choice in done.selection)
    page = require_opens_offline(study_report(model.model, done, 0).save(tmp_path / "report.html"))
    assert "Texts" in page.headings


def test_a_choice_of_the_first_layer_is_reported_as_the_first_layer(model: Any, tmp_path: Path) -> None:
    first = Task(Instruction("shout", "format", ("Shout!",)), lambda r: [i >= 2 for i in range(len(r))])
    size = Size(pairs=4, validation=2, test=2, layers=(0,), max_new_tokens=3)
    done = study(model.model, [first], tmp_path, size=size, budget=Budget(1e9, 1.0), progress=False)
    assert done.selection["shout"].layer == 0
    assert "after layer 0" in study_report(model.model, done, 0).html()


def test_the_report_of_a_sweep_shows_the_choice(rows: Any, table: Any, tmp_path: Path) -> None:
    results = table(rows(-1, [0, 0, 1]), rows(5, [1, 1, 1]), rows(8, [0, 1, 1]))
    path = sweep_report(results, Budget()).save(tmp_path / "report.html")
    assert require_opens_offline(path).headings == ["Choice", "bullets"]


def test_the_report_of_a_sweep_takes_empty_responses(model: Any, tmp_path: Path, vectors: Callable[..., Any]) -> None:
    prompts = ["Why?", "Name a river."]
    first = ls.generate(model.model, prompts[:1], max_new_tokens=1, progress=False)["token_ids"][0][0]
    before = model.hf.generation_config.eos_token_id
    model.hf.generation_config.eos_token_id = [2, int(first)]
    try:
        candidates = [baseline("shout"), *grid(vectors(), layers=[1], strengths=[1.0])]
        checks = {"shout": lambda r: [bool(t) for t in r]}
        results = sweep(model.model, candidates, prompts, checks=checks, max_new_tokens=4, progress=False)
    finally:
        model.hf.generation_config.eos_token_id = before
    empty = results[results["n_tokens"] == 0]
    assert len(empty) >= 1 and empty["degenerate"].all() and empty["perplexity"].isna().all()
    require_opens_offline(sweep_report(results, Budget()).save(tmp_path / "report.html"))


def test_a_sweep_without_a_check_cannot_be_reported(rows: Any, table: Any) -> None:
    results = table(rows(-1, [0, 0]), rows(5, [1, 1])).drop(columns="success")
    with pytest.raises(ValueError, match=r"no success column .*--check NAME"):
        sweep_report(results, Budget())


def test_the_demo_names_tasks_that_exist() -> None:
    names = [*analysis.demo.INSTRUCTIONS, *analysis.demo.QUICK]
    assert [named_task(name).name for name in names] == names
    kinds = {named_task(name).instruction.kind for name in analysis.demo.INSTRUCTIONS}
    assert kinds == {"format", "length", "word"}
    for counts in (analysis.demo._QUESTIONS, analysis.demo._QUICK_QUESTIONS):
        for split, n in counts.items():
            assert len(data.questions(analysis.demo.ELEMENT_TASK, split, n)) == n


@pytest.mark.slow
def test_the_demo_runs_on_the_real_model(smollm2: Any, tmp_path: Path, small: None) -> None:
    done = run_demo(smollm2.model, tmp_path, quick=True, progress=False)
    require_opens_offline(tmp_path / "report.html")
    assert done.study.size.layers == (20, 24)
    assert done.study.results["perplexity"].between(1, 1e6).all()
    assert done.elements.results["probability_inside"].between(0, 1).all()
    assert done.transport.results["text_perplexity"].between(1, 1e6).all()
