"""Examples with two features, and their files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lensteer.data.focus import FocusExample, check_examples, load_examples, save_examples

EXAMPLE = FocusExample(
    "1", {"text": "Schön."}, "left", "colour", "blue", "right", ("a", "b"), "toy", "train", "sentence 1", 0.5
)


def test_an_example_is_informative_where_its_features_stand_for_different_labels() -> None:
    assert EXAMPLE.informative and not replace(EXAMPLE, y_s="left").informative


def test_the_source_of_an_example_is_itself_unless_said() -> None:
    assert FocusExample("7", {"text": "x"}, "a", "colour", "red", "b").source == "7"
    assert EXAMPLE.source == "sentence 1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": " "}, r"id must be a text that is not empty"),
        ({"y": ""}, r"example '1': y must be"),
        ({"spurious": None}, r"spurious must be"),
        ({"s": ""}, r"has no value of its spurious feature 'colour'"),
        ({"y_s": None}, r"has no value of its spurious feature"),
        ({"fields": {}}, r"has no fields"),
        ({"fields": {"text": " "}}, r"field 'text' must be"),
    ],
)
def test_an_example_without_something_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(EXAMPLE, **change)


def test_examples_are_a_list_with_unique_ids() -> None:
    assert check_examples((EXAMPLE,)) == [EXAMPLE]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no examples were given"):
        check_examples([])
    with pytest.raises(ValueError, match=r"two examples have the id '1'"):
        check_examples([EXAMPLE, EXAMPLE])
    for wrong in (EXAMPLE, "text", 3):
        with pytest.raises(TypeError, match=r"must be a list of FocusExample"):
            check_examples(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"example 1 is"):
        check_examples([EXAMPLE, "text"])


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    path = save_examples([EXAMPLE, replace(EXAMPLE, id="2", rho=None)], tmp_path / "examples.jsonl")
    assert load_examples(path) == [EXAMPLE, replace(EXAMPLE, id="2", rho=None)]
    assert "Schön" in path.read_text(encoding="utf-8")


def test_a_file_that_holds_no_examples_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    row = {"id": "1", "fields": {"text": "x"}, "y": "a", "spurious": "colour", "s": "red", "y_s": "b", "more": 1}
    path.write_text(json.dumps(row) + "\n")
    assert load_examples(path)[0].fields == {"text": "x"}
    for change, words in (
        ({"y": ""}, r"line 1: example '1': y must be"),
        ({"fields": "x"}, r"line 1: an example needs"),
    ):
        path.write_text(json.dumps({**row, **change}) + "\n")
        with pytest.raises(ValueError, match=words):
            load_examples(path)
    path.write_text(json.dumps({"id": "1"}) + "\n")
    with pytest.raises(ValueError, match=r"lacks \['fields', 'y', 'spurious', 's', 'y_s'\]"):
        load_examples(path)
    with pytest.raises(FileNotFoundError):
        load_examples(tmp_path / "missing.jsonl")
