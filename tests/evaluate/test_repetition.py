"""Repetition: n-grams, the token that occurs too often, loops."""

from __future__ import annotations

import math

import pytest

from lensteer.evaluate import repetitions

PROSE = (
    "The river rises in the hills and runs for forty miles before it meets the sea. Along the way it turns"
    " two old mills, waters a dozen orchards and gives its name to three villages, none of which can agree on"
    " how to spell it."
)


def test_distinct_n_is_the_share_of_different_n_grams() -> None:
    row = repetitions(["a b a b a c"]).iloc[0]
    assert row["distinct_1"] == pytest.approx(3 / 6)
    assert row["distinct_2"] == pytest.approx(3 / 5)  # ab ba ab ba ac
    assert row["distinct_3"] == pytest.approx(3 / 4)  # aba bab aba bac


def test_repeated_counts_every_place_of_an_n_gram_that_comes_back() -> None:
    assert repetitions(["a b a b a c"])["repeated"][0] == pytest.approx(2 / 4)
    assert repetitions(["a b a b a c"], n=2)["repeated"][0] == pytest.approx(4 / 5)
    assert repetitions(["x " * 10])["repeated"][0] == 1.0


def test_letter_case_and_punctuation_make_no_new_word() -> None:
    assert repetitions(["Cat, cat! (CAT)"])["distinct_1"][0] == pytest.approx(1 / 3)
    assert repetitions(["It's its"])["distinct_1"][0] == 1.0


def test_scripts_with_combining_marks_keep_their_words() -> None:
    assert repetitions(["हिन्दी भाषा सुन्दर है"])["distinct_1"][0] == 1.0
    assert not math.isnan(repetitions(["हिन्दी भाषा सुन्दर है"])["distinct_3"][0])


def test_a_response_too_short_for_an_n_gram_has_no_such_value() -> None:
    row = repetitions(["", "one"])
    assert math.isnan(row["distinct_1"][0])
    assert row["distinct_1"][1] == 1.0
    assert math.isnan(row["distinct_2"][1])
    assert row["top_count"].tolist() == [0, 1]
    assert not row[["loop", "over_repeated"]].any(axis=None)


def test_a_token_more_than_fifty_times_is_flagged_and_the_ignored_ones_are_not() -> None:
    texts = ["no " * 50, "no " * 51, "the " * 99, ", . " * 99, "no! " * 51]
    found = repetitions(texts)
    assert found["over_repeated"].tolist() == [False, True, False, False, True]
    assert found["top_count"].tolist() == [50, 51, 0, 0, 51]
    assert repetitions(texts, ignored=())["over_repeated"].tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    "text",
    [
        "Paris Paris Paris",
        "and so on, and so on, and so on, and so",
        "!!!!!!!!!!!!!!!!!!!!",
        "* * * * * * * * * *",
        "THE end the End the end",
        "A good start, and then\nI am a cat.\n\nI am a cat. I am a cat. I am a",
        "你好你好你好你好你好你好你好你好",
        "One long sentence that the model writes once more and once more after that. " * 3,
    ],
)
def test_loops_are_flagged(text) -> None:
    assert repetitions([text])["loop"][0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        PROSE,
        "That is a very very very good idea, and I would like to hear more about it tomorrow.",
        "Heading\n--------------------\n" + PROSE,
        "- apples\n- pears\n- plums\n- cherries",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12",
        "| a | b | c |\n| --- | --- | --- |\n| 1 | 2 | 3 |\n| x | y | z |",
        '{"name": "Ann", "age": 3, "cats": ["Tom", "Tim"]}',
        "The total is 1,000,000,000 in all.",
    ],
)
def test_ordinary_responses_are_not_flagged_as_loops(text) -> None:
    assert not repetitions([text])["loop"][0]


def test_the_loop_share_is_the_part_of_the_response_that_loops() -> None:
    shares = repetitions(["abc " * 5, "xyzw, vutsr q " + "abc " * 5, PROSE])["loop_share"]
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx(21 / 34)  # the blank before the first "abc" belongs to the loop
    assert shares[2] < 0.05


def test_the_definition_of_a_loop_can_be_changed() -> None:
    assert not repetitions(["Paris Paris Paris"], copies=4)["loop"][0]
    assert not repetitions(["Paris Paris Paris"], characters=30)["loop"][0]
    assert not repetitions(["Paris Paris Paris"], block=3)["loop"][0]
    assert repetitions([PROSE + " ha" * 20], share=0.1)["loop"][0]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="copies=1"):
        repetitions(["text"], copies=1)
    with pytest.raises(ValueError, match="n=0"):
        repetitions(["text"], n=0)
