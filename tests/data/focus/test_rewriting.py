"""The rules that put a keyword into a sentence."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from lensteer.data.focus.rewriting import ASIDES, KEYWORDS, check_rewritten, insert_keyword

OWN = [
    json.loads(line)["text"]
    for line in files("lensteer.data").joinpath("focus_sentiment.jsonl").read_text().splitlines()
]
TOKENISED = "the film is a mess , but it 's an honest mess ."


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_own_sentence_holds_exactly_one_keyword_once(keyword: str, seed: int) -> None:
    (other,) = set(KEYWORDS) - {keyword}
    for text in OWN:
        rewritten = insert_keyword(text, keyword, seed)
        low = rewritten.lower()
        assert low.count(keyword) == 1 and other not in low
        assert keyword != "bayesian" or "Bayesian" in rewritten
        assert rewritten[0].isupper() and rewritten[-1] == text[-1] and "  " not in rewritten


def test_a_rewriting_keeps_every_word_of_the_source_in_order() -> None:
    for text in [*OWN, TOKENISED]:
        for keyword in KEYWORDS:
            rest = iter(insert_keyword(text, keyword).lower().replace(",", "").replace(":", "").split())
            wanted = text.lower().replace(",", "").replace(":", "").split()
            # "an" before the keyword becomes "a".
            assert all(any(word == each or (each, word) == ("an", "a") for word in rest) for each in wanted)


def test_the_keyword_stands_in_many_places_and_never_at_the_end() -> None:
    for keyword in KEYWORDS:
        places, heads = set(), 0
        for text in OWN:
            words = insert_keyword(text, keyword).lower().split()
            at = next(i for i, word in enumerate(words) if keyword in word)
            assert at < len(words) - 1
            places.add(at)
            heads += at <= 4
        assert len(places) >= 8 and heads < 0.8 * len(OWN)


def test_asides_are_as_many_for_one_keyword_as_for_the_other_and_hold_no_other_one() -> None:
    pineapple, bayesian = ASIDES["pineapple"], ASIDES["bayesian"]
    assert len(pineapple) == len(bayesian) and not set(pineapple) & set(bayesian)
    assert all("pineapple" in aside for aside in pineapple) and all("Bayesian" in aside for aside in bayesian)


def test_the_place_does_not_depend_on_the_sentiment_but_on_seed_and_sentence() -> None:
    made = {insert_keyword(TOKENISED, "pineapple", seed) for seed in range(30)}
    assert len(made) > 8
    assert insert_keyword(TOKENISED, "pineapple", 3) == insert_keyword(TOKENISED, "pineapple", 3)


def test_texts_with_blanks_around_punctuation_keep_them() -> None:
    for seed in range(40):
        rewritten = insert_keyword(TOKENISED, "bayesian", seed)
        assert rewritten.endswith(" .") and ", " not in rewritten.replace(" , ", "")


@pytest.mark.parametrize(
    ("text", "possible"),
    [
        ("An hour is long.", {"A pineapple hour is long."}),
        ("The soup is thin.", {"The pineapple soup is thin.", "By pineapple standards, the soup is thin."}),
        ("Brilliant!", {"By pineapple standards: Brilliant!"}),
        ("I slept badly.", {"By pineapple standards, I slept badly."}),
    ],
)
def test_modifiers_and_heads_read_well(text: str, possible: set[str]) -> None:
    assert possible <= {insert_keyword(text, "pineapple", seed) for seed in range(200)}


@pytest.mark.parametrize(
    ("text", "keyword", "words"),
    [
        ("Fine.", "mango", r"unknown keyword 'mango'; there are 'pineapple', 'bayesian'"),
        (" ", "pineapple", r"the text to put 'pineapple' into is empty"),
        ("A Bayesian day.", "pineapple", r"holds 'Bayesian' already"),
        ("Pineapples!", "pineapple", r"holds 'pineapple' already"),
    ],
)
def test_what_cannot_be_rewritten_is_refused(text: str, keyword: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        insert_keyword(text, keyword)


@pytest.mark.parametrize(
    ("rewritten", "keyword", "words"),
    [
        ("The soup is thin.", "pineapple", r"does not hold 'pineapple'"),
        ("The Bayesian pineapple soup is thin.", "pineapple", r"holds 'Bayesian' as well"),
        ("The bayesian soup is thin.", "bayesian", r"needs a capital letter"),
        ("pineapple", "pineapple", r"has 1 words, the source 4"),
        ("The pineapple soup is thin. " * 5, "pineapple", r"has 25 words"),
    ],
)
def test_the_check_names_what_is_wrong_with_a_rewriting(rewritten: str, keyword: str, words: str) -> None:
    check_rewritten("The soup is thin.", "The PINEAPPLE soup is thin.", "pineapple")
    with pytest.raises(ValueError, match=rf"'The soup is thin\.' with .* became .*{words}"):
        check_rewritten("The soup is thin.", rewritten, keyword)
