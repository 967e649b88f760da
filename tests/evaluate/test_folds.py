"""Folds over questions, and transport from false to true answers scored on questions it has not seen."""

from __future__ import annotations

import pandas as pd
import pytest

from lensteer import Question, data, transport
from lensteer.answers import answer_pairs
from lensteer.evaluate import folds, truthfulqa

QUESTIONS = [Question(f"Q: {i // 2}?\nA:", ("yes", f"no {i}"), (0,)) for i in range(14)]  # every prompt twice


@pytest.mark.parametrize("k", [2, 3, 7])
def test_every_question_is_tested_once_and_its_prompt_never_fitted_on(k: int) -> None:
    found = folds(QUESTIONS, k)
    assert len(found) == k
    assert sorted(i for fold in found for i in fold.rows) == list(range(14))
    for fold in found:
        assert fold.test == [QUESTIONS[i] for i in fold.rows]
        assert fold.fit == [question for question in QUESTIONS if question not in fold.test]
        assert not {q.prompt for q in fold.fit} & {q.prompt for q in fold.test}
        assert len({q.prompt for q in fold.test}) in (7 // k, 7 // k + 1)


def test_the_seed_divides_and_the_order_of_the_questions_does_not() -> None:
    first = {q.options for q in folds(QUESTIONS)[0].test}
    assert first == {q.options for q in folds(QUESTIONS[::-1])[0].test}
    assert any(first != {q.options for q in folds(QUESTIONS, seed=seed)[0].test} for seed in (1, 2, 3))


@pytest.mark.parametrize("k", [1, 8])
def test_folds_that_cannot_be_had_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k={k}, but .* a prompt for each; there are 7"):
        folds(QUESTIONS, k)


def test_truthfulness_across_folds_as_the_docstring_says(fresh) -> None:
    model = fresh("gemma2", max_position_embeddings=1024).model
    bare, asked = data.questions("truthful", n=8), data.questions("truthful", n=8, shots=6)
    parts = []
    for fold in folds(bare):
        pairs = answer_pairs(fold.fit)
        false = [f"{pair.prompt} {pair.wrong}" for pair in pairs]
        true = [f"{pair.prompt} {pair.right}" for pair in pairs]
        fitted = transport.fit(model, source=false, target=true, sites="norms", progress=False)
        scores = truthfulqa(model, [asked[i] for i in fold.rows], fitted.steering(), progress=False)
        parts.append(scores.set_axis(fold.rows))
    table = pd.concat(parts).sort_index()
    assert table.index.tolist() == list(range(8))
    assert table["prompt"].tolist() == [question.prompt for question in asked]
    plain = truthfulqa(model, asked, progress=False)
    assert (table["mc2"] - plain["mc2"]).abs().max() > 1e-3
