"""Perplexity of responses, with and without their prompt, and the paper's filter."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Iterator

import pandas as pd
import pytest
import torch

from lensteer.evaluate import degenerate, perplexity, response_perplexity

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def judge():
    """A tiny GPT-2 with random weights and a window of 24 tokens."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=128, n_positions=24)
    return transformers.GPT2LMHeadModel(config).eval()


def letters(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
    """A tokenizer of one token per character that would put a BOS in front."""
    return {"input_ids": [0] * add_special_tokens + [ord(character) for character in text]}


def one_by_one(model, ids: list[int]) -> float:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return model(tokens, labels=tokens).loss.exp().item()


def test_response_perplexity_equals_the_models_own_loss_one_text_at_a_time(judge) -> None:
    texts = ["a short one", "b", "the longest of them", "ab", "middle size"]
    found = response_perplexity(judge, pd.Series(texts, index=list("vwxyz")), tokenizer=letters)
    expected = [one_by_one(judge, letters(text, False)["input_ids"]) for text in texts]
    assert found.index.tolist() == list("vwxyz")
    assert found["perplexity"].tolist() == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert found["n_tokens"].tolist() == [11, 1, 19, 2, 11]


def test_one_token_has_no_perplexity_and_an_empty_response_has_one(judge) -> None:
    values = response_perplexity(judge, ["x", ""], tokenizer=letters)["perplexity"]
    assert math.isnan(values[0])
    assert values[1] == 1.0


def test_the_last_tokens_of_a_long_response_are_kept(judge) -> None:
    text = "abcdefghijklmnopqrstuvwxyz0123456789"
    in_window = one_by_one(judge, letters(text, False)["input_ids"][-24:])
    last_eight = one_by_one(judge, letters(text, False)["input_ids"][-8:])
    assert response_perplexity(judge, [text], tokenizer=letters)["perplexity"][0] == pytest.approx(in_window, rel=1e-5)
    shorter = response_perplexity(judge, [text], tokenizer=letters, max_tokens=8)
    assert shorter["perplexity"][0] == pytest.approx(last_eight, rel=1e-5)
    assert shorter["n_tokens"][0] == 36


def test_batches_keep_every_response_and_bound_the_padded_tokens(monkeypatch, judge) -> None:
    import importlib

    fluency = importlib.import_module("lensteer.evaluate.fluency")
    monkeypatch.setattr(fluency, "_TOKENS_PER_BATCH", 30)
    batches = fluency._batches({row: [1] * (row % 13 + 2) for row in range(40)})
    assert sorted(row for batch in batches for row in batch) == list(range(40))
    assert max(len(batch) * max(map(len, batch.values())) for batch in batches) <= 30
    texts = ["ab" * (size % 9 + 1) for size in range(20)]
    expected = [one_by_one(judge, letters(text, False)["input_ids"]) for text in texts]
    assert response_perplexity(judge, texts, tokenizer=letters)["perplexity"].tolist() == pytest.approx(
        expected, rel=1e-5
    )


def test_a_window_without_a_next_token_is_refused(judge) -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 2, got 1"):
        response_perplexity(judge, ["ab"], tokenizer=letters, max_tokens=1)


def test_the_filter_flags_low_perplexity_and_not_high() -> None:
    values = pd.Series([1.0, 2.4, 2.5, 900.0, float("nan")], index=list("abcde"))
    flags = degenerate(values)
    assert flags.tolist() == [True, True, False, False, False]
    assert flags.index.tolist() == list("abcde")
    assert degenerate(values.to_frame("perplexity"), threshold=4.0).tolist() == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert degenerate([2.0, 3.0]).tolist() == [True, False]
    with pytest.raises(ValueError, match="no column 'perplexity' in a table with score"):
        degenerate(pd.DataFrame({"score": [1.0]}))


@pytest.fixture
def fake_scoring(monkeypatch) -> Iterator[list[dict]]:
    """`lensteer.scoring` whose model gives every token of a response 1 / length of its prompt."""
    calls: list[dict] = []

    def log_probs(model, prompts, responses, steering=None, **options):
        calls.append({"model": model, "prompts": prompts, "responses": responses, "steering": steering, **options})
        return [
            torch.full((len(text),), -math.log(len(prompt))) for prompt, text in zip(prompts, responses, strict=True)
        ]

    scoring = types.ModuleType("lensteer.scoring")
    scoring.log_probs = log_probs
    monkeypatch.setitem(sys.modules, "lensteer.scoring", scoring)
    yield calls


def test_perplexity_is_the_exponential_of_the_mean_negative_log_probability(fake_scoring) -> None:
    found = perplexity("judge", ["ab", "abcd"], pd.Series(["xyz", "x"], index=[5, 6]), progress=False, batch_size=2)
    assert found.index.tolist() == [5, 6]
    assert found["perplexity"].tolist() == pytest.approx([2.0, 4.0])
    assert found["nll"].tolist() == pytest.approx([math.log(2), math.log(4)])
    assert found["n_tokens"].tolist() == [3, 1]
    assert fake_scoring[0]["steering"] is None
    assert fake_scoring[0]["batch_size"] == 2
    assert fake_scoring[0]["progress"] is False


def test_an_empty_response_has_no_perplexity_given_its_prompt_and_is_not_scored(fake_scoring) -> None:
    found = perplexity("judge", ["ab", "abc", "abcd"], ["", "x", []])
    assert found["perplexity"].isna().tolist() == [True, False, True]
    assert found["n_tokens"].tolist() == [0, 1, 0]
    assert fake_scoring[0]["prompts"] == ["abc"]
    assert perplexity("judge", ["ab"], [""])["n_tokens"].tolist() == [0]
    assert len(fake_scoring) == 1


def test_prompts_and_responses_must_be_as_many(fake_scoring) -> None:
    with pytest.raises(ValueError, match="1 prompts for 2 responses"):
        perplexity("judge", ["a"], ["x", "y"])
    with pytest.raises(TypeError, match="prompts must be a sequence"):
        perplexity("judge", "a", ["x"])


def test_perplexity_through_a_real_model_equals_its_plain_logits(judge) -> None:
    pytest.importorskip("lensteer.scoring")
    load_model = pytest.importorskip("lensteer.models").load_model
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{chr(code): code for code in range(97, 123)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    model = load_model(judge, tokenizer=tokenizer)
    prompts, responses = ["abc", "defghij"], [[97, 99, 101, 103], [122, 98]]
    found = perplexity(model, prompts, responses, progress=False, prompt_format="plain")
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = [ord(character) for character in prompt] + response
        with torch.no_grad():
            scores = judge(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        told = [scores[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))]
        assert found["perplexity"][row] == pytest.approx(math.exp(-sum(told) / len(told)), rel=1e-4)
    assert found["n_tokens"].tolist() == [4, 2]
