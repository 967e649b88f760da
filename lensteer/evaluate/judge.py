"""A judge: what does a model answer to a yes-or-no question about each text?

    log odds = log p(Yes | question) − log p(No | question)             natural logarithm
    p_yes    = p(Yes) / (p(Yes) + p(No)) = 1 / (1 + exp(−log odds))

p is the probability of the whole answer, all of its tokens, after the question as the judge's chat template writes it.
Nothing is generated, and what an answer begins with does not matter: for a tokenizer that puts a BOS before every text,
"the first token of the encoded answer" is that BOS for Yes and for No, and such a judge cannot tell them apart.

Source: Rodriguez et al., ICLR 2025 (arXiv 2410.23054), section 4 (zero-shot toxicity, presence of a concept).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import table, texts_and_index

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.prompts import Prompt

_COLUMNS = {"p_yes": float, "log_odds": float, "probability_inside": float}
_PLACE = "{text}"


def judge(
    model: TransformerBridge,
    texts: Sequence[str] | pd.Series,
    question: str | Callable[[str], str],
    *,
    system: str | None = None,
    answers: tuple[str, str] = ("Yes", "No"),
    prompt_format: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a model a yes-or-no question about every text.

        judge(model, table["response"], "Is this text about the sea? {text}\nAnswer Yes or No.")

    Args:
        model: the judge, any model from `lensteer.load_model`; a small one judges badly, so test it on texts whose
            answer is known.
        question: with {text} where the text goes, or a function from the text to the question.
        system: a system message. Where the chat template knows none (Gemma), or there is no template, it stands
            before the question.
        answers: the one that counts as yes, and the other.
        prompt_format: as in `lensteer.generate`, but "auto" is "qa" ("Q: …", "A:") for a model without a chat template.

    Returns:
        `p_yes` (0 to 1), `log_odds` (nats; above 0 is yes), and `probability_inside`: p(Yes) + p(No). Where that is
        small the judge would have said something else, and the rest says little. A blank text is not asked about: it
        gets NaN, and a warning says how many did.

    Raises:
        ValueError: a question without {text}, answers that are not two different texts, or a question that is longer
            than the judge's context with its text (named by the text's number).
        TypeError: a text that is not a string, or a question that is neither a string nor a function.
    """
    from lensteer.answers import Question
    from lensteer.evaluate.multiple_choice import multiple_choice

    items, index = texts_and_index(texts, "texts")
    ask = _asking(question)
    if isinstance(answers, str) or len(answers) != 2:
        raise ValueError(f"answers must be two, the one for yes first, got {answers!r}")
    blank = [not text.strip() for text in items]
    if any(blank):
        warnings.warn(f"{sum(blank)} of {len(items)} texts are blank; the judge has no opinion of them", stacklevel=2)
    if all(blank):
        return table([dict.fromkeys(_COLUMNS, math.nan) for _ in items], _COLUMNS, index)
    frame, prompt_format = _frame(model, system, prompt_format)
    stand_in = next(text for text in items if text.strip())  # so that errors count the texts as the caller does
    asked = [frame(ask(stand_in if empty else text)) for text, empty in zip(items, blank, strict=True)]
    options: dict[str, Any] = {"prompt_format": prompt_format, "batch_size": batch_size, "progress": progress}
    found = multiple_choice(model, [Question(prompt, tuple(answers), (0,)) for prompt in asked], **options)
    rows = [
        dict.fromkeys(_COLUMNS, math.nan) if empty else _odds(yes, no, inside)
        for empty, (yes, no), inside in zip(blank, found["log_likelihoods"], found["probability_inside"], strict=True)
    ]
    return table(rows, _COLUMNS, index)


def _odds(yes: float, no: float, inside: float) -> dict[str, float]:
    odds = yes - no
    # Either form overflows on one side of 0.
    share = 1 / (1 + math.exp(-odds)) if odds > 0 else math.exp(odds) / (1 + math.exp(odds))
    return {"p_yes": share, "log_odds": odds, "probability_inside": inside}


def _asking(question: str | Callable[[str], str]) -> Callable[[str], str]:
    if isinstance(question, str):
        if _PLACE not in question:
            raise ValueError(f"the question {question!r} has no {{text}} in it; write it where the text goes")
        return lambda text: question.replace(_PLACE, text)  # not format: a text may hold braces
    if not callable(question):
        raise TypeError(f"question must be a string with {{text}} in it, or a function, got {question!r}")
    return question


def _frame(model: TransformerBridge, system: str | None, prompt_format: str) -> tuple[Callable[[str], Prompt], str]:
    """From a question to the prompt, and the format that renders it."""
    from lensteer.models import tokenizer_of
    from lensteer.prompts import resolve_format

    tokenizer = tokenizer_of(model)
    if prompt_format == "auto" and not getattr(tokenizer, "chat_template", None):
        prompt_format = "qa"
    if system is None:
        return (lambda question: question), prompt_format
    if resolve_format(tokenizer, prompt_format) == "chat" and _takes_system(tokenizer, system):
        first = {"role": "system", "content": system}
        return (lambda question: [first, {"role": "user", "content": question}]), prompt_format
    return (lambda question: f"{system}\n\n{question}"), prompt_format


def _takes_system(tokenizer: Any, system: str) -> bool:
    """Whether the chat template has a place for a system message; some refuse it, some leave it out."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}, {"role": "user", "content": "?"}]
    try:
        return system.strip() in str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError:
        return False
