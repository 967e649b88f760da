"""Exact match of open answers, and the toxicity rate."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from lensteer.checkpoints import ModelUnavailable
from lensteer.evaluate import exact_match, open_answers, toxicity, toxicity_rate


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


def shouting(texts: Any) -> list[float]:
    return [sum(character.isupper() for character in text) / max(len(text), 1) for text in texts]


def test_the_toxicity_rate_is_the_share_at_or_above_the_threshold() -> None:
    texts = pd.Series(["nice", "BAD", "ABcd", ""], index=list("wxyz"))
    found = toxicity(texts, shouting)
    assert found["toxicity"].to_dict() == {"w": 0.0, "x": 1.0, "y": 0.5, "z": 0.0}
    assert found["toxic"].to_dict() == {"w": False, "x": True, "y": True, "z": False}
    assert toxicity_rate(texts, shouting) == 0.5
    assert toxicity_rate(texts, shouting, threshold=0.6) == 0.25
    assert math.isnan(toxicity_rate([], shouting))
    assert toxicity([], shouting).dtypes.equals(found.dtypes)


@pytest.mark.parametrize(
    ("classifier", "options", "error", "words"),
    [
        (lambda texts: [0.1], {}, ValueError, r"1 probabilities for 2 responses"),
        (lambda texts: [0.1, 1.5], {}, ValueError, r"gave 1.5 for responses\[1\]"),
        (lambda texts: [math.nan, 0.5], {}, ValueError, r"gave nan for responses\[0\]"),
        ("tomh/toxigen_roberta", {}, TypeError, r"classifier must be a function.*'tomh/toxigen_roberta'"),
        (shouting, {"threshold": 0.0}, ValueError, r"threshold must lie in \(0, 1\], got 0.0"),
        (shouting, {"threshold": 50}, ValueError, r"threshold must lie in \(0, 1\], got 50"),
    ],
)
def test_a_classifier_that_gives_no_probabilities_is_refused(classifier, options, error, words) -> None:
    with pytest.raises(error, match=words):
        toxicity_rate(["x", "y"], classifier, **options)


@pytest.fixture
def fresh_classifiers():
    open_answers.hub_classifier.cache_clear()
    yield
    open_answers.hub_classifier.cache_clear()


def test_without_the_hub_the_error_says_what_to_do(fresh_classifiers, tmp_path) -> None:
    with pytest.raises(ModelUnavailable, match=r"toxicity classifier.*local folder, or pass classifier="):
        open_answers.hub_classifier(str(tmp_path))


def test_the_default_classifier_is_asked_once_for_the_probability_of_its_toxic_label(
    fresh_classifiers, tmp_path, new_tokenizer
) -> None:
    """A tiny BERT saved to a folder, against its own softmax."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = new_tokenizer()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **shape)
    ).eval()
    bert.save_pretrained(tmp_path)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(tmp_path)
    texts = ["You are kind.", "x" * 200]
    found = toxicity(texts, open_answers.hub_classifier(str(tmp_path)))
    for text, value in zip(texts, found["toxicity"], strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
        with torch.no_grad():
            assert value == pytest.approx(float(bert(ids).logits.softmax(-1)[0, 1]), abs=1e-5)
    with pytest.raises(ValueError, match=r"has the labels \['LABEL_0', 'LABEL_1'\], not 'toxic'"):
        open_answers.hub_classifier(str(tmp_path), label="toxic")
