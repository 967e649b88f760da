"""Source and target sentences out of named subsets: the behaviour to leave, and the one to reach.

The subsets of a side take turns, and so do the sides: each draws the next sentence of its own shuffled list that
nobody has drawn yet. So both sides have the same number, no sentence is on both, the subsets of a side contribute
equally, and a subset that is source and target is shared out. The shuffles depend on the seed and the subset's name,
not on Python's hash seed nor on the order of names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

from lensteer.messages import short


class Sides(NamedTuple):
    """The two sets that a method is fitted on.

    Attributes:
        source: Sentences of the behaviour to leave.
        target: Sentences of the behaviour to reach.
    """

    source: list[str]
    target: list[str]


def sides(
    subsets: Mapping[str, Sequence[str]],
    source: str | Sequence[str],
    target: str | Sequence[str],
    n: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Sides:
    """As many source as target sentences, drawn from named subsets, none of them twice.

    Args:
        subsets: Names to sentences. One that stands twice, in one subset or in several, counts once.
        source: Name or names of the subsets to leave. Several contribute equally (to within one sentence).
        target: Likewise, of those to reach. A name on both sides is shared out between them.
        n: Sentences a side; ``(source, target)`` for unequal sides; None for the most that equal sides can have.
            The first ``n`` of a larger draw are the draw of ``n``.
        seed: Another seed draws other sentences.

    Raises:
        ValueError: No such subset, a side without subsets or with one named twice, ``n`` below 1, or a subset with
            too few sentences; the message names it, its size and what was asked for.
        TypeError: A subset that is one string, or an ``n`` that is no whole number or two.

    Source: Rodriguez et al., arXiv 2410.23054 (sets of source and target sentences).
    """
    lists = {name: _shuffled(subsets[name], name, seed) for name in _known(subsets, source, target)}
    names = _names(source), _names(target)
    wanted = _wanted(n)
    drawn: set[str] = set()
    unread = {name: iter(texts) for name, texts in lists.items()}
    turns = tuple(cycle(side) for side in names)
    result = Sides([], [])
    for i in range(max(wanted) if wanted else sum(map(len, lists.values()))):
        pair = []
        for side, turn in enumerate(turns):
            if wanted and i >= wanted[side]:
                continue
            name = next(turn)
            text = _next(unread[name], drawn)
            if text is None:
                if wanted or i == 0:
                    raise ValueError(_too_few(name, lists, names, wanted, i))
                return result
            pair.append((side, text))
        for side, text in pair:
            result[side].append(text)
    return result


def _next(texts: Iterator[str], drawn: set[str]) -> str | None:
    """The next sentence that nobody has drawn, now drawn; None where the list is used up."""
    text = next((text for text in texts if text not in drawn), None)
    if text is not None:
        drawn.add(text)
    return text


def _shuffled(texts: Sequence[str], name: str, seed: int) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"the subset {name!r} is one string, {short(texts)}; it must be a list of sentences")
    unique = list(dict.fromkeys(texts))
    random.Random(f"{seed}\n{name}").shuffle(unique)  # a string seeds the same in every process
    return unique


def _names(side: str | Sequence[str]) -> list[str]:
    return [side] if isinstance(side, str) else sorted(side)


def _known(subsets: Mapping[str, Sequence[str]], source: str | Sequence[str], target: str | Sequence[str]) -> list[str]:
    """The names of both sides, each once, or an error about the one that is wrong."""
    there = ", ".join(f"{name!r} ({len(texts)})" for name, texts in subsets.items()) or "none"
    for side, given in (("source", _names(source)), ("target", _names(target))):
        if not given:
            raise ValueError(f"the {side} names no subset; there are {there}")
        for name in given:
            if name not in subsets:
                raise ValueError(f"{side}: no subset {name!r}; there are {there}")
            if given.count(name) > 1:
                raise ValueError(f"{side}: the subset {name!r} is named {given.count(name)} times; name it once")
    return sorted({*_names(source), *_names(target)})


def _wanted(n: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if n is None:
        return None
    pair = n if isinstance(n, tuple) else (n, n)
    if len(pair) != 2 or not all(isinstance(count, int) and not isinstance(count, bool) for count in pair):
        raise TypeError(f"n={n!r}: it must be a whole number, two of them (source, target), or None")
    if min(pair) < 1:
        raise ValueError(f"n={n!r}: every side needs at least 1 sentence")
    return pair


def _too_few(
    name: str,
    lists: Mapping[str, list[str]],
    names: tuple[list[str], list[str]],
    wanted: tuple[int, int] | None,
    i: int,
) -> str:
    asked = f"n={wanted[0] if wanted[0] == wanted[1] else wanted}" if wanted else "one sentence a side"
    others = ", ".join(f"{other!r} {len(texts)}" for other, texts in lists.items() if other != name)
    beside = f" (beside it: {others}; a sentence of several subsets is drawn once)" if others else ""
    return (
        f"the subset {name!r} has {len(lists[name])} different sentences{beside}, too few for {asked} from "
        f"source {names[0]} and target {names[1]}; at most {i} a side can be had"
    )
