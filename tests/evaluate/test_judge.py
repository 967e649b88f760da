"""The judge, against one plain forward pass for every answer."""

from __future__ import annotations

import math

import oracles
import pandas as pd
import pytest

from lensteer.evaluate import judge

QUESTION = "Is this rude? {text}"
SYSTEM = "You judge texts."
TEXTS = ["You fool!", "Good day to you, and many more {of} them.", "x"]
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<|start|>' + m['role'] + ' ' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>bot ' }}{% endif %}"
)


def rendered(case, text: str, system: str | None = None) -> str:
    """The judge's prompt, written by hand."""
    question = QUESTION.replace("{text}", text)
    if case.tokenizer.chat_template is None:
        return f"Q: {f'{system}{2 * chr(10)}' if system else ''}{question}\nA:"
    front = f"<|start|>system {system}<|end|>" if system else ""
    bos = "<bos>" if case.tokenizer.chat_template.startswith("{{ bos_token }}") else ""
    return f"{bos}{front}<|start|>user {question}<|end|><|start|>bot "


def log_likelihood(case, prompt: str, answer: str) -> float:
    special = case.tokenizer.chat_template is None
    ids = case.tokenizer(prompt, add_special_tokens=special)["input_ids"]
    gap = "" if prompt[-1].isspace() else " "
    answer_ids = case.tokenizer(gap + answer, add_special_tokens=False)["input_ids"]
    return float(oracles.response_log_probs(case.hf, ids, answer_ids).double().sum())


@pytest.mark.parametrize("system", [None, SYSTEM])
@pytest.mark.parametrize("answers", [("Yes", "No"), ("True enough", "Tr")])
def test_the_odds_are_those_of_the_whole_answers(tiny, answers, system) -> None:
    found = judge(tiny.model, TEXTS, QUESTION, system=system, answers=answers, progress=False)
    for row, text in enumerate(TEXTS):
        prompt = rendered(tiny, text, system)
        yes, no = (log_likelihood(tiny, prompt, answer) for answer in answers)
        assert found["log_odds"][row] == pytest.approx(yes - no, abs=2e-3)
        assert found["p_yes"][row] == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-3)
        both = math.exp(no) if answers[0].startswith(answers[1]) else math.exp(yes) + math.exp(no)
        assert found["probability_inside"][row] == pytest.approx(both, rel=5e-3)


def test_swapping_the_answers_turns_the_odds_round(llama) -> None:
    there = judge(llama.model, TEXTS, QUESTION, progress=False)
    back = judge(llama.model, TEXTS, QUESTION, answers=("No", "Yes"), progress=False)
    assert (there["log_odds"].abs() > 1e-2).all()  # both answers are not the same BOS
    assert there["log_odds"].tolist() == pytest.approx((-back["log_odds"]).tolist(), abs=1e-4)
    assert (there["p_yes"] + back["p_yes"]).tolist() == pytest.approx([1.0] * 3)


def test_a_template_without_a_system_message_gets_it_before_the_question(fresh, new_tokenizer) -> None:
    from lensteer import load_model

    case = fresh("llama")
    judging = load_model(case.hf, tokenizer=new_tokenizer(bos=True, chat=NO_SYSTEM))
    found = judge(judging, TEXTS, QUESTION, system=SYSTEM, progress=False)
    by_hand = judge(judging, TEXTS, SYSTEM + "\n\n" + QUESTION, progress=False)
    pd.testing.assert_frame_equal(found, by_hand)
    assert found["log_odds"].tolist() != judge(judging, TEXTS, QUESTION, progress=False)["log_odds"].tolist()


def test_blank_texts_get_nan_and_one_warning_and_change_nothing_else(llama) -> None:
    texts = pd.Series(["", TEXTS[0], " \n", TEXTS[1]], index=list("wxyz"))
    with pytest.warns(UserWarning, match="2 of 4 texts are blank"):
        found = judge(llama.model, texts, lambda text: f"Is this rude? {text.split()[0]}", progress=False)
    alone = judge(llama.model, TEXTS[:2], lambda text: f"Is this rude? {text.split()[0]}", progress=False)
    assert list(found.index) == list("wxyz")
    assert found["p_yes"].isna().tolist() == [True, False, True, False]
    assert found["log_odds"].dropna().tolist() == pytest.approx(alone["log_odds"].tolist(), abs=1e-4)
    with pytest.warns(UserWarning, match="1 of 1 texts are blank"):
        assert judge(llama.model, [""], QUESTION, progress=False)["log_odds"].isna().all()
    assert judge(llama.model, [], QUESTION, progress=False).dtypes.equals(found.dtypes)


@pytest.mark.parametrize(
    ("texts", "question", "options", "error", "words"),
    [
        (["a"], "Is this rude?", {}, ValueError, r"has no \{text\} in it"),
        (["a"], 3, {}, TypeError, r"question must be a string with \{text\} in it, or a function, got 3"),
        (["a"], QUESTION, {"answers": ("Yes",)}, ValueError, r"answers must be two, .* got \('Yes',\)"),
        (["a"], QUESTION, {"answers": "Yes"}, ValueError, r"answers must be two, .* got 'Yes'"),
        (["a"], QUESTION, {"answers": ("Yes", " Yes")}, ValueError, r"equal options"),
        (["a", math.nan], QUESTION, {}, TypeError, r"texts\[1\] is nan"),
        ("a", QUESTION, {}, TypeError, r"texts must be a sequence"),
    ],
)
def test_what_cannot_be_asked_is_refused(llama, texts, question, options, error, words) -> None:
    with pytest.raises(error, match=words):
        judge(llama.model, texts, question, **options, progress=False)


@pytest.mark.filterwarnings("ignore:.*blank")
def test_a_text_that_is_too_long_is_named_by_its_number(llama) -> None:
    with pytest.raises(ValueError, match=r"question 2 \(.*context of 128"):
        judge(llama.model, ["", "a", "b" * 200], QUESTION, progress=False)
