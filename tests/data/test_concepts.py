from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest

from lensteer.data import CONCEPTS, concept, neutral_sentences, openings, rude_openings, tone

OF = {name: concept(name).target for name in CONCEPTS}
RUDE, CIVIL = ({split: tone(split)[side] for split in ("fit", "test")} for side in (0, 1))  # type: ignore[index]
SENTENCES = {
    **OF,
    "neutral": neutral_sentences(),
    **{f"rude {split}": texts for split, texts in RUDE.items()},
    **{f"civil {split}": texts for split, texts in CIVIL.items()},
}
BEGINNINGS = {"opening": openings(), "rude fit": rude_openings("fit"), "rude test": rude_openings("test")}


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))


def test_there_are_as_many_texts_as_documented() -> None:
    assert list(CONCEPTS) == ["ocean", "football", "cooking", "music", "winter"]
    assert {len(texts) for texts in OF.values()} == {60}
    sizes = {name: len(texts) for name, texts in SENTENCES.items() if name not in OF}
    assert sizes == {"neutral": 120, "rude fit": 80, "rude test": 40, "civil fit": 80, "civil test": 40}
    assert {name: len(texts) for name, texts in BEGINNINGS.items()} == {"opening": 40, "rude fit": 24, "rude test": 24}


def test_no_text_occurs_twice_in_or_across_sets_and_splits() -> None:
    every = [text.casefold() for sets in (SENTENCES, BEGINNINGS) for texts in sets.values() for text in texts]
    assert len(set(every)) == len(every)


def test_no_two_sentences_share_half_of_their_words() -> None:
    every = [(text, words(text)) for texts in SENTENCES.values() for text in texts]
    close = [(a, b) for (a, in_a), (b, in_b) in combinations(every, 2) if len(in_a & in_b) >= 0.5 * len(in_a | in_b)]
    assert close == []


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_are_plain_of_moderate_length_and_begin_in_many_ways(name: str) -> None:
    texts = SENTENCES[name]
    for text in texts:
        assert text.isascii() and text == text.strip() and "\n" not in text and "  " not in text
        assert text[0].isupper() and text[-1] in ".?!"
        assert 6 <= len(text.split()) <= 25, text
    first = Counter(text.split()[0].strip(",") for text in texts)
    assert max(first.values()) <= 0.15 * len(texts)
    three = Counter(" ".join(text.split()[:3]) for text in texts)
    assert max(three.values()) == 1


@pytest.mark.parametrize("name", BEGINNINGS)
def test_openings_are_unfinished(name: str) -> None:
    for text in BEGINNINGS[name]:
        assert text.isascii() and text == text.strip() and text[0].isupper()
        assert text[-1].isalpha() or text[-1] == ","
        assert 3 <= len(text.split()) <= 12


@pytest.mark.parametrize("name", CONCEPTS)
def test_every_sentence_of_a_concept_has_one_of_its_words_and_none_of_another(name: str) -> None:
    for text in OF[name]:
        assert words(text) & set(CONCEPTS[name].words), text
        assert [other for other in CONCEPTS if other != name and words(text) & set(CONCEPTS[other].words)] == [], text


def test_neutral_sentences_and_openings_have_no_word_of_a_concept() -> None:
    telling = {word for each in CONCEPTS.values() for word in each.words}
    assert [text for text in (*neutral_sentences(), *openings()) if words(text) & telling] == []


def test_the_words_of_a_concept_are_single_lower_case_and_of_no_other_concept() -> None:
    every = [word for each in CONCEPTS.values() for word in each.words]
    assert all(re.fullmatch("[a-z]+", word) for word in every)
    assert len(set(every)) == len(every)
    for name, each in CONCEPTS.items():
        assert each.name == name and "\n" not in each.gloss
        assert name in each.words
        assert max(Counter(word for text in OF[name] for word in words(text) & set(each.words)).values()) <= 15


def test_the_source_of_a_concept_is_neutral_sentences_and_the_other_concepts_in_equal_parts() -> None:
    drawn = concept("ocean", 20, seed=4)
    origin = Counter(name for text in drawn.source for name, texts in SENTENCES.items() if text in texts)
    assert origin == {"neutral": 4, "football": 4, "cooking": 4, "music": 4, "winter": 4}
    assert set(drawn.target) < set(OF["ocean"]) and len(drawn.target) == 20
    assert concept("ocean", 20, seed=4) == drawn != concept("ocean", 20, seed=5)


def test_the_source_of_a_tone_is_rude_and_its_target_civil_and_about_as_long() -> None:
    assert "You are an idiot and nobody wants you here." in tone("fit").source
    assert "Excuse me, could I get past you to the door?" in tone("fit").target
    for split in ("fit", "test"):
        lengths = [sum(len(text.split()) for text in side) / len(side) for side in tone(split)]  # type: ignore[arg-type]
        assert abs(lengths[0] - lengths[1]) < 1


def test_n_takes_the_first_and_more_than_there_are_is_refused() -> None:
    assert neutral_sentences(3) == neutral_sentences()[:3]
    assert openings(2) == openings()[:2] and rude_openings("test", 2) == rude_openings("test")[:2]
    for call, message in (
        (lambda: neutral_sentences(121), "n=121 of the neutral sentences: n must be from 1 to 120"),
        (lambda: openings(0), "n=0 of the openings: n must be from 1 to 40"),
        (lambda: rude_openings("fit", 25), "n=25 of the rude openings of 'fit': n must be from 1 to 24"),
        (lambda: concept("ocean", 61), "n=61: the 60 different ones of the subset 'ocean' ran out"),
        (lambda: tone("test", 41), r"n=41: the 40 different ones of the subset '(civil|rude)' ran out"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_unknown_concept_or_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown concept 'sky'; there are ocean, football, cooking, music, winter"):
        concept("sky")
    for call in (tone, rude_openings):
        with pytest.raises(ValueError, match="unknown split 'train'; the splits are 'fit', 'test'"):
            call("train")  # type: ignore[operator]
