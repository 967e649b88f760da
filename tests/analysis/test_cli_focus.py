"""The commands `focus train`, `evaluate` and `compare`: what they refuse early, and a whole round on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import make_case
from focus_cases import TASK, examples, roomy
from typer.testing import CliRunner

from analysis import cli
from lensteer.data import focus as data
from lensteer.data.queries import read_jsonl
from lensteer.methods.focus import EXAMPLE, read_adapter

pytest.importorskip("peft")
TINY = ["--data", "tiny"]


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["focus", *map(str, arguments)], env={"COLUMNS": "1000"})


def said(*arguments: Any) -> str:
    """What a refused command says, without boxes."""
    result = run(*arguments)
    assert result.exit_code != 0, result.output
    return " ".join(result.output.replace("│", " ").split()) + str(result.exception)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.cli_focus.load", lambda *given: pytest.fail("a model was loaded"))


@pytest.fixture
def tiny_set(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny model and a data set ``--data tiny``; returns the arguments that the builder was called with."""
    case, calls = make_case("llama", **roomy("llama")), []

    def build(source: Any, **options: Any) -> data.FocusData:
        calls.append((source, options))
        tests = {split: examples(8, start=30 + 8 * i) for i, split in enumerate(("iid", "high"))}
        return data.FocusData(TASK, examples(16), examples(8, start=20), tests)

    monkeypatch.setattr("analysis.cli_focus.load", lambda *given: case.model)
    monkeypatch.setattr(data, "DATASETS", {"tiny": build})
    return calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "x", "--data", "imdb"], "--data must be one of ss, smnli, bbq, shans"),
        (["train", "--out", "x", "--objective", "dpo"], "objective must be one of fit"),
        (["train", "--out", "x", "--objective", "poe"], "--bias FOLDER belongs to --objective poe"),
        (["train", "--out", "x", "--objective", "poe", "--bias", "example"], "it must be sft_spurious"),
        (["train", "--out", "x", "--bias", "b"], "--bias FOLDER belongs to --objective poe"),
        (["train", "--out", "x", "--source", "train=a.jsonl", "--source", "hub"], "give one kind"),
        (["train", "--out", "x", "--source", "none.jsonl"], "none.jsonl"),
        (["train", "--out", "x", "--unseen", "Age"], "--unseen is for --data bbq"),
        (["train", "--out", "x", "--data", "bbq", "--unseen", "Wealth"], "no rows of the unseen category 'wealth'"),
        (["train", "--out", __file__], "is a file; name a folder"),
        (["train", "--out", "x", "--n-train", "5"], "n_train=5: it must be even"),
        (["train", "--out", "x", "--patience", "0"], "patience must be a whole number of 1 or more"),
        (["evaluate", "--scoring", "best"], "--scoring must be exact or beam"),
        (["evaluate", "--out", "a.txt"], "a.txt"),
        (["evaluate", "no-such-folder"], "holds no finished focus adapter"),
        (["compare", "example", "--out", "x", "--text-ratio", "0.5"], "text_ratio must be at least 1"),
        (["compare", "no-such-folder", "--out", "x"], "holds no finished focus adapter"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(no_model: None, arguments: list[str], message: str) -> None:
    assert message in said(*arguments)


def test_a_test_on_what_the_adapter_was_trained_on_is_refused(no_model: None, tmp_path: Path) -> None:
    """lensteer's own sentences without their parts, so that they are divided anew."""
    path = tmp_path / "undivided.jsonl"
    rows = [{name: row[name] for name in ("text", "label")} for row in read_jsonl("focus_sentiment.jsonl")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for command in (["evaluate", "example"], ["compare", "example", "--out", tmp_path / "x"]):
        message = said(*command, "--source", path)
        assert "test examples were trained on by" in message and "give the --source, --seed and --unseen" in message


def test_the_data_are_by_default_those_of_the_adapters_task(
    no_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(**changes: Any) -> Any:
        return replace(read_adapter(EXAMPLE), task=replace(data.SENTIMENT, **changes))

    monkeypatch.setattr("lensteer.methods.focus.read_adapter", lambda folder: other(name="mine"))
    assert "a task of your own, 'mine'; give --data" in said("evaluate", tmp_path)
    monkeypatch.setattr("lensteer.methods.focus.read_adapter", lambda folder: other(name="bbq"))
    assert "no rows of the unseen category 'wealth'" in said("evaluate", tmp_path, "--unseen", "Wealth")


def test_train_then_evaluate_then_compare(tiny_set: Any, tmp_path: Path) -> None:
    quick = ["--steps", 2, "--batch-size", 4, "--evaluate-every", 1, "--learning-rate", 0.01]
    done = run("train", "--out", tmp_path / "adapter", *TINY, *quick, "--seed", 3, "--half")
    assert done.exit_code == 0, done.output
    assert tiny_set == [("own", {"seed": 3})]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    done = run("evaluate", tmp_path / "adapter", *TINY, "--n", 4, "--out", tmp_path / "answers.csv")
    assert done.exit_code == 0, done.output
    assert tiny_set[-1] == ("own", {"seed": 3}), "the parts are those that the adapter was trained with"
    assert "data: tiny from own" in done.output
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert len(answers) == 2 * 4 * 6
    assert "accuracy" in done.output
    small = ["--n-train", 8, "--n-validation", 8, "--n-test", 4, "--layers", "1,2", "--no-rivals"]
    done = run("compare", tmp_path / "adapter", *TINY, *small, "--out", tmp_path / "comparison")
    assert done.exit_code == 0, done.output
    assert tiny_set[-1] == ("own", {"seed": 3})
    table = pd.read_csv(tmp_path / "comparison" / "focus-table.csv")
    assert set(table["model"]) == {"base", "FIT"}
    page = (tmp_path / "comparison" / "report.html").read_text(encoding="utf-8")
    assert "Prompt, vector, both" in page


def test_a_biased_model_is_the_other_expert(tiny_set: Any, tmp_path: Path) -> None:
    quick = ["--steps", 1, "--batch-size", 4, *TINY]
    assert run("train", "--out", tmp_path / "biased", "--objective", "sft_spurious", *quick).exit_code == 0
    done = run("train", "--out", tmp_path / "poe", "--objective", "poe", "--bias", tmp_path / "biased", *quick)
    assert done.exit_code == 0, done.output
    assert "poe" in done.output


def test_parts_of_a_source_are_named(tiny_set: Any, tmp_path: Path) -> None:
    parts = ["--source", "train=a.jsonl", "--source", "test=b.jsonl"]
    run("train", "--out", tmp_path / "a", *TINY, "--steps", 1, *parts, "--n-train", 8, "--n-validation", 4)
    source, options = tiny_set[0]
    assert source == {"train": "a.jsonl", "test": "b.jsonl"}
    assert options == {"seed": 0, "n_train": 8, "n_validation": 4}
    assert run("evaluate", tmp_path / "a", "--n", 2).exit_code == 0, "the adapter's data set and source"
    assert tiny_set[1] == (source, {"seed": 0})
    assert run("evaluate", tmp_path / "a", "--n", 2, "--source", "other.jsonl").exit_code == 0
    assert tiny_set[2] == ("other.jsonl", {"seed": 0})


def test_the_packaged_adapter_names_its_base_and_no_folder_of_a_machine() -> None:
    from analysis.cli_focus import _base, _folder

    assert _base(EXAMPLE, None) == "smollm2-135m-instruct"
    assert _base(None, None) == "smollm2-135m-instruct"
    assert _base(EXAMPLE, "other") == "other"
    assert _folder(Path("example")) == EXAMPLE
    assert _folder(Path("other")) == Path("other")
    for path in EXAMPLE.iterdir():
        if path.suffix in (".json", ".md"):
            assert "/root" not in path.read_text(encoding="utf-8")
            assert "/tmp" not in path.read_text(encoding="utf-8")
