"""Self-BLEU, against BLEU counted by hand and against the two libraries that compute it."""

from __future__ import annotations

import math
import random
from collections import Counter

import pandas as pd
import pytest

from lensteer.evaluate import self_bleu

pytest.importorskip("nltk", reason='NLTK is not installed (the extra "eval")')
TEXTS = [
    "The dog runs over the hill and over the bridge.",
    "The dog runs over the hill to its friend.",
    "A cat sleeps on the bridge.",
    "Nothing of the kind, they said.",
    "the dog",
]


def words(text: str) -> list[str]:
    return text.replace(",", " ,").replace(".", " .").split()


def by_hand(text: list[str], others: list[list[str]], order: int) -> float:
    """BLEU from its definition; an order without a match counts 0.1 matches."""

    def grams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    logs = []
    for n in range(1, order + 1):
        own, theirs = grams(text, n), [grams(other, n) for other in others]
        matches = sum(min(count, max(g[gram] for g in theirs)) for gram, count in own.items())
        logs.append(math.log((matches or 0.1) / max(1, own.total())))
    nearest = min((abs(len(other) - len(text)), len(other)) for other in others)[1]
    penalty = min(1.0, math.exp(1 - nearest / len(text)))
    return penalty * math.exp(sum(logs) / order)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_is_bleu_of_each_text_against_all_the_others(order: int) -> None:
    found = self_bleu(pd.Series(TEXTS, index=list("vwxyz")), order=order, progress=False)
    cut = [words(text) for text in TEXTS]
    expected = [by_hand(own, cut[:i] + cut[i + 1 :], order) for i, own in enumerate(cut)]
    assert list(found.index) == list("vwxyz")
    assert found["self_bleu"].tolist() == pytest.approx(expected)
    assert found["n_references"].tolist() == [4] * 5


@pytest.mark.parametrize("order", [1, 3, 4])
def test_it_is_the_sentence_bleu_of_nltk(order: int) -> None:
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    draw = random.Random(0)
    vocabulary = 'the a dog cat can\'t runs, sits. on-hill (bridge) "and" 3.5'.split()
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 30))) for _ in range(40)]
    cut = [NLTKWordTokenizer().tokenize(text) for text in texts]
    method, weights = SmoothingFunction().method1, (1 / order,) * order
    expected = [
        sentence_bleu(cut[:i] + cut[i + 1 :], own, weights, smoothing_function=method) for i, own in enumerate(cut)
    ]
    assert self_bleu(texts, order=order, progress=False)["self_bleu"].tolist() == pytest.approx(expected)
    assert len({round(value, 6) for value in expected}) > 10


def test_sacrebleu_agrees_where_its_smoothing_has_no_part() -> None:
    """With matches of every order there is nothing to smooth, and plain words need no tokenizer."""
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["the dog runs over the hill and over the bridge", "the dog runs over the hill", "so the dog runs over the"]
    found = self_bleu(texts, progress=False)["self_bleu"]
    for i, text in enumerate(texts):
        others = texts[:i] + texts[i + 1 :]
        theirs = sacrebleu.sentence_bleu(text, others, smooth_method="none", tokenize="none").score / 100
        assert found[i] == pytest.approx(theirs, rel=1e-6)


def test_a_text_said_twice_scores_one_and_one_that_shares_no_word_nothing() -> None:
    found = self_bleu(["one two three four five", "one two three four five", "six seven eight"], progress=False)
    assert found["self_bleu"].tolist() == [pytest.approx(1.0), pytest.approx(1.0), 0.0]


def test_a_blank_text_is_nobodys_reference_and_gets_nan() -> None:
    found = self_bleu([*TEXTS[:3], "", "  "], progress=False)
    assert found["self_bleu"].isna().tolist() == [False] * 3 + [True] * 2
    assert found["n_references"].tolist() == [2, 2, 2, 0, 0]
    assert found["self_bleu"][:3].tolist() == self_bleu(TEXTS[:3], progress=False)["self_bleu"].tolist()
    assert self_bleu(["alone", ""], progress=False)["self_bleu"].isna().all()
    assert self_bleu([], progress=False).dtypes.equals(found.dtypes)


def test_a_sample_bounds_the_references_and_is_drawn_by_its_seed() -> None:
    texts = [f"item {i % 7} of {i % 5} lists and {i} more" for i in range(20)]
    found = self_bleu(texts, sample=3, progress=False)
    assert found["n_references"].tolist() == [3] * 20
    pd.testing.assert_frame_equal(found, self_bleu(texts, sample=3, progress=False))
    assert found["self_bleu"].tolist() != self_bleu(texts, sample=3, seed=1, progress=False)["self_bleu"].tolist()
    every = self_bleu(texts, progress=False)
    pd.testing.assert_frame_equal(self_bleu(texts, sample=100, progress=False), every)
    assert (found["self_bleu"] <= every["self_bleu"] + 1e-9).mean() > 0.9  # more references hold more n-grams
    for options in ({"sample": 0}, {"order": 0}):
        with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
            self_bleu(texts, **options)
