"""Open answers: is the generated text the right answer?

    exact match = normalise(response) is normalise(a) for one of the answers a that are accepted
    normalise   : lower case; punctuation to blanks; without the words a, an, the; single blanks

Source: the evaluation of TriviaQA, Joshi et al. 2017 (arXiv 1705.03551), after SQuAD's.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import items_and_index, table, texts_and_index

if TYPE_CHECKING:
    import pandas as pd

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def exact_match(
    responses: Sequence[str] | pd.Series,
    answers: Sequence[str | Sequence[str]] | pd.Series,
    *,
    part: Literal["first_line", "whole"] = "first_line",
) -> pd.DataFrame:
    """Whether each response is one of its accepted answers.

    Args:
        responses: generated texts, one per row of the result.
        answers: one per response: a text, or a list of the texts that are accepted (aliases).
        part: "first_line" takes the first line with text in it, since a base model goes on with a question of its
            own; "whole" takes everything.

    Returns:
        `success` (bool), `contains` (bool: an accepted answer occurs in it, as whole words), `normalised` (the part of
        the response that was compared). An empty response succeeds at nothing.

    Raises:
        TypeError: a response or an answer that is not text.
        ValueError: not one entry of answers per response, an empty one, or an unknown ``part``.
    """
    texts, index = texts_and_index(responses)
    accepted, _ = items_and_index(answers, "answers")
    if len(accepted) != len(texts):
        raise ValueError(f"{len(texts)} responses but {len(accepted)} answers; give one answer, or list, per response")
    if part not in ("first_line", "whole"):
        raise ValueError(f"part must be 'first_line' or 'whole', got {part!r}")
    aliases = [_aliases(entry, label) for entry, label in zip(accepted, index, strict=True)]
    lines = []
    for text, own in zip(texts, aliases, strict=True):
        said = normalised(_first_line(text) if part == "first_line" else text)
        contains = any(f" {alias} " in f" {said} " for alias in own)
        lines.append({"success": said in own, "contains": contains, "normalised": said})
    return table(lines, {"success": bool, "contains": bool, "normalised": object}, index)


def normalised(text: str) -> str:
    """The text in the form that is compared; one of nothing but articles or punctuation keeps them."""
    plain = unicodedata.normalize("NFC", text).lower()
    words = "".join(" " if _is_punctuation(character) else character for character in plain)
    return " ".join(_ARTICLES.sub(" ", words).split()) or " ".join(plain.split())


def _aliases(entry: Any, label: Any) -> list[str]:
    own = [entry] if isinstance(entry, str) else list(entry) if isinstance(entry, Sequence) else [entry]
    if not own:
        raise ValueError(f"answers[{label!r}] is empty; there must be an answer to compare with")
    for alias in own:
        if not isinstance(alias, str):
            raise TypeError(f"answers[{label!r}] holds {alias!r} ({type(alias).__name__}), expected a string")
        if not alias.strip():
            raise ValueError(f"answers[{label!r}] holds a blank answer, {alias!r}; every response would contain it")
    return [normalised(alias) for alias in own]


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P") or character == "´"
