"""Words that must or must not occur."""

from __future__ import annotations

import pytest

from lensteer.evaluate import excludes_words, ifeval, includes_words

TEXTS = ["The Cat sat.", "Good education.", "A dog, a cat and a CAT!", "cats", "nothing here", ""]


def test_inclusion_finds_parts_of_words_in_any_letter_case() -> None:
    found = includes_words(TEXTS, "cat")
    assert found["success"].tolist() == [True, True, True, True, False, False]
    assert found["count"].tolist() == [1, 1, 2, 1, 0, 0]


def test_exclusion_looks_at_whole_words_and_a_blank_response_fails() -> None:
    kept_out = excludes_words(TEXTS, "cat")
    assert kept_out["success"].tolist() == [False, True, False, True, True, False]
    assert kept_out["count"].tolist() == [1, 0, 2, 0, 0, 0]


def test_whole_word_can_be_chosen_for_both() -> None:
    assert includes_words(TEXTS, "cat", whole_word=True)["success"].tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert excludes_words(TEXTS, "cat", whole_word=False)["success"].tolist() == [False] * 4 + [True, False]


def test_all_words_of_a_list_count_and_the_share_says_how_many() -> None:
    found = includes_words(["a cat and a dog", "a cat"], ["cat", "dog"])
    assert found["success"].tolist() == [True, False]
    assert found["share"].tolist() == [1.0, 0.5]
    assert excludes_words(["a cat"], ["cat", "dog"])["share"].tolist() == [0.5]


def test_each_response_may_have_its_own_words() -> None:
    assert includes_words(["a cat", "a dog"], [["cat"], ["cat"]])["success"].tolist() == [True, False]


def test_words_with_special_characters_are_taken_literally() -> None:
    assert includes_words(["I like C++ code", "I like C code"], "C++", whole_word=True)["success"].tolist() == [
        True,
        False,
    ]
    assert includes_words(["aXb"], "a.b")["success"].tolist() == [False]


def test_the_defaults_agree_with_the_ifeval_checkers() -> None:
    pytest.importorskip("lm_eval")
    include = ifeval(TEXTS, "keywords:existence", {"keywords": ["cat"]})["strict"]
    exclude = ifeval(TEXTS, "keywords:forbidden_words", {"forbidden_words": ["cat"]})["strict"]
    assert includes_words(TEXTS, "cat")["success"].tolist() == include.tolist()
    assert excludes_words(TEXTS, "cat")["success"].tolist() == exclude.tolist()


def test_no_word_or_a_blank_word_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        includes_words(["text"], [[]])
    with pytest.raises(ValueError, match="' ' is no word"):
        excludes_words(["text"], " ")
