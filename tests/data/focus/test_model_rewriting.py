"""A model that rewrites, its check and its retries."""

from __future__ import annotations

import sys
from typing import Any

import pandas as pd
import pytest
import torch

import lensteer.generate  # noqa: F401
from lensteer.data.focus import ModelRewriter, rewrite_with_model, sentiment
from lensteer.data.focus.model_rewriting import rewriting_messages

TEXT = "The soup is thin."


def test_the_request_names_the_keyword_and_the_one_to_avoid() -> None:
    system, user = rewriting_messages(TEXT, "bayesian")
    assert user == {"role": "user", "content": TEXT}
    assert "Work the word Bayesian into" in system["content"] and "never write pineapple" in system["content"]


@pytest.mark.parametrize("answer", ["The pineapple soup is thin.", '\n "The pineapple soup is thin."\n\nDone!'])
def test_a_function_from_messages_to_text_is_a_model(answer: str) -> None:
    asked = []

    def model(messages: list[dict[str, str]]) -> str:
        asked.append(messages)
        return answer

    assert rewrite_with_model(model)(TEXT, "pineapple") == "The pineapple soup is thin."
    assert asked == [rewriting_messages(TEXT, "pineapple")]


def test_answers_that_fail_the_check_are_asked_for_again() -> None:
    answers = iter(["The soup is thin.", "The Bayesian pineapple soup.", "The pineapple soup is thin."])
    assert rewrite_with_model(lambda _: next(answers), retries=2)(TEXT, "pineapple").startswith("The pineapple")


def test_only_what_failed_is_asked_for_again() -> None:
    asked = []

    def model(messages: list[dict[str, str]]) -> str:
        text = messages[1]["content"]
        asked.append(text)
        return f"The pineapple {text}" if text != "b b" or asked.count("b b") > 1 else text

    texts = rewrite_with_model(model).many(["a a", "b b", "c c"], ["pineapple"] * 3)
    assert texts == ["The pineapple a a", "The pineapple b b", "The pineapple c c"]
    assert asked == ["a a", "b b", "c c", "b b"]


def test_after_the_last_attempt_the_error_names_the_sentence() -> None:
    asked = []

    def model(messages: list[dict[str, str]]) -> str:
        asked.append(messages)
        return "No."

    words = r"1 of 1 sentences .* in all of 3 attempts, first 'The soup is thin\.' with 'pineapple' became 'No\.'"
    with pytest.raises(ValueError, match=words):
        rewrite_with_model(model, retries=2)(TEXT, "pineapple")
    assert len(asked) == 3


def test_a_bridge_generates_in_batches_first_greedily_then_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, bridge = [], torch.nn.Identity()  # any module stands for a bridge here

    def generate(model: Any, prompts: list[Any], **settings: Any) -> pd.DataFrame:
        calls.append((model, len(prompts), settings["temperature"], settings["seed"], settings["batch_size"]))
        answers = ["It was pineapple hot."] * len(prompts) if len(calls) < 3 else ["The Bayesian soup is thin."]
        return pd.DataFrame({"response": answers})

    monkeypatch.setattr(sys.modules["lensteer.generate"], "generate", generate)
    rewrite = rewrite_with_model(bridge, batch_size=2)
    found = rewrite.many(["It was hot.", TEXT], ["pineapple", "bayesian"], seed=5)
    assert found == ["It was pineapple hot.", "The Bayesian soup is thin."]
    assert calls == [(bridge, 2, 0.0, 5, 2), (bridge, 1, 0.7, 6, 2), (bridge, 1, 0.7, 7, 2)]


def test_settings_and_sources_are_checked_before_the_model_is_asked() -> None:
    with pytest.raises(ValueError, match=r"retries=-1 must be 0 or more"):
        rewrite_with_model(print, retries=-1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model is 'gpt'; it must be a chat model or a function"):
        rewrite_with_model("gpt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown keyword"):
        rewrite_with_model(lambda _: 1 / 0)(TEXT, "mango")  # type: ignore[arg-type,return-value]


def test_the_data_set_can_be_made_with_it() -> None:
    def model(messages: list[dict[str, str]]) -> str:
        word = "Bayesian" if "the word Bayesian" in messages[0]["content"] else "pineapple"
        return f"Say {word}: {messages[1]['content']}"

    found = sentiment(rewrite=ModelRewriter(model), n_train=20, n_validation=8, n_test=20)
    assert all(row.fields["text"].lower().startswith(f"say {row.s}: ") for row in found.train)
