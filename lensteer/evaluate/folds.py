"""Folds: fit on some questions, score the others, and so score every question without having fitted on it.

TruthfulQA has one split. With two folds each half is scored under a steering that was fitted on the other half.

Source: the two-fold protocol of Li et al. 2023, ITI (arXiv 2306.03341).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

Q = TypeVar("Q")


class Fold(NamedTuple, Generic[Q]):
    """One of the folds.

    Attributes:
        fit: the questions of all the other folds.
        test: the questions of this one; no prompt is in both.
        rows: where the test questions stand among those that were given.
    """

    fit: list[Q]
    test: list[Q]
    rows: list[int]


def folds(questions: Sequence[Q], k: int = 2, *, seed: int = 0) -> list[Fold[Q]]:
    """Divide questions (or anything else that has a ``prompt``) into k folds by prompt; each is tested once.

    Activation transport from false to true answers, scored on questions it has not seen, with the examples of the
    primer in front of the scored ones only::

        bare = data.questions("truthful")
        asked = data.questions("truthful", shots=6)
        parts = []
        for fold in folds(bare):
            pairs = answer_pairs(fold.fit)
            false = [f"{pair.prompt} {pair.wrong}" for pair in pairs]
            true = [f"{pair.prompt} {pair.right}" for pair in pairs]
            fitted = transport.fit(model, source=false, target=true, sites="norms")
            scores = truthfulqa(model, [asked[i] for i in fold.rows], fitted.steering())
            parts.append(scores.set_axis(fold.rows))
        table = pd.concat(parts).sort_index()  # one row a question, in their order; mean of mc1, mc2

    A strength that is chosen on the scored questions is still fitted on them: choose it within ``fold.fit``.

    Args:
        seed: another seed divides otherwise; the order of the questions has no part in it.

    Raises:
        ValueError: ``k`` below 2, or fewer different prompts than folds.
    """
    from lensteer.data import split_questions

    asked = cast("Sequence[Any]", questions)
    prompts = {repr(question.prompt) for question in asked}
    if not 2 <= k <= len(prompts):
        raise ValueError(f"k={k}, but there must be 2 folds or more, and a prompt for each; there are {len(prompts)}")
    found = []
    for part in split_questions(asked, {str(number): 1 / k for number in range(k)}, seed=seed).values():
        held_out = {repr(question.prompt) for question in part}
        rows = [i for i, question in enumerate(asked) if repr(question.prompt) in held_out]
        fit = [question for question in asked if repr(question.prompt) not in held_out]
        found.append(Fold(fit, [asked[i] for i in rows], rows))
    return found
