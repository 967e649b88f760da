"""Counts of words, sentences, characters, tokens, and their comparison with a requested length."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest

from lensteer.evaluate import _inputs, length, lengths, meets_length, split_sentences


@pytest.fixture
def no_punkt(monkeypatch):
    """As on a machine without NLTK's data, with the warning not given yet."""

    def absent():
        raise LookupError("punkt_tab")

    monkeypatch.setattr(length, "_punkt", absent)
    _inputs.warn_once.cache_clear()
    yield
    _inputs.warn_once.cache_clear()


def test_words_are_split_at_white_space_and_characters_are_all_counted(no_punkt) -> None:
    with pytest.warns(UserWarning, match="own rules"):
        counts = lengths(["Two  words,\nthen three-and.", "", "   "])
    assert counts["words"].tolist() == [4, 0, 0]
    assert counts["characters"].tolist() == [27, 0, 3]
    assert counts["sentences"].tolist() == [1, 0, 0]
    assert "tokens" not in counts


def test_tokens_are_counted_without_special_tokens(no_punkt) -> None:
    def tokenizer(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * (len(text) + add_special_tokens)}

    with pytest.warns(UserWarning, match="own rules"):
        assert lengths(["abc", ""], tokenizer)["tokens"].tolist() == [3, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met Mr. J. R. Tolkien at 3.14 p.m. He left.", None),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("(It rained.) We left.", ["(It rained.)", "We left."]),
        ("Wait... what now? Nothing", ["Wait... what now?", "Nothing"]),
        ("It is no. 6. then it ends.", ["It is no.", "6. then it ends."]),
        ("- one item\n- another item\n\nmore", ["- one item\n- another item\n\nmore"]),
        ("end.Next one", ["end.Next one"]),
        ("Yes!!! No?! Well.", ["Yes!!!", "No?!", "Well."]),
        (" \n ", []),
    ],
)
def test_the_fallback_splits_where_a_sentence_ends(no_punkt, text, expected) -> None:
    expected = expected or ["Dr. Smith met Mr. J. R. Tolkien at 3.14 p.m.", "He left."]
    with pytest.warns(UserWarning, match="own rules"):
        found = split_sentences(text)
    assert found == ([] if not text.strip() else expected)


def test_the_fallback_agrees_with_punkt_where_punkt_is_installed() -> None:
    nltk = pytest.importorskip("nltk")
    texts = [
        "Hello there! how are you? fine. ok",
        "Dr. Smith met Mr. J. R. Tolkien at 3.14 p.m. He left.",
        "1. Apples are red.\n2. Bananas are yellow.\n3. they run.",
        "He lives in the U.S. and works. Apples, pears, etc. are fruit.",
    ]
    try:
        expected = [nltk.sent_tokenize(text) for text in texts]
    except LookupError:
        pytest.skip("NLTK's punkt_tab data is not installed")
    assert [length._split_by_rule(text) for text in texts] == expected
    assert [split_sentences(text) for text in texts] == expected


def test_missing_punkt_data_warns_once_and_says_what_to_do(no_punkt) -> None:
    with pytest.warns(UserWarning, match=r"punkt_tab data is not usable.*nltk\.downloader punkt_tab"):
        lengths(["One. Two."])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lengths(["One. Two."])["sentences"].tolist() == [2]


def test_missing_nltk_counts_with_the_fallback_too(monkeypatch, no_punkt) -> None:
    def absent():
        raise ImportError("nltk")

    monkeypatch.setattr(length, "_punkt", absent)
    with pytest.warns(UserWarning, match="NLTK is not installed"):
        assert lengths(["One. Two."])["sentences"].tolist() == [2]


def test_at_most_at_least_and_exactly_compare_sentences_by_default() -> None:
    counts = pd.DataFrame({"words": [9, 9, 9], "sentences": [1, 2, 3]}, index=["a", "b", "c"])
    assert meets_length(counts, "at most", 2).tolist() == [True, True, False]
    assert meets_length(counts, "at least", 2).tolist() == [False, True, True]
    assert meets_length(counts, "exactly", 2).tolist() == [False, True, False]
    assert meets_length(counts, "exactly", 9, unit="words").tolist() == [True, True, True]
    assert meets_length(counts, "exactly", 2).index.tolist() == ["a", "b", "c"]


def test_the_requested_length_may_differ_per_response() -> None:
    assert meets_length([1, 2, 3], "at most", [1, 1, 3]).tolist() == [True, False, True]


def test_an_empty_response_meets_no_length() -> None:
    assert not meets_length([0], "at most", 3).any()


def test_wrong_length_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown relation 'under'"):
        meets_length([1], "under", 3)
    with pytest.raises(ValueError, match="at least 1"):
        meets_length([1], "at most", 0)
    with pytest.raises(ValueError, match="n has 2 values for 1 counts"):
        meets_length([1], "at most", [1, 2])
    with pytest.raises(ValueError, match="unit 'tokens' is not a column"):
        meets_length(pd.DataFrame({"sentences": [1]}), "at most", 1, unit="tokens")
