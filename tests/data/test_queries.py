from __future__ import annotations

import re
from itertools import combinations

import pytest

from lensteer.data import SPLITS, likely_words, queries

# Words that say nothing about what a query is about.
FILLER = frozenset(
    "a an and are about at be can describe do does explain for from give how i in is it me my of on or "
    "should tell that the their to what when who why with write work works you your".split()
)
CONSTRAINT = re.compile(
    r"\b(list|bullets?|json|title|sections?|paragraphs?|sentences?|words?|letters?|uppercase|lowercase|capitals?|"
    r"commas?|quot\w*|markdown|table|short\w*|brief\w*|concise\w*|long\w*|detail\w*|summar\w*|english|french|spanish|"
    r"german|italian|language|two|three|four|five|ten|steps?|simple|simply|without|avoid|include|must|only|exactly|"
    r"\d+)\b",
    re.IGNORECASE,
)
EVERY = [(split, query) for split in SPLITS for query in queries(split)]


def content(query: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", query.lower())} - FILLER


def test_the_splits_have_the_documented_sizes_and_at_least_200_queries_together() -> None:
    assert {split: len(queries(split)) for split in SPLITS} == {"fit": 120, "validation": 56, "test": 64}


def test_no_query_occurs_twice_in_or_across_splits() -> None:
    texts = [query.casefold() for _, query in EVERY]
    assert len(set(texts)) == len(texts)


def test_no_two_queries_of_different_splits_share_half_of_their_content_words() -> None:
    close = [
        (a, b)
        for (split_a, a), (split_b, b) in combinations(EVERY, 2)
        if split_a != split_b and len(content(a) & content(b)) >= 0.5 * len(content(a) | content(b))
    ]
    assert close == []


def test_no_query_is_empty_of_content_and_each_is_one_line_of_plain_text() -> None:
    for _, query in EVERY:
        assert content(query)
        assert query.isascii() and query == query.strip() and "\n" not in query
        assert query[0].isupper() and query[-1] in ".?"
        assert 3 <= len(query.split()) <= 12


def test_no_query_holds_a_constraint_already() -> None:
    assert [query for _, query in EVERY if CONSTRAINT.search(query)] == []


def test_n_takes_the_first_queries_and_more_than_there_are_is_refused() -> None:
    assert queries("fit", 3) == queries("fit")[:3]
    with pytest.raises(ValueError, match=r"n=57 .*'validation'.* 56"):
        queries("validation", 57)
    with pytest.raises(ValueError, match="n=0"):
        queries("test", 0)


def test_an_unknown_split_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'train'.*'fit', 'validation', 'test'"):
        queries("train")  # type: ignore[arg-type]


def test_a_caller_who_changes_the_returned_list_changes_nothing_for_the_next() -> None:
    queries("fit").clear()
    assert len(queries("fit")) == 120


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_held_out_query_has_a_likely_and_an_unlikely_word_that_it_does_not_contain(split: str) -> None:
    rows = likely_words(split)  # type: ignore[arg-type]
    assert [row.query for row in rows] == queries(split)  # type: ignore[arg-type]
    for row in rows:
        for word in (row.likely, row.unlikely):
            assert re.fullmatch("[a-z]+", word)
            assert word not in row.query.lower()
        assert row.likely != row.unlikely


def test_the_fit_split_has_no_likely_words_and_says_so() -> None:
    with pytest.raises(ValueError, match="'fit' has no likely words"):
        likely_words("fit")
