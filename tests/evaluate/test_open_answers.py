"""Exact match of open answers."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from lensteer.evaluate import exact_match


@pytest.mark.parametrize(
    ("response", "answer", "success"),
    [
        ("Paris", "Paris", True),
        (" the PARIS. ", "paris", True),
        ("The Beatles!", "Beatles", True),
        ("It is Paris", "Paris", False),
        ("Theodore", "odore", False),  # an article is a whole word
        ("O’Brien", "O'Brien", True),
        ("jean-paul  sartre", "Jean Paul Sartre", True),
        ("caf\u00e9", "cafe\u0301", True),  # composed and decomposed
        ("東京。", "東京", True),
        ("1,000", "1 000", True),
        ("", "Paris", False),
        ("...", "The", False),
        ("the", "The", True),
        ("?", "!", False),
        ("", "!", False),
    ],
)
def test_case_punctuation_articles_and_white_space_do_not_count(response: str, answer: str, success: bool) -> None:
    assert exact_match([response], [answer])["success"].tolist() == [success]


def test_any_alias_will_do_and_an_answer_within_more_text_is_seen() -> None:
    found = exact_match(
        ["Samuel Clemens", "I say Mark Twain, of course", "Marks and Twain"],
        [["Mark Twain", "Samuel Clemens"]] * 2 + [("Mark Twain",)],
    )
    assert found["success"].tolist() == [True, False, False]
    assert found["contains"].tolist() == [True, True, False]
    assert found["normalised"].tolist() == ["samuel clemens", "i say mark twain of course", "marks and twain"]


def test_a_base_model_that_goes_on_is_judged_by_its_first_line() -> None:
    text = "\n Paris\nQ: What is the capital of Italy?"
    assert exact_match([text], ["Paris"])["success"][0]
    assert not exact_match([text], ["Paris"], part="whole")["success"][0]
    assert exact_match(["Rome\nand Paris"], ["Rome and Paris"], part="whole")["success"][0]


def test_rows_keep_the_index_and_their_types_also_when_there_are_none() -> None:
    found = exact_match(pd.Series(["a b", "c"], index=["x", "y"]), pd.Series([["b"], "c"], index=["x", "y"]))
    assert found["success"].to_dict() == {"x": True, "y": True}
    assert exact_match([], []).dtypes.equals(found.dtypes)


@pytest.mark.parametrize(
    ("answers", "options", "error", "words"),
    [
        (["a"], {}, ValueError, r"2 responses but 1 answers"),
        ("ab", {}, TypeError, r"answers must be a sequence with one item per response"),
        (["a", []], {}, ValueError, r"answers\[1\] is empty"),
        (["a", ["b", " "]], {}, ValueError, r"answers\[1\] holds a blank answer, ' '"),
        (["a", 3], {}, TypeError, r"answers\[1\] holds 3 \(int\)"),
        (["a", "b"], {"part": "last"}, ValueError, r"part must be 'first_line' or 'whole', got 'last'"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(answers: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        exact_match(["x", "y"], answers, **options)
