"""Graded format checks that allow for responses that were cut off."""

from __future__ import annotations

import json
import math

import pytest

from lensteer.evaluate import bullets, json_format, letter_case, lines_matching


def test_bullet_lines_are_counted_with_every_usual_mark() -> None:
    text = "Intro:\n- a\n* b\n  • c\n+ d\n– e\n-not one\n**bold** text\n---\n-\n"
    row = bullets([text]).iloc[0]
    assert row["bullet_lines"] == 5
    assert row["bullet_share"] == pytest.approx(5 / 10)


def test_bullets_succeed_by_number_and_by_share() -> None:
    texts = ["- a", "- a\n- b", "- a\n- b\nx\ny\nz", "1. a\n2) b", ""]
    assert bullets(texts)["success"].tolist() == [False, True, True, False, False]
    assert bullets(texts, share=0.5)["success"].tolist() == [False, True, False, False, False]
    assert bullets(texts, minimum=1)["success"].tolist() == [True, True, True, False, False]
    assert bullets(texts, numbered=True)["success"].tolist() == [False, True, True, True, False]


def test_lines_matching_looks_at_the_start_of_non_empty_lines() -> None:
    found = lines_matching(["Q: a\n\nA: b\nelse", "no Q: here"], "Q:|A:")
    assert found["lines"].tolist() == [3, 1]
    assert found["matching"].tolist() == [2, 0]
    assert found["success"].tolist() == [True, False]


def test_letter_case_is_graded_and_ignores_what_has_no_case() -> None:
    found = letter_case(["ALL CAPITALS 123!", "HaLF", "none", "123", ""])
    assert found["upper_share"].tolist()[:3] == [1.0, 0.75, 0.0]
    assert math.isnan(found["upper_share"][3])
    assert found["success"].tolist() == [True, False, False, False, False]


def test_lower_case_and_thresholds_can_be_asked_for() -> None:
    assert letter_case(["none", "HaLF", "123"], "lower")["success"].tolist() == [True, False, False]
    assert letter_case(["HaLF"], share=0.75)["success"].tolist() == [True]
    assert letter_case(["1. A"], minimum=5)["success"].tolist() == [False]


DOCUMENTS = [
    {
        "name": 'Ann "A" é😀\u2028 {[',
        "age": -3.25e-7,
        "ok": [True, False, None, [], {}],
        "deep": {"a": [1, 20, {"b": "c"}]},
    },
    [[-1.5, 2e10, 0.001], "x\\y", {"k": None}],
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=["object", "array"])
@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"ensure_ascii": False}], ids=["plain", "indented", "unicode"])
def test_every_beginning_of_a_json_document_is_valid_so_far(document, style) -> None:
    text = json.dumps(document, **style)
    found = json_format([text[:end] for end in range(1, len(text) + 1)])
    wrong = [text[: row + 1] for row in found.index[~found["valid_so_far"]]]
    assert wrong == []
    assert found["parses"].tolist() == [False] * (len(text) - 1) + [True]
    assert found["success"].iloc[-1]
    assert not found["success"].iloc[0]  # a bracket alone has no content


@pytest.mark.parametrize(
    "text",
    [
        '{"a" 1',
        "{a: 1}",
        "{'a': 1}",
        '{"a": 1} and more',
        '{"a": tree',
        "[1 2",
        "[1,, 2",
        "{1: 2",
        "[Paris is",
        '{"a": .',
    ],
)
def test_broken_json_opens_but_is_not_valid(text) -> None:
    row = json_format([text]).iloc[0]
    assert row.to_dict() == {"opens": True, "valid_so_far": False, "parses": False, "success": False}


def test_text_numbers_and_strings_are_no_json_object() -> None:
    assert not json_format(["Sure: {}", '"text"', "12", "", "null"]).any(axis=None)


def test_a_code_fence_around_the_json_is_taken_off() -> None:
    texts = ['```json\n{"a": 1}\n```', "```\n[1, 2]```", '```json\n{"a": [1, ', '```json\n{"a": 1}\n``']
    assert json_format(texts)["success"].all()
    assert json_format(texts)["parses"].tolist() == [True, True, False, True]


def test_complete_json_can_be_required() -> None:
    assert json_format(['{"a": 1}', '{"a": 1'], complete=True)["success"].tolist() == [True, False]


def test_brackets_without_end_are_no_json() -> None:
    assert not json_format(["[" * 200_000])["success"][0]


def test_thresholds_out_of_range_and_bad_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="share must lie between 0 and 1, got 90"):
        letter_case(["text"], share=90)
    with pytest.raises(ValueError, match="unknown case 'title'"):
        letter_case(["text"], "title")
    with pytest.raises(ValueError, match="not a regular expression"):
        lines_matching(["text"], "(")
