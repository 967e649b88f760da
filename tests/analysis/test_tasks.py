"""Tasks: every named one fits its operator and vector, and its check tells a good response from a bad one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from analysis.tasks import Task, at_most_words, in_language, named_task
from lensteer import data

# name: (responses that follow it, responses that do not)
EXAMPLES: dict[str, tuple[list[str], list[str]]] = {
    "bullet_list": (["- one\n- two", "* one"], ["one, two", ""]),
    "numbered": (["1. one\n2. two", "Sure.\nHere it is:\n  1) one"], ["- one\n- two", ""]),
    "json": (['{"river": "Rhine"}'], ["The Rhine.", ""]),
    "capitals": (["THE RHINE, OF COURSE."], ["The Rhine, of course.", ""]),
    "lowercase": (["the rhine, of course."], ["The Rhine, of course.", "THE RHINE", ""]),
    "french": (
        ["Le ciel est bleu parce que la lumière du soleil est diffusée."],
        ["The sky is blue on most days.", "ÊÌÌÌÌÌÌÌÌÌÌÌ", "1, 2, 3.", ""],
    ),
    "spanish": (["El cielo es azul porque la luz del sol se dispersa."], ["The sky is blue on most days."]),
    "german": (["Der Himmel ist blau, weil das Licht der Sonne gestreut wird."], ["The sky is blue on most days."]),
    "no_commas": (["No comma here."], ["Well, yes.", "", "  "]),
    "quotation": (['"It is the Rhine."', ' "Yes"'], ["It is the Rhine.", ""]),
    "title": (["<<Rivers>>\nThe Rhine."], ["# Rivers", ""]),
    "highlighted": (["It is *the Rhine*.", "**Rhine** it is."], ["It is the Rhine.", "* one\n* two", ""]),
    "very_short": (["The Rhine."], ["word " * 40, ""]),
    "short": (["The Rhine."], ["word " * 40, ""]),
    "include:ocean": (["The Ocean is deep."], ["The sea is deep.", ""]),
    "exclude:ocean": (["The sea is deep."], ["The ocean is deep.", ""]),
}


def scores(task: Task, responses: list[str]) -> list[float]:
    verdict = task.check(responses)
    return [float(v) for v in (verdict["success"] if isinstance(verdict, pd.DataFrame) else verdict)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_check_tells_good_from_bad_in_one_call(name: str) -> None:
    good, bad = EXAMPLES[name]
    assert scores(named_task(name), [*good, *bad, *good]) == [1.0] * len(good) + [0.0] * len(bad) + [1.0] * len(good)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_operator_is_that_of_the_kind_of_instruction(name: str) -> None:
    task = named_task(name)
    assert task.name == name
    assert task.operator == ("set_projection" if task.instruction.kind == "format" else "add")
    assert task.options == ({} if task.operator == "set_projection" else {"unit": "difference"})
    assert len(set(task.strengths)) == len(task.strengths) > 1


def test_excluding_a_word_uses_its_inclusion_vector_at_negative_strength() -> None:
    task = named_task("exclude:ocean")
    assert task.fit_on == data.include_word("ocean")
    assert all(strength < 0 for strength in task.strengths)
    include = named_task("include:ocean")
    assert include.fit_on is None
    assert all(strength > 0 for strength in include.strengths)


def test_blanks_around_a_word_do_not_count() -> None:
    task = named_task("include: ocean ")
    assert task.name == "include:ocean"
    assert scores(task, ["the ocean.", "the sea"]) == [1.0, 0.0]


def test_a_word_with_signs_is_taken_literally() -> None:
    assert scores(named_task("include:C++"), ["I like C++.", "I like C."]) == [1.0, 0.0]


def test_the_steering_is_that_of_the_operator(vectors: Callable[..., Any]) -> None:
    fitted = vectors()
    format_, length = named_task("capitals"), named_task("very_short")
    assert format_.steering(fitted, 2, 1.5).content_hash() == fitted.set_projection(2, 1.5).content_hash()
    added = fitted.add(2, 1.5, unit="difference")
    assert length.steering(fitted, 2, 1.5).content_hash() == added.content_hash()


@pytest.mark.parametrize("name", ["capital", "include:", "medium", ""])
def test_an_unknown_name_or_one_without_a_check_lists_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"include:WORD|must not be empty"):
        named_task(name)


def test_at_most_words_wants_at_least_one_and_a_finished_sentence() -> None:
    responses = ["", ".", "One.", "One two!", "one two", "One two three."]
    assert list(at_most_words(2)(responses)) == [False, True, True, True, False, False]


def test_an_instruction_without_a_check_of_its_own_is_judged_by_ifeval_or_by_counting_sentences() -> None:
    sections = named_task("sections")
    text = "Section 1\nA house.\nSection 2\nA garden."
    assert list(sections.check([text, "A house and a garden."])) == [True, False]
    assert list(named_task("sentences:2").check(["It rains. It pours.", "It rains."])) == [True, False]


def test_languages_are_told_apart() -> None:
    text = "Der Himmel ist blau, weil das Licht der Sonne gestreut wird."
    assert list(in_language("de")([text])) == [True]
    assert list(in_language("fr")([text])) == [False]
