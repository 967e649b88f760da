"""Multiple choice: which of its options does the model find most likely, with or without steering?

    log-likelihood(o)  = sum_t log p(o_t | prompt, o_<t)            normalised: / tokens, or / characters, of o
    chosen             = the option with the largest one            correct: it is right
    exact              = the most likely token of the whole vocabulary at each place of the right answer, as text, is it
    probability inside = P(the response starts with one of the options)

What is scored is what the options say. With the answers' texts as options ("Paris", "Rome") long ones are at a
disadvantage, and the normalised score is the one to read. With letters ("A", "B"; the prompt lists what they stand for)
it is the option-letter score: one token each, and both scores agree.

A choice between the options says nothing about how much the model believes in any of them: a steering may break it
and still leave one option ahead. So `exact`, which the whole vocabulary competes for, `probability_inside` and what the
model would have `said` stand beside `correct`. The mean of a column is the accuracy, also within
``table.groupby("group")``.

Source of `exact`: the released code of Wang et al. 2025 (arXiv 2410.12299), whose tables count nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import table
from lensteer.messages import short

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.answers import Question
    from lensteer.hooks import Edit
    from lensteer.prompts import Row
    from lensteer.scoring import Scored
    from lensteer.steering import Steering

    Steered = Iterable[tuple[str, Edit]] | None

_COLUMNS = {
    "question_id": int,
    "group": object,
    "prompt": object,
    "options": object,
    "right": object,
    "log_likelihoods": object,
    "chosen": int,
    "correct": bool,
    "chosen_normalised": int,
    "correct_normalised": bool,
    "exact": bool,
    "probability_inside": float,
    "said": object,
    "said_inside": bool,
}
_IGNORED = re.compile(r"[.;!,?\n]|</s>|<pad>")  # what the released code takes out of a prediction


def multiple_choice(
    model: TransformerBridge,
    questions: Sequence[Question],
    steering: Steered = None,
    *,
    prompt_format: str = "plain",
    length: Literal["tokens", "characters"] = "tokens",
    single_token: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Score every option of every question; a prompt is read once for all of its options.

    Equal scores: the first option is chosen, and it counts as correct only if every option with that score is right.

    Args:
        steering: strengths and values may hold one row per question, which is for all of its options; so does
            ``fitted.steering(k, strength, clean=fitted.read(model, [q.prompt for q in questions],
            prompt_format="plain"))``, SADI as published.
        prompt_format: how the prompts are rendered; "plain" is the raw text, "chat" the tokenizer's template.
        length: what the normalised score divides by.
        single_token: refuse answers of more than one token.

    Returns:
        one row per question: `question_id` (its number), `group`, `prompt`, `options`, `right`; `log_likelihoods` (a
        list, natural logarithm, summed over tokens); `chosen` and `correct`, of these; `chosen_normalised` and
        `correct_normalised`, per token or character; `exact` (for the first right answer, each token predicted from
        the ones before it; without letter case, white space around it and .;!,?); `probability_inside` (an option that
        continues another adds nothing to it, nor does one whose log-likelihood is NaN, which a steering too strong may
        cause); `said` (the most likely first token of the whole vocabulary, as text)
        and `said_inside` (whether an option starts with it).

    Raises:
        TypeError: something that is not a Question, or several steerings.
        ValueError: no questions, a question longer than the context with its answers, an answer that merges with the
            prompt, one of several tokens where that is refused, or a steering for another number of questions.
    """
    options: dict[str, Any] = {"prompt_format": prompt_format, "length": length, "single_token": single_token}
    found = multiple_choice_grid(model, questions, {"": steering}, **options, batch_size=batch_size, progress=progress)
    return found.drop(columns="steering")


def multiple_choice_grid(
    model: TransformerBridge,
    questions: Sequence[Question],
    steerings: Mapping[Any, Steered] | Sequence[Steered],
    *,
    prompt_format: str = "plain",
    length: Literal["tokens", "characters"] = "tokens",
    single_token: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """As `multiple_choice`, under many steerings.

    Those that leave the prompt alone up to its last token (``tokens`` "last", "generated" or `STEPS`) share one
    reading of it, so a grid of them costs little more than one.

    Args:
        steerings: name -> steering, or a list, whose names are its numbers; None is no steering.

    Returns:
        the table of `multiple_choice` for one steering after the other, and a column `steering` with its name.

    Raises:
        TypeError, ValueError: as `multiple_choice`; no steerings, or one where several belong.
    """
    from lensteer.models import tokenizer_of
    from lensteer.scoring import score_options

    if length not in ("tokens", "characters"):
        raise ValueError(f"length must be 'tokens' or 'characters', got {length!r}")
    asked = check_questions(questions)
    tried = _named(steerings, len(asked))
    rows, ids = option_ids(model, asked, prompt_format=prompt_format)
    if single_token:
        _require_single(model, asked, ids)
    scores = score_options(model, rows, ids, list(tried.values()), batch_size=batch_size, progress=progress)
    tokenizer = tokenizer_of(model)
    lines = [
        {"steering": name, "question_id": i, **_line(tokenizer, question, ids[i], own[i], length)}
        for name, own in zip(tried, scores, strict=True)
        for i, question in enumerate(asked)
    ]
    import pandas as pd

    return table(lines, {"steering": object, **_COLUMNS}, pd.RangeIndex(len(lines)))


def check_questions(questions: Sequence[Question]) -> list[Question]:
    """The questions as a list, checked before any work.

    Raises:
        TypeError: not a list, or an entry that is not a `Question`.
        ValueError: none.
    """
    from lensteer.answers import Question

    if isinstance(questions, Question | str) or not isinstance(questions, Iterable):
        raise TypeError(f"questions must be a list of Question, got {type(questions).__name__}")
    asked = list(questions)
    for i, question in enumerate(asked):
        if not isinstance(question, Question):
            raise TypeError(f"question {i} is {question!r}; each is lensteer.Question(prompt, options, right)")
    if not asked:
        raise ValueError("no questions were given; pass at least one")
    return asked


def require_single_token(
    model: TransformerBridge, questions: Sequence[Question], *, prompt_format: str = "plain"
) -> None:
    """Check that every option of every question is one token for this model.

    Raises:
        ValueError: names the first that is not, its tokens and its question; or as `multiple_choice`.
    """
    asked = check_questions(questions)
    _require_single(model, asked, option_ids(model, asked, prompt_format=prompt_format)[1])


def option_ids(
    model: TransformerBridge, questions: Sequence[Question], *, prompt_format: str = "plain"
) -> tuple[list[Row], list[list[list[int]]]]:
    """The tokenised prompts, and the token ids of every option after its prompt: ``[question][option][token]``.

    Raises:
        ValueError: as `multiple_choice`; names the question.
    """
    from lensteer.answers import answer_ids
    from lensteer.models import tokenizer_of
    from lensteer.prompts import context_length, tokenize

    # Cut here, so that it is refused below by its number and its text.
    rows = tokenize(model, [question.prompt for question in questions], prompt_format=prompt_format, truncate=True)
    limit, found = context_length(model), []
    for i, (row, question) in enumerate(zip(rows, questions, strict=True)):
        if len(row) == limit:
            count = len(tokenizer_of(model)(row.text, add_special_tokens=False)["input_ids"])
            raise ValueError(
                f"question {i} ({short(row.text)}) has {count} tokens before its answer, which leaves no room for it "
                f"in the model's context of {limit}; shorten it, or give fewer examples"
            )
        try:
            found.append([answer_ids(model, row, option) for option in question.options])
        except ValueError as error:
            raise ValueError(f"question {i}: {error}") from error
    return rows, found


def _require_single(model: TransformerBridge, questions: Sequence[Question], ids: list[list[list[int]]]) -> None:
    from lensteer.models import tokenizer_of

    for i, (question, own) in enumerate(zip(questions, ids, strict=True)):
        for option, tokens in zip(question.options, own, strict=True):
            if len(tokens) > 1:
                pieces = [str(tokenizer_of(model).decode([token])) for token in tokens]
                raise ValueError(
                    f"the answer {option!r} to question {i} ({short(question.prompt)}) is {len(tokens)} tokens for "
                    f"this model, {pieces}, where one is required; use answers of one token, such as letters"
                )


def _named(steerings: Any, count: int) -> dict[Any, Steering]:
    """Name -> Steering, checked."""
    from lensteer.generate import as_steering
    from lensteer.hooks import Edit
    from lensteer.steering import Steering

    if isinstance(steerings, Steering | str) or not isinstance(steerings, Mapping | Sequence):
        raise TypeError(
            f"steerings must be several, as a mapping or a list, got {type(steerings).__name__}; for a single one "
            "use multiple_choice"
        )
    named = dict(steerings) if isinstance(steerings, Mapping) else dict(enumerate(steerings))
    if not named:
        raise ValueError("no steerings were given; pass at least one (None is no steering)")
    tried = {}
    for name, steering in named.items():
        if isinstance(steering, tuple) and len(steering) == 2 and isinstance(steering[1], Edit):
            raise TypeError(
                f"steerings holds the edit at {steering[0]!r} where a steering belongs; for a single steering use "
                "multiple_choice"
            )
        if isinstance(steering, list | tuple) and any(isinstance(one, Steering) for one in steering):
            raise TypeError("a list of Steerings is no steering; take one of them, or all with multiple_choice_grid")
        tried[name] = as_steering(steering)
        if tried[name].n_rows not in (None, count):
            raise ValueError(
                f"the steering{f' {name!r}' if name != '' else ''} has values for {tried[name].n_rows} questions, but "
                f"{count} were given; make it from these questions' prompts, in this order"
            )
    return tried


def _line(
    tokenizer: Any, question: Question, ids: Sequence[list[int]], scored: Sequence[Scored], length: str
) -> dict[str, Any]:
    values = [float(option.log_probs.double().sum()) for option in scored]
    sizes = [
        len(own) if length == "tokens" else len(text.strip()) for own, text in zip(ids, question.options, strict=True)
    ]
    chosen, correct = _best(values, question.right)
    normalised = [value / size for value, size in zip(values, sizes, strict=True)]
    chosen_normalised, correct_normalised = _best(normalised, question.right)
    answer = tokenizer.decode(scored[question.right[0]].predicted.tolist(), skip_special_tokens=True)
    said = int(scored[0].predicted[0])
    return {
        **{"group": question.group, "prompt": question.prompt, "options": question.options, "right": question.right},
        **{"log_likelihoods": values, "chosen": chosen, "correct": correct},
        **{"chosen_normalised": chosen_normalised, "correct_normalised": correct_normalised},
        "exact": _cleaned(answer) == _cleaned(question.gold),
        "probability_inside": _inside(ids, values),
        "said": str(tokenizer.decode([said])),
        "said_inside": any(own[0] == said for own in ids),
    }


def _best(values: Sequence[float], right: Sequence[int]) -> tuple[int, bool]:
    """The first option with the largest score, and whether all that have it are right; NaN is never the largest."""
    numbers = [-math.inf if math.isnan(value) else value for value in values]
    tied = [i for i, value in enumerate(numbers) if value == max(numbers)]
    return tied[0], set(tied) <= set(right)


def _cleaned(text: str) -> str:
    return _IGNORED.sub("", text).strip().lower()


def _inside(ids: Sequence[list[int]], values: Sequence[float]) -> float:
    """P(starts with an option): what starts with "A B" has started with "A", so it is not counted again.

    NaN, of a steering that overflowed, is no probability: a mean must not be over the questions that survived alone.
    """
    each = {tuple(own): math.exp(p) for own, p in zip(ids, values, strict=True) if not math.isnan(p)}
    total = math.fsum(p for own, p in each.items() if not any(own[:n] in each for n in range(1, len(own))))
    return min(total, 1.0)  # rounding
