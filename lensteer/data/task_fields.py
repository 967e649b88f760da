"""Fields of a row: texts, lists of options in the shapes that public sets use, and the number of the right one.

All of them take a row with the words that say where it is, and name both and the field where something is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lensteer.data.loaders import _names
from lensteer.messages import short

Row = tuple[str, dict[str, Any]]
_LINE = re.compile(r"^([A-Z])[.)] ", re.MULTILINE)
_MISSING = object()


def value_at(located: Row, names: Sequence[str], default: Any = _MISSING) -> Any:
    """The value of the first of these fields that the row has; "a.b" is field b of field a.

    Raises:
        ValueError: none of them, and no default.
    """
    where, row = located
    for name in names:
        value: Any = row
        for part in name.split("."):
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            return value
    if default is not _MISSING:
        return default
    raise ValueError(f"{where}: no field {' or '.join(map(repr, names))}; there are {_names(row)}")


def text_of(located: Row, name: str) -> str:
    """A text that is not empty, without white space around it.

    Raises:
        ValueError: no such field, an empty one, or something else than text or a number.
    """
    value = value_at(located, (name,))
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    raise ValueError(f"{located[0]}: field {name!r} is {short(value)}; it must be text that is not empty")


def listed(located: Row, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Letters and texts of options that stand in one field: a list, or text with lines "A. ...", "B. ...".

    Raises:
        ValueError: no such field, another shape, no options or an empty one.
    """
    value, field = value_at(located, names), " or ".join(map(repr, names))
    if isinstance(value, str):
        parts = _LINE.split(value)[1:]
        letters, texts = parts[::2], parts[1::2]
    elif isinstance(value, Sequence):
        texts = [str(text) for text in value]
        letters = [chr(ord("A") + i) for i in range(len(texts))]
    else:
        letters, texts = [], []
    texts = [text.strip() for text in texts]
    if not texts or not all(texts):
        raise ValueError(
            f"{located[0]}: field {field} is {short(value)}; it must be a list of options or lines 'A. ...', none empty"
        )
    return letters, texts


def number_of(located: Row, names: Sequence[str], letters: Sequence[str], texts: Sequence[str], first: int) -> int:
    """The number (from 0) of the right option, which a row may give as letter, "B. text", number or text.

    Text such as "1" is the option that says so, if there is one, and else a number; a number is always a number.

    Args:
        first: the number that the first option has in the row.

    Raises:
        ValueError: no such field, or a value that is no option.
    """
    value = value_at(located, names)
    said = str(value).strip()
    letter = re.fullmatch(r"([A-Z])(?:[.)] .*)?", said, re.DOTALL)
    number = -1
    if isinstance(value, str) and letter and letter[1] in letters:
        number = list(letters).index(letter[1])
    elif isinstance(value, str) and list(texts).count(said) == 1:
        number = list(texts).index(said)
    elif not isinstance(value, bool) and re.fullmatch(r"\d+", said):
        number = int(said) - first
    elif said in texts:
        number = list(texts).index(said)
    if not 0 <= number < len(texts):
        ways = f"{first} to {first + len(texts) - 1}, {', '.join(letters)}, or one of the texts"
        raise ValueError(
            f"{located[0]}: the answer {short(value)} (field {' or '.join(map(repr, names))}) is none of {ways}"
        )
    return number


def right_and_wrong(
    located: Row, right: Sequence[str], wrong: str, all_right: Sequence[str], labelled: str | None = None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Options from lists of right and of wrong answers, the right ones first, and the numbers of those.

    Args:
        right: the fields whose answers become options; all_right: every field that holds right ones. What is in one of
            those and in ``wrong`` is left out.
        labelled: a field that may hold both instead: choices, and a label 1 or 0 for each.

    Raises:
        ValueError: a missing field, one that is neither text nor a list of texts, or a side without answers.
    """
    if labelled:
        value_at(located, (wrong, labelled))  # where there is neither, the error names both
    if labelled and wrong not in located[1]:
        choices, field = _texts(located, f"{labelled}.choices"), f"{labelled}.labels"
        labels = value_at(located, (field,))
        if not isinstance(labels, Sequence) or len(labels) != len(choices) or any(own not in (0, 1) for own in labels):
            raise ValueError(f"{located[0]}: field {field!r} is {short(labels)}; it must hold 1 or 0 for each choice")
        bad, good = ([text for text, own in zip(choices, labels, strict=True) if own == side] for side in (0, 1))
        contradictory = set(good) & set(bad)
    else:
        bad = _texts(located, wrong)
        contradictory = {text for name in all_right for text in _texts(located, name)} & set(bad)
        good = [text for name in right for text in _texts(located, name)]
    sides = [list(dict.fromkeys(t for t in side if t not in contradictory)) for side in (good, bad)]
    for side, what in zip(sides, ("right", "wrong"), strict=True):
        if not side:
            raise ValueError(f"{located[0]}: no {what} answer that is not listed on the other side as well")
    return (*sides[0], *sides[1]), tuple(range(len(sides[0])))


def _texts(located: Row, name: str) -> list[str]:
    value = value_at(located, (name,))
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, Sequence) and texts and all(isinstance(text, str) and text.strip() for text in texts):
        return [text.strip() for text in texts]
    raise ValueError(f"{located[0]}: field {name!r} is {short(value)}; it must hold answers, none empty")
