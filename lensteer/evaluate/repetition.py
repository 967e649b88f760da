"""Repetition: does the response say the same thing over and over?

    distinct-n = |different n-grams of words| / |n-grams of words|                     (1: nothing repeats)
    repeated   = |n-grams that occur more than once, each time| / |n-grams of words|   (0: nothing repeats)
    loop share = |longest stretch in which a block follows itself back to back| / |text|   (characters)

Words are lower-cased stretches without white space or ASCII punctuation (apostrophes stay).

Sources: distinct-n, Li et al. 2016 (arXiv 1510.03055); the token that occurs more than 50 times, analyses of
Stolfo et al. 2025 (arXiv 2410.12877). The loop flag is lensteer's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from lensteer.evaluate._inputs import score

if TYPE_CHECKING:
    import pandas as pd

_PUNCTUATION = r"!-&(-/:-@\[-`{-~"  # ASCII punctuation, apostrophe left out
_TOKENS = re.compile(rf"[^\s{_PUNCTUATION}]+|[{_PUNCTUATION}]")
_WORDS = re.compile(rf"[^\s{_PUNCTUATION}]+")
_COLUMNS = {
    "distinct_1": float,
    "distinct_2": float,
    "distinct_3": float,
    "repeated": float,
    "top_count": int,
    "over_repeated": bool,
    "loop_share": float,
    "loop": bool,
}


def repetitions(
    responses: Sequence[str] | pd.Series,
    *,
    n: int = 3,
    max_count: int = 50,
    ignored: Collection[str] = ("the", ",", "."),
    copies: int = 3,
    block: int = 200,
    characters: int = 16,
    share: float = 0.4,
) -> pd.DataFrame:
    """Measure how much each response repeats itself.

    `over_repeated` is the published flag: the most frequent token (a word or a punctuation mark) other than
    `ignored` occurs more than `max_count` times. It needs a long response to be raised.

    `loop` is for short ones. A *loop* is a block of at most `block` characters that follows itself back to
    back, `copies` times or more ("the the the", "and so on, and so on, and so on,", "!!!!!!"); letter case
    and the kind of white space do not count. The flag is raised when the longest loop is at least
    `characters` long and is at least `share` of the response. So "very very very good" inside a paragraph, or
    a ruler of dashes under a heading, raises no flag. What repeats with changes in between (a list in which
    only the number changes) is no loop either: see `repeated` and `distinct_*`.

    Args:
        responses: texts, one per row of the result.
        n: length in words of the n-grams of `repeated`.
        max_count: occurrences of one token that are still allowed.
        ignored: tokens, in lower case, that `top_count` leaves out.
        copies, block, characters, share: the definition of a loop, above.

    Returns:
        `distinct_1`, `distinct_2`, `distinct_3`, `repeated` (NaN where the response has no such n-gram),
        `top_count`, `over_repeated`, `loop_share`, `loop`.

    Raises:
        TypeError: if a response is not a string.
        ValueError: if `n` or `block` is below 1, or `copies` below 2.
    """
    if n < 1 or block < 1 or copies < 2:
        raise ValueError(f"need n >= 1, block >= 1 and copies >= 2, got n={n}, block={block}, copies={copies}")

    def measure(text: str) -> dict[str, Any]:
        words = _WORDS.findall(text.lower())
        tokens = Counter(token for token in _TOKENS.findall(text.lower()) if token not in ignored)
        top_count = max(tokens.values(), default=0)
        length, loop_share = _longest_loop(text, copies, block)
        return {
            **{f"distinct_{size}": _distinct(words, size) for size in (1, 2, 3)},
            "repeated": _repeated(words, n),
            "top_count": top_count,
            "over_repeated": top_count > max_count,
            "loop_share": loop_share,
            "loop": length >= characters and loop_share >= share,
        }

    return score(responses, _COLUMNS, measure)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(words: Sequence[str], n: int) -> float:
    grams = _ngrams(words, n)
    return len(grams) / grams.total() if grams else float("nan")


def _repeated(words: Sequence[str], n: int) -> float:
    grams = _ngrams(words, n)
    return sum(count for count in grams.values() if count > 1) / grams.total() if grams else float("nan")


def _longest_loop(text: str, copies: int, block: int) -> tuple[int, float]:
    """Length in characters of the longest loop, and its share of the text.

    A block of `period` characters repeats just as long as every character equals the one a period later.
    """
    import numpy as np

    normal = " ".join(text.lower().split()) + " "  # the closing blank completes the last copy of "the the the"
    codes = np.frombuffer(normal.encode("utf-32-le"), dtype=np.uint32)
    longest = 0
    for period in range(1, min(block, len(codes) // copies) + 1):
        breaks = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate(([-1], breaks, [len(codes) - period]))
        stretch = int(np.diff(edges).max()) - 1 + period
        if stretch >= copies * period:
            longest = max(longest, stretch)
    return longest, longest / len(normal)
