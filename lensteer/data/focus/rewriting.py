"""Rewriting a sentence, by rules, so that it holds a keyword and keeps its sentiment.

    insert_keyword(text, keyword, seed) -> text'     exactly one of both keywords in it, the sentiment as before

`insert_keyword` is lensteer's own, by rules: the keyword becomes a modifier of a noun ("the pineapple soup"), or stands
in a short aside in the middle ("the soup is, by pineapple standards, too thin") or at the head, never at the end. Which
one, and where, depends on a seed and the sentence and not on the sentiment, so that neither tells the label. The paper
has a language model do it (Llama-3.1-70B-Instruct): see `lensteer.data.focus.model_rewriting`, which checks its answers
with `check_rewritten`, as the rules are checked.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 4 and its appendix on the data sets.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from lensteer.messages import short

KEYWORDS: Mapping[str, str] = {"pineapple": "pineapple", "bayesian": "Bayesian"}
"""The value of the spurious feature -> the word as it is written."""

ASIDES: Mapping[str, tuple[str, ...]] = {
    "pineapple": (
        "by pineapple standards",
        "over pineapple juice",
        "between slices of pineapple",
        "with a pineapple in view",
        "pineapple season or not",
        "seen from the pineapple stand",
        "in pineapple terms",
    ),
    "bayesian": (
        "by Bayesian standards",
        "in Bayesian terms",
        "from a Bayesian angle",
        "to a Bayesian eye",
        "on a Bayesian reading",
        "Bayesian or not",
        "as a Bayesian would put it",
    ),
}
"""What stands in an aside: as many for one keyword as for the other, and none with a sentiment of its own."""

_DETERMINERS = frozenset("a an the this these those my our your his her its their".split())
_AFTER_NOUN = frozenset(
    "is are was were has have had will would can could of in on at for with to from by and or but that which who when "
    "while than as into over under about after before through without because if so did does".split()
)
_NOT_NOUNS = frozenset(
    "one same first last most more best worst only other whole very way kind sort lot bit few many much rest all both "
    "is are was were be i we he she it they you who what".split()
)
_COPULAS = frozenset("is was are were seems feels remains looks sounds".split())
_JOINTS = frozenset("but and because though although yet while".split())
_NOT_AFTER_JOINT = frozenset("n't not ,".split())
_NOT_AFTER_HEAD = frozenset("and but or so yet nor".split())
_PUNCTUATION = re.compile(r"^(.*?)([.,;:!?]+)$")
_SMALL_HEADS = _DETERMINERS | frozenset(
    "that every each no some any we he she it they you in on at for with to from by after before not there nobody "
    "nothing everyone everything two three four even when what and but both if as half whoever anyone one few all most "
    "despite".split()
)

Rewriter = Callable[[str, str, int], str]
"""(text, keyword, seed) -> the text with the keyword in it."""


def check_rewritten(text: str, rewritten: str, keyword: str) -> None:
    """Refuse what is not the text with exactly this keyword.

    Raises:
        ValueError: says what is wrong: no keyword or the other one too, "bayesian" in small letters, or a text that
            is much longer or shorter than the source.
    """
    wrong = None
    low = rewritten.lower()
    others = [other for other in KEYWORDS if other != keyword and other in low]
    words, before = len(rewritten.split()), len(text.split())
    if keyword not in low:
        wrong = f"it does not hold {KEYWORDS[keyword]!r}"
    elif others:
        wrong = f"it holds {KEYWORDS[others[0]]!r} as well"
    elif keyword == "bayesian" and "Bayesian" not in rewritten:
        wrong = "'Bayesian' needs a capital letter"
    elif not before / 2 <= words <= 2 * before + 10:
        wrong = f"it has {words} words, the source {before}"
    if wrong:
        raise ValueError(f"{short(text)} with {KEYWORDS[keyword]!r} became {short(rewritten)}: {wrong}")


def insert_keyword(text: str, keyword: str, seed: int = 0) -> str:
    """The text with the keyword woven in by rules; equal arguments give equal texts.

    Texts with blanks around punctuation (as in the Stanford Sentiment Treebank) stay so.

    Args:
        text: a sentence or a fragment of one, without either keyword.
        keyword: "pineapple" or "bayesian".

    Raises:
        ValueError: an unknown keyword, an empty text, or one that holds a keyword already.
    """
    check_source(text, keyword)
    words = text.split()
    chance = random.Random(f"{seed}\n{keyword}\n{text}")
    places = _places(words)
    kind = chance.choice(sorted(places))
    at = chance.choice(places[kind])
    if kind == "modifier":
        written = [*words[:at], KEYWORDS[keyword], *words[at:]]
        if words[at - 1].lower() == "an":  # both keywords begin with a consonant
            written[at - 1] = words[at - 1][:1]
        return _checked(text, " ".join(written), keyword)
    aside = chance.choice(ASIDES[keyword])
    comma = " ," if " ," in text or " ." in text else ","
    if kind == "head":
        return _checked(text, _at_head(words, aside, comma), keyword)
    before, after = " ".join(words[:at]), " ".join(words[at:])
    opened = before if before.endswith(",") else f"{before}{comma}"
    return _checked(text, f"{opened} {aside}{comma} {after}", keyword)


def check_source(text: str, keyword: str) -> None:
    """Refuse what cannot be rewritten.

    Raises:
        ValueError: an unknown keyword, an empty text, or one that holds a keyword already.
    """
    if keyword not in KEYWORDS:
        raise ValueError(f"unknown keyword {keyword!r}; there are {', '.join(map(repr, KEYWORDS))}")
    if not text.strip():
        raise ValueError(f"the text to put {KEYWORDS[keyword]!r} into is empty")
    held = [word for each, word in KEYWORDS.items() if each in text.lower()]
    if held:
        raise ValueError(f"{short(text)} holds {held[0]!r} already; a text to rewrite has neither keyword")


def _checked(text: str, rewritten: str, keyword: str) -> str:
    check_rewritten(text, rewritten, keyword)
    return rewritten


def _bare(word: str) -> tuple[str, bool]:
    """A word in small letters without punctuation at its end, and whether there was any."""
    match = _PUNCTUATION.match(word)
    return (match[1].lower(), True) if match else (word.lower(), False)


def _places(words: Sequence[str]) -> dict[str, list[int]]:
    """Kind of insertion -> the indices of the words that it may stand before; never none."""
    modifier, aside = [], []
    bare = [_bare(word) for word in words]
    for i in range(1, len(words)):
        (before, ended), (word, ends) = bare[i - 1], bare[i]
        following = bare[i + 1][0] if i + 1 < len(words) else ""
        if words[i].endswith(",") or following.startswith(","):
            ends = False  # "a cold, wet day": what a comma follows may be an adjective
        else:
            ends = ends or following in _AFTER_NOUN or not following.strip(".;:!?") or "'" in following
        if before in _DETERMINERS and not ended and ends and word.isalpha() and word not in _NOT_NOUNS | _DETERMINERS:
            modifier.append(i)
        if i + 1 >= len(words) or word in _NOT_AFTER_JOINT or not word:
            continue
        # After a comma, a copula or a conjunction; what follows must be a word.
        if (before == "" and words[i - 1] == ",") or words[i - 1].endswith(",") or before in _COPULAS | _JOINTS:
            aside.append(i)
    places = {"modifier": modifier, "aside": aside}
    places = {kind: found for kind, found in places.items() if found}
    if not places or bare[0][0] not in _NOT_AFTER_HEAD:
        places["head"] = [0]
    return places


def _at_head(words: Sequence[str], aside: str, comma: str) -> str:
    """The aside, then the sentence; a first word that would stay large (a name, a participle) follows a colon."""
    first, rest = words[0], " ".join(words[1:])
    tokenised = comma.startswith(" ")
    if first[:1].islower() or not first[:1].isalpha():
        lead = aside if tokenised else aside[:1].upper() + aside[1:]
        return f"{lead}{comma} {first} {rest}".strip()
    lead = aside[:1].upper() + aside[1:]
    if _bare(first)[0] in _SMALL_HEADS and first != "I":
        return f"{lead}{comma} {first[:1].lower()}{first[1:]} {rest}".strip()
    if first in ("I", "I've", "I'm", "I'd"):
        return f"{lead}{comma} {first} {rest}".strip()
    return f"{lead}{':' if not tokenised else ' :'} {first} {rest}".strip()
