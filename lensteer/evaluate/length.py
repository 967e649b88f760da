"""Length: words, sentences, characters, tokens; and whether a count is at most, at least or exactly n.

    words = |parts between white space|     sentences = |Punkt(text)|
    characters = |text|                     tokens = |tokenizer(text)|

Sentences are NLTK's English Punkt sentences, the measure of the paper. Punkt needs data (`punkt_tab`) that
NLTK does not install; where it is absent, and nothing is ever downloaded here, a fallback counts instead and
one warning says so.

The fallback ends a sentence at white space that follows `.`, `!` or `?` and any closing quotes, brackets or
asterisks, except after an abbreviation (Mr., Dr., vs., ...), an initial (J.), a dotted acronym or a number
before a word that does not start with a capital, and an ellipsis. Like Punkt it does not end a sentence at a
line break.

Source: Stolfo et al. 2025 (arXiv 2410.12877), length experiments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from lensteer.evaluate._inputs import items_and_index, table, texts_and_index, warn_once

if TYPE_CHECKING:
    import pandas as pd

Relation = Literal["at most", "at least", "exactly"]

_ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|rev|hon|st|jr|sr|vs|inc|ltd|co|corp|gen|col|sgt|capt|lt|sen|rep|gov|mt|ave|dept"
    "|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|[a-z]"
)
_END = re.compile(r"""([.!?]+)(["'”’»)\]*_]*)\s+(?=(\S))""")
_LAST_WORD = re.compile(r"([^\s\"'“‘«(\[*_]*)$")


def lengths(responses: Sequence[str] | pd.Series, tokenizer: Any | None = None) -> pd.DataFrame:
    """Count words, sentences, characters and, given a tokenizer, tokens of every response.

    Args:
        responses: texts, one per row of the result.
        tokenizer: a Hugging Face tokenizer; tokens are counted without special tokens.

    Returns:
        Integer columns `words`, `sentences`, `characters` and, with a tokenizer, `tokens`.

    Raises:
        TypeError: if a response is not a string.
    """
    texts, index = texts_and_index(responses)
    split = sentence_splitter()
    rows = [{"words": len(text.split()), "sentences": len(split(text)), "characters": len(text)} for text in texts]
    counts = table(rows, {"words": int, "sentences": int, "characters": int}, index)
    if tokenizer is not None:
        counts["tokens"] = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        counts["tokens"] = counts["tokens"].astype(int)
    return counts


def meets_length(
    counts: pd.DataFrame | pd.Series | Sequence[int],
    relation: Relation,
    n: int | Sequence[int] | pd.Series,
    *,
    unit: str = "sentences",
) -> pd.Series:
    """Whether each count is at most, at least or exactly `n`.

    A count of zero meets nothing: an empty response is no short answer.

    Args:
        counts: the result of `lengths` (then `unit` names its column), or the counts themselves.
        relation: "at most", "at least" or "exactly".
        n: a positive whole number, or one per count.
        unit: the column to compare when `counts` is a table.

    Returns:
        A boolean Series named `success`, with the index of `counts`.

    Raises:
        ValueError: for an unknown relation or unit, an `n` below 1 or of the wrong number.
    """
    import pandas as pd

    if isinstance(counts, pd.DataFrame):
        if unit not in counts.columns:
            raise ValueError(f"unit {unit!r} is not a column of counts; it has {', '.join(map(str, counts.columns))}")
        counts = counts[unit]
    values, index = items_and_index(counts, "counts")
    limits = items_and_index(n, "n")[0] if hasattr(n, "__len__") else [n] * len(values)
    if len(limits) != len(values):
        raise ValueError(f"n has {len(limits)} values for {len(values)} counts; give one number, or one per count")
    if any(limit < 1 or limit != int(limit) for limit in limits):
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
    if relation not in _COMPARE:
        raise ValueError(f"unknown relation {relation!r}; use 'at most', 'at least' or 'exactly'")
    compare = _COMPARE[relation]
    met = [value > 0 and compare(value, limit) for value, limit in zip(values, limits, strict=True)]
    return pd.Series(met, index=index, name="success", dtype=bool)


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "at most": lambda count, n: count <= n,
    "at least": lambda count, n: count >= n,
    "exactly": lambda count, n: count == n,
}


def split_sentences(text: str) -> list[str]:
    """The sentences of one text: Punkt's, or the fallback's where Punkt has no data (see the module)."""
    return sentence_splitter()(text)


def sentence_splitter() -> Callable[[str], list[str]]:
    """Punkt's English splitter, or the fallback with one warning that names what is missing."""
    try:
        return _punkt().tokenize
    except (ImportError, LookupError, OSError) as error:
        missing = (
            "NLTK is not installed" if isinstance(error, ImportError) else "NLTK's punkt_tab data is not usable here"
        )
        warn_once(
            f"{missing}: sentences are counted by lensteer's own rules, a few per cent off Punkt's."
            ' For Punkt: pip install "lensteer[eval]", then python -m nltk.downloader punkt_tab.'
        )
        return _split_by_rule


@cache
def _punkt() -> Any:
    """NLTK's Punkt tokenizer; a failure is not cached, so data installed later is found."""
    from nltk.tokenize import PunktTokenizer

    return PunktTokenizer("english")


def _split_by_rule(text: str) -> list[str]:
    """The fallback splitter (see the module's head)."""
    sentences, start = [], 0
    for match in _END.finditer(text):
        if _ends_sentence(text[start : match.start()], match[1], match[3]):
            sentences.append(text[start : match.end(2)].strip())
            start = match.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


def _ends_sentence(before: str, marks: str, following: str) -> bool:
    """Whether `marks` after `before` end a sentence, given the first character that follows."""
    if marks != ".":
        return not marks.endswith("..")  # "!" and "?" do, an ellipsis does not
    found = _LAST_WORD.search(before)
    word = found[1].lower() if found else ""
    if _ABBREVIATION.fullmatch(word):
        return False
    if "." in word or word.isdigit():
        return not following.islower()
    return True
