"""Toxicity: the rate, and who may say what is toxic."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lensteer import data
from lensteer.checkpoints import ModelUnavailable
from lensteer.evaluate import hub_classifier, judge, packaged_classifier, toxicity, toxicity_judge, toxicity_rate

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


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
    hub_classifier.cache_clear()
    yield
    hub_classifier.cache_clear()


def test_without_the_hub_the_error_says_what_to_do(fresh_classifiers, tmp_path) -> None:
    with pytest.raises(ModelUnavailable, match=r"toxicity classifier.*local folder, or pass classifier="):
        hub_classifier(str(tmp_path))


def test_a_classifier_of_the_hub_is_asked_once_for_the_probability_of_its_toxic_label(
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
    found = toxicity(texts, hub_classifier(str(tmp_path)))
    for text, value in zip(texts, found["toxicity"], strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
        with torch.no_grad():
            assert value == pytest.approx(float(bert(ids).logits.softmax(-1)[0, 1]), abs=1e-5)
    with pytest.raises(ValueError, match=r"has the labels \['LABEL_0', 'LABEL_1'\], not 'toxic'"):
        hub_classifier(str(tmp_path), label="toxic")


def worth(name: str, toxic: np.ndarray, civil: np.ndarray) -> float:
    """AUROC by counting pairs; the row of the docstring's table is printed (pytest -s)."""
    pairs = toxic[:, None] - civil[None, :]
    auroc = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    accuracy = np.concatenate([toxic >= 0.5, civil < 0.5]).mean()
    row = f"{auroc:.2f} | {accuracy:.2f} | {(toxic >= 0.5).mean():.2f} | {(civil >= 0.5).mean():.2f}"
    print(f"\n{name}: {row}")  # noqa: T201
    return auroc


def packaged(texts: list[str]) -> np.ndarray:
    pytest.importorskip("sklearn", reason='scikit-learn is not installed (the extra "eval")')
    return np.array(packaged_classifier()(texts))


def test_the_default_is_the_packaged_classifier_and_it_is_fitted_once() -> None:
    texts = pd.Series([*data.tone("test").source[:3], "A bird sings.", ""], index=list("abcde"))
    expected = packaged(texts.tolist())
    assert toxicity(texts)["toxicity"].tolist() == expected.tolist()
    assert toxicity(texts)["toxicity"]["e"] == 0.0
    assert packaged_classifier() is packaged_classifier()
    assert toxicity_rate(texts, lambda asked: [0.0] * len(asked)) == 0.0


def test_the_packaged_classifier_tells_unseen_rude_sentences_from_civil_ones() -> None:
    test = data.tone("test")
    assert worth("tone, test", packaged(test.source), packaged(test.target)) > 0.75


def column(file: str, name: str) -> list[str]:
    return [json.loads(line)[name] for line in (REAL / file).read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the folder of real data {REAL} is absent")
def test_the_packaged_classifier_ranks_toxic_sentences_of_the_web_above_civil_texts() -> None:
    toxic = packaged(column("toxic_sentences.jsonl", "text"))
    asked = packaged(column("truthfulqa.jsonl", "question"))
    told = packaged([text for name in data.CONCEPTS for text in data.concept(name).target])
    assert worth("RealToxicityPrompts against TruthfulQA", toxic, asked) > 0.8
    assert worth("RealToxicityPrompts against concepts", toxic, told) > 0.8


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r"lensteer\[eval\]"):
        packaged_classifier.__wrapped__()


@pytest.mark.filterwarnings("ignore:.*blank")
def test_the_zero_shot_judge_flags_where_yes_is_more_likely_than_no(fresh) -> None:
    model = fresh("llama", max_position_embeddings=1024).model
    module = importlib.import_module("lensteer.evaluate.toxicity")
    texts = pd.Series(["You fool!", "Good day.", "", "Rain falls.", "x"], index=list("abcde"))
    found = toxicity_judge(model, texts, progress=False)
    asked = judge(model, texts, module._QUESTION, system=module._SYSTEM, progress=False)
    pd.testing.assert_frame_equal(found.drop(columns="toxic"), asked)
    assert found["toxic"].tolist() == [not math.isnan(odds) and odds > 0 for odds in asked["log_odds"]]
    assert found["toxic"].dtype == bool


@pytest.mark.slow
def test_the_default_model_is_no_judge_of_toxicity(smollm2) -> None:
    test = data.tone("test", n=20)
    found = toxicity_judge(smollm2.model, [*test.source, *test.target], progress=False)
    odds = found["log_odds"].to_numpy()
    assert worth("SmolLM2 as a judge of tone", odds[:20], odds[20:]) < 0.65
    assert not found["toxic"].any()
