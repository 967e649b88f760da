"""Self-BLEU: how much do the texts of one set resemble each other?

    self-BLEU(x) = BLEU of x against all the other texts as its references        1: said before, word for word

**Lower is more diverse.** Only diversity is measured: noise scores well, so read it beside a perplexity.

Two figures can be compared only with the same `order`, the same number of references (`n_references`) and texts of
about the same length: more references hold more of a text's n-grams, so more texts make the figure larger.

BLEU is that of NLTK's `sentence_bleu`: n-grams of 1 to `order` words with equal weights, brevity penalty against the
reference closest in length, smoothing method 1 (an order without a match counts 0.1 matches). Words are what NLTK's
Treebank tokenizer finds, in their letter case. The library counts the n-grams of every reference again for every text,
minutes for 1000 texts; here they are counted once and found by an index.

Sources: Zhu et al. 2018, "Texygen" (arXiv 1802.01886); Rodriguez et al., ICLR 2025 (arXiv 2410.23054), Table 7.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from lensteer.evaluate._inputs import table, texts_and_index
from lensteer.messages import needs_extra
from lensteer.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

    Gram = tuple[str, ...]

_COLUMNS = {"self_bleu": float, "n_references": int}
_NO_MATCH = 0.1  # what smoothing counts for an order without a match


def self_bleu(
    texts: Sequence[str] | pd.Series,
    *,
    order: int = 4,
    sample: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """BLEU of every text against the others; the mean of the column is the figure of the set.

    Args:
        texts: one per row of the result. Give the texts of one condition at a time, and without their prompts: a
            prompt that all share makes them alike.
        order: longest n-grams, in words.
        sample: how many others each text is compared with, drawn anew for each; None is all of them. It makes sets of
            different sizes comparable.
        seed: of that draw.

    Returns:
        `self_bleu` (0 to 1) and `n_references` (the texts it was compared with). A blank text is nobody's reference and
        gets NaN, as does the only text that is not blank.

    Raises:
        TypeError: a text that is not a string.
        ValueError: ``order`` or ``sample`` below 1.
        ImportError: without NLTK.
    """
    items, index = texts_and_index(texts, "texts")
    for name, value in (("order", order), ("sample", sample)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    try:
        from nltk.tokenize import NLTKWordTokenizer
    except ImportError as error:
        raise needs_extra("Self-BLEU", "NLTK", error) from error
    words = [NLTKWordTokenizer().tokenize(text) for text in items]
    filled = [i for i, own in enumerate(words) if own]
    rows: list[dict[str, float]] = [{"self_bleu": math.nan, "n_references": 0} for _ in items]
    grams = [[_grams(own, n) for n in range(1, order + 1)] for own in words]
    holders: dict[Gram, dict[int, int]] = defaultdict(dict)
    for i, sizes in enumerate(grams):
        for gram, count in (pair for counted in sizes for pair in counted.items()):
            holders[gram][i] = count
    draw, lengths = random.Random(seed), [len(own) for own in words]
    with progress_bar(len(filled), "self-BLEU", shown=progress, unit="text") as bar:
        for i in filled if len(filled) > 1 else ():
            others = [j for j in filled if j != i]
            if sample is not None and sample < len(others):
                others = draw.sample(others, sample)
            bleu = _bleu(grams[i], lengths[i], holders, set(others), [lengths[j] for j in others])
            rows[i] = {"self_bleu": bleu, "n_references": len(others)}
            bar.update()
    return table(rows, _COLUMNS, index)


def _grams(words: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _bleu(
    grams: Sequence[Counter[Gram]],
    length: int,
    holders: Mapping[Gram, Mapping[int, int]],
    others: Collection[int],
    lengths: Sequence[int],
) -> float:
    """BLEU of a text by its n-grams; ``holders`` says how often each n-gram is in which text."""
    matches = [sum(_clipped(count, holders[gram], others) for gram, count in sizes.items()) for sizes in grams]
    if not matches[0]:
        return 0.0
    closest = min(lengths, key=lambda other: (abs(other - length), other))
    logs = [math.log((m or _NO_MATCH) / max(1, sizes.total())) for m, sizes in zip(matches, grams, strict=True)]
    return math.exp(min(0.0, 1 - closest / length) + math.fsum(logs) / len(logs))


def _clipped(count: int, holders: Mapping[int, int], others: Collection[int]) -> int:
    """The count, or the most that any of the others has of it."""
    most = 0
    for holder, theirs in holders.items():
        if theirs > most and holder in others:
            most = theirs
            if most >= count:
                return count
    return most
