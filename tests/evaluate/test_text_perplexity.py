"""Perplexity of texts under a steered model, against one plain hooked pass a text."""

from __future__ import annotations

import math
from typing import Any

import oracles
import pandas as pd
import pytest
import torch

from lensteer import Add, Steering, at
from lensteer.evaluate import text_perplexity

POST = "blocks.1.hook_resid_post"
TEXTS = ["Rain falls on the roof.", "Rain", "It is a long day, and a longer night, and no end to it.", "So be it"]
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))


def expected(case: Any, text: str, changes: Any = (), max_tokens: int = 50) -> float:
    """From the logits of one pass over the whole text."""
    ids = case.tokenizer(text)["input_ids"][:max_tokens]
    with torch.no_grad(), oracles.changed(case.hf, changes, prompt=1):
        logits = case.hf(torch.tensor([ids]), use_cache=False).logits[0].double()
    told = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])
    return float(-told.mean())


@pytest.mark.parametrize("max_tokens", [50, 12])
@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
def test_it_is_the_mean_over_all_tokens_after_the_first(tiny, batch_size, max_tokens) -> None:
    found = text_perplexity(tiny.model, TEXTS, max_tokens=max_tokens, batch_size=batch_size, progress=False)
    nll = [expected(tiny, text, max_tokens=max_tokens) for text in TEXTS]
    assert found["nll"].tolist() == pytest.approx(nll, abs=2e-4)
    assert found["perplexity"].tolist() == pytest.approx([math.exp(value) for value in nll], rel=2e-4)
    bos = tiny.tokenizer("")["input_ids"]
    assert found["n_tokens"].tolist() == [min(len(text) + len(bos), max_tokens) - 1 for text in TEXTS]


@pytest.mark.parametrize("scope", ["all", "generated", "prompt", slice(2, 5)])
def test_a_steering_acts_as_hooks_do_on_the_first_token_as_prompt_and_the_rest_as_generated(tiny, scope) -> None:
    steering = Steering([(POST, at(Add(VECTOR, 3.0), scope))])
    change = oracles.Change("resid_post", 1, oracles.add(VECTOR, 3.0), scope)
    found = text_perplexity(tiny.model, TEXTS, steering, progress=False)
    nll = [expected(tiny, text, [change]) for text in TEXTS]
    assert found["nll"].tolist() == pytest.approx(nll, abs=5e-4)
    plain = text_perplexity(tiny.model, TEXTS, progress=False)
    assert (found["nll"] - plain["nll"]).abs().max() > 1e-2
    pd.testing.assert_frame_equal(text_perplexity(tiny.model, TEXTS, steering.at_strength(0.0), progress=False), plain)


def test_strengths_may_differ_from_text_to_text(llama) -> None:
    strengths = [0.0, 2.0, -1.0, 4.0]
    steering = Steering([(POST, Add(VECTOR, torch.tensor(strengths)))])
    found = text_perplexity(llama.model, pd.Series(TEXTS, index=list("abcd")), steering, progress=False)
    nll = [
        expected(llama, text, [oracles.Change("resid_post", 1, oracles.add(VECTOR, strength))])
        for text, strength in zip(TEXTS, strengths, strict=True)
    ]
    assert list(found.index) == list("abcd")
    assert found["nll"].tolist() == pytest.approx(nll, abs=5e-4)
    with pytest.raises(ValueError, match="the steering has values for 4 texts, but 3 were given"):
        text_perplexity(llama.model, TEXTS[:3], steering, progress=False)


def test_without_a_token_to_score_there_is_no_perplexity(llama, gpt2) -> None:
    strengths = Steering([(POST, Add(VECTOR, torch.tensor([9.0, 9.0, 2.0])))])
    found = text_perplexity(gpt2.model, ["", "x", "So be it"], strengths, progress=False)
    assert found["n_tokens"].tolist() == [0, 0, 7]
    assert found["nll"].isna().tolist() == [True, True, False]
    change = oracles.Change("resid_post", 1, oracles.add(VECTOR, 2.0))
    assert found["nll"][2] == pytest.approx(expected(gpt2, "So be it", [change]), abs=5e-4)
    # After a BOS the only token of a text has a prediction.
    assert text_perplexity(llama.model, ["x", ""], progress=False)["n_tokens"].tolist() == [1, 0]
    assert text_perplexity(llama.model, [], progress=False).dtypes.equals(found.dtypes)


def test_a_steering_that_breaks_the_model_is_infinitely_surprised_and_not_passed_over(llama) -> None:
    steering = Steering([(POST, Add(VECTOR * 1e38, 1e38))])
    found = text_perplexity(llama.model, TEXTS, steering, progress=False)
    assert found["perplexity"].mean() == math.inf


def test_texts_longer_than_the_context_are_cut_to_it(llama) -> None:
    text = "ab" * 100
    found = text_perplexity(llama.model, [text], max_tokens=1000, progress=False)
    assert found["n_tokens"].tolist() == [127]
    assert found["nll"][0] == pytest.approx(expected(llama, text, max_tokens=128), abs=2e-4)
    with pytest.raises(ValueError, match=r"max_tokens must be at least 2.*got 1"):
        text_perplexity(llama.model, [text], max_tokens=1)
    with pytest.raises(TypeError, match=r"texts\[0\] is 3"):
        text_perplexity(llama.model, [3])


def test_the_mean_over_texts_is_not_the_perplexity_of_the_corpus(llama) -> None:
    """Both recipes of the docstring, from the tokens of all texts."""
    found = text_perplexity(llama.model, TEXTS, progress=False)
    per_text = [expected(llama, text) for text in TEXTS]
    sizes = [min(len(llama.tokenizer(text)["input_ids"]), 50) - 1 for text in TEXTS]
    corpus = math.exp(sum(nll * size for nll, size in zip(per_text, sizes, strict=True)) / sum(sizes))
    assert found["perplexity"].mean() == pytest.approx(sum(map(math.exp, per_text)) / 4, rel=1e-3)
    by_recipe = math.exp((found["nll"] * found["n_tokens"]).sum() / found["n_tokens"].sum())
    assert by_recipe == pytest.approx(corpus, rel=1e-3)
    assert found["perplexity"].mean() != pytest.approx(corpus, rel=1e-2)
