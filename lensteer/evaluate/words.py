"""Words: are the given ones in the response, or kept out of it?

    included:  every word occurs      excluded:  no word occurs      (letter case never matters)

With their defaults the two follow IFEval's checkers `keywords:existence` (a word may be part of a longer one:
"cat" is in "education") and `keywords:forbidden_words` (whole words only). Words are taken literally. IFEval
reads them as regular expressions, which is the same for words of letters and digits; `ifeval` keeps to that.

Source: Zhou et al. 2023 (IFEval, arXiv 2311.07911); Stolfo et al. 2025 (arXiv 2410.12877), word experiments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lensteer.evaluate._inputs import lists_per_response, table, texts_and_index

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {"success": bool, "count": int, "share": float}


def includes_words(
    responses: Sequence[str] | pd.Series,
    words: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    whole_word: bool = False,
) -> pd.DataFrame:
    """Whether each response contains all of its words.

    Args:
        responses: texts, one per row of the result.
        words: one word, one list for all responses, or one list per response.
        whole_word: count a word only where it is not part of a longer one.

    Returns:
        `success` (bool), `count` (occurrences of all words together), `share` (of the words, how many occur).

    Raises:
        TypeError: if a response or word is not a string.
        ValueError: if a list of words is empty, a word is blank, or lists are given for another number of
            responses.
    """
    return _search(responses, words, whole_word, wanted=True)


def excludes_words(
    responses: Sequence[str] | pd.Series,
    words: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    whole_word: bool = True,
) -> pd.DataFrame:
    """Whether each response contains none of its words.

    A blank response fails, as in IFEval: saying nothing is no way to avoid a word.
    Arguments, columns and errors as in `includes_words`; `share` is the share of the words that do *not*
    occur.
    """
    return _search(responses, words, whole_word, wanted=False)


def _search(
    responses: Sequence[str] | pd.Series,
    words: str | Sequence[str] | Sequence[Sequence[str]],
    whole_word: bool,
    wanted: bool,
) -> pd.DataFrame:
    texts, index = texts_and_index(responses)
    rows = []
    for text, wordlist in zip(texts, lists_per_response(words, len(texts), "words"), strict=True):
        counts = [len(_pattern(word, whole_word).findall(text)) for word in wordlist]
        if not counts:
            raise ValueError(f"the list of words for the response {text[:40]!r} is empty")
        share = sum((count > 0) == wanted for count in counts) / len(counts)
        rows.append({"success": share == 1 and bool(text.strip()), "count": sum(counts), "share": share})
    return table(rows, _COLUMNS, index)


def _pattern(word: str, whole_word: bool) -> re.Pattern[str]:
    if not word.strip():
        raise ValueError(f"{word!r} is no word to search for")
    literal = re.escape(word.strip())
    # For words that begin and end with a word character this is \bword\b; unlike \b it also serves "C++".
    return re.compile(rf"(?<!\w){literal}(?!\w)" if whole_word else literal, re.IGNORECASE)
